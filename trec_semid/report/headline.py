"""The answer in plain words, built from the numbers alone."""

from collections.abc import Sequence

from trec_semid.report.content import (
    NOT_DISTINGUISHABLE,
    Arm,
    Codebooks,
    Comparison,
    Counts,
    Report,
    RowCounts,
    Verdict,
)
from trec_semid.report.definitions import MIN_USERS, STRATA, metric
from trec_semid.report.words import (
    count,
    figure,
    interval,
    listing,
    share,
    signed,
    things,
)

VERDICTS: tuple[Verdict, ...] = ("better", "worse", NOT_DISTINGUISHABLE)


def write_headline(report: Report) -> list[str]:
    """Return the answer first, then the tail of the catalogue, and what was compared on what.

    Args:
        report: all but its headline.
    """
    return [*_answer(report), *_how_sure(report), *_tail(report), _compared(report)]


def write_long_headline(report: Report) -> list[str]:
    """Return the same with a sentence of numbers for every comparison, as retrievers have it."""
    numbers = [_numbers(report, arm) for arm in report.arms[1:]] if _chosen(report, None) else []
    return [*_answer(report), *numbers, *_tail(report), _compared(report)]


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
    name, baseline = _name(report), chosen[0].baseline
    clauses: list[str] = []
    for verdict in VERDICTS:
        group = sorted(
            (each for each in chosen if each.verdict == verdict), key=lambda each: -each.difference
        )
        if group:
            who = listing([f"{each.arm} ({signed(each.difference)})" for each in group])
            link = "from" if verdict == NOT_DISTINGUISHABLE else "than"
            clauses.append(f"{who} {'is' if len(group) == 1 else 'are'} {verdict} {link} {baseline}")
    return [f"In {name}, {'; '.join(clauses)}."]


def _no_answer(report: Report) -> str:
    if len(report.arms) == 1:
        return f"Only one arm, {report.arms[0].name}, is reported, so there is nothing to compare it with."
    which = "have rows of both labels" if isinstance(report.counts, RowCounts) else "have a test item"
    return f"Fewer than {MIN_USERS} test users {which}: too few to compare the arms in {_name(report)}."


def _how_sure(report: Report) -> list[str]:
    limits = [each.smallest_detectable for each in _chosen(report, None)]
    if not limits:
        return []
    least, most = figure(min(limits)), figure(max(limits))
    limit = least if least == most else f"{least} to {most}, depending on the arm"
    told = f"The smallest difference that this data could have shown is {limit}."
    lost = [each for each in _chosen(report, None) if _is_lost_to_correction(each)]
    if not lost:
        return [told]
    who = listing([f"{each.arm} (p {each.p_holm:.3f})" for each in lost])
    among = f"Among {things(len(limits), 'comparison')} it could be chance all the same, as for {who}."
    return [f"{told} {among}"]


def _is_lost_to_correction(each: Comparison) -> bool:
    """Tell whether a difference would count were it the only one that is shown."""
    is_sure = (each.low > 0 or each.high < 0) and abs(each.difference) >= each.smallest_detectable
    return is_sure and each.verdict == NOT_DISTINGUISHABLE


def _numbers(report: Report, arm: Arm) -> str:
    """Return an arm's difference from the baseline at the length of the list that the answer speaks of."""
    _, _, cutoff = (report.headline_metric or "").partition("@")
    told = [
        _difference(report, each)
        for each in report.comparisons
        if each.arm == arm.name and each.metric.endswith(f"@{cutoff}") and each.stratum is None
    ]
    return f"{arm.name} against {report.baseline}: {'; '.join(told)}."


def _difference(report: Report, each: Comparison) -> str:
    values = " against ".join(_level(report, each.metric, arm) for arm in (each.arm, each.baseline))
    return (
        f"{metric(each.metric).title} {values}, a difference of {signed(each.difference)} (95 % interval "
        f"{interval(each.low, each.high, with_sign=True)}; smallest detectable "
        f"{figure(each.smallest_detectable)})"
    )


def _level(report: Report, key: str, arm: str) -> str:
    """Return a metric of an arm with its spread between seeds, where there are several."""
    found = report.scores[0].metrics[key][arm]
    spread = "" if found.sd is None else f" ± {figure(found.sd)}"
    return f"{figure(found.value)}{spread}"


def _tail(report: Report) -> list[str]:
    key = "popularity_tail"
    chosen = _chosen(report, key)
    if not chosen:
        return []
    told = [f"{each.arm} {signed(each.difference)} ({each.verdict})" for each in chosen]
    title = STRATA[key][1].partition(":")[2].strip()
    return [f"On the {title}, {_name(report)} against {chosen[0].baseline}: {listing(told)}."]


def _compared(report: Report) -> str:
    arms = report.arms
    seeds = sorted({len(arm.seeds) for arm in arms})
    of_seeds = things(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    on = f"on the test part of {report.dataset.name} with {_sizes(report.counts)}."
    return f"Compared: {listing([arm.name for arm in arms])}, {of_seeds} each, {on}"


def _sizes(counts: Counts | None) -> str:
    if isinstance(counts, RowCounts):
        return (
            f"{count(counts.rows)} rows of {things(counts.users, 'user')}; {count(counts.gauc_users)} of "
            f"these users have both positive and negative rows, and only they count in GAUC"
        )
    assert counts is not None, "arms have test rows"
    return f"{things(counts.targets, 'test item')} of {things(counts.users, 'user')}"


def _name(report: Report) -> str:
    return metric(report.headline_metric or "").title


def _chosen(report: Report, stratum: str | None) -> list[Comparison]:
    protocol = report.scores[0].protocol
    return [
        each
        for each in report.comparisons
        if (each.metric, each.protocol, each.stratum) == (report.headline_metric, protocol, stratum)
    ]
