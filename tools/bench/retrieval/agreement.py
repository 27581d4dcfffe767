"""What a beam over the codes of a finished run finds of its exact lists, by width, and what that costs.

    .venv/bin/python tools/bench/retrieval/agreement.py RUN [--widths 10 20 50 100] [--users N]

RUN predicts codes alone (`loss.item_weight = 0`). Exact lists score every item by the sum of its codes'
log-probabilities; a beam of width W says codes position by position and keeps W tuples. Users are the first
of the validation split. A share is the mean over users of how much of the exact first N stands in the beam's
first N; N goes up to the width, which is 10 at least.
"""

import argparse
import tempfile
import time

from trec_semid.core.config import load_config
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finished import FinishedRun
from trec_semid.training.retrieval.evaluation.asked import Judge
from trec_semid.training.retrieval.evaluation.evaluator import Evaluator, agreement_with
from trec_semid.training.retrieval.evaluation.listing import BeamLister, ExactLister
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig
from trec_semid.training.retrieval.finished import Member, place_finished
from trec_semid.training.retrieval.inputs import read_inputs
from trec_semid.training.retrieval.setup import RetrieveConfig

CUTOFFS = (1, 5, 10, 20, 50, 100)


def main() -> None:
    """Print a line for every width."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run of `trec-semid retrieve` that predicts codes alone")
    parser.add_argument("--widths", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--users", type=int, default=1000)
    asked = parser.parse_args()
    if min(asked.widths) < 10:
        parser.error("--widths: 10 at least, lists are of 10 items")
    config = load_config(RetrieveConfig, [f"{asked.run}/config.toml"])
    if config.scores_items or not config.predicts_codes:
        parser.error(f"{asked.run} does not predict codes alone (loss.item_weight = 0)")
    with process_group(patience_s=60) as ranks, tempfile.TemporaryDirectory() as scratch:
        tell(asked, config, RunFolder(scratch, "retrieve"), ranks)


def tell(asked: argparse.Namespace, config: RetrieveConfig, plans: RunFolder, ranks: Ranks) -> None:
    """Place the run, then judge beams of every width."""
    inputs = read_inputs(config)
    finished, model = place_finished(Member(FinishedRun(asked.run), config), plans, ranks)
    exact = ExactLister([finished])
    metrics = timed(Evaluator(exact, model, inputs.data, config, ranks))
    firsts = " | ".join(map(str, CUTOFFS))
    print(f"| of the exact first N = | {firsts} | validation R@10 / N@10 | seconds |")
    print("|---" * (len(CUTOFFS) + 3) + "|")
    print(row("every item", {}, metrics))
    for width in asked.widths:
        cutoffs = tuple(cutoff for cutoff in CUTOFFS if cutoff <= width)
        beam = BeamLister(finished, width)
        evaluation = EvaluationConfig(cutoffs=cutoffs, masks_history=config.evaluation.masks_history)
        own = config.model_copy(update={"evaluation": evaluation})
        evaluator = Evaluator(beam, model, inputs.data, own, ranks)
        shares = agreement_with(evaluator, Judge(exact, asked.users)).shares
        print(row(f"beam of {width}", shares, timed(evaluator)), flush=True)


def timed(evaluator: Evaluator) -> dict[str, float]:
    """Return validation metrics and how long all users took."""
    start = time.perf_counter()
    return evaluator.metrics() | {"seconds": time.perf_counter() - start}


def row(name: str, shares: dict[str, float], metrics: dict[str, float]) -> str:
    """Return a line of the table."""
    keys = [f"valid/beam_agreement@{cutoff}" for cutoff in CUTOFFS]
    cells = [f"{shares[key]:.3f}" if key in shares else "" for key in keys]
    found = f"{metrics['recall@10']:.4f} / {metrics['ndcg@10']:.4f}"
    return f"| {' | '.join([name, *cells, found, format(metrics['seconds'], '.1f')])} |"


if __name__ == "__main__":
    main()
