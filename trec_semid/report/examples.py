"""A few users of a retrieval report: what came before, what came next, and where each arm had it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trec_semid.core.arrays import Ints
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.histories import read_events
from trec_semid.data.retrieval.sequences import SequencesConfig, build_sequences
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.target_positions import TargetPositions
from trec_semid.metrics.target_positions import UNLISTED
from trec_semid.report.content import Example, Report, ShownTarget
from trec_semid.report.page.parts import Block, Cell, Column, Part, Table, Words
from trec_semid.report.words import NONE, count, shortened, things

NUM_RANDOM = 4
MAX_COMPARED = 3
"""Arms beside the baseline for which the largest gain and loss are shown."""
MAX_HISTORY = 4
MAX_TARGETS = 3
LISTED_WITHIN = 100
"""Users are drawn among those for whom an arm has a target this far up."""


EXAMPLE_WORDS = (
    "Some users: what came before, oldest first, and the place of what came next in the list of each arm. "
    f"Users drawn at random are of those for whom some arm has it among its first {LISTED_WITHIN}; users of "
    "the largest gains and losses are extremes. They show what lists are made from, and prove nothing."
)


def choose_examples(
    ranks: Mapping[str, TargetPositions], dataset: Dataset, config: Mapping[str, Any], *, seed: int
) -> list[Example]:
    """Return users drawn at random, and those whose best target moved most; none where items have no title.

    Args:
        ranks: arm -> ranks of one run, of the same targets in every arm; the baseline first.
        dataset: the dataset.
        config: of a run: which events are a user's sequence.
        seed: of the draw.
    """
    titles = item_titles(dataset)
    if titles is None:
        return []
    users = np.unique(next(iter(ranks.values())).user_row)
    chosen = SequencesConfig.model_validate(config.get("sequences", {}))
    sequences = build_sequences(read_events(dataset), chosen, dataset.facts.num_users)
    before = sequences.evaluation_rows("test", MAX_HISTORY)
    examples: list[Example] = []
    for user, why in _choose(ranks, users, seed):
        row = np.searchsorted(before.users, [user])
        history, _ = before.histories.take(row)
        targets = np.flatnonzero(next(iter(ranks.values())).user_row == user)
        examples.append(
            Example(
                why=why,
                history=[titles[item] for item in history],
                num_earlier=int(before.earlier.lengths[row][0]) - len(history),
                targets=[_shown(ranks, int(target), titles) for target in targets[:MAX_TARGETS]],
                num_further=max(0, len(targets) - MAX_TARGETS),
            )
        )
    return examples


def _shown(ranks: Mapping[str, TargetPositions], target: int, titles: Sequence[str]) -> ShownTarget:
    places = {arm: int(targets.position[target]) for arm, targets in ranks.items()}
    item = int(next(iter(ranks.values())).item_row[target])
    return ShownTarget(
        title=titles[item],
        ranks={arm: place if place < UNLISTED else None for arm, place in places.items()},
    )


def item_titles(dataset: Dataset) -> list[str] | None:
    """Return what items are called: their column `title`, else the first column of text; None without any."""
    items = dataset.items()
    texts = [
        field.name
        for field in items.schema
        if field.name != "item_id"
        and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type))
    ]
    if not texts:
        return None
    names = items["title" if "title" in texts else texts[0]].to_pylist()
    return [name or item_id for name, item_id in zip(names, dataset.item_ids.to_pylist(), strict=True)]


def _choose(ranks: Mapping[str, TargetPositions], users: Ints, seed: int) -> Iterator[tuple[int, str]]:
    """Yield users and why each was chosen."""
    best = {arm: _best_rank(targets, users) for arm, targets in ranks.items()}
    listed = np.flatnonzero(np.min(list(best.values()), axis=0) <= LISTED_WITHIN)
    drawn = np.sort(numpy_generator(seed, "example users").permutation(listed)[:NUM_RANDOM])
    taken = {int(row) for row in drawn}
    for row in drawn:
        yield int(users[row]), "Drawn at random"
    (baseline, base), *others = best.items()
    for arm, own in others[:MAX_COMPARED]:
        # In terms of NDCG: a move near the top of a list counts for more than one far down.
        gain = 1 / np.log2(own + 1.0) - 1 / np.log2(base + 1.0)
        for change, verb in ((gain, "gains"), (-gain, "loses")):
            order = np.argsort(-change, kind="stable")
            row = next((int(row) for row in order if int(row) not in taken), None)
            if row is not None and change[row] > 0:
                taken.add(row)
                yield int(users[row]), f"{arm} {verb} most against {baseline}"


def _best_rank(targets: TargetPositions, users: Ints) -> Ints:
    best = np.full(len(users), UNLISTED)
    np.minimum.at(best, np.searchsorted(users, targets.user_row), targets.position)
    return best


def example_parts(report: Report) -> list[Part]:
    """Return what is shown of these users; nothing where there are none."""
    return [Words(EXAMPLE_WORDS), _example_table(report)] if report.examples else []


def _example_table(report: Report) -> Table:
    """Return a block per user: how chosen, what came before, and the place of what came next by arm."""
    columns = [Column("What came next"), *(Column(arm.name, "place") for arm in report.arms)]
    blocks = [Block(each.why, _target_rows(each, report), _before(each)) for each in report.examples]
    return Table("Places in the lists of each arm's first seed; 1 is the first.", columns, blocks)


def _before(each: Example) -> str:
    earlier = [things(each.num_earlier, "earlier item")] if each.num_earlier > 0 else []
    return " → ".join([*earlier, *map(shortened, each.history)]) or "nothing before"


def _target_rows(each: Example, report: Report) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for target in each.targets:
        places = [target.ranks[arm.name] for arm in report.arms]
        cells = [Cell("not listed" if place is None else count(place)) for place in places]
        rows.append([Cell(shortened(target.title)), *cells])
    if each.num_further:
        further = f"and {things(each.num_further, 'further item')}"
        rows.append([Cell(further), *(Cell(NONE) for _ in report.arms)])
    return rows
