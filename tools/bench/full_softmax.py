"""Cross-entropy over all items of a catalogue, forward and backward: ours in stretches, torch's at once.

    .venv/bin/python tools/bench/full_softmax.py [--queries B] [--items N] [--drawn S] [--dim D] [--turns T]
        [--plain no]

With --drawn so many items stand for all others, with logQ correction.

Each way runs in a process of its own, which tells its seconds (the best of the turns) and by how much its
peak of resident memory grows in the first pass (Linux). That includes gradients of items and queries, which
every way makes and whose size is told. One thread.
"""

import argparse
import subprocess
import sys
import time

from resident import peak_mib, restart_peak

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--queries", type=int, default=1_800, help="places of a batch that predict")
PARSER.add_argument("--items", type=int, default=12_101)
PARSER.add_argument("--drawn", type=int, default=0, help="items drawn to stand for all; none where 0")
PARSER.add_argument("--dim", type=int, default=64)
PARSER.add_argument("--turns", type=int, default=4)
PARSER.add_argument("--chunk-mib", type=float, nargs="+", default=[2, 16], help="scores of a stretch")
PARSER.add_argument("--plain", choices=["yes", "no"], default="yes", help="whether torch's way takes part")
PARSER.add_argument("--way", help="measure one way, in this process: mebibytes of a stretch, or 'torch'")


def measure(options: argparse.Namespace) -> tuple[float, float]:
    """Return seconds of the best turn and the growth of the peak of resident memory [MiB]."""
    import torch

    from trec_semid.layers.full_softmax import Drawn, full_softmax_loss, sampled_softmax_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    queries = torch.randn(options.queries, options.dim, requires_grad=True)
    items = torch.randn(options.items, options.dim, requires_grad=True)
    targets = torch.randint(options.items, (options.queries,))
    drawn, log_q = torch.randint(options.items, (options.drawn,)), torch.randn(options.drawn)

    def plain(queries: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not options.drawn:
            return torch.nn.functional.cross_entropy(queries @ items.T, targets)
        own = (queries * items[targets]).sum(1, keepdim=True)
        others = queries @ items[drawn % len(items)].T - log_q
        others = others.masked_fill(drawn % len(items) == targets.unsqueeze(1), -torch.inf)
        return torch.nn.functional.cross_entropy(torch.cat([own, others], 1), torch.zeros_like(targets))

    def train(queries: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> None:
        if options.way == "torch":
            plain(queries, items, targets).backward()
            return
        chunk = int(float(options.way) * 2**20)
        if options.drawn:
            others = Drawn(items[drawn % len(items)], drawn % len(items), log_q)
            loss = sampled_softmax_loss(queries, items, targets.unsqueeze(1), others, chunk_bytes=chunk)
        else:
            loss = full_softmax_loss(queries, items, targets, chunk_bytes=chunk)
        loss.mean().backward()

    train(queries[:2], items[:3], targets[:2] % 3)  # what the library keeps from its first call on
    queries.grad = items.grad = None
    restart_peak()
    before = peak_mib()
    seconds: list[float] = []
    grown = 0.0
    for _ in range(options.turns):
        started = time.perf_counter()
        train(queries, items, targets)
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 1:
            grown = peak_mib() - before
        queries.grad = items.grad = None
    return min(seconds), grown


def main() -> None:
    """Print the table."""
    options = PARSER.parse_args()
    if options.way:
        print(*measure(options))
        return
    gradients = 4 * (options.queries + options.items) * options.dim / 2**20
    scored = options.drawn or options.items
    print(
        f"{options.queries:,} queries, {scored:,} of {options.items:,} items, width {options.dim}, 1 thread,"
    )
    print(
        f"best of {options.turns} turns; all scores are {4 * options.queries * scored / 2**20:,.0f} MiB, ",
        end="",
    )
    print(f"gradients {gradients:,.0f} MiB\n\n| | seconds | torch = 1 | memory [MiB] |\n|---|---|---|---|")
    ways = {"torch": "torch's cross_entropy"} if options.plain == "yes" else {}
    ways |= {str(size): f"ours, {size:g} MiB of scores at once" for size in options.chunk_mib}
    first = None
    for way, name in ways.items():
        command = [sys.executable, *sys.argv, "--way", way]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, grown = map(float, told.split())
        first = first or (seconds if way == "torch" else None)
        ratio = f"{seconds / first:.2f}" if first else "-"
        print(f"| {name} | {seconds:.3f} | {ratio} | {grown:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
