"""GemiRec as a program over what it keeps of every item: read, choose interests, ask by them.

Legend: B users, L longest history, M interests, C levels, K codewords, D width.
"""

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from trec_semid.layers.quantize import pick_codewords
from trec_semid.models.dictionary.posterior import Chosen, interests_of_histories, likeliest_interests
from trec_semid.models.exported import HistoryProgram, of_last

if TYPE_CHECKING:  # the model makes its program
    from trec_semid.models.retrievers.gemirec import GemirecModel


@final
class GemirecProgram(HistoryProgram):
    """Vectors of a user's interests, and how likely these are.

    The first token of an item is its sum. Where the interests of a history are counted, numbers of the item's
    own stand in the first C places of a second one.
    """

    rows: Tensor
    existing: Tensor

    def __init__(
        self, model: "GemirecModel", rows: Tensor | None, existing: Tensor | None, size: int
    ) -> None:
        """Take the parts of a model.

        Args:
            model: without its items.
            rows: (C, K, d) codewords; None of free interests.
            existing: (n,) numbers of interests that items have; any may be asked by where not given.
            size: K.
        """
        super().__init__()
        self.model, self.size, self.num_interests = model, size, model.config.num_interests
        self.has_existing, self.is_free = existing is not None, rows is None
        if rows is not None:
            self.register_buffer("rows", rows)
        if existing is not None:
            self.register_buffer("existing", existing)
        self.outputs = ("vectors",) if self.is_free else ("vectors", "interest_log_probs")
        if not self.is_free and model.posterior is None:
            self.least_length = max(2, self.num_interests)

    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See `HistoryProgram`: (B, M, D) and (B, M) of (B, L, 1 or 2, D)."""
        model, vectors = self.model, histories[:, :, :1]
        states, memory = model.reader(vectors, lengths).chunk(2, dim=2)
        state = of_last(states, lengths)
        is_there = torch.arange(histories.shape[1], device=lengths.device) < lengths.unsqueeze(1)
        chosen = None
        if self.is_free:
            asked = model.questions.expand(state.shape[0], -1, -1)
        else:
            chosen = self._chosen(histories, lengths, state)
            flat = pick_codewords(self.rows, chosen.interests.flatten(0, 1)).flatten(1)
            asked = model.ask_by(flat.unflatten(0, (-1, self.num_interests)))
        answered = model.pooled(asked.unsqueeze(1), memory, is_there.unsqueeze(1)).squeeze(1)
        queries = model.queries_of(answered, asked, state)
        return (queries,) if chosen is None else (queries, chosen.log_probs.float())

    def _chosen(self, histories: Tensor, lengths: Tensor, state: Tensor) -> Chosen:
        model, num_levels = self.model, len(self.rows)
        if model.posterior is None:
            own = histories[:, :, 1, :num_levels].round().long()
            return interests_of_histories(own, lengths, self.size, self.num_interests)
        seen = state
        if model.own_reader is not None:
            seen = of_last(model.own_reader(histories[:, :, :1], lengths).chunk(2, dim=2)[0], lengths)
        return likeliest_interests(
            model.posterior.next_log_probs(seen.float(), self.rows),
            (seen.shape[0], num_levels, self.size),
            num_interests=self.num_interests,
            width=model.config.interest_beam,
            existing=self.existing if self.has_existing else None,
            device=seen.device,
        )
