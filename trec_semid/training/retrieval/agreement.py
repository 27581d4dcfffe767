"""How much of the exact lists a beam finds."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.models.retrieved import agreement
from trec_semid.tokenizers.inputs.shards import sum_over_ranks
from trec_semid.training.retrieval.evaluation import Evaluator
from trec_semid.training.retrieval.search import Search

NUM_USERS = 1_000
"""Users of the validation split that are looked at, the first ones with a history."""
NUM_USERS_OF_WIDE_BEAM = 100
"""The same where the exact lists are those of a beam over all tuples, which takes a while."""


def beam_agreement(beam: Evaluator, exact: Search, num_users: int = NUM_USERS) -> dict[str, float]:
    """Return, for each N, the share of the exact first N items that stand in the beam's first N.

    A mean over users, over all ranks; all ranks call it. Users without a history are left out: no model is
    asked for them.

    Args:
        beam: whose lists are judged.
        exact: lists every item with the same model.
        num_users: that are looked at, at most.
    """
    rows = _first_users(beam.rows("valid"), num_users)
    found, wanted = _top_items(beam, rows), _top_items(replace(beam, search=exact), rows)
    shares: dict[str, float] = {}
    for cutoff in beam.config.evaluation.cutoffs:
        of_users = agreement(found[:, :cutoff], wanted[:, :cutoff])
        sums = torch.stack([of_users.sum(), of_users.new_tensor(len(of_users))]).double()
        total, num_users = sum_over_ranks(sums.to(beam.ranks.device)).tolist()
        shares[f"valid/beam_agreement@{cutoff}"] = total / max(num_users, 1.0)
    return shares


def _first_users(rows: EvaluationRows, num_users: int) -> EvaluationRows:
    users, *parts = rows
    first = np.flatnonzero(rows.histories.lengths)[:num_users]
    return EvaluationRows(
        users[first], *(Ragged(part.starts[first], part.lengths[first], part.values) for part in parts)
    )


def _top_items(evaluator: Evaluator, rows: EvaluationRows) -> Tensor:
    """Return (n, length) items of this rank's users, in the order of the rows."""
    lists = list(evaluator.lists(rows))
    if not lists:
        return torch.zeros((0, max(evaluator.config.evaluation.cutoffs)), dtype=torch.int64)
    order = np.argsort(np.concatenate([part.rows for part in lists]))
    return torch.cat([part.places.top_items.cpu() for part in lists])[torch.from_numpy(order)]
