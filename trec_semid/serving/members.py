"""A model of a bundle that scores items: tokens of histories in, queries or answers to a beam out.

Legend: B users, L longest history, N items, F tokens of an item, W beams, R positions, K codes, D width.
"""

from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import MemberFacts
from trec_semid.core.arrays import Array, Ints
from trec_semid.core.errors import DataError
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.models.exported import OF_QUERIES
from trec_semid.models.heads.beams import Beams, NextLogProbs, parallel_heads
from trec_semid.models.queries import Queries
from trec_semid.search.catalogue import Catalogue
from trec_semid.serving.engine import NotServedError
from trec_semid.serving.opened import OpenBundle, refusing

Said = dict[str, Tensor]
"""What the user program says of B users, by name."""


@final
class ServedModel:
    """Programs, tokens, vectors and codes of one model."""

    def __init__(self, bundle: OpenBundle, facts: MemberFacts, max_len: int) -> None:
        """Open the programs; tables stay on the disk until they are asked.

        Args:
            bundle: that it is of.
            facts: of the model.
            max_len: most recent items of a history that are read.

        Raises:
            DataError: programs, tables or codes are not what the manifest says.
        """
        self._bundle, self._facts, self._max_len = bundle, facts, max_len
        self._user: Any = bundle.program(facts.user)
        self._steps: list[Any] = [bundle.program(step) for step in facts.steps]
        self._expect_fits()

    @property
    def scores_items(self) -> bool:
        """Whether every item has a score: by its vector, or by codes that do not depend on each other."""
        by_codes = "code_log_probs" in self._facts.user.outputs
        has_codes = self._facts.codes is not None and (self._facts.code_share > 0)
        return (self._facts.vectors is not None and (by_codes or not has_codes)) or by_codes

    @cached_property
    def codes(self) -> Tensor | None:
        """(N, R) int32; None where codes do not count."""
        if self._facts.codes is None:
            return None
        return torch.from_numpy(np.asarray(self._bundle.arrays(self._facts.codes.file)["codes"]))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """R, codes that each position knows without 'missing'."""
        assert self._facts.codes is not None, "asked where there are codes"
        return tuple(self._bundle.arrays(self._facts.codes.file)["sizes"].tolist())

    @cached_property
    def trie(self) -> TupleTrie:
        """The tuples that exist; mapped where the bundle has it, else built of the codes.

        Raises:
            DataError: it is none of these items.
        """
        assert self.codes is not None, "a beam goes over codes"
        if self._facts.trie is None:
            return TupleTrie.build(self.codes, self.sizes)
        try:
            arrays = self._bundle.arrays(self._facts.trie.file)
            return TupleTrie.of_arrays(arrays, self.sizes, len(self._bundle.items))
        except DataError as error:
            raise self._refused(error.problem) from None

    @cached_property
    def catalogue(self) -> Catalogue:
        """What items are scored by; vectors are decoded when they are first asked for."""
        vectors, num_items = None, len(self._bundle.items)
        if self._facts.vectors is not None:
            with refusing(self._bundle.uri):
                stretch = self._bundle.reader.tables[self._facts.vectors].stretch(0, num_items)
            vectors = torch.from_numpy(stretch)
        return Catalogue(num_items, 0, vectors, self.codes, None)

    @property
    def code_share(self) -> float:
        """Of codes in an item's score."""
        return self._facts.code_share

    @torch.no_grad()
    def read(self, values: Ints, lengths: Ints) -> Said:
        """Return what is known of B users.

        Args:
            values: item rows of histories, one after another, oldest first.
            lengths: (B,), 1 or more.
        """
        assert self._facts.tokens is not None, "a model without tokens reads no histories"
        most = np.minimum(lengths, self._max_len)
        longest = min(max(int(most.max()), self._facts.least_length), self._max_len)
        # Programs are traced for two users or more, so that one user comes twice.
        num_users = max(len(lengths), 2)
        places = np.zeros((num_users, longest), np.int64)
        is_there = np.arange(longest) < most[:, None]
        ends = np.cumsum(lengths)
        at = (ends - most)[:, None] + np.arange(longest)
        places[: len(lengths)][is_there] = values[at[is_there]]
        read = np.append(most, most[:1]) if len(lengths) < num_users else most
        if len(lengths) < num_users:
            places[1] = places[0]
        items, inverse = np.unique(places, return_inverse=True)
        with refusing(self._bundle.uri):
            tokens = self._bundle.reader.tables[self._facts.tokens].rows(items)
        of_items = torch.from_numpy(tokens).unflatten(1, (self._facts.num_tokens, self._facts.token_dim))
        histories = of_items[torch.from_numpy(inverse.reshape(places.shape))]
        said = self._user(histories, torch.from_numpy(read))
        said = said if isinstance(said, tuple | list) else (said,)
        outputs = self._facts.user.outputs
        return {name: part[: len(lengths)] for name, part in zip(outputs, said, strict=True)}

    def queries(self, said: Said, *, weighs_interests: bool | None = None) -> Queries:
        """Return what all items are scored with.

        Args:
            said: of the users.
            weighs_interests: whether log-probabilities of interests are told; as they count in scores where
                not given.

        Raises:
            NotServedError: codes count that depend on each other.
        """
        if not self.scores_items:
            raise NotServedError("codes depend on each other here: lists are a beam's.")
        codes, log_probs = said.get("code_log_probs"), said.get("interest_log_probs")
        codes = self.code_share * codes if codes is not None and self.code_share else None
        weighs = self._facts.weighs_interests if weighs_interests is None else weighs_interests
        if log_probs is not None and not weighs:
            # An interest that is none lists nothing, also where the others all count alike.
            log_probs = torch.zeros_like(log_probs).masked_fill_(log_probs == -torch.inf, -torch.inf)
        return Queries(said.get("vectors"), codes, log_probs)

    def next_log_probs(self, said: Said, users: Tensor) -> NextLogProbs:
        """Return what a beam asks of some of the users, (b,) of those that were read."""
        if not self._steps:
            return parallel_heads(said["code_log_probs"][users].unbind(1))
        memory = [part[_two(users)] for name, part in said.items() if name not in OF_QUERIES]

        def ask(position: int, beams: Beams) -> Tensor:
            """Return (b, W, K) of the next code."""
            codes = beams.codes
            width = codes.shape[1]
            # Traced for two users and two beams or more, as the user program is.
            codes = codes.expand(-1, max(width, 2), -1) if width < 2 else codes
            codes = codes[_two(torch.arange(len(codes)))].contiguous()
            log_probs: Tensor = self._steps[position](codes, *memory)
            return log_probs[: len(users), :width]

        return ask

    def _expect_fits(self) -> None:
        """Refuse a member whose tables are of other sizes than its facts.

        Raises:
            DataError: says what does not fit.
        """
        facts, num_items = self._facts, len(self._bundle.items)
        tables = {table.name: table for table in self._bundle.manifest.tables}
        widths = {facts.tokens: facts.num_tokens * facts.token_dim, facts.vectors: None}
        for name, width in widths.items():
            table = tables.get(name or "")
            if name is not None and (
                table is None or table.rows != num_items or table.dim != (width or table.dim)
            ):
                raise self._refused(f"table '{name}' has not one row an item")
        if facts.codes is not None:
            held: dict[str, Array] = self._bundle.arrays(facts.codes.file)
            codes, sizes = held.get("codes"), held.get("sizes")
            if codes is None or sizes is None or codes.shape != (num_items, len(sizes)):
                raise self._refused("codes are not one a position and item")
            if len(codes) and ((codes < 0).any() or (codes > sizes).any()):
                raise self._refused("a code is outside its codebook")

    def _refused(self, problem: str) -> DataError:
        return DataError(problem, file=self._bundle.uri, remedy="Copy or export it again")


def _two(rows: Tensor) -> Tensor:
    """Return (b,) rows, or the one of them twice."""
    return torch.cat([rows, rows]) if len(rows) == 1 else rows
