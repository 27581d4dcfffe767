"""Speed of the parts that a GPU is for, each beside the matrix products that it cannot do without.

    .venv/bin/python tools/gpu/speed.py OUT [--small] [--turns N]

`share of products` is the time of the products alone divided by the time of the part: 1 is all that the
device can do. `of peak` is what the products reach of the device's data sheet, where it is known.
Checkpoints are written to OUT, beside `torch.save` of the same tensors. Medians over turns that alternate.
Each part prints one line of JSON, and all stand in OUT/speed.json; `--small` is for trying it out on a CPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.data.features import Feature
from trec_semid.layers.full_softmax import full_softmax_loss
from trec_semid.layers.soft_index import soft_lookup
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.queries import Queries
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig
from trec_semid.search.beam import Beams, beam_search
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("out", type=Path)
PARSER.add_argument("--small", action="store_true")
PARSER.add_argument("--turns", type=int, default=5)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 products a second [FLOP/s], by the makers' data sheets (SXM forms)."""
Step = Callable[[], Any]


def wait() -> None:
    """Wait until the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(turns: int, **contestants: Step) -> dict[str, float]:
    """Return the median time of each, in turns; the first turn warms up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            wait()
            began = time.perf_counter()
            run()
            wait()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers on the device that want a gradient."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_()


def of_peak(flops: float, took_s: float) -> dict[str, float]:
    """Return FLOP/s, and their share of the data sheet's."""
    name = torch.cuda.get_device_name(0) if DEVICE.type == "cuda" else ""
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return {"tflop_per_s": flops / took_s / 1e12} | ({"of_peak": flops / took_s / peak} if peak else {})


def ppnet(small: bool, turns: int) -> dict[str, float]:
    """Forward and backward of PPNet's dense part, in bfloat16."""
    batch, dim, width = (256, 8, 32) if small else (65_536, 64, 1024)
    features = (
        Feature("user_id", "user", "t_user_id", 10),
        Feature("item_id", "item", "t_item_id", 10),
        *(Feature(f"code_{at}", "item_code", f"t_code_{at}", 10, at) for at in range(6)),
        Feature("history", "history", "t_item_id", 10),
    )
    model = Ppnet(PpnetConfig(layer_dims=[width, width // 2, width // 4], gate_dim=64), features, dim).to(
        DEVICE
    )
    embedded = drawn(batch, len(features) * dim)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(embedded).float().sum()
        loss.backward()

    with FlopCounterMode(display=False) as counted:
        step()
    took = seconds(turns, step=step)["step"]
    return {"samples_per_s": batch / took, **of_peak(counted.get_total_flops(), took)}


def softmax_over_items(small: bool, turns: int) -> dict[str, float]:
    """The exact loss over a million items, in bfloat16, beside its products: two of scores, two backward."""
    queries, items, dim = (64, 2_000, 16) if small else (2_048, 1_000_000, 128)
    left, right = drawn(queries, dim), drawn(items, dim)
    targets = torch.randint(items, (queries,), device=DEVICE)

    def ours() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            full_softmax_loss(left, right, targets).sum().backward()

    low, high = left.detach().bfloat16(), right.detach().bfloat16()
    stretch = high[: max(1, items // 16)]
    grad = torch.randn(queries, len(stretch), device=DEVICE, dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(16):  # in stretches, as scores of all items at once would not fit
            torch.mm(low, stretch.T)
            torch.mm(low, stretch.T)
            torch.mm(grad, stretch)
            torch.mm(grad.T, low)

    took = seconds(turns, ours=ours, products=products)
    return {
        "queries_per_s": queries / took["ours"],
        "share_of_products": took["products"] / took["ours"],
        **of_peak(8.0 * queries * items * dim, took["products"]),
    }


def soft_index(small: bool, turns: int) -> dict[str, float]:
    """The soft index over all codes, forward and backward, beside its products."""
    items, positions, codes, dim = (64, 2, 20, 8) if small else (65_536, 6, 3_000, 64)
    latents, codebooks = drawn(items, positions, dim), drawn(positions, codes, dim)
    values = drawn(positions, codes, dim)

    def ours() -> None:
        soft_lookup(latents, codebooks, values, similarity="cosine", temperature=0.1).vectors.sum().backward()

    left, books = latents.detach().transpose(0, 1), codebooks.detach()
    chunk = left[:, : max(1, items // 16)]
    grad = torch.randn(positions, chunk.shape[1], codes, device=DEVICE)

    def products() -> None:
        for _ in range(16):
            torch.bmm(chunk, books.transpose(1, 2))  # scores
            torch.bmm(chunk, books.transpose(1, 2))  # again in backward
            torch.bmm(chunk, books.transpose(1, 2))  # what the output wants of each code
            torch.bmm(grad, books)
            torch.bmm(grad.transpose(1, 2), chunk)

    took = seconds(turns, ours=ours, products=products)
    return {"items_per_s": items / took["ours"], "share_of_products": took["products"] / took["ours"]}


def exact_lists(small: bool, turns: int) -> dict[str, float]:
    """The first 100 of a million items for each user, beside the scores alone."""
    users, items, dim, length = (8, 2_000, 16, 10) if small else (1_024, 1_000_000, 128, 100)
    vectors, queries = drawn(items, dim).detach(), drawn(users, dim).detach()
    search = ExactSearch([Catalogue(items, 0, vectors, None, None)])
    nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
    none = torch.zeros(users, dtype=torch.int64, device=DEVICE)
    asked = UserItems(nothing, none, nothing, none)

    def products() -> None:
        for part in vectors.split(max(1, items // 16)):
            torch.mm(queries, part.T)

    took = seconds(
        turns, ours=lambda: search.top_items([Queries(queries, None)], asked, length), products=products
    )
    return {"users_per_s": users / took["ours"], "share_of_products": took["products"] / took["ours"]}


def beam_lists(small: bool, turns: int) -> dict[str, float]:
    """A beam over the tuples of a million items, with scores that cost nothing."""
    users, items, codes, width = (8, 500, 16, 8) if small else (256, 1_000_000, 256, 100)
    tuples = np.random.default_rng(0).integers(0, codes, (items, 4))
    trie = TupleTrie.build(tuples, [codes] * 4).to(DEVICE)

    def log_probs(_: int, beams: Beams) -> Tensor:
        return torch.randn(*beams.nodes.shape, codes, device=DEVICE).log_softmax(-1)

    took = seconds(turns, ours=lambda: beam_search(trie, users, log_probs, width))
    return {"users_per_s": users / took["ours"]}


def checkpoint(small: bool, out: Path, turns: int) -> dict[str, float]:
    """520 MB of tables to a disk, waited for and in the background, beside `torch.save`."""
    rows = 1_000 if small else 2_031_250
    model = nn.Embedding(rows, 64, device=DEVICE)
    megabytes = rows * 64 * 4 / 1e6
    numbers: Iterator[int] = iter(range(1, 100))
    waiting = CheckpointWriter(str(out / "waiting"))
    behind = CheckpointWriter(str(out / "behind"), in_background=True)
    stalls: list[float] = []

    def in_background() -> None:
        began = time.perf_counter()
        behind.save(next(numbers), Trainable(model), loop={})
        stalls.append(time.perf_counter() - began)
        behind.wait()

    took = seconds(
        turns,
        ours=lambda: waiting.save(next(numbers), Trainable(model), loop={}),
        background=in_background,
        torch_save=lambda: torch.save(model.state_dict(), out / "plain.pt"),
    )
    rates = {f"{name}_mb_per_s": megabytes / each for name, each in took.items()}
    return {"mb": megabytes, **rates, "background_stall_s": statistics.median(stalls[1:])}


def main() -> int:
    """Measure every part; 1 where one fails."""
    options = PARSER.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    told: dict[str, dict[str, Any]] = {}
    parts: dict[str, Callable[[], dict[str, float]]] = {
        part.__name__: partial(part, options.small, options.turns)
        for part in (ppnet, softmax_over_items, soft_index, exact_lists, beam_lists)
    }
    parts["checkpoint"] = partial(checkpoint, options.small, options.out, options.turns)
    for name, part in parts.items():
        try:
            told[name] = part()
        except Exception as error:  # such as too little memory: the others tell what they tell
            told[name] = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({name: told[name]}), flush=True)
        (options.out / "speed.json").write_text(json.dumps(told, indent=1) + "\n")
    return int(any("error" in each for each in told.values()))


if __name__ == "__main__":
    sys.exit(main())
