"""What a training step of HyMiRec costs by the length of its histories and by what batches bring, on one CPU.

    .venv/bin/python tools/bench/retrieval/long_history.py

64 histories of made-up events over 100,000 items of an ID, content of 384 numbers and six codes of 256, width
64, four interests, ten targets a history, a loss over 2,048 drawn items. Each row is a process of its own:
what a batch brings of items and histories (content as it is looked up, in float32), the most memory resident
while the second step runs (forward and backward, no optimizer) less that before the model reads anything, and
the least processor seconds of three steps, and of making their batches. `light and refined` reads all events
by learnt rows of their codes and the last 50 in full; `codebook` reads what codes and coefficients rebuild;
`all listed` brings ID and content of every event, as it was before codes alone were brought; `refined alone`
reads the last 50.
"""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SequenceBatch,
    SequenceMaker,
    Window,
    sampled_by_popularity,
)
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.models.item_tokens import ItemTokens, Listed
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.methods import retriever_of
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.hymirec import HymirecConfig
from trec_semid.tokenizers.inputs.contents import Standardised
from trec_semid.tokenizers.maps.compressed import CompressedItems

NUM_ITEMS, DIM, NUM_USERS, WINDOW, CONTENT_DIM, NUM_CODES = 100_000, 64, 64, 10, 384, 6
FEATURES = ItemFeatures((Feature("item_id", "item", "t_item_id", NUM_ITEMS),), Sources({}, None))
ARMS: dict[str, dict[str, Any]] = {
    "light and refined": {},
    "light and refined, codebook": {"light_reads": "codebook"},
    "light and refined, all listed": {},
    "refined alone": {"coarse_interests": 0},
}
ROWS = (
    ("light and refined, all listed", 100),
    ("light and refined", 100),
    ("light and refined, all listed", 1000),
    ("light and refined", 1000),
    ("light and refined, codebook", 1000),
    ("refined alone", 1000),
)


def model_of(arm: str, length: int) -> RetrievalModel:
    spec = TableSpec("t_item_id", NUM_ITEMS, ("item_id",))
    tables = CodeTables([CodeTable(f"t_code_{r}", 257) for r in range(NUM_CODES)], DIM)
    live = LiveCodes(tables, torch.randint(0, 256, (NUM_ITEMS, NUM_CODES)).short())
    sparse = PooledTables([spec], TablesConfig(dim=DIM, init_std=0.02), ["item_id"])
    dims = {"text": CONTENT_DIM}
    items = ItemTokens(sparse, dims, live, DIM, content_std=0.02, content_is_unit=True)
    loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.07)
    compressed = CompressedItems(
        torch.randn(NUM_CODES, 256, CONTENT_DIM),
        torch.randn(NUM_ITEMS, NUM_CODES).half(),
        torch.stack([torch.zeros(NUM_CODES), torch.ones(NUM_CODES)]),
    )
    method = retriever_of(HymirecConfig.model_validate(ARMS[arm]))
    frame = Frame(DIM, length, loss, predicts_codes=False, window=WINDOW)
    return method.build(items, frame._replace(compressed=compressed if method.reads_codebook else None))


def resident() -> int:
    """Return the bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def brought(batch: SequenceBatch, listed: Listed) -> int:
    """Return the bytes of a batch, with the content that is looked up for it."""
    assert batch.features is not None
    assert listed.contents is not None
    parts = [batch.items, *batch.features[1:], *batch.places, *(batch.places.coded or ()), listed.contents.x]
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))


def measure(arm: str, length: int) -> None:
    torch.manual_seed(0)
    model, rng = model_of(arm, length), np.random.default_rng(0)
    in_full = None if "all" in arm else 50
    lengths = np.full(NUM_USERS, length + WINDOW)
    events = rng.integers(0, NUM_ITEMS, lengths.sum())
    windows = Ragged(np.cumsum(lengths) - lengths, lengths, events)
    drawn = sampled_by_popularity(np.bincount(events, minlength=NUM_ITEMS), 2048, 0.75)
    maker = SequenceMaker(windows, FEATURES, Window(WINDOW, True), sampled=drawn, num_in_full=in_full)
    contents = torch.randn(NUM_ITEMS, CONTENT_DIM)
    most, ended, times, size = [0], threading.Event(), [], 0
    before = resident()

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], resident())

    for _ in range(3):
        start = time.process_time()
        batch = maker.make(np.arange(NUM_USERS), NUM_USERS, rng)
        x, present = contents[batch.items], torch.ones(len(batch.items), 1, dtype=torch.bool)
        features = keyed_jagged(*FEATURES.of(batch.items.numpy()))
        listed = Listed(batch.items, features, Standardised(x, present))
        model(listed, batch.places)[0]["items"].mean().backward()
        times.append(time.process_time() - start)
        size = brought(batch, listed)
        if not most[0]:  # the first step wakes the libraries up
            threading.Thread(target=watch).start()
    ended.set()
    peak = (most[0] - before) / 2**20
    print(f"| {arm} | {length:,} | {size / 2**20:.1f} | {peak:,.0f} | {min(times):.2f} |", flush=True)


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    if arguments:
        measure(arguments[0], int(arguments[1]))
        return 0
    print(
        "| arm | events | a batch brings, MiB | peak of a step, MiB | s |\n|---|---|---|---|---|", flush=True
    )
    for arm, length in ROWS:
        subprocess.run([sys.executable, __file__, arm, str(length)], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
