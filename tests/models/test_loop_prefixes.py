import numpy as np
import torch

from trec_semid.data.features import Feature
from trec_semid.data.item_rows import find_item_rows
from trec_semid.data.prefixes import PrefixConfig, prefix_ids, prefix_rows
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.models.loop_prefixes import LoopPrefixes, in_row_order

SIZES, CONFIG = (5, 4, 6), PrefixConfig(lengths=(2, 3), num_rows=40)


def test_older_entries_of_each_row_come_before_its_recent_ones():
    rng = np.random.default_rng(0)
    older_lengths, recent_lengths = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    older = torch.from_numpy(rng.integers(0, 99, (older_lengths.sum(), 2)))
    recent = torch.from_numpy(rng.integers(100, 199, (recent_lengths.sum(), 2)))
    joined = in_row_order(older, torch.from_numpy(older_lengths), recent, torch.from_numpy(recent_lengths))
    expected, o, r = [], 0, 0
    for num_older, num_recent in zip(older_lengths, recent_lengths, strict=True):
        expected += older[o : o + num_older].tolist() + recent[r : r + num_recent].tolist()
        o, r = o + num_older, r + num_recent
    assert joined.tolist() == expected
    assert 0 in older_lengths
    assert 0 in recent_lengths


def test_prefixes_are_those_of_live_codes_but_of_the_map_for_older_history():
    rng = np.random.default_rng(1)
    map_codes, live_codes = (
        np.stack([rng.integers(0, size + 1, 20) for size in SIZES], axis=1) for _ in range(2)
    )
    targets = rng.integers(0, 20, 6)
    histories = [rng.integers(0, 20, length) for length in (3, 0, 1, 5, 2, 0)]
    lengths = np.array([len(history) for history in histories])
    items = find_item_rows(targets, np.concatenate(histories), lengths, num_recent=2, num_padding=1)
    features = [
        Feature(
            f"{entity}_prefix_{length}", f"{entity}_prefix", f"t_{length}", prefix_rows(SIZES, length, 40), p
        )
        for entity in ("item", "history")
        for p, length in enumerate(CONFIG.lengths)
    ]
    batch = keyed_jagged(["user_id"], torch.arange(7), torch.ones(7, dtype=torch.int32))
    codes, older = live_codes[items.rows.numpy()], map_codes[items.older.numpy()]
    added = LoopPrefixes(CONFIG, SIZES, features).add(
        batch, items, torch.from_numpy(codes), torch.from_numpy(older)
    )
    live, mapped = (
        prefix_ids(torch.from_numpy(each), SIZES, CONFIG).numpy() for each in (live_codes, map_codes)
    )
    assert added.keys() == ["user_id", *(feature.name for feature in features)]
    for place, length in enumerate(CONFIG.lengths):
        of_items = added[f"item_prefix_{length}"]
        assert of_items.values()[:6].tolist() == live[targets, place].tolist()
        assert of_items.lengths().tolist() == [1] * 7
        of_history = added[f"history_prefix_{length}"]
        assert of_history.lengths().tolist() == [*lengths.tolist(), 0]
        expected = [
            [*mapped[history[:-2], place].tolist(), *live[history[-2:], place].tolist()]
            for history in histories
        ]
        assert of_history.values().tolist() == [row for rows in expected for row in rows]
