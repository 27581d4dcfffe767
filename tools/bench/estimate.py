"""What a ranker step with the tokenizer in the loop should cost on a cluster: a formula, not a measurement.

    .venv/bin/python tools/bench/estimate.py configs/cluster/h100_1x8.toml configs/cluster/h100_8x8.toml

A step is the sum of four terms, each its work over a data sheet's rate times an efficiency e:

    compute   (U F k + 6 W B) / (rate e)  U distinct live items of a GPU's B rows, F operations of one item's
                                        matrix products, both ways, k = step / its products; W dense weights
    lookups   3 L D 4 / (hbm e)         L looked-up rows of all tables: read, then read and written to update
    exchange  (2 P D 4 + U C 2) / link  P pooled vectors of width D there and back, C halves of content
    codes     2 R K D 4 / link          code tables fetched whole, and their gradient sent back

k is measured on a CPU (docs/results/benchmarks.md, "The tokenizer in the loop"). Rates are those of data
sheets: 494.5 TFLOP/s is half of what NVIDIA prints for H100 SXM in TF32, whose figure counts sparsity.
Every live item counts as distinct, which is the upper bound.
"""

import argparse

from trec_semid.core.config import load_config
from trec_semid.sharding.topology import GIB, ClusterConfig

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("clusters", nargs="+")
PARSER.add_argument("--rows", type=int, default=4096, help="rows of a GPU in a step")
PARSER.add_argument("--history", type=int, default=128)
PARSER.add_argument("--codebook", type=int, default=3000)
PARSER.add_argument("--positions", type=int, default=6)
PARSER.add_argument("--dim", type=int, default=64, help="width of tables")
PARSER.add_argument("--latent", type=int, default=256)
PARSER.add_argument("--content", type=int, nargs=2, default=[256, 256])
PARSER.add_argument("--items", type=int, default=40_000_000)
PARSER.add_argument("--users", type=int, default=30_000_000)
PARSER.add_argument("--dense", type=int, default=500_000, help="weights of the dense part")
PARSER.add_argument("--tflops", type=float, default=494.5)
PARSER.add_argument("--efficiency", type=float, default=0.4, help="of the data sheet's rates")
PARSER.add_argument("--host-gb-s", type=float, default=2.0, help="between hosts, over gloo: an assumption")
PARSER.add_argument("--overhead", type=float, default=1.9, help="k, measured on a CPU")
OPTIONS = PARSER.parse_args()


def item_flops() -> tuple[float, float]:
    """Return the operations of encoding one item, and of its whole part in a step."""
    o, half = OPTIONS, OPTIONS.positions // 3
    width = sum(o.content)
    experts = 2 * (half * width + half * width) * o.latent  # shared read all, specific their own modality
    scores = 2 * o.positions * o.codebook * o.latent
    looked_up = 2 * o.positions * o.codebook * o.dim  # gradient of the output times every row of a code table
    # Backward: experts twice; scores once more, then the gradients of latents and of codewords.
    return experts + scores, 3 * experts + 4 * scores + looked_up


def step_ms(cluster: ClusterConfig, live_history: int) -> dict[str, float]:
    """Return the terms [ms]; `live_history` 0 and no targets: the frozen step."""
    o, frozen = OPTIONS, live_history < 0
    live = 0 if frozen else o.rows * (1 + live_history)
    rate, hbm = o.tflops * 1e12 * o.efficiency, cluster.hbm_gb_s * 1e9 * o.efficiency
    link = (
        1e9 * o.efficiency * (cluster.intra_node_gb_s if cluster.num_nodes == 1 else cluster.inter_node_gb_s)
    )
    entries = o.rows * (1 + o.history)
    lookups = o.rows + entries + entries * o.positions
    pooled = o.rows * (3 + 2 * o.positions)
    terms = {
        "compute": (live * item_flops()[1] * o.overhead + 6 * o.dense * o.rows) / rate,
        "lookups": 3 * lookups * o.dim * 4 / hbm,
        "exchange": (2 * pooled * o.dim * 4 + live * sum(o.content) * 2) / link,
        "codes": 0.0 if frozen else 2 * o.positions * o.codebook * o.dim * 4 / link,
    }
    return {name: 1e3 * seconds for name, seconds in terms.items()}


def main() -> None:
    """Print a table for every cluster."""
    o = OPTIONS
    encode, in_step = (flops / 1e6 for flops in item_flops())
    print(f"one item: {encode:.1f} MFLOP to encode, {in_step:.1f} MFLOP in a step")
    for name in o.clusters:
        describe(load_config(ClusterConfig, [name]))


def describe(cluster: ClusterConfig) -> None:
    """Print memory, refresh and steps of a cluster."""
    o, world = OPTIONS, cluster.world_size
    tables = (o.items + o.users) * (o.dim + 1) * 4 / GIB / world
    content, codes = o.items * sum(o.content) * 2 / GIB / world, o.items * o.positions * 2 / GIB
    refresh = o.items * item_flops()[0] / (world * o.tflops * 1e12 * o.efficiency)
    # Codes are exchanged as four bytes each, summed over ranks: sent and received about once.
    exchange = 2 * o.items * o.positions * 4 / (1e9 * o.host_gb_s)
    print(f"\n{cluster.name}: {world} GPUs, {world * o.rows:,} rows a step")
    print(f"  a GPU holds tables {tables:.2f}, content {content:.2f}, map {codes:.2f} GiB")
    print(f"  refresh of the whole map: {refresh:.2f} s of matrix products, {exchange:.2f} s of exchange")
    frozen = sum(step_ms(cluster, -1).values())
    for label, live in (("frozen", -1), ("target + 8 recent", 8), ("all live", o.history)):
        terms = step_ms(cluster, live)
        total = sum(terms.values())
        parts = ", ".join(f"{term} {ms:.1f}" for term, ms in terms.items())
        speed = f"{total / frozen:5.1f} x frozen, {world * o.rows / total / 1e3:5.1f} M rows/s"
        print(f"  {label:18} {total:6.1f} ms, {speed} ({parts})")


if __name__ == "__main__":
    main()
