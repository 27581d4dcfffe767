"""Tables of retrievers alone: metrics by length of the list, and example users."""

from trec_semid.report.content import Example, Report
from trec_semid.report.definitions import RETRIEVAL_METRICS
from trec_semid.report.tables import METRIC_CAPTION, Block, Cell, Column, Table, estimate_cell
from trec_semid.report.words import NONE, count, figure, shortened, things

BEAM_CAPTION = (
    "Beam search against exact scores: share of the first N items by exact scores that are among the beam's "
    "first N, for the first users of the validation part."
)


def metric_table(report: Report) -> Table:
    """Return recall, NDCG and coverage of every arm, one column per length of the list."""
    metrics = report.scores[0].metrics
    cutoffs = [key.partition("@")[2] for key in metrics if key.startswith("recall@")]
    blocks = [
        Block(
            f"{family.title}, {family.hint}",
            [
                [
                    Cell(arm.name, ("baseline",) if arm.is_baseline else ()),
                    *(
                        estimate_cell(key, metrics[key][arm.name])
                        for key in metrics
                        if key.startswith(family.key)
                    ),
                ]
                for arm in report.arms
            ],
        )
        for family in RETRIEVAL_METRICS
    ]
    return Table(METRIC_CAPTION, [Column("Arm"), *(Column(f"N = {cutoff}") for cutoff in cutoffs)], blocks)


def beam_table(report: Report) -> Table | None:
    """Return how much of the exact lists the beams find; None where no arm says so."""
    arms = [reach for reach in report.reach if reach.beam_agreement]
    if not arms:
        return None
    cutoffs = sorted({cutoff for reach in arms for cutoff in reach.beam_agreement})
    rows = [
        [Cell(reach.arm), *(Cell(figure(reach.beam_agreement.get(cutoff))) for cutoff in cutoffs)]
        for reach in arms
    ]
    columns = [Column("Arm"), *(Column(f"N = {cutoff}") for cutoff in cutoffs)]
    return Table(BEAM_CAPTION, columns, [Block("", rows)])


def example_table(report: Report) -> Table:
    """Return a block per user: how chosen, what came before, and the place of what came next by arm."""
    columns = [Column("What came next"), *(Column(arm.name, "place") for arm in report.arms)]
    blocks = [Block(each.why, _rows(each, report), _before(each)) for each in report.examples]
    return Table("Places in the lists of each arm's first seed; 1 is the first.", columns, blocks)


def _before(each: Example) -> str:
    earlier = [things(each.num_earlier, "earlier item")] if each.num_earlier > 0 else []
    return " → ".join([*earlier, *map(shortened, each.history)]) or "nothing before"


def _rows(each: Example, report: Report) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for target in each.targets:
        places = [target.ranks[arm.name] for arm in report.arms]
        cells = [Cell("not listed" if place is None else count(place)) for place in places]
        rows.append([Cell(shortened(target.title)), *cells])
    if each.num_further:
        further = f"and {things(each.num_further, 'further item')}"
        rows.append([Cell(further), *(Cell(NONE) for _ in report.arms)])
    return rows
