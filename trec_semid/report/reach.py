"""How far the lists of arms reach into the catalogue, and which items they lack: `reach.json` of runs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.data.schema import Dataset
from trec_semid.metrics.retrieval import REACH, Absent, ReachFacts, Reason
from trec_semid.report.arms import ArmRuns
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import CatalogueReach, Report
from trec_semid.report.page.parts import Block, Cell, Column, Part, Table, Words
from trec_semid.report.words import NONE, count, figure, shortened

REACH_WORDS = (
    "What the lists of each arm's first seed show of the catalogue, and what they cannot show. An item that "
    "stands behind N others of the very same score is in no list of N, whoever asks, but for a user whose "
    "history has some of the others. An item that is missed is in exact lists of validation users and in "
    "none that the arm's own search makes for them; other users might get it."
)


class _Why(NamedTuple):
    reason: Reason
    title: str
    remedy: str


_WHYS = (
    _Why("duplicate", "Behind N others of the very same score", "tell them apart by more content or codes"),
    _Why("blank", "The same, and nothing is known of them", "give them content, or leave them out"),
    _Why("no_path", "No walk of the index leads there", "build it with more neighbours"),
    _Why("missed", "Missed: exact lists have them", "search wider"),
)


def read_reach(
    arms: Sequence[ArmRuns], dataset: Dataset, titles: Sequence[str] | None
) -> list[CatalogueReach]:
    """Return how far the lists of each arm's first run reach; nothing of runs that do not say it.

    Args:
        arms: of the report.
        dataset: that their items are of.
        titles: of all items; None where they have none, and ids stand for them.

    Raises:
        DataError: a file that no run wrote.
    """
    return [
        CatalogueReach(arm=arm.arm.name, facts=_titled(_facts(arm.runs[0]), dataset, titles))
        for arm in arms
        if arm.runs[0].has(REACH)
    ]


def reach_parts(report: Report) -> list[Part]:
    """Return what is shown of this; nothing where no arm says it."""
    if not report.catalogue:
        return []
    parts: list[Part] = [Words(REACH_WORDS), _reach_table(report.catalogue)]
    if any(each.facts.absent for each in report.catalogue):
        parts.append(_example_table(report.catalogue))
    return parts


def _facts(run: FinishedRun) -> ReachFacts:
    try:
        return ReachFacts.model_validate(run.json(REACH))
    except ValidationError as error:
        file, problem = join(run.uri, REACH), f"not what a run writes: {error.errors()[0]['msg']}"
        raise DataError(problem, file=file, remedy="Run it again, or leave the file out") from None


def _titled(facts: ReachFacts, dataset: Dataset, titles: Sequence[str] | None) -> ReachFacts:
    if titles is None:
        return facts

    def named(absent: Absent) -> Absent:
        """Return it with titles for ids."""
        examples = pa.array(absent.examples, dataset.item_ids.type)
        rows = pc.call_function("index_in", [examples], pc.SetLookupOptions(dataset.item_ids)).to_pylist()
        names = zip(absent.examples, rows, strict=True)
        return absent.model_copy(
            update={"examples": tuple(item if row is None else titles[row] for item, row in names)}
        )

    return facts.model_copy(update={"absent": tuple(map(named, facts.absent))})


def _reach_table(arms: Sequence[CatalogueReach]) -> Table:
    cutoffs = sorted({cutoff for each in arms for cutoff in each.facts.listed})
    blocks = [
        Block(
            "Share of the catalogue in anyone's first N",
            [
                [Cell(each.arm), *(Cell(figure(each.facts.listed.get(cutoff))) for cutoff in cutoffs)]
                for each in arms
            ],
        ),
        *(block for why in _WHYS if (block := _block(why, arms, cutoffs)) is not None),
    ]
    columns = [Column("Arm"), *(Column(f"N = {cutoff}") for cutoff in cutoffs)]
    return Table("The catalogue in lists: shares, then numbers of items.", columns, blocks)


def _block(why: _Why, arms: Sequence[CatalogueReach], cutoffs: Sequence[int]) -> Block | None:
    rows = [
        [Cell(arm), *(Cell(_told(absent.counts.get(cutoff))) for cutoff in cutoffs)]
        for arm, absent in _of_reason(arms, why.reason)
    ]
    return Block(why.title, rows, f"What helps: {why.remedy}.") if rows else None


def _of_reason(arms: Sequence[CatalogueReach], reason: Reason) -> Iterator[tuple[str, Absent]]:
    for each in arms:
        for absent in each.facts.absent:
            if absent.reason == reason:
                yield each.arm, absent


def _told(number: int | None) -> str:
    return NONE if number is None else count(number)


def _example_table(arms: Sequence[CatalogueReach]) -> Table:
    titles = {why.reason: why.title for why in _WHYS}
    rows = [
        [Cell(each.arm), Cell(titles[absent.reason]), Cell(" · ".join(map(shortened, absent.examples)))]
        for each in arms
        for absent in each.facts.absent
    ]
    return Table("Some of these items.", [Column("Arm"), Column("Why"), Column("Items")], [Block("", rows)])
