"""Writes a retriever's programs, and what they read of every item.

Legend: N items, n of a stretch, B users, L longest history, F tokens of an item, W beams, R positions,
D width.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import FileFacts, MemberFacts, ProgramFacts, TableFacts, TableType
from trec_semid.core.arrays import Array
from trec_semid.models.exported import OF_QUERIES, Exported
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.ids import write_arrays
from trec_semid.serving.writing.programs import write_program
from trec_semid.serving.writing.settings import WriteSettings
from trec_semid.serving.writing.tables import write_table

_MOST_OF_SIZE = 1 << 20
"""Bound on users and beams of a call, which torch wants to be told."""


class MemberParts(NamedTuple):
    """What of one model is written."""

    run: str
    method: str
    exported: Exported
    tokens: Iterable[Tensor]
    """(n, F, D) of consecutive items each."""
    vectors: Tensor | None
    """(N, D)."""
    codes: Tensor | None
    """(N, R)."""
    sizes: tuple[int, ...]
    """R, codes of each position without 'missing'."""
    weighs_interests: bool
    max_len: int


def write_member(
    folder: str, number: int, parts: MemberParts, settings: WriteSettings
) -> tuple[MemberFacts, tuple[TableFacts, ...]]:
    """Write one model.

    Args:
        folder: of the bundle.
        number: which member it is, from 0.
        parts: of the model.
        settings: of its tables and programs.

    Raises:
        ConfigError: torch cannot export its programs.
    """
    at, shape = f"member-{number}", list[int]()
    dtype: TableType = "fp32" if parts.exported.has_numbers else settings.dtype
    tables = [
        write_table(folder, f"{at}/tokens", _flat(parts.tokens, shape), dtype, shard_rows=settings.shard_rows)
    ]
    if parts.vectors is not None:
        stretches = parts.vectors.cpu().split(settings.shard_rows)
        vectors = write_table(
            folder, f"{at}/vectors", stretches, settings.dtype, shard_rows=settings.shard_rows
        )
        tables.append(vectors)
    codes = None
    if parts.codes is not None:
        arrays: dict[str, Array] = {
            "codes": parts.codes.cpu().numpy().astype(np.int32),
            "sizes": np.array(parts.sizes, np.int64),
        }
        codes = write_arrays(folder, f"items/{at}/codes.safetensors", arrays)
    num_tokens, width = shape
    user, steps, least = _write_programs(folder, f"programs/{at}", parts, (num_tokens, width), settings.forms)
    facts = MemberFacts(
        run=parts.run,
        method=parts.method,
        tokens=f"{at}/tokens",
        num_tokens=num_tokens,
        token_dim=width,
        vectors=f"{at}/vectors" if parts.vectors is not None else None,
        user=user,
        least_length=least,
        steps=steps,
        codes=codes,
        code_share=parts.exported.code_share,
        weighs_interests=parts.weighs_interests,
    )
    return facts, tuple(tables)


def write_items(folder: str, counts: Array, penalties: Array) -> FileFacts:
    """Write (N,) training events of items, and (N,) what is taken off their scores."""
    arrays: dict[str, Array] = {
        "counts": counts.astype(np.int64),
        "penalties": penalties.astype(np.float32),
    }
    return write_arrays(folder, "items/counts.safetensors", arrays)


def _flat(tokens: Iterable[Tensor], shape: list[int]) -> Iterable[Tensor]:
    """Yield (n, F * D), and note F and D."""
    for part in tokens:
        shape[:] = part.shape[1:]
        yield part.flatten(1).cpu()


def _write_programs(
    folder: str, at: str, parts: MemberParts, token: tuple[int, int], forms: Forms
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
    example = torch.zeros(3, longest, *token), torch.full((3,), longest)
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
