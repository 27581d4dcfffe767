"""How much of the exact lists a beam finds."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trec_semid.data.ragged import Ragged
from trec_semid.data.sequences import EvaluationRows
from trec_semid.jobs.retrieve_evaluation import Evaluator
from trec_semid.jobs.retrieve_search import Search
from trec_semid.models.retrieved import agreement
from trec_semid.tokenizers.shards import sum_over_ranks

NUM_USERS = 1_000
"""Users of the validation split that are looked at, the first ones."""


def beam_agreement(beam: Evaluator, exact: Search) -> dict[str, float]:
    """Return, for each N, the share of the exact first N items that stand in the beam's first N.

    A mean over users, over all ranks; all ranks call it.

    Args:
        beam: whose lists are judged.
        exact: scores every item with the same model.
    """
    rows = _first_users(beam.rows("valid"))
    found, wanted = _top_items(beam, rows), _top_items(replace(beam, search=exact), rows)
    shares: dict[str, float] = {}
    for cutoff in beam.config.evaluation.cutoffs:
        of_users = agreement(found[:, :cutoff], wanted[:, :cutoff])
        sums = torch.stack([of_users.sum(), of_users.new_tensor(len(of_users))]).double()
        total, num_users = sum_over_ranks(sums.to(beam.ranks.device)).tolist()
        shares[f"valid/beam_agreement@{cutoff}"] = total / max(num_users, 1.0)
    return shares


def _first_users(rows: EvaluationRows) -> EvaluationRows:
    users, *parts = rows
    first = [Ragged(part.starts[:NUM_USERS], part.lengths[:NUM_USERS], part.values) for part in parts]
    return EvaluationRows(users[:NUM_USERS], *first)


def _top_items(evaluator: Evaluator, rows: EvaluationRows) -> Tensor:
    """Return (n, length) items of this rank's users, in the order of the rows."""
    lists = list(evaluator.lists(rows))
    if not lists:
        return torch.zeros((0, max(evaluator.config.evaluation.cutoffs)), dtype=torch.int64)
    order = np.argsort(np.concatenate([part.rows for part in lists]))
    return torch.cat([part.places.top_items.cpu() for part in lists])[torch.from_numpy(order)]
