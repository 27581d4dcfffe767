"""Put the finished runs of a study into a file of docs/results, for `tools/tables.py`.

Every step of the study that trained or asked something becomes a row of its name, with means and deviations
over its seeds. `<row>-lists`, which asks the runs of a row again, adds to that row what it lacks. Labels,
words, cells and tables that the file has stay; rows of steps that have no finished run stay too, so that a
study may be run in parts. Beside what `--keys` chooses a row has

    minutes           wall time of a run with all its evaluations
    samples_per_s     median of what training logged
    best_epoch        whose weights the metrics are of
    parameters/dense, parameters/tables

Usage: python tools/study_results.py STUDY FILE.json --command 'trec-semid study X.toml' --dataset PREFIX=TEXT
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.tables import Results  # noqa: E402

KEYS = (
    r"(valid|test)/(recall|ndcg|coverage)@\d+|test/ndcg@10/(popularity|activity)_\w+"
    r"|test/(interest_\w+|own_interest_share|categories|list_distance|state_rank)(@10)?"
)
_LISTS = "-lists"


def read_run(folder: Path, keys: str) -> dict[str, float]:
    """Return the chosen metrics of a finished run, and what it cost."""
    done = json.loads((folder / "metrics.json").read_text())
    metrics = {key: value for key, value in done["metrics"].items() if re.fullmatch(keys, key)}
    metrics |= {key: value for key, value in done["counts"].items() if key.startswith("parameters/")}
    metrics["minutes"] = done["wall_s"] / 60
    speeds, epochs, best = list[float](), dict[int, float](), None
    log = folder / "log.jsonl"  # what learns nothing, or asks finished runs, has none
    for line in log.read_text().splitlines() if log.exists() else ():
        told = json.loads(line)
        speeds += [told["train/samples_per_s"]] if "train/samples_per_s" in told else []
        if "epoch" in told and "step" in told:
            epochs[told["step"]] = told["epoch"]
        best = told.get("best_step", best)
    if speeds:
        metrics["samples_per_s"] = statistics.median(speeds)
    if best in epochs:
        metrics["best_epoch"] = epochs[best]
    return metrics


def read_steps(study: Path, keys: str) -> dict[str, list[tuple[dict[str, Any], dict[str, float]]]]:
    """Return, by step, what its finished runs say: the whole of metrics.json, and the chosen metrics."""
    steps: dict[str, list[tuple[dict[str, Any], dict[str, float]]]] = defaultdict(list)
    for path in sorted([*study.glob("*/metrics.json"), *study.glob("*/seed-*/metrics.json")]):
        done = json.loads(path.read_text())
        if done["job"] in ("retrieve", "rank", "evaluate"):
            step = path.parent.parent if path.parent.name.startswith("seed-") else path.parent
            steps[step.name].append((done, read_run(path.parent, keys)))
    return steps


def over_seeds(runs: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return mean and deviation of what all runs of a row have."""
    common = [key for key in runs[0] if all(key in run for run in runs)]
    spread = {key: [run[key] for run in runs] for key in common}
    return {
        key: {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
        for key, values in spread.items()
    }


def merge(results: dict[str, Any], study: Path, keys: str, command: str, datasets: dict[str, str]) -> None:
    """Write the rows of a study's finished runs into results, one origin for each data set and commit."""
    steps = read_steps(study, keys)
    for name, runs in steps.items():
        if name.endswith(_LISTS):
            continue
        metrics = over_seeds([chosen for _, chosen in runs])
        seeds, lists = [done["seed"] for done, _ in runs], steps.get(name + _LISTS, [])
        if sorted(done["seed"] for done, _ in lists) == sorted(seeds):
            metrics = over_seeds([chosen for _, chosen in lists]) | metrics
        elif lists:
            print(f"{study / name}{_LISTS}: other seeds than {name}: left out", file=sys.stderr)
        checksums = {done["dataset_checksum"][:12] for done, _ in runs}
        if len(checksums) > 1:
            raise SystemExit(f"{study / name}: seeds over several data sets: {', '.join(sorted(checksums))}")
        # Seeds may be run one after the other, with commits between: all are named.
        commits = sorted({commit[:7] for done, _ in runs for commit in done["commits"]})
        prefix = max((p for p in datasets if name.startswith(p)), key=len, default=None)
        if prefix is None:
            raise SystemExit(f"{study / name}: no data set's prefix: give --dataset {name}=TEXT")
        origin = "_".join([prefix, *commits])
        results["origins"][origin] = {
            "command": command,
            "commit": ", ".join(commits),
            "dataset": datasets[prefix],
            "dataset_checksum": checksums.pop(),
        }
        before = results["rows"].get(name, {"label": name})
        results["rows"][name] = before | {"origin": origin, "seeds": sorted(seeds), "metrics": metrics}
    used = {row.get("origin") for row in results["rows"].values()}
    results["origins"] = {name: origin for name, origin in results["origins"].items() if name in used}


def main(words: list[str] | None = None) -> int:
    """Merge, check against the schema, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's folder")
    parser.add_argument("file", type=Path, help="of docs/results; begun where it is missing")
    parser.add_argument("--command", required=True, help="that makes the rows")
    parser.add_argument("--dataset", action="append", required=True, metavar="PREFIX=TEXT")
    parser.add_argument("--title", default=None)
    parser.add_argument("--keys", default=KEYS, help="regular expression of the metrics")
    asked = parser.parse_args(words)
    results: dict[str, Any] = {"schema_version": 1, "title": "", "origins": {}, "rows": {}, "tables": {}}
    if asked.file.exists():
        results = json.loads(asked.file.read_text())
    results["title"] = asked.title or results["title"] or asked.file.stem
    datasets = dict(text.split("=", 1) for text in asked.dataset)
    merge(results, asked.study, asked.keys, asked.command, datasets)
    Results.model_validate(results)
    asked.file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(f"{asked.file}: {len(results['rows'])} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
