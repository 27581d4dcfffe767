"""Bytes of an event in a long history, and what they still say of the item.

    .venv/bin/python tools/bench/history_bytes.py DATASET... [--bytes 4 6 8 12] [--results FILE]

A history stores for every event what a model reads of its item. Half-precision content vectors are compared
with codes of 256 (a byte each) at equal bytes: cosine residual codebooks without and with coefficients of 4,
8 and 16 bits, RQ-KMeans and OPQ. All are fitted on the whole catalogue, which they then rebuild; residual
methods are fitted once, since their first levels do not depend on later ones. Of e, an item's modality
vectors at unit length side by side, and e^, what is rebuilt:

    cosine      mean cos(e, e^)
    error       mean ||e - e^||^2 / ||e||^2
    recall@10   share of the 10 items nearest to e by cosine that are among the 10 nearest to e^, other than
                the item itself

One process, one thread.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trec_semid.core.config import Config
from trec_semid.core.versions import code_commit
from trec_semid.data.schema import open_dataset
from trec_semid.tokenizers.cosine_rq import CosineRq, CosineRqConfig
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.methods import build_tokenizer
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig
from trec_semid.tokenizers.tokenizer import Tokenizer

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("datasets", nargs="+", help="dataset folders")
PARSER.add_argument("--bytes", type=int, nargs="+", default=[4, 6, 8, 12])
PARSER.add_argument("--results", default=None, help="file to write, as tools/tables.py reads it")

SIZE, NEIGHBOURS, CHUNK = 256, 10, 1024
BITS = {"none": 0, "uint4": 4, "uint8": 8, "float16": 16}
NAMES = {
    "none": "cosine codebook",
    "uint4": "cosine codebook, 4-bit coefficients",
    "uint8": "cosine codebook, 8-bit coefficients",
    "float16": "cosine codebook, 16-bit coefficients",
}


def fit(config: Config, contents: ItemContents) -> Tokenizer:
    """Fit a tokenizer to all items."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config, contents.dims)
    for _ in tokenizer.fit(contents, contents.rows_with_content(), 0):
        pass
    return tokenizer


def first_levels(fitted: Tokenizer, config: Config, num_levels: int) -> Tokenizer:
    """Return a residual tokenizer of the first levels of another."""
    tokenizer = build_tokenizer(config, fitted.dims)
    own, states = tokenizer.state_dict(), fitted.state_dict()
    for name, values in states.items():
        # Codebooks and means have a row a level, the grid a column.
        part = values[:, :num_levels] if name == "grid" else values[:num_levels]
        own[name] = values if own[name].shape == values.shape else part
    tokenizer.load_state_dict(own)
    return tokenizer


def with_coefficients(fitted: CosineRq, kind: Any, num_levels: int) -> Tokenizer:
    """Return a fitted cosine codebook as it would be with other coefficients: 16-bit ones were fitted."""
    config = CosineRqConfig(codebook_size=SIZE, levels=num_levels, coefficients=kind)
    tokenizer = first_levels(fitted, config, num_levels)
    steps = max(2 ** BITS[kind] - 1, 1)
    tokenizer.get_buffer("grid")[1] *= (2**16 - 1) / steps
    return tokenizer


def neighbours(queries: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Return (N, 10): the nearest items of each query by cosine, its own left out."""
    found = []
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ items.T
        rows = torch.arange(len(scores))
        scores[rows, start + rows] = -torch.inf
        found.append(scores.topk(NEIGHBOURS, dim=1).indices)
    return torch.cat(found)


class Judge:
    """Compares rebuilt vectors with the content they are of."""

    def __init__(self, contents: ItemContents, standardiser: Any) -> None:
        self.rows = contents.rows_with_content()
        self.batch = contents.batch(self.rows)
        self.e = standardiser.unit(self.batch)
        self.here = standardiser.spread(self.batch.present)
        self.unit = torch.nn.functional.normalize(self.e, dim=1)
        self.nearest = neighbours(self.unit, self.unit)

    def of(self, rebuilt: torch.Tensor) -> dict[str, float]:
        """Return the three metrics of e^."""
        rebuilt = torch.where(self.here, rebuilt, 0.0)
        squares = (self.e - rebuilt).square().sum(1) / self.e.square().sum(1)
        found = neighbours(torch.nn.functional.normalize(rebuilt, dim=1), self.unit)
        shared = (found.unsqueeze(2) == self.nearest.unsqueeze(1)).any(2).float().mean()
        cosine = torch.cosine_similarity(self.e, rebuilt, dim=1).mean()
        return {"cosine": float(cosine), "error": float(squares.mean()), "recall@10": float(shared)}

    def tokenizer(self, tokenizer: Tokenizer) -> dict[str, float]:
        """Return those of what a tokenizer rebuilds."""
        rebuilt = tokenizer.reconstruct(self.batch, tokenizer.encode(self.batch))
        return self.of(rebuilt * tokenizer.standardiser.std + tokenizer.standardiser.mean)


def contestants(
    contents: ItemContents, budgets: list[int]
) -> dict[str, tuple[float, Callable[[], Tokenizer]]]:
    """Return bytes an event and tokenizer of each, by name."""
    most = max(budgets)
    cosine = fit(CosineRqConfig(codebook_size=SIZE, levels=most), contents)
    assert isinstance(cosine, CosineRq)
    kmeans = fit(RqKmeansConfig(codebook_size=SIZE, levels=most), contents)
    assert isinstance(kmeans, RqKmeans)
    ways: dict[str, tuple[float, Callable[[], Tokenizer]]] = {}
    for budget in budgets:
        for kind, bits in BITS.items():
            levels, over = divmod(budget * 8, 8 + bits)
            if levels and not over:
                ways[f"{kind}/{budget}"] = (
                    budget,
                    lambda kind=kind, levels=levels: with_coefficients(cosine, kind, levels),
                )
        config = RqKmeansConfig(codebook_size=SIZE, levels=budget)
        ways[f"rq_kmeans/{budget}"] = (
            budget,
            lambda config=config: first_levels(kmeans, config, config.levels),
        )
        ways[f"opq/{budget}"] = (
            budget,
            lambda budget=budget: fit(OpqConfig(codebook_size=SIZE, subspaces=budget), contents),
        )
    return ways


def rows_of(dataset: str, budgets: list[int]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the rows of a dataset's table, and its name and checksum."""
    opened = open_dataset(dataset, "once")
    names = list(opened.facts.modalities)
    contents = ItemContents(
        {name: opened.content(name) for name in names}, {name: opened.content_mask(name) for name in names}
    )
    name, rows = opened.facts.name, {}
    ways = contestants(contents, budgets)
    judge = Judge(contents, ways[f"rq_kmeans/{budgets[0]}"][1]().standardiser)
    halves = judge.of(judge.e.half().float())
    rows[f"{name}/fp16"] = (2 * sum(contents.dims.values()), "half-precision vectors", halves)
    for key, (size, build) in ways.items():
        started = time.perf_counter()
        kind = key.partition("/")[0]
        label = NAMES.get(kind) or {"rq_kmeans": "RQ-KMeans", "opq": "OPQ"}[kind]
        rows[f"{name}/{key}"] = (size, label, judge.tokenizer(build()))
        print(name, key, rows[f"{name}/{key}"], f"{time.perf_counter() - started:.0f} s", flush=True)
    described = {
        key: {
            "label": label,
            "origin": name,
            "seeds": [0],
            "metrics": {"bytes": {"mean": size}, **{each: {"mean": value} for each, value in found.items()}},
        }
        for key, (size, label, found) in rows.items()
    }
    return described, {"name": name, "checksum": opened.facts.checksum[:12]}


def main() -> None:
    """Compare, and write the file of results."""
    options = PARSER.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "schema_version": 1,
        "title": "Bytes of an event in a long history",
        "origins": {},
        "rows": {},
        "tables": {},
    }
    cells = {
        "bytes an event": "{bytes:.0f}",
        "stored": "{label}",
        "cosine": "{cosine:.3f}",
        "relative error": "{error:.3f}",
        "recall@10 of neighbours": "{recall@10:.3f}",
    }
    for dataset in options.datasets:
        with torch.no_grad():
            rows, about = rows_of(dataset, options.bytes)
        results["rows"] |= rows
        results["origins"][about["name"]] = {
            "command": f".venv/bin/python tools/bench/history_bytes.py {Path(dataset).name}",
            "commit": code_commit().split("+")[0][:7],
            "dataset": about["name"],
            "dataset_checksum": about["checksum"],
            "machine": "two x86-64 cores, no GPU; one thread",
        }
        results["tables"][about["name"].replace("_", "-")] = {
            "columns": [{"title": title, "cell": cell} for title, cell in cells.items()],
            "rows": list(rows),
            "leading_zero": False,
        }
    text = json.dumps(results, indent=1) + "\n"
    if options.results:
        Path(options.results).write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
