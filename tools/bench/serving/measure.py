"""The server beside a bare uvicorn echo of the same bodies and a naive server, in one run.

    .venv/bin/python tools/bench/serving/measure.py [--rank B] [--retrieve B] [--seconds S] [--json FILE]

Without bundles the engine is drawn numbers (12,101 items, 64 wide). Each of the three is a process of its
own, with one thread; this one makes the load. Contestants take turns. Rank: 200 candidates and a history of
20. Retrieve: the 10 best of all items, history of 20. At a rate: quantiles of the time to the answer.
As many as go: requests/s over 32 connections. Swaps: another bundle every second at the same rate;
the stall is the longest time of a request less the longest of the same load without swaps. Stages: mean times
of a request's parts in our server, as its /metrics tell.
"""

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from load import Client, Loaded, http

from trec_semid.serving.engine import open_engine

HERE = Path(__file__).parent
WORK = {"rank": 200.0, "retrieve": 300.0}
"""Requests/s of the goals."""
CONNECTIONS = 32
RAW = argparse.RawDescriptionHelpFormatter


def requests(kind: str, ids: list[str]) -> list[bytes]:
    """Return 256 requests, drawn from a fixed seed."""
    drawn = np.random.default_rng(1)
    made = []
    for _ in range(256):
        body: dict[str, Any] = {"history": [ids[row] for row in drawn.integers(len(ids), size=20)]}
        if kind == "rank":
            body["candidates"] = [ids[row] for row in drawn.choice(len(ids), size=200, replace=False)]
        else:
            body["n"] = 10
        made.append(http(f"/v1/{kind}", json.dumps(body).encode()))
    return made


@contextmanager
def serving(contestant: str, *words: str) -> Iterator[int]:
    """Start a server; yield its port."""
    command = [sys.executable, str(HERE / "servers.py"), contestant, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("PORT"):
            raise SystemExit(f"{contestant} did not start")
        yield int(line.split()[1])
    finally:
        process.terminate()
        process.wait()


def stages(port: int) -> dict[str, float]:
    """Return the mean of each stage [ms], and the mean size of a batch."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    values = dict(re.findall(r"^(\S+) (\S+)$", page, re.M))
    answered = sum(float(value) for name, value in values.items() if 'requests_total{route="/v1/' in name)
    found = {}
    for stage in ("read", "wait", "engine", "write"):
        total = float(values[f'trec_semid_stage_seconds_total{{stage="{stage}"}}'])
        found[f"{stage}_ms"] = 1000 * total / max(answered, 1)
    found["batch"] = sum_of(values, "sum") / max(sum_of(values, "count"), 1)
    return found


def sum_of(values: dict[str, str], what: str) -> float:
    """Return the sum over kinds of what batches count."""
    name = f"trec_semid_batch_requests_{what}"
    return sum(float(value) for each, value in values.items() if each.startswith(name))


def told(loaded: Loaded) -> dict[str, float]:
    """Return what there is to tell of a load."""
    return {
        "p50_ms": loaded.at(0.5),
        "p99_ms": loaded.at(0.99),
        "max_ms": float(loaded.ms.max()),
        "mean_ms": float(loaded.ms.mean()),
        "requests_per_s": loaded.requests_per_s,
        "failed": loaded.failed,
    }


def measure(contestant: str, kind: str, ids: list[str], words: list[str]) -> dict[str, Any]:
    """Return the times at a rate, and the most requests/s, of one contestant."""
    made = requests(kind, ids)
    found: dict[str, Any] = {}
    for name in ("at_rate", "as_many_as_go"):
        with serving(contestant, *words) as port:
            client = Client(port, made)

            async def ask(client: Client = client, name: str = name) -> Loaded:
                await client.as_many_as_go(4, 1.0)  # warm
                if name == "at_rate":
                    loaded = await client.at_rate(WORK[kind], OPTIONS.seconds)
                else:
                    loaded = await client.as_many_as_go(CONNECTIONS, OPTIONS.seconds)
                client.close()
                return loaded

            found[name] = told(asyncio.run(ask()))
            if contestant == "ours":
                found[name]["stages"] = stages(port)
    return found


def measure_swaps(kind: str, ids: list[str], bundle: str | None, folder: Path) -> dict[str, float]:
    """Return what swaps do to a load: to and fro between two names of a bundle, by a file that names one."""
    made = requests(kind, ids)
    words, _ = place_of(bundle, kind, folder)
    names = [str(folder / f"{kind}-{number}") for number in range(2)]
    for name in names:
        shutil.copytree(words[1], name)
    pointer = folder / f"{kind}-pointer"
    pointer.write_text(names[0])

    async def ask(port: int, num_swaps: int) -> Loaded:
        client = Client(port, made)
        await client.as_many_as_go(4, 1.0)

        async def swap() -> None:
            for number in range(num_swaps):
                await asyncio.sleep(OPTIONS.swap_every)
                (folder / "part").write_text(names[(number + 1) % 2])
                (folder / "part").replace(pointer)

        swapping = asyncio.create_task(swap())
        loaded = await client.at_rate(WORK[kind], OPTIONS.seconds)
        await swapping
        client.close()
        return loaded

    sets = ["--set", "look_every_s=0.05"]
    with serving("ours", words[0], str(pointer), *sets) as port:
        calm = asyncio.run(ask(port, 0))
        num_swaps = int(OPTIONS.seconds / OPTIONS.swap_every) - 1
        swapped = asyncio.run(ask(port, num_swaps))
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    taken = re.search(r'trec_semid_swaps_total{outcome="taken"} (\S+)', page)
    return {
        "swaps": float(taken[1]) if taken else 0.0,
        "failed": swapped.failed,
        "p99_ms": swapped.at(0.99),
        "max_ms": float(swapped.ms.max()),
        "calm_p99_ms": calm.at(0.99),
        "calm_max_ms": float(calm.ms.max()),
        "stall_ms": float(swapped.ms.max() - calm.ms.max()),
    }


def main() -> None:
    """Measure, print and keep."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in OPTIONS.kinds.split(","):
            bundle = getattr(OPTIONS, kind)
            words, ids = place_of(bundle, kind, Path(folder))
            if not OPTIONS.only_swaps:
                compare(kind, ids, words, found)
            if OPTIONS.swaps or OPTIONS.only_swaps:
                found[f"{kind}/swaps"] = swaps = measure_swaps(kind, ids, bundle, Path(folder))
                print(f"{kind}: swaps", {name: round(value, 2) for name, value in swaps.items()})
    if OPTIONS.json:
        Path(OPTIONS.json).write_text(json.dumps(found, indent=1) + "\n")


def compare(kind: str, ids: list[str], words: list[str], found: dict[str, Any]) -> None:
    """Measure the three contestants, and add what they come to."""
    for contestant in ("echo", "naive", "ours"):
        found[f"{kind}/{contestant}"] = measure(contestant, kind, ids, words)
        show(kind, contestant, found[f"{kind}/{contestant}"])
    ours, naive, echo = (found[f"{kind}/{name}"] for name in ("ours", "naive", "echo"))
    most = [each["as_many_as_go"]["requests_per_s"] for each in (ours, naive, echo)]
    print(f"{kind}: {most[0] / most[1]:.2f} x naive, {most[0] / most[2]:.2f} x echo in requests/s")


def place_of(bundle: str | None, kind: str, folder: Path) -> tuple[list[str], list[str]]:
    """Return the words that name a bundle to a contestant, and ids of its items."""
    if bundle:
        engine = open_engine(bundle)
        ids = list(engine.examples(1_000_000))
        engine.close()
        return ["--bundle", bundle], ids
    place = folder / kind
    place.mkdir(exist_ok=True)
    for name in ("manifest.json", "manifest.json.sha256"):
        (place / name).write_text("drawn")
    return ["--pointed", str(place)], [f"B{row:09d}" for row in range(12_101)]


def show(kind: str, contestant: str, found: dict[str, Any]) -> None:
    """Print one contestant's numbers."""
    rate, most = found["at_rate"], found["as_many_as_go"]
    print(
        f"{kind:9} {contestant:6} at {WORK[kind]:.0f}/s: p50 {rate['p50_ms']:.2f}, p99 {rate['p99_ms']:.2f}, "
        f"max {rate['max_ms']:.2f} ms, {rate['failed']} failed; most: {most['requests_per_s']:.0f}/s, "
        f"p99 {most['p99_ms']:.1f} ms, {most['failed']} failed"
    )
    for name in ("at_rate", "as_many_as_go"):
        if "stages" in found[name]:
            print(" " * 10, name, {key: round(value, 3) for key, value in found[name]["stages"].items()})


if __name__ == "__main__":
    PARSER = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    PARSER.add_argument("--rank", help="bundle of a ranker; drawn numbers without")
    PARSER.add_argument("--retrieve", help="bundle of a retriever; drawn numbers without")
    PARSER.add_argument("--swaps", action="store_true", help="measure swaps too")
    PARSER.add_argument("--swap-every", type=float, default=1.0, help="[s]")
    PARSER.add_argument("--kinds", default="rank,retrieve", help="what to ask")
    PARSER.add_argument("--seconds", type=float, default=10.0, help="of each load")
    PARSER.add_argument("--json", help="write the numbers here too")
    PARSER.add_argument("--rate", type=float, help="requests/s, instead of those of the goals")
    PARSER.add_argument("--only-swaps", action="store_true", help="measure nothing else")
    OPTIONS = PARSER.parse_args()
    if OPTIONS.rate:
        WORK = dict.fromkeys(WORK, OPTIONS.rate)
    main()
