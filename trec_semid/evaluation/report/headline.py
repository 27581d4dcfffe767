"""The answer in plain words, built from the numbers alone."""

from collections.abc import Sequence

from trec_semid.evaluation.report.content import (
    NOT_DISTINGUISHABLE,
    Arm,
    Codebooks,
    Comparison,
    Counts,
    Verdict,
)
from trec_semid.evaluation.report.definitions import HEADLINE, MIN_USERS, STRATA, metric
from trec_semid.evaluation.report.words import (
    count,
    figure,
    listing,
    share,
    signed,
    things,
)

VERDICTS: tuple[Verdict, ...] = ("better", "worse", NOT_DISTINGUISHABLE)


def write_headline(
    arms: Sequence[Arm],
    comparisons: Sequence[Comparison],
    counts: Counts,
    dataset: str,
) -> list[str]:
    """Return the answer first, then the tail of the catalogue, and what was compared on what."""
    return [*_answer(arms, comparisons), *_tail(comparisons), _compared(arms, counts, dataset)]


def write_tokenizer_headline(codebooks: Sequence[Codebooks], dataset: str) -> list[str]:
    """Return the sentences of a report without any ranker."""
    parts = [
        f"{each.name} gives {share(each.quality['unique_share'], 1)} distinct tuples with "
        f"{share(each.quality['utilisation'], 1)} of its codes in use"
        for each in codebooks
    ]
    return [
        f"{things(len(codebooks), 'tokenize run')} on {dataset}: {'; '.join(parts)}.",
        "No rank run is part of this report, so it says nothing about recommendation.",
    ]


def _answer(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> list[str]:
    chosen = [each for each in comparisons if _is(each, None)]
    if not chosen:
        return [_no_answer(arms)]
    name, baseline = metric(HEADLINE).title, chosen[0].baseline
    clauses: list[str] = []
    for verdict in VERDICTS:
        group = sorted(
            (each for each in chosen if each.verdict == verdict), key=lambda each: -each.difference
        )
        if group:
            who = listing([f"{each.arm} ({signed(each.difference)})" for each in group])
            link = "from" if verdict == NOT_DISTINGUISHABLE else "than"
            clauses.append(f"{who} {'is' if len(group) == 1 else 'are'} {verdict} {link} {baseline}")
    return [f"In {name}, {'; '.join(clauses)}.", _how_sure(chosen)]


def _no_answer(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return f"Only one arm, {arms[0].name}, is reported, so there is nothing to compare it with."
    return f"Fewer than {MIN_USERS} test users have rows of both labels: too few to compare the arms in GAUC."


def _how_sure(chosen: Sequence[Comparison]) -> str:
    least, most = (figure(pick([each.smallest_detectable for each in chosen])) for pick in (min, max))
    limit = least if least == most else f"{least} to {most}, depending on the arm"
    return f"The smallest difference that this data could have shown is {limit}."


def _tail(comparisons: Sequence[Comparison]) -> list[str]:
    key = "popularity_tail"
    chosen = [each for each in comparisons if _is(each, key)]
    if not chosen:
        return []
    told = [f"{each.arm} {signed(each.difference)} ({each.verdict})" for each in chosen]
    title = STRATA[key][1].partition(":")[2].strip()
    return [f"On the {title}, {metric(HEADLINE).title} against {chosen[0].baseline}: {listing(told)}."]


def _compared(arms: Sequence[Arm], counts: Counts, dataset: str) -> str:
    seeds = sorted({len(arm.seeds) for arm in arms})
    of_seeds = things(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return (
        f"Compared: {listing([arm.name for arm in arms])}, {of_seeds} each, on the test part of {dataset} "
        f"with {count(counts.rows)} rows of {things(counts.users, 'user')}; {count(counts.gauc_users)} of "
        f"these users have both positive and negative rows, and only they count in GAUC."
    )


def _is(each: Comparison, stratum: str | None) -> bool:
    return each.metric == HEADLINE and each.protocol == "online" and each.stratum == stratum
