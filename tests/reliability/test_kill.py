"""Every verb is killed at random moments and started again: it comes to what a run comes to that never was.

`pytest tests/reliability --kills 20 --kill-seed 1` draws other and more moments.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import free_port
from tests.reliability.results import READERS, differences, leftovers, results
from tests.reliability.zygote import Zygote
from trec_semid.core.errors import SemidError

pytestmark = pytest.mark.slow
PREPARE = """
name = "shop"
label = {{ kind = "given" }}
split = {{ kind = "global_temporal" }}
[source]
kind = "tables"
interactions = {{ path = "{root}/raw/log.csv", user = "u", item = "i", rating = "y", timestamp = "t" }}
items = {{ path = "{root}/raw/items.jsonl", id = "i" }}
[content.about]
kind = "attributes"
categories = ["kind", "brand"]
"""
TOKENIZE = """
dataset = "{root}/data"
[tokenizer]
kind = "mmq"
codebook_size = 4
[tokenizer.fit]
epochs = 10
"""
RANK = """
dataset = "{root}/data"
semantic_ids = "{root}/codes"
representation = "both"
history = {{ max_len = 8 }}
tables = {{ dim = 8 }}
model = {{ layer_dims = [8], gate_dim = 4 }}
train = {{ batch_size = 128, max_epochs = 2, patience = 2 }}
checkpoints = {{ every_steps = 3 }}
"""
RETRIEVE = """
dataset = "{root}/data"
semantic_ids = "{root}/codes"
sequences = {{ max_len = 12 }}
tables = {{ dim = 8 }}
model = {{ kind = "sasrec", transformer = {{ num_layers = 1, num_heads = 2 }} }}
train = {{ batch_size = 16, max_epochs = 2, patience = 2 }}
evaluation = {{ cutoffs = [5, 10] }}
checkpoints = {{ every_steps = 3 }}
"""
DAILY = """
first_day = 2017-07-15
last_day = 2017-07-17
dataset = "{root}/days/{{day}}"
keep_last = 1
prepare = {{ files = ["{root}/prepare.toml"], set = {{ source.interactions.path = "{root}/raw/days.csv" }} }}
train = {{ files = ["{root}/rank.toml"], set = {{ representation = "item", semantic_ids = "" }} }}
"""
ASSIGN = """
tokenizer = "{root}/codes"
items = "{root}/raw/new.parquet"
"""
EXPORT = """
run = "{root}/ranked"
"""
STUDY = """
seeds = [0]
workers = 1
threads = 1
baseline = "item"
metrics = ["test/auc"]
[[step]]
name = "codes"
verb = "tokenize"
files = ["{root}/tokenize.toml"]
[[step]]
name = "{{arm}}"
verb = "rank"
seeds = true
files = ["{root}/rank.toml"]
set = {{ representation = "{{arm}}", train = {{ max_epochs = 1 }} }}
grid.arm = {{ item = {{ semantic_ids = "" }}, both = {{ semantic_ids = "{{codes}}" }} }}
[[step]]
name = "report"
verb = "report"
"""
CONFIGS = {
    "prepare": PREPARE,
    "tokenize": TOKENIZE,
    "assign": ASSIGN,
    "rank": RANK,
    "retrieve": RETRIEVE,
    "daily": DAILY,
    "export": EXPORT,
    "study": STUDY,
}
EXPENSIVE = ("export", "study")
"""Verbs that start other processes; they, and launches of several ranks, are killed half as often."""
PLACE = {"prepare": "data", "tokenize": "codes", "rank": "ranked"}
"""Where the reference lies that the verbs below read; others lie in a folder of their own name."""


class World:
    """Raw files, a config for each verb, and what each came to without being killed."""

    def __init__(self, root: str, zygote: Zygote) -> None:
        self.root, self.zygote = root, zygote
        self.wall_s: dict[str, float] = {}
        write_raw(Path(root, "raw"))
        for verb, text in CONFIGS.items():
            Path(root, f"{verb}.toml").write_text(text.format(root=root))
        for verb in CONFIGS:
            if verb == "assign":
                write_new_items(root)
            self.end(verb, self.reference(verb))
        self.end("report", self.reference("report"))

    def reference(self, verb: str) -> str:
        """Return the folder of the run that was never killed."""
        return f"{self.root}/{PLACE.get(verb, verb)}"

    def argv(self, verb: str, folder: str) -> list[str]:
        """Return the command after `trec-semid`."""
        if verb == "report":
            return ["report", f"{self.root}/ranked", f"{self.root}/codes", "--out", folder]
        key = "run" if verb in ("tokenize", "rank", "retrieve", "daily") else "out"
        return [verb, f"{self.root}/{verb}.toml", "--set", f"{key}={folder}"]

    def begin(self, verb: str, folder: str, *, ranks: int = 1) -> list[int]:
        """Start the command, on several ranks as torchrun does."""
        of_all = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        envs = [{**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        log = f"{folder.rstrip('/')}.console"
        return self.zygote.begin(self.argv(verb, folder), log, envs if ranks > 1 else [{}])

    def end(self, verb: str, folder: str, *, ranks: int = 1) -> None:
        """Run the command to its end; it has to succeed."""
        self.begin(verb, folder, ranks=ranks)
        ended = self.zygote.wait()
        assert set(ended.codes) == {0}, Path(f"{folder.rstrip('/')}.console").read_text()[-3000:]
        self.wall_s.setdefault(verb, ended.wall_s)


def write_raw(raw: Path) -> None:
    """Write a log in which users like one kind of items."""
    rng = np.random.default_rng(0)
    raw.mkdir()
    items = [{"i": f"i{n}", "kind": f"k{n % 4}", "brand": f"b{n % 3}"} for n in range(24)]
    rows = ["u,i,y,t"]
    for number in range(1500):
        user, item = rng.integers(30), rng.integers(24)
        liked = int(rng.random() < (0.8 if user % 4 == item % 4 else 0.3))
        rows.append(f"u{user},i{item},{liked},{1_500_000_000 + number}")
    (raw / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (raw / "log.csv").write_text("\n".join(rows))
    # The same over four days.
    events = (row.rpartition(",") for row in rows[1:])
    slow = [f"{event},{1_500_000_000 + 200 * (int(time_s) - 1_500_000_000)}" for event, _, time_s in events]
    (raw / "days.csv").write_text("\n".join([rows[0], *slow]))


def write_new_items(root: str) -> None:
    """Write items for `assign`: those of the catalogue under new names."""
    vectors = np.load(f"{root}/data/content/about.npy").astype(np.float32)
    ids = [f"new-{row}" for row in range(len(vectors))]
    table = pa.table({"item_id": ids, "about": pa.array(list(vectors), pa.list_(pa.float32()))})
    pq.write_table(table, f"{root}/raw/new.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    zygote = Zygote()
    try:
        yield World(str(tmp_path_factory.mktemp("world")), zygote)
    finally:
        zygote.close()


def kill_at(
    world: World, verb: str, folder: str, after_s: float, *, ranks: int = 1, spares_children: bool = False
) -> bool:
    """Start the command, kill its processes after so long, and say whether it ran until then.

    A machine that goes down takes all processes, the kernel that is out of memory one: then the processes
    that the verb has started are still there when it is started again.
    """
    pids = world.begin(verb, folder, ranks=ranks)
    time.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        (os.kill if spares_children else os.killpg)(pids[0], signal.SIGKILL)
    return -signal.SIGKILL in world.zygote.wait().codes


def expect_unfinished_or_whole(world: World, verb: str, folder: str) -> None:
    """A reader refuses the folder in words, or finds all that a whole run says."""
    try:
        READERS[verb](folder)
    except (SemidError, FileNotFoundError):
        return
    whole = world.reference(verb)
    assert differences(results(whole, whole), results(folder, folder)) == []


@pytest.mark.parametrize("verb", [*CONFIGS, "report"])
def test_a_verb_that_is_killed_comes_to_what_it_comes_to_otherwise(
    world: World, verb: str, pytestconfig: pytest.Config
):
    kill_often(world, verb, f"{world.root}/killed-{verb}", pytestconfig)


@pytest.mark.ranks
def test_a_launch_of_two_ranks_that_is_killed_comes_to_what_it_comes_to_otherwise(
    world: World, pytestconfig: pytest.Config
):
    whole = f"{world.root}/two-ranks"
    world.end("rank", whole, ranks=2)
    killed = f"{world.root}/killed-two-ranks"
    kill_often(world, "rank", killed, pytestconfig, ranks=2, whole=whole)


def kill_often(
    world: World,
    verb: str,
    folder: str,
    pytestconfig: pytest.Config,
    *,
    ranks: int = 1,
    whole: str | None = None,
) -> None:
    kills = int(pytestconfig.getoption("--kills") or 0)
    seed = int(pytestconfig.getoption("--kill-seed") or 0)
    kills = (kills + 1) // 2 if verb in EXPENSIVE or ranks > 1 else kills
    draw = random.Random(f"{verb} {ranks} {seed}")
    whole = whole or world.reference(verb)
    for number in range(kills):
        after_s = draw.uniform(0, 1.05 * world.wall_s[verb])
        spares_children = verb in EXPENSIVE and number % 2 == 1
        was_killed = kill_at(world, verb, folder, after_s, ranks=ranks, spares_children=spares_children)
        if ranks == 1:
            expect_unfinished_or_whole(world, verb, folder)
        if not was_killed and number < kills - 1:
            shutil.rmtree(folder)
    world.end(verb, folder, ranks=ranks)
    assert differences(results(whole, whole), results(folder, folder)) == []
    assert leftovers(folder) == []
