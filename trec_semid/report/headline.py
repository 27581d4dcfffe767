"""The answer in plain words, built from the numbers alone."""

from collections.abc import Sequence

from trec_semid.evaluation.comparison import MIN_USERS
from trec_semid.report.content import (
    NOT_DISTINGUISHABLE,
    Codebooks,
    Comparison,
    Report,
    Verdict,
)
from trec_semid.report.definitions import STRATA, metric
from trec_semid.report.words import (
    figure,
    interval,
    listing,
    share,
    signed,
    things,
)

VERDICTS: tuple[Verdict, ...] = ("better", "worse", NOT_DISTINGUISHABLE)


MAX_REPEATED = 24
"""Letters of a name that is said again in full."""
MAX_NAMED = 3
"""Arms that a sentence names; of more it tells the number, and tables and pictures have them all."""


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
