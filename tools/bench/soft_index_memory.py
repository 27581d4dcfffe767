"""Memory of the soft index, forward and backward, against the codebook size and the number of items.

    .venv/bin/python tools/bench/soft_index_memory.py [--items N ...] [--codebook K ...] [--dim D]

Growth of the peak of resident memory during one pass, each measured in a process of its own (Linux). The
last column is what the same pass takes when written plainly, which keeps (items, positions, K) tensors.
"""

import argparse
import subprocess
import sys

from resident import peak_mib, restart_peak

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--items", type=int, nargs="+", default=[2_000, 12_000])
PARSER.add_argument("--codebook", type=int, nargs="+", default=[100, 1_000, 3_000])
PARSER.add_argument("--positions", type=int, default=6)
PARSER.add_argument("--dim", type=int, default=64, help="width of latents and of table rows")
PARSER.add_argument("--way", choices=["chunked", "plain"], help="measure one way, in this process")


def grown_mib(options: argparse.Namespace) -> float:
    """Return by how much the peak of resident memory grows in one pass."""
    import torch

    from trec_semid.layers.soft_index import soft_lookup

    num_items, num_codes = options.items[0], options.codebook[0]
    latents = torch.randn(num_items, options.positions, options.dim, requires_grad=True)
    codebooks = torch.randn(options.positions, num_codes, options.dim, requires_grad=True)
    values = torch.randn(options.positions, num_codes, 2 * options.dim, requires_grad=True)

    def look_up(items: torch.Tensor) -> torch.Tensor:
        if options.way == "chunked":
            return soft_lookup(items, codebooks, values, similarity="cosine", temperature=0.1).vectors
        unit, keys = (
            torch.nn.functional.normalize(items, dim=-1),
            torch.nn.functional.normalize(codebooks, dim=-1),
        )
        soft = torch.softmax(torch.einsum("brd,rkd->brk", unit, keys) / 0.1, dim=-1)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), num_codes)
        return torch.einsum("brk,rkv->brv", soft + (hard - soft).detach(), values)

    look_up(latents[:4]).sum().backward()  # what the library keeps from its first call on
    restart_peak()
    before = peak_mib()
    look_up(latents).sum().backward()
    return peak_mib() - before


def main() -> None:
    """Print the table."""
    options = PARSER.parse_args()
    if options.way:
        print(grown_mib(options))
        return
    print(f"{options.positions} positions, width {options.dim}; growth of the peak in MiB")
    print(f"{'items':>8} {'codebook':>9} {'chunked':>9} {'plain':>9}")
    for num_items in options.items:
        for num_codes in options.codebook:
            sizes = ["--items", str(num_items), "--codebook", str(num_codes), "--dim", str(options.dim)]
            sizes += ["--positions", str(options.positions)]
            found = [
                float(subprocess.check_output([sys.executable, __file__, *sizes, "--way", way]))
                for way in ("chunked", "plain")
            ]
            print(f"{num_items:>8,} {num_codes:>9,} {found[0]:>9,.0f} {found[1]:>9,.0f}")


if __name__ == "__main__":
    main()
