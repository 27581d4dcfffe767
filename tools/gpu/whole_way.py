"""The whole way on one GPU (or, without one, on the CPU): every verb once, then faults put in on purpose.

    .venv/bin/python tools/gpu/whole_way.py OUT [--events N] [--only NAME...] [--timeout-s S]

On planted data. Each check prints one line of JSON as it ends, and all of them stand in OUT/whole_way.json:
name, whether it holds, seconds, and numbers. A check that fails does not stop those that do not need it.
`verbs` run from `prepare` to `export`. `killed` and `stopped` are the ranker killed by SIGKILL and stopped by
SIGTERM, run again, and set beside the run that was left alone. `flipped` has one byte of its newest
checkpoint changed. Exit code 1 where a check fails.
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("out", type=Path)
PARSER.add_argument("--events", type=int, default=400_000)
PARSER.add_argument("--only", nargs="*", default=[], help="verbs, killed, stopped, flipped; all by default")
PARSER.add_argument("--timeout-s", type=int, default=240, help="of one verb")

ROOT = Path(__file__).resolve().parents[2]
VERB = [sys.executable, "-m", "trec_semid.cli.main"]
Facts = dict[str, Any]


class Way:
    """Runs verbs in a folder and keeps what was checked."""

    def __init__(self, options: argparse.Namespace, file: str) -> None:
        self.options, self.results, self.offset, self.file = options, list[Facts](), 0, file
        self.out: Path = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        verb: str,
        config: str | None,
        settings: Facts,
        *words: str,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a verb, what it says going to a file of its own."""
        files = [str(ROOT / config)] if config else []
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        path = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        with (self.out / f"{verb}.log").open("ab") as log:
            self.offset = log.tell()
            command = [*VERB, verb, *files, *words, *sets]
            env = {**os.environ, **path, **(environment or {})}
            return subprocess.Popen(command, cwd=self.out, env=env, stdout=log, stderr=log)

    def run(self, verb: str, config: str | None, settings: Facts, *words: str) -> None:
        """Run a verb to its end."""
        process = self.start(verb, config, settings, *words)
        try:
            code = process.wait(self.options.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"{verb} took over {self.options.timeout_s} s: {self.said(verb)}") from None
        if code:
            raise RuntimeError(f"{verb} ended with {code}: {self.said(verb)}")

    def said(self, verb: str, *, length: int = 1500) -> str:
        """Return the end of what the last run of a verb said; all of it where `length` is 0."""
        return (self.out / f"{verb}.log").read_bytes()[self.offset :].decode()[-length:]

    @contextmanager
    def check(self, name: str) -> Iterator[Facts]:
        """Note whether the body holds; what it puts into the facts is printed with it."""
        facts: Facts = {"name": name, "holds": True}
        began = time.monotonic()
        try:
            yield facts
        except Exception as error:
            facts.update({"holds": False, "error": f"{type(error).__name__}: {error}"})
        facts["seconds"] = round(time.monotonic() - began, 1)
        self.results.append(facts)
        print(json.dumps(facts), flush=True)
        # After each, so that a part that is cut off leaves what it has.
        (self.out / self.file).write_text(json.dumps(self.results, indent=1) + "\n")


RANKER = "configs/rankers/ppnet.toml"
DATA = {
    "out": "data",
    "source.folder": "raw",
    "content.text.file": "raw/text.npy",
    "content.vision.file": "raw/vision.npy",
}

SUMMED = {"semantic_ids": "rq_kmeans", "item.content": ["text", "vision"]}
CODES = {
    "semantic_ids": "rq_vae",
    "item.id": False,
    "loss.item_weight": 0,
    "loss.code_weight": 1,
    "sequences.rows": "sliding",
    "evaluation.beam_width": 100,
}
RETRIEVER = {"sasrec": SUMMED, "heterrec": SUMMED, "tiger": CODES}


def ranker(way: Way, run: str, representation: str = "both") -> Facts:
    """Return the settings of the ranker that the faults are tried on: some eighty steps an epoch."""
    codes = {"semantic_ids": "" if representation == "item" else "mmq"}
    batch_size = max(32, way.options.events // 100)
    train = {"batch_size": batch_size, "max_epochs": 4, "patience": 9, "log_every_steps": 10}
    saving = {"checkpoints.every_steps": 10, "checkpoints.in_background": True}
    settings = {f"train.{key}": value for key, value in train.items()} | saving | codes
    return {"dataset": "data", "run": run, "representation": representation, **settings}


def metrics(way: Way, run: str, *names: str) -> dict[str, float]:
    """Return a run's metrics: those of the given names, or all."""
    every = json.loads((way.out / run / "metrics.json").read_text())["metrics"]
    return {name: every[name] for name in names} if names else every


def speed(way: Way, run: str) -> dict[str, float]:
    """Return the median of samples/s that a run logged; nothing of one that was too short to."""
    said = [json.loads(line) for line in (way.out / run / "log.jsonl").read_text().splitlines()]
    rates = [line["train/samples_per_s"] for line in said if "train/samples_per_s" in line]
    return {"samples_per_s": statistics.median(rates)} if rates else {}


def checkpoints(way: Way, run: str) -> list[Path]:
    """Return the complete steps of a run, oldest first."""
    marks = (way.out / run / "checkpoints").glob("step-*/checkpoint.json")
    return sorted((mark.parent for mark in marks), key=lambda at: int(re.findall(r"step-(\d+)", at.name)[0]))


def largest_difference(way: Way, run: str) -> dict[str, float]:
    """Return how far a run's metrics are from those of the ranker that was left alone."""
    mine, theirs = metrics(way, run), metrics(way, "rank-both")
    return {"largest_difference": max(abs(mine[key] - theirs[key]) for key in mine)}


def verbs(way: Way) -> None:
    """Run every verb once."""
    with way.check("device") as facts:
        import torch

        name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
        facts.update({"torch": torch.__version__, "cuda": torch.version.cuda, "device": name})
    with way.check("prepare"):
        way.run("prepare", "configs/data/synthetic.toml", DATA | {"source.num_events": way.options.events})
    for kind in ("mmq", "ma_rq_vae", "ma_rq_kmeans", "ma_opq"):
        with way.check(f"tokenize {kind}") as facts:
            run = kind.removeprefix("ma_")
            settings = {"dataset": "data", "run": run, "tokenizer.codebook_size": 64}
            way.run("tokenize", f"configs/tokenizers/{kind}.toml", settings)
            facts.update(metrics(way, run, "all/reconstruction", "all/unique_share"))
    train(way)
    with way.check("report"):
        way.run("report", None, {}, "rank-item", "rank-both", "--out", "report")
    with way.check("export"):
        way.run("export", "configs/export.toml", {"run": "rank-both", "out": "bundle"})


def train(way: Way) -> None:
    """Train rankers, one with its tokenizer in the loop, and retrievers."""
    for representation in ("item", "both"):
        with way.check(f"rank {representation}") as facts:
            run = f"rank-{representation}"
            way.run("rank", RANKER, ranker(way, run, representation))
            facts.update(metrics(way, run, "test/auc") | speed(way, run))
    with way.check("rank tuned") as facts:
        settings = ranker(way, "rank-tuned") | {"train.max_epochs": 3}
        way.run("rank", "configs/rankers/ppnet_tuned.toml", settings)
        facts.update(metrics(way, "rank-tuned", "test/auc") | speed(way, "rank-tuned"))
    for kind in ("sasrec", "heterrec", "tiger"):
        with way.check(f"retrieve {kind}") as facts:
            run = f"retrieve-{kind}"
            settings = {"dataset": "data", "run": run, "train.max_epochs": 2} | RETRIEVER[kind]
            way.run("retrieve", "configs/quickstart/retrieve.toml", settings | {"model.kind": kind})
            facts.update(metrics(way, run, "test/recall@10") | speed(way, run))


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Wait until the condition holds."""
    until = time.monotonic() + patience_s
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before it was disturbed")
        if time.monotonic() > until:
            process.kill()
            raise RuntimeError(f"nothing to disturb within {patience_s:.0f} s")
        time.sleep(0.02)


def killed(way: Way) -> None:
    """Kill the ranker once a checkpoint is there; run it again; set it beside the undisturbed one."""
    with way.check("killed") as facts:
        process = way.start("rank", RANKER, ranker(way, "rank-killed"))
        wait_for(lambda: checkpoints(way, "rank-killed"), process, way.options.timeout_s)
        process.kill()
        process.wait()
        facts["went_on_from"] = checkpoints(way, "rank-killed")[-1].name
        way.run("rank", RANKER, ranker(way, "rank-killed"))
        facts.update(largest_difference(way, "rank-killed"))


def stopped(way: Way) -> None:
    """Stop the ranker with SIGTERM while it trains; run it again; set it beside the undisturbed one."""
    with way.check("stopped") as facts:
        process = way.start("rank", RANKER, ranker(way, "rank-stopped"))
        wait_for(lambda: checkpoints(way, "rank-stopped"), process, way.options.timeout_s)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        facts["exit_code"] = process.wait(60)
        facts["stopped_within_s"] = round(time.monotonic() - began, 1)
        way.run("rank", RANKER, ranker(way, "rank-stopped"))
        facts.update(largest_difference(way, "rank-stopped"))


def flipped(way: Way) -> None:
    """Change one byte of the newest checkpoint of a run that was killed: the step before must be used."""
    with way.check("flipped") as facts:
        process = way.start("rank", RANKER, ranker(way, "rank-flipped"))
        wait_for(lambda: len(checkpoints(way, "rank-flipped")) > 1, process, way.options.timeout_s)
        process.kill()
        process.wait()
        newest = checkpoints(way, "rank-flipped")[-1]
        file = max((newest / "tensors").glob("*.distcp"), key=lambda each: each.stat().st_size)
        content = bytearray(file.read_bytes())
        content[random.Random(0).randrange(len(content) // 2, len(content))] ^= 1
        file.write_bytes(content)
        way.run("rank", RANKER, ranker(way, "rank-flipped"))
        facts["said"] = [line for line in way.said("rank", length=0).splitlines() if newest.name in line][-3:]
        if not facts["said"]:
            raise RuntimeError(f"nothing was said of {newest.name}")
        facts.update(largest_difference(way, "rank-flipped"))


def main() -> int:
    """Run the checks."""
    way = Way(PARSER.parse_args(), "whole_way.json")
    for each in (verbs, killed, stopped, flipped):
        if not way.options.only or each.__name__ in way.options.only:
            each(way)
    return 0 if all(facts["holds"] for facts in way.results) else 1


if __name__ == "__main__":
    sys.exit(main())
