"""Memory and time of a training step of HyMiRec by the length of its histories, on one CPU.

    .venv/bin/python tools/bench/retrieval/long_history.py

64 histories of made-up events over 20,000 items of an ID and six codes of 256, width 64, four interests, ten
targets a history, the loss over all items. Each row is a process of its own: the most memory resident while
the second step runs (forward and backward, no optimizer), less that before the model reads anything, and
its seconds. `light and refined` reads all events by their codes and the last 50 in full; `refined alone` the
last 50; `refined alone, all in full` every event.
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
from trec_semid.data.retrieval.batches import ItemFeatures, SequenceMaker, Window
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.models.item_tokens import ItemTokens, Listed
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.methods import retriever_of
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.hymirec import HymirecConfig

NUM_ITEMS, DIM, NUM_USERS, WINDOW = 20_000, 64, 64, 10
FEATURES = ItemFeatures((Feature("item_id", "item", "t_item_id", NUM_ITEMS),), Sources({}, None))
ARMS: dict[str, dict[str, Any]] = {
    "light and refined": {},
    "refined alone": {"coarse_interests": 0},
    "refined alone, all in full": {"coarse_interests": 0, "recent": 1000},
}
ROWS = (
    ("light and refined", 100),
    ("light and refined", 1000),
    ("refined alone", 1000),
    ("refined alone, all in full", 1000),
)


def model_of(arm: str, length: int) -> RetrievalModel:
    spec = TableSpec("t_item_id", NUM_ITEMS, ("item_id",))
    tables = CodeTables([CodeTable(f"t_code_{r}", 257) for r in range(6)], DIM)
    live = LiveCodes(tables, torch.randint(0, 256, (NUM_ITEMS, 6)).short())
    sparse = PooledTables([spec], TablesConfig(dim=DIM, init_std=0.02), ["item_id"])
    items = ItemTokens(sparse, {}, live, DIM, content_std=0.02, content_is_unit=True)
    loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.07)
    frame = Frame(DIM, length, loss, predicts_codes=False, window=WINDOW)
    return retriever_of(HymirecConfig.model_validate(ARMS[arm])).build(items, frame)


def resident() -> int:
    """Return the bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(arm: str, length: int) -> None:
    torch.manual_seed(0)
    model, rng = model_of(arm, length), np.random.default_rng(0)
    lengths = np.full(NUM_USERS, length + WINDOW)
    events = rng.integers(0, NUM_ITEMS, lengths.sum())
    windows = Ragged(np.cumsum(lengths) - lengths, lengths, events)
    maker = SequenceMaker(windows, FEATURES, Window(WINDOW, True), listed=np.arange(NUM_ITEMS))
    batch = maker.make(np.arange(NUM_USERS), NUM_USERS, rng)
    listed = Listed(batch.items, keyed_jagged(*FEATURES.of(batch.items.numpy())), None)
    before, most, ended, seconds = resident(), [0], threading.Event(), 0.0

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], resident())

    for _ in range(2):
        start = time.perf_counter()
        model(listed, batch.places)[0]["items"].mean().backward()
        seconds = time.perf_counter() - start
        if not most[0]:  # the first step wakes the libraries up
            threading.Thread(target=watch).start()
    ended.set()
    print(f"| {arm} | {length:,} | {(most[0] - before) / 2**20:,.0f} | {seconds:.1f} |")


def main(arguments: list[str]) -> int:
    if arguments:
        measure(arguments[0], int(arguments[1]))
        return 0
    print("| arm | events | peak of a step, MiB | s |\n|---|---|---|---|", flush=True)
    for arm, length in ROWS:
        subprocess.run([sys.executable, __file__, arm, str(length)], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
