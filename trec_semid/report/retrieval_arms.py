"""What the arms of a report on retrievers are: their names, and which runs are one arm."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from trec_semid.report.arms import ArmRuns, Description, own_config
from trec_semid.report.collect import FinishedRun

MIN_SHARED = 3
"""Tokens that all arms must begin with for their names to leave them out."""
_SEED = re.compile(r"seed-\d+")


def describe_retrievers(runs: Sequence[FinishedRun], tokenizers: Sequence[str | None]) -> list[Description]:
    """Return what each arm is, such as `sasrec · ID + text + mmq`: the model, and what an item is to it.

    A word that is a side field of one arm and a content vector of one, the same or another, is told apart
    in all of them. What all arms begin with is left out of the names where it is long, such as in
    `sasrec · … + mmq`; the representation has it.

    Args:
        runs: one run of every arm.
        tokenizers: kinds of the tokenizers that they read.
    """
    items = [run.config.get("item", {}) for run in runs]
    fields = {name for item in items for name in item.get("fields", [])}
    contents = {name for item in items for name in item.get("content", [])}
    tokens = [_item_tokens(run, fields & contents) for run in runs]
    shared = _shared_beginning([own for run, own in zip(runs, tokens, strict=True) if _asks_of_items(run)])
    return [
        _describe(run, tokenizer, own, shared)
        for run, tokenizer, own in zip(runs, tokenizers, tokens, strict=True)
    ]


def _shared_beginning(tokens: Sequence[Sequence[str]]) -> int:
    """Return how many tokens the names leave out: those that all of several arms begin with, if many."""
    if len(tokens) < 2:
        return 0
    same = takewhile(lambda each: len(set(each)) == 1, zip(*tokens, strict=False))
    num_shared = sum(1 for _ in same)
    return num_shared if num_shared >= MIN_SHARED else 0


def _asks_of_items(run: FinishedRun) -> bool:
    """Tell whether a run has items of its own: neither of other runs nor without anything to learn."""
    return not _rows_of_members(run) and _learns(run)


def _learns(run: FinishedRun) -> bool:
    return any(name.startswith("parameters/") for name in run.result.get("counts", {}))


def _describe(run: FinishedRun, tokenizer: str | None, tokens: Sequence[str], num_shared: int) -> Description:
    model, members = str(run.config.get("model", {}).get("kind", "")), _rows_of_members(run)
    if members:
        representation = members[0] if len(members) == 1 else f"{len(members)} runs"
        named = representation
    elif not _learns(run):  # it asks nothing of items, and every seed of it is the same
        representation = named = ""
    else:
        reads_codes = bool(run.config.get("semantic_ids"))
        short = ["…", *tokens[num_shared:]] if num_shared else tokens
        representation = " + ".join([*tokens, "codes"] if reads_codes else tokens)
        named = " + ".join([*short, tokenizer or "codes"] if reads_codes else short)
    return Description(
        parts=[part for part in (model, named) if part],
        representation=representation,
        model=model,
        lists=list_rule(run),
        has_seed=_learns(run) or bool(members),
    )


def _item_tokens(run: FinishedRun, ambiguous: set[str]) -> list[str]:
    item = run.config.get("item", {})
    fields = [f"{name} (field)" if name in ambiguous else name for name in item.get("fields", [])]
    content = [f"{name} (content)" if name in ambiguous else name for name in item.get("content", [])]
    return [*(["ID"] if item.get("id", True) else []), *fields, *content]


def retriever_config(run: FinishedRun) -> dict[str, Any]:
    """Return what of a run's config makes its arm.

    Members of an ensemble are named by their rows: seeds of it may be of other seeds of them.
    """
    own, members = own_config(run), _rows_of_members(run)
    return {**own, "model": {**own["model"], "runs": members}} if members else own


def _rows_of_members(run: FinishedRun) -> list[str]:
    """Return the last part of each run's folder, or the one before it where that is a study's `seed-<n>`."""
    folders = [PurePosixPath(folder) for folder in run.config.get("model", {}).get("runs", [])]
    return [folder.parent.name if _SEED.fullmatch(folder.name) else folder.name for folder in folders]


def first_retriever(arms: Sequence[ArmRuns]) -> ArmRuns:
    """Return the arm of the run that was given first."""
    return arms[0]


def list_rule(run: FinishedRun) -> str:
    """Return how a retriever listed the catalogue, in words."""
    how = run.config.get("evaluation", {})
    width = how.get("beam_width")
    search = f"beam of {width} tuples" if width else "every item scored"
    penalty = how.get("unseen_penalty", 0.0)
    lowered = f", items without a training event {penalty:g} lower" if penalty else ""
    return f"{search}{lowered}, history {'left out' if how.get('masks_history', True) else 'kept'}"
