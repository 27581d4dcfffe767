"""Writes a retriever's programs, and what they read of every item.

Legend: N items, n of a stretch, B users, L longest history, F tokens of an item, W beams, R positions,
D width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import FileFacts, MemberFacts, ProgramFacts, TableType
from trec_semid.core.arrays import Array
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.models.exported import OF_QUERIES, Exported
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.ids import write_arrays
from trec_semid.serving.writing.programs import write_program
from trec_semid.serving.writing.tables import TableRows

_MOST_OF_SIZE = 1 << 20
"""Bound on users and beams of a call, which torch wants to be told."""


class MemberParts(NamedTuple):
    """What of one model is written."""

    run: str
    method: str
    exported: Exported
    token: tuple[int, int]
    """F and D."""
    has_vectors: bool
    codes: Tensor | None
    """(N, R)."""
    sizes: tuple[int, ...]
    """R, codes of each position without 'missing'."""
    has_trie: bool
    """Whether a beam goes over codes."""
    weighs_interests: bool
    max_len: int


class ItemRows(NamedTuple):
    """What of every item one model's tables are made of, stretch by stretch."""

    num_items: int
    tokens: Callable[[int, int], Tensor]
    """Gives (n, F, D) of items from one row up to another."""
    has_numbers: bool
    """Whether tokens hold numbers of things, which fewer bits would change into others."""
    vectors: Callable[[int, int], Tensor] | None
    """Gives (n, D)."""


def member_tables(members: Sequence[ItemRows], dtype: TableType) -> list[TableRows]:
    """Return the tables of models, in their order; `dtype` is how numbers are to be stored."""
    tables: list[TableRows] = []
    for number, member in enumerate(members):
        of_tokens: TableType = "fp32" if member.has_numbers else dtype
        read = partial(_flat, member.tokens)
        tables.append(TableRows(_tokens_of(number), member.num_items, of_tokens, read))
        if member.vectors is not None:
            tables.append(TableRows(vectors_of(number), member.num_items, dtype, member.vectors))
    return tables


def vectors_of(number: int) -> str:
    """Return the name of the table of a model's item vectors."""
    return f"member-{number}/vectors"


def _tokens_of(number: int) -> str:
    return f"member-{number}/tokens"


def _flat(tokens: Callable[[int, int], Tensor], first: int, last: int) -> Tensor:
    """Return (n, F * D)."""
    return tokens(first, last).flatten(1)


def write_member(folder: str, number: int, parts: MemberParts, forms: Forms) -> MemberFacts:
    """Write one model but for its tables.

    Args:
        folder: of the bundle.
        number: which member it is, from 0.
        parts: of the model.
        forms: of its programs.

    Raises:
        ConfigError: torch cannot export its programs.
    """
    at, codes, trie = f"member-{number}", None, None
    if parts.codes is not None:
        arrays: dict[str, Array] = {
            "codes": parts.codes.cpu().numpy().astype(np.int32),
            "sizes": np.array(parts.sizes, np.int64),
        }
        codes = write_arrays(folder, f"items/{at}/codes.safetensors", arrays)
        if parts.has_trie:
            sorted_tuples = TupleTrie.build(parts.codes, parts.sizes).arrays()
            trie = write_arrays(folder, f"items/{at}/trie.safetensors", sorted_tuples)
    user, steps, least = _write_programs(folder, f"programs/{at}", parts, forms)
    return MemberFacts(
        run=parts.run,
        method=parts.method,
        tokens=_tokens_of(number),
        num_tokens=parts.token[0],
        token_dim=parts.token[1],
        vectors=vectors_of(number) if parts.has_vectors else None,
        user=user,
        least_length=least,
        steps=steps,
        codes=codes,
        trie=trie,
        code_share=parts.exported.code_share,
        weighs_interests=parts.weighs_interests,
    )


def write_items(folder: str, counts: Array, penalties: Array) -> FileFacts:
    """Write (N,) training events of items, and (N,) what is taken off their scores."""
    arrays: dict[str, Array] = {
        "counts": counts.astype(np.int64),
        "penalties": penalties.astype(np.float32),
    }
    return write_arrays(folder, "items/counts.safetensors", arrays)


def _write_programs(
    folder: str, at: str, parts: MemberParts, forms: Forms
) -> tuple[ProgramFacts, tuple[ProgramFacts, ...], int]:
    """Return what the user program and the steps are, and the least L."""
    exported, max_len = parts.exported, parts.max_len
    least = min(exported.user.least_length, max_len)
    longest = least
    users = torch.export.Dim("users", min=2, max=_MOST_OF_SIZE)
    of_histories: dict[int, Any] = {0: users}
    if max_len > least:  # histories of one length have no other
        of_histories[1] = torch.export.Dim("items", min=least, max=max_len)
        longest = least + 1
    example = torch.zeros(3, longest, *parts.token), torch.full((3,), longest)
    user = write_program(
        folder,
        f"{at}/user",
        exported.user,
        example,
        [of_histories, {0: users}],
        outputs=exported.user.outputs,
        forms=forms,
    )
    if not exported.steps:
        return user, (), least
    with torch.no_grad():
        said = dict(zip(exported.user.outputs, exported.user.eval()(*example), strict=True))
    memory = [part for name, part in said.items() if name not in OF_QUERIES]
    beams = torch.export.Dim("beams", min=2, max=_MOST_OF_SIZE)
    steps: list[ProgramFacts] = []
    for position, step in enumerate(exported.steps):
        codes = torch.zeros(3, 4, position, dtype=torch.int64)
        # What is remembered may be as long as the history is, which torch finds out.
        others = [dict.fromkeys(range(1, part.dim()), torch.export.Dim.AUTO) for part in memory]
        sizes: list[Any] = [{0: users, 1: beams}, tuple({0: users, **each} for each in others)]
        inputs, name = [codes, *memory], f"{at}/step-{position}"
        steps.append(write_program(folder, name, step, inputs, sizes, outputs=("log_probs",), forms=forms))
    return user, tuple(steps), least
