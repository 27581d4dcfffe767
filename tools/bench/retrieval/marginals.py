"""What is left of a retriever's ranking when items are scored by codes as if these were independent.

A finished run says p(i | u), a softmax over items. From it follow the true distributions of the codes,
p_r(k | u) = sum over items i with c_r(i) = k of p(i | u): what heads say that match the run exactly.
This ranks items by sum_r log p_r(c_r(i) | u), and prints validation metrics of both rankings, the mean
-log p_r of the code of a user's (first) target at each position, and how much of the run's own first ten the
first 500 of that ranking hold, as it is and corrected by naive Bayes (`search.code_prior`).

With `--by-interest` every interest m has a softmax of its own, p_r(k | u, m), and an item's score is
max_m (log p(m | u) + sum_r log p_r(c_r(i) | u, m)): what heads conditioned on the interests would say that
match the run exactly.

    .venv/bin/python tools/bench/retrieval/marginals.py [--by-interest] RUN SEMANTIC_IDS ...

Memory: items x codes x positions numbers, and twice the scores of a batch of users.
"""

import argparse
import tempfile
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch.nn.functional import one_hot

from trec_semid.core.config import load_config
from trec_semid.data.ragged import Ragged
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.models.retrieval_model import Queries
from trec_semid.runtime.ranks import process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.exact import CatalogueScores, rank_by, users_at_once
from trec_semid.search.retrieved import agreement
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file
from trec_semid.training.finished import FinishedRun
from trec_semid.training.retrieval.evaluation.asked import AskedModel
from trec_semid.training.retrieval.evaluation.evaluator import Evaluator
from trec_semid.training.retrieval.evaluation.listing import ExactLister
from trec_semid.training.retrieval.finished import Member, place_finished
from trec_semid.training.retrieval.inputs import read_inputs
from trec_semid.training.retrieval.setup import RetrieveConfig

LISTED, CANDIDATES = 10, 500


@final
class MarginalSearch:
    """Ranks by the product of the marginals of codes that a search's softmax over items implies."""

    def __init__(self, asked: AskedModel, codes: torch.Tensor, *, by_interest: bool = False) -> None:
        self._asked, self._codes, self._by_interest = asked, codes, by_interest
        self._one_hot = [one_hot(each).float() for each in codes.unbind(1)]
        self.users_at_once = users_at_once(len(codes))
        self._catalogue = Catalogue(len(codes), 0, None, None, None)
        self.nats = torch.zeros(codes.shape[1], dtype=torch.float64)
        self.held = torch.zeros(2, dtype=torch.float64)
        self.users = 0
        counts = torch.from_numpy(asked.data.item_counts)
        self._gains = CodePrior(counts, 1.0).of_items(codes)

    def begin(self) -> None:
        """Make the vectors of all items."""
        self._catalogue = self._asked.catalogue()

    def places(
        self, histories: Ragged, chosen: np.ndarray[Any, Any], users: UserItems, length: int
    ) -> ListedTargets | None:
        """See `Lister`."""
        queries = self._asked.queries(histories, chosen)
        if not len(chosen):
            return None
        every = slice(0, len(self._codes))
        scores_of_items = CatalogueScores(self._catalogue, queries).of(every)
        firsts = users.num_targets.cumsum(0) - users.num_targets
        targets = users.targets[firsts]
        total = torch.full_like(scores_of_items, -torch.inf)
        nats = torch.full((len(total), self._codes.shape[1]), torch.inf)
        for one, log_prob in self._asked_one_by_one(queries):
            shares = CatalogueScores(self._catalogue, one).of(every).softmax(1)
            summed = log_prob.unsqueeze(1).expand_as(shares).clone()
            for place, codes in enumerate(self._codes.unbind(1)):
                logs = (shares @ self._one_hot[place]).clamp_min(1e-30).log()
                of_target = -logs.gather(1, codes[targets].unsqueeze(1)).squeeze(1)
                nats[:, place] = torch.minimum(nats[:, place], of_target)
                summed += logs.index_select(1, codes)
            total = torch.maximum(total, summed)
        self.nats += nats.double().sum(0)
        self.users += len(total)

        def score(items: slice) -> torch.Tensor:
            return total[:, items]

        first = _first(scores_of_items, users, LISTED)
        for way, scores in enumerate((total, total + self._gains)):
            self.held[way] += agreement(_first(scores, users, CANDIDATES), first).sum()

        return rank_by(score, users, len(self._codes), length)

    def _asked_one_by_one(self, queries: Queries) -> Iterator[tuple[Queries, torch.Tensor]]:
        """Yield what has a softmax of its own, with (B,) log p: all together, or interest by interest."""
        vectors, log_probs = queries.vectors, queries.interest_log_probs
        assert vectors is not None, "items are scored by vectors"
        if not self._by_interest or vectors.dim() == 2:
            yield queries, torch.zeros(len(vectors))
            return
        for interest in range(vectors.shape[1]):
            of_one = torch.zeros(len(vectors)) if log_probs is None else log_probs[:, interest]
            yield Queries(vectors[:, interest], None), of_one

    def exact(self) -> None:
        """See `Lister`: nothing is guessed."""
        return


def _first(scores: torch.Tensor, users: UserItems, length: int) -> torch.Tensor:
    """Return (B, length) items of the highest of scores (B, N) that may be listed."""
    return rank_by(lambda items: scores[:, items].clone(), users, scores.shape[1], length).top_items


def main() -> None:
    """Print both rankings' metrics on validation users."""
    parser = argparse.ArgumentParser(description="Marginals of codes against items.")
    parser.add_argument("run", help="a finished run of `trec-semid retrieve` that predicts items")
    parser.add_argument(
        "codes", nargs="+", help="runs of `trec-semid tokenize`, or semantic_ids.parquet files"
    )
    parser.add_argument("--by-interest", action="store_true", help="a softmax for each interest of a user")
    asked = parser.parse_args()
    config = load_config(RetrieveConfig, [f"{asked.run}/config.toml"])
    with process_group(patience_s=60) as ranks, tempfile.TemporaryDirectory() as scratch:
        inputs = read_inputs(config)
        plans = RunFolder(scratch, "retrieve")
        finished, model = place_finished(Member(FinishedRun(asked.run), config), plans, ranks)
        _print("items", Evaluator(ExactLister([finished]), model, inputs.data, config, ranks).metrics())
        for name in asked.codes:
            codes = torch.tensor(SemanticIds.load(semantic_ids_file(name)).codes).long()
            search = MarginalSearch(finished, codes, by_interest=asked.by_interest)
            metrics = Evaluator(search, model, inputs.data, config, ranks).metrics()
            _print(name, metrics)
            print("    nats of a target's code:", (search.nats / search.users).numpy().round(2))
            plain, bayes = (search.held / search.users).tolist()
            held = f"{plain:.3f} as it is, {bayes:.3f} by naive Bayes"
            print(f"    of the first {LISTED} of items among its first {CANDIDATES}: {held}")


def _print(name: str, metrics: dict[str, float]) -> None:
    print(f"{name}: recall@10 {metrics['recall@10']:.4f}, ndcg@10 {metrics['ndcg@10']:.4f}")


if __name__ == "__main__":
    main()
