"""Cross-entropy over all items of a catalogue, forward and backward: ours in stretches, torch's at once.

    .venv/bin/python tools/bench/full_softmax.py [--queries B] [--items N] [--dim D] [--turns T] [--plain no]

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
PARSER.add_argument("--dim", type=int, default=64)
PARSER.add_argument("--turns", type=int, default=4)
PARSER.add_argument("--chunk-mib", type=float, nargs="+", default=[2, 16], help="scores of a stretch")
PARSER.add_argument("--plain", choices=["yes", "no"], default="yes", help="whether torch's way takes part")
PARSER.add_argument("--way", help="measure one way, in this process: mebibytes of a stretch, or 'torch'")


def measure(options: argparse.Namespace) -> tuple[float, float]:
    """Return seconds of the best turn and the growth of the peak of resident memory [MiB]."""
    import torch

    from trec_semid.layers.full_softmax import full_softmax_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    queries = torch.randn(options.queries, options.dim, requires_grad=True)
    items = torch.randn(options.items, options.dim, requires_grad=True)
    targets = torch.randint(options.items, (options.queries,))

    def train(queries: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> None:
        if options.way == "torch":
            torch.nn.functional.cross_entropy(queries @ items.T, targets).backward()
        else:
            chunk = int(float(options.way) * 2**20)
            full_softmax_loss(queries, items, targets, chunk_bytes=chunk).mean().backward()

    train(queries[:2], items[:3], targets[:2] % 3)  # what the library keeps from its first call on
    queries.grad = items.grad = None
    restart_peak()
    before = peak_mib()
    seconds: list[float] = []
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
    print(f"{options.queries:,} queries, {options.items:,} items, width {options.dim}, 1 thread, best of")
    print(
        f"{options.turns} turns; all scores are {4 * options.queries * options.items / 2**20:,.0f} MiB, ",
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
