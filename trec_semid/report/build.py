"""Builds the report's content from collected runs, of each kind in its own way."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import count_rows
from trec_semid.evaluation.resampling import choose_draws
from trec_semid.report.arms import ArmRuns, Describing, group_arms, own_config, tokenizer_kind
from trec_semid.report.codebooks import collect_codebooks
from trec_semid.report.collect import Collection, FinishedRun
from trec_semid.report.compare import (
    Measured,
    compare_arms,
    compare_scores,
    compare_strata,
    list_comparisons,
    read_counts,
)
from trec_semid.report.content import Bootstrap, Job, Learning, Plan, Report, RunFacts
from trec_semid.report.headline import write_headline, write_tokenizer_headline
from trec_semid.report.page.parts import Section
from trec_semid.report.ranking import describe_rankers, measure_ranking, ranking_sections, usual_ranker
from trec_semid.report.retrieval import measure_retrieval, retrieval_sections
from trec_semid.report.retrieval_arms import describe_retrievers, first_retriever, retriever_config

LOG = "log.jsonl"
SCALARS = ("train/loss", "valid/", "codes/")
"""What is shown of a log: scalars whose names begin so."""
MAX_POINTS = 200
"""Longer logs are thinned to about this many points."""


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
        learning=[_learning(run, arm.arm.name) for arm in arms for run in arm.runs if run.has(LOG)],
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
            "examples": measured.examples,
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


def _learning(run: FinishedRun, arm: str) -> Learning:
    """Return a run's logged scalars; after a restart a step is logged again, and the later line counts."""
    points: dict[str, dict[int, float]] = {}
    best: int | None = None
    for event in run.events():
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event.get("event") == "best":
            best = step
        for name, value in event.items():
            if name.startswith(SCALARS) and isinstance(value, (int, float)):
                points.setdefault(name, {})[step] = float(value)
    scalars = {name: _thinned(sorted(steps.items()), best) for name, steps in points.items()}
    return Learning(arm=arm, seed=run.seed, scalars=scalars, best_step=best)


def _thinned(points: Sequence[tuple[int, float]], best: int | None) -> list[tuple[int, float]]:
    stride = -(-len(points) // MAX_POINTS)
    shown = range(0, len(points), stride)
    last = len(points) - 1
    return [
        point for index, point in enumerate(points) if index in shown or index == last or point[0] == best
    ]


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
