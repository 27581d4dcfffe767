"""What changed between two bundles, and one of them made of the other and that: bit for bit.

A folder of a delta:
    delta.json              signed: the manifests' sha256 of both bundles, and how each file comes about
    target/                 manifest and signature of the bundle that comes out
    files/<path>            a file that is carried whole
    rows/<path>             of a file of tensors: the rows that changed, and where they stand

Tables change in a few rows a day, and their files are as large as the catalogue: of a safetensors file whose
tensors have the shapes of before, or more rows, the rows that differ are carried. What comes out is compared
with the target's checksums, file by file, so a delta of anything else than its base cannot pass.

Memory: the largest file of either bundle, which is a shard of a table.
"""

import hashlib
import json
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from trec_semid.checkpoints.bundle_files import (
    MANIFEST,
    SIGNATURE,
    file_facts,
    read_checked,
    read_manifest,
    verify_bundle,
)
from trec_semid.checkpoints.manifest import FileFacts, Manifest
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, staged_folder, write_bytes
from trec_semid.data.folder import writing
from trec_semid.runtime.fingerprints import read_signed, signed_json

DELTA = "delta.json"
_TARGET, _FILES, _ROWS = "target", "files", "rows"
_AT, _ROWS_OF, _HEADER = ".at", ".rows", "header"
_WORTH = 0.8
"""Rows are carried where they take less than this share of the file."""
_AGAIN = "Make the delta again: trec-semid bundle diff"
How = Literal["same", "whole", "rows"]


class Step(Config):
    """How one file of the target comes about."""

    file: str
    """Path in the target."""
    how: How
    """`same`: that of the base; `whole`: carried; `rows`: the base's with the rows that are carried."""
    carried: FileFacts | None = None
    """File of the delta; None of `same`."""


class Delta(Config):
    """`delta.json`."""

    schema_version: Literal[1] = 1
    base: str
    """sha256 of the base's manifest."""
    target: str
    """Of the target's."""
    steps: tuple[Step, ...]


class Difference(NamedTuple):
    """What a delta holds."""

    same: int
    whole: int
    by_rows: int
    """Files."""
    rows: int
    """That changed or are new, over all tensors."""
    num_bytes: int
    """Of what is carried."""
    target_bytes: int
    """Of the bundle that comes out."""


def write_delta(base: str, target: str, out: str) -> Difference:
    """Write what makes a target of its base, or nothing.

    Args:
        base: bundle that is there where the delta goes.
        target: bundle that is to be there.
        out: folder to write.

    Raises:
        DataError: one of the two is no whole bundle, or they are one and the same.
    """
    before, now = verify_bundle(base), verify_bundle(target)
    sums = [_manifest_sum(place) for place in (base, target)]
    if sums[0] == sums[1]:
        raise DataError("the same bundle as the base: nothing changed", file=target, remedy="Name two")
    known = {facts.file: facts for facts in before.files()}
    with writing(out), staged_folder(out, DELTA, in_place=False) as folder:
        steps, num_rows = list[Step](), 0
        for facts in now.files():
            step, rows = _step(base, target, folder, known.get(facts.file), facts)
            steps.append(step)
            num_rows += rows
        for name in (MANIFEST, SIGNATURE):
            write_bytes(join(folder, _TARGET, name), read_bytes(join(target, name)))
        delta = Delta(base=sums[0], target=sums[1], steps=tuple(steps))
        write_bytes(join(folder, DELTA), signed_json(delta.model_dump(mode="json")))
    return _difference(delta, now, num_rows)


def apply_delta(base: str, delta: str, out: str) -> Manifest:
    """Write the target of a delta, or nothing; it is compared with the checksums of the target.

    Args:
        base: bundle that the delta was made from.
        delta: folder of the delta.
        out: bundle to write.

    Raises:
        DataError: another base, a delta that is damaged, or a result that is not the target.
    """
    known = read_delta(delta)
    before = verify_bundle(base)
    now_sum = _manifest_sum(base)
    if now_sum != known.base:
        remedy = f"Apply it to the bundle whose manifest has sha256 {known.base[:12]}..."
        raise DataError("this delta is of another base", file=base, value=now_sum[:12], remedy=remedy)
    target = read_manifest(join(delta, _TARGET))
    of_base = {facts.file: facts for facts in before.files()}
    steps = {step.file: step for step in known.steps}
    with writing(out), staged_folder(out, MANIFEST, in_place=False) as folder:
        for facts in target.files():
            content = _made(base, delta, of_base.get(facts.file), steps.get(facts.file), facts)
            write_bytes(join(folder, facts.file), content)
        for name in (SIGNATURE, MANIFEST):
            write_bytes(join(folder, name), read_bytes(join(delta, _TARGET, name)))
    return target


def read_delta(folder: str) -> Delta:
    """Return what a delta says of itself.

    Raises:
        DataError: there is none, it is damaged, or its target is not the one that it names.
    """
    place = join(folder, DELTA)
    try:
        delta = Delta.model_validate(read_signed(read_bytes(place)))
    except FileNotFoundError:
        raise DataError("no delta here", file=place, remedy=_AGAIN) from None
    except (ValidationError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise DataError(f"damaged: {told}", file=place, remedy=_AGAIN) from None
    if _manifest_sum(join(folder, _TARGET)) != delta.target:
        file = join(folder, _TARGET, MANIFEST)
        raise DataError("not the target that delta.json names", file=file, remedy=_AGAIN)
    return delta


def _step(base: str, target: str, folder: str, before: FileFacts | None, now: FileFacts) -> tuple[Step, int]:
    """Write what a file needs into the delta; return how it comes about, and how many rows are carried."""
    if before is not None and before.sha256 == now.sha256:
        return Step(file=now.file, how="same"), 0
    content = read_checked(target, now)
    if before is not None and now.file.endswith(".safetensors"):
        changed = changed_rows(read_checked(base, before), content)
        if changed is not None and len(changed[0]) < _WORTH * len(content):
            name = f"{_ROWS}/{now.file}"
            write_bytes(join(folder, name), changed[0])
            return Step(file=now.file, how="rows", carried=file_facts(name, changed[0])), changed[1]
    name = f"{_FILES}/{now.file}"
    write_bytes(join(folder, name), content)
    return Step(file=now.file, how="whole", carried=file_facts(name, content)), 0


def _made(base: str, delta: str, before: FileFacts | None, step: Step | None, facts: FileFacts) -> bytes:
    """Return the content of a file of the target.

    Raises:
        DataError: nothing says how it comes about, or it is not what the target says.
    """
    damaged = DataError("does not say how this file comes about", file=join(delta, DELTA), value=facts.file)
    if step is None or (step.how != "whole" and before is None) or (step.how != "same") != bool(step.carried):
        raise damaged
    parts = [read_checked(base, before)] if step.how != "whole" and before is not None else []
    parts += [read_checked(delta, step.carried)] if step.carried is not None else []
    try:
        content = with_rows(*parts) if step.how == "rows" else parts[0]
    except (SafetensorError, KeyError, RuntimeError, ValueError, IndexError) as error:
        problem = f"cannot be applied: {str(error).splitlines()[0]}"
        raise DataError(problem, file=join(delta, step.file), remedy=_AGAIN) from None
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        problem = "what comes out is not the file of the target (its checksum differs)"
        raise DataError(problem, file=join(delta, step.file), remedy=_AGAIN)
    return content


def changed_rows(before: bytes, now: bytes) -> tuple[bytes, int] | None:
    """Return a safetensors file of the rows that differ, and their number; None where that makes no file.

    Of a tensor (n, ...) it has `<name>.at` int64 and `<name>.rows`; beside them the header of the file now.
    """
    old, new = safetensors.torch.load(before), safetensors.torch.load(now)
    carried: dict[str, Tensor] = {}
    num_rows = 0
    for name, values in new.items():
        known = old.get(name)
        if known is None or known.dtype != values.dtype or known.shape[1:] != values.shape[1:]:
            return None
        if values.dim() == 0:
            return None
        at = _differing(known, values)
        num_rows += len(at)
        carried |= {f"{name}{_AT}": at, f"{name}{_ROWS_OF}": _plain(values)[at].view(values.dtype)}
    content = safetensors.torch.save(carried, {_HEADER: _header(now).decode()})
    return (content, num_rows) if with_rows(before, content) == now else None


def _differing(known: Tensor, values: Tensor) -> Tensor:
    """Return int64 row numbers whose bytes differ, or that are new."""
    both = min(len(known), len(values))
    more = torch.arange(both, len(values))
    if not both or not values[0].numel():
        return more
    # Of bytes, not of numbers: NaN is not itself, and there are two zeros.
    pair = [each[:both].contiguous().view(both, -1).view(torch.uint8) for each in (known, values)]
    return torch.cat([(pair[0] != pair[1]).any(1).nonzero().squeeze(1), more])


def _plain(values: Tensor) -> Tensor:
    """Return (...) the same memory as numbers that torch can pick rows of, which unsigned ones are not."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    return values.view(signed.get(values.dtype, values.dtype))


def with_rows(before: bytes, carried: bytes) -> bytes:
    """Return the safetensors file that carried rows make of the one before.

    It is laid out by the header that was carried: a library may write the same tensors another way.
    """
    old, rows = safetensors.torch.load(before), safetensors.torch.load(carried)
    header = json.loads(_header(carried))["__metadata__"][_HEADER].encode()
    described: dict[str, Any] = json.loads(header)
    described.pop("__metadata__", None)
    body = bytearray(max((each["data_offsets"][1] for each in described.values()), default=0))
    for name, each in described.items():
        known, at = old[name], rows[f"{name}{_AT}"]
        values = known.new_empty(each["shape"])
        both = min(len(values), len(known))
        values[:both] = known[:both]
        _plain(values)[at] = _plain(rows[f"{name}{_ROWS_OF}"])
        start, stop = each["data_offsets"]
        body[start:stop] = values.flatten().view(torch.uint8).numpy().tobytes()
    return len(header).to_bytes(8, "little") + header + bytes(body)


def _header(content: bytes) -> bytes:
    """Return the JSON that a safetensors file begins with, as it is written."""
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _manifest_sum(bundle: str) -> str:
    try:
        return hashlib.sha256(read_bytes(join(bundle, MANIFEST))).hexdigest()
    except FileNotFoundError:
        raise DataError("no bundle here", file=join(bundle, MANIFEST), remedy=_AGAIN) from None


def _difference(delta: Delta, target: Manifest, num_rows: int) -> Difference:
    counts = {how: sum(step.how == how for step in delta.steps) for how in ("same", "whole", "rows")}
    carried = sum(step.carried.num_bytes for step in delta.steps if step.carried)
    whole = sum(facts.num_bytes for facts in target.files())
    return Difference(counts["same"], counts["whole"], counts["rows"], num_rows, carried, whole)
