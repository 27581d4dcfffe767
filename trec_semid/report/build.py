"""Builds the report's content from collected runs, of each kind in its own way, and words the answer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trec_semid.data.schema import Dataset
from trec_semid.evaluation.comparison import MIN_USERS
from trec_semid.evaluation.predictions import count_rows
from trec_semid.evaluation.resampling import choose_draws
from trec_semid.report.arms import (
    ArmRuns,
    Describing,
    describe_rankers,
    describe_retrievers,
    first_retriever,
    group_arms,
    own_config,
    retriever_config,
    tokenizer_kind,
    usual_ranker,
)
from trec_semid.report.collect import Collection
from trec_semid.report.compare import (
    Measured,
    compare_arms,
    compare_scores,
    compare_strata,
    list_comparisons,
    read_counts,
)
from trec_semid.report.content import (
    NOT_DISTINGUISHABLE,
    Bootstrap,
    Codebooks,
    Comparison,
    Job,
    Plan,
    Report,
    RunFacts,
    Verdict,
)
from trec_semid.report.learning import LOG, collect_codebooks, learning_of
from trec_semid.report.page.parts import Section
from trec_semid.report.ranking import measure_ranking, ranking_sections
from trec_semid.report.retrieval import measure_retrieval, retrieval_sections
from trec_semid.report.words import (
    STRATA,
    figure,
    interval,
    listing,
    metric,
    share,
    signed,
    things,
)

VERDICTS: tuple[Verdict, ...] = ("better", "worse", NOT_DISTINGUISHABLE)


MAX_REPEATED = 24
"""Letters of a name that is said again in full."""
MAX_NAMED = 3
"""Arms that a sentence names; of more it tells the number, and tables and pictures have them all."""


class Kind(NamedTuple):
    """A kind of runs."""

    title: str
    """What a report on them is called."""
    arms: Describing
    measure: Callable[[Sequence[ArmRuns], Dataset, Bootstrap], Measured]
    sections: Callable[[Report], list[Section]]


KINDS: dict[Job, Kind] = {
    "rank": Kind(
        "Ranking report",
        Describing(describe_rankers, own_config, usual_ranker),
        measure_ranking,
        ranking_sections,
    ),
    "retrieve": Kind(
        "Retrieval report",
        Describing(describe_retrievers, retriever_config, first_retriever),
        measure_retrieval,
        retrieval_sections,
    ),
}


def build_report(
    collection: Collection,
    *,
    title: str | None = None,
    baseline: str | None = None,
    num_replicates: int = 1000,
    seed: int = 0,
) -> Report:
    """Measure the runs, compare the arms and word the answer.

    Args:
        collection: the runs.
        title: the report's title; None = from the dataset's name.
        baseline: name of the arm that others are compared with; None = the usual one of their kind.
        num_replicates: draws of users behind every interval; large test parts get fewer, and a note.
        seed: of the draws.

    Raises:
        DataError: runs that cannot be compared or whose files do not fit each other.
    """
    dataset = collection.dataset.facts
    kind = KINDS[collection.job] if collection.job else None
    arms = group_arms(collection, kind.arms, baseline) if kind else []
    books = collect_codebooks(collection, arms)
    report = Report(
        job=collection.job,
        title=title or f"Tokenizer report: {dataset.name}",
        headline=write_tokenizer_headline(books, dataset.name),
        dataset=dataset,
        dataset_place=collection.dataset.uri,
        counts=None,
        headline_metric=None,
        bootstrap=Bootstrap(replicates=num_replicates, seed=seed),
        arms=[each.arm for each in arms],
        baseline=arms[0].arm.name if arms else None,
        scores=[],
        comparisons=[],
        strata=[],
        learning=[learning_of(run, arm.arm.name) for arm in arms for run in arm.runs if run.has(LOG)],
        codebooks=books,
        plans=_plans(arms),
        runs=_runs(collection, arms),
        notes=collection.notes,
    )
    return _with_results(report, kind, arms, collection, title) if kind else report


def _with_results(
    report: Report, kind: Kind, arms: Sequence[ArmRuns], collection: Collection, title: str | None
) -> Report:
    """Measure and compare the arms, and word the answer."""
    num_asked = report.bootstrap.replicates
    how = report.bootstrap.model_copy(update={"replicates": _affordable(arms, num_asked)})
    measured = kind.measure(arms, collection.dataset, how)
    compared = compare_arms(arms, measured)
    notes = [*report.notes, *measured.notes, *_draw_notes(how, num_asked), *_seed_notes(arms)]
    measured_report = report.model_copy(
        update={
            "title": title or f"{kind.title}: {report.dataset.name}",
            "counts": read_counts(measured.asked, measured.arms[0][0].counts),
            "headline_metric": measured.asked.headline,
            "bootstrap": how,
            "scores": compare_scores(arms, measured, compared),
            "comparisons": list_comparisons(arms, measured, compared),
            "strata": compare_strata(arms, measured, compared),
            "curves": measured.curves,
            "reach": measured.reach,
            "catalogue": measured.catalogue,
            "examples": measured.examples,
            "separation": measured.separation,
            "interests": measured.interests,
            "notes": notes,
        }
    )
    return measured_report.model_copy(update={"headline": write_headline(measured_report)})


def _affordable(arms: Sequence[ArmRuns], num_asked: int) -> int:
    num_rows = count_rows(arms[0].runs[0].uri, "test")
    num_runs, num_compared = sum(len(arm.runs) for arm in arms), len(arms) - 1
    return choose_draws(num_asked, num_rows, num_runs, num_compared)


def _draw_notes(how: Bootstrap, num_asked: int) -> list[str]:
    if how.replicates == num_asked:
        return []
    if how.replicates > num_asked:
        why = "So many arms are compared that fewer could tell none apart"
    else:
        why = "The test part is large"
    return [f"{why}: {how.replicates:,} draws of users instead of {num_asked:,}."]


def _seed_notes(arms: Sequence[ArmRuns]) -> list[str]:
    seeded = [each for each in arms if each.has_seed]
    few = [each.arm.name for each in seeded if len(each.runs) < 3]
    if not few:
        return []
    every = f"{len(few)} of {len(arms)} arms" if len(few) < len(seeded) else "every arm that a seed changes"
    who = ", ".join(few) if len(few) <= 3 else every
    return [f"Fewer than three seeds for {who}: how much another seed would change is not well known."]


def _plans(arms: Sequence[ArmRuns]) -> list[Plan]:
    users: dict[str, list[tuple[str, str]]] = {}
    for arm in arms:
        for run in arm.runs:
            if run.has("plan.txt"):
                users.setdefault(run.text("plan.txt"), []).append((arm.arm.name, run.name))
    return [
        Plan(text=text, arms=list(dict.fromkeys(arm for arm, _ in by)), runs=[run for _, run in by])
        for text, by in users.items()
    ]


def _runs(collection: Collection, arms: Sequence[ArmRuns]) -> list[RunFacts]:
    compared = [run.facts(arm.arm.name) for arm in arms for run in arm.runs]
    return compared + [run.facts(tokenizer_kind(run)) for run in collection.tokenizers]


def write_headline(report: Report) -> list[str]:
    """Return the answer first, then what was compared on what, how sure it is, and the tail of the catalogue.

    Args:
        report: all but its headline.
    """
    return [*_answer(report), _compared(report), *_how_sure(report), *_numbers(report), *_tail(report)]


def write_tokenizer_headline(codebooks: Sequence[Codebooks], dataset: str) -> list[str]:
    """Return the sentences of a report without any ranker or retriever."""
    parts = [
        f"{each.name} gives {share(each.quality['unique_share'], 1)} distinct tuples with "
        f"{share(each.quality['utilisation'], 1)} of its codes in use"
        for each in codebooks
    ]
    return [
        f"{things(len(codebooks), 'tokenize run')} on {dataset}: {'; '.join(parts)}.",
        "No rank or retrieve run is part of this report, so it says nothing about recommendation.",
    ]


def _answer(report: Report) -> list[str]:
    chosen = _chosen(report, None)
    if not chosen:
        return [_no_answer(report)]
    baseline, base = chosen[0].baseline, chosen[0].baseline
    if (value := report.scores[0].metrics[report.headline_metric or ""][baseline].value) is not None:
        base = f"{baseline} ({figure(value)})"
    clauses: list[str] = []
    for verdict in VERDICTS:
        group = sorted(
            (each for each in chosen if each.verdict == verdict), key=lambda each: -each.difference
        )
        if group:
            who = _some([f"{each.arm} ({signed(each.difference)})" for each in group])
            link = "from" if verdict == NOT_DISTINGUISHABLE else "than"
            verb = "is" if len(group) == 1 else "are"
            clauses.append(f"{who} {verb} {verdict} {link} {_again(baseline) if clauses else base}")
    return [f"In {_name(report)}, {'; '.join(clauses)}."]


def _again(baseline: str) -> str:
    """Return how a baseline is called that was named before."""
    return baseline if len(baseline) <= MAX_REPEATED else "the baseline"


def _some(told: Sequence[str]) -> str:
    """Return what is told of the first arms, and of how many more the same is true."""
    # One more than are named otherwise: 'and 1 others' would save nothing.
    if len(told) <= MAX_NAMED + 1:
        return listing(told)
    return f"{', '.join(told[:MAX_NAMED])} and {len(told) - MAX_NAMED} others"


def _no_answer(report: Report) -> str:
    if len(report.arms) == 1:
        return f"Only one arm, {report.arms[0].name}, is reported, so there is nothing to compare it with."
    assert report.counts is not None, "arms have test rows"
    few = f"Fewer than {MIN_USERS} test users {report.counts.counted}"
    return f"{few}: too few to compare the arms in {_name(report)}."


def _how_sure(report: Report) -> list[str]:
    limits = [each.smallest_detectable for each in _chosen(report, None)]
    if not limits:
        return []
    least, most = figure(min(limits)), figure(max(limits))
    limit = least if least == most else f"{least} to {most}, depending on the arm"
    told = (
        "Better and worse are said of differences beyond chance alone; the smallest that this data could "
        f"have shown is {limit}."
    )
    lost = [each for each in _chosen(report, None) if _is_lost_to_correction(each)]
    if not lost:
        return [told]
    who = _some([f"{each.arm} (p {each.p_holm:.3f})" for each in lost])
    among = f"Among {things(len(limits), 'comparison')} it could be chance all the same, as for {who}."
    return [f"{told} {among}"]


def _is_lost_to_correction(each: Comparison) -> bool:
    """Tell whether a difference would count were it the only one that is shown."""
    is_sure = (each.low > 0 or each.high < 0) and abs(each.difference) >= each.smallest_detectable
    return is_sure and each.verdict == NOT_DISTINGUISHABLE


def _numbers(report: Report) -> list[str]:
    """Return an only arm's differences in all metrics that go with that of the answer.

    Of several arms they would be a wall of numbers before the pictures; the table of differences has them.
    """
    _, _, cutoff = (report.headline_metric or "").partition("@")
    if not cutoff or len(report.arms) != 2:
        return []
    sentences: list[str] = []
    for arm in report.arms[1:]:
        told = [
            _difference(report, each)
            for each in report.comparisons
            if each.arm == arm.name and each.metric.endswith(f"@{cutoff}") and each.stratum is None
        ]
        if told:
            sentences.append(f"{arm.name} against {report.baseline}: {'; '.join(told)}.")
    return sentences


def _difference(report: Report, each: Comparison) -> str:
    values = " against ".join(_level(report, each.metric, arm) for arm in (each.arm, each.baseline))
    return (
        f"{metric(each.metric).title} {values}, a difference of {signed(each.difference)} (95 % interval "
        f"{interval(each.low, each.high, with_sign=True)}; smallest detectable "
        f"{figure(each.smallest_detectable)})"
    )


def _level(report: Report, key: str, arm: str) -> str:
    """Return a metric of an arm with its spread between seeds, where there are several."""
    estimate = report.scores[0].metrics[key][arm]
    spread = "" if estimate.sd is None else f" ± {figure(estimate.sd)}"
    return f"{figure(estimate.value)}{spread}"


def _tail(report: Report) -> list[str]:
    key = "popularity_tail"
    chosen = _chosen(report, key)
    if not chosen:
        return []
    # The verdicts that say most first: of many arms not all are named.
    order = sorted(chosen, key=lambda each: (VERDICTS.index(each.verdict), -each.difference))
    told = [f"{each.arm} {signed(each.difference)} ({each.verdict})" for each in order]
    title = STRATA[key][1].partition(":")[2].strip()
    return [f"On the {title}, {_name(report)} against {_again(chosen[0].baseline)}: {_some(told)}."]


def _compared(report: Report) -> str:
    arms = report.arms
    seeds = sorted({len(arm.seeds) for arm in arms})
    of_seeds = things(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    names = [arm.name for arm in arms]
    who = listing(names) if len(names) <= MAX_NAMED + 2 else f"{len(names)} arms"
    assert report.counts is not None, "arms have test rows"
    on = f"on the test part of {report.dataset.name} with {report.counts.sentence}."
    return f"Compared: {who}, {of_seeds} each, {on}"


def _name(report: Report) -> str:
    return metric(report.headline_metric or "").title


def _chosen(report: Report, stratum: str | None) -> list[Comparison]:
    protocol = report.scores[0].protocol
    return [
        each
        for each in report.comparisons
        if (each.metric, each.protocol, each.stratum) == (report.headline_metric, protocol, stratum)
    ]
