"""What an arm is called: what stands for an item, whose codes, and the keys in which equal names differ."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from trec_semid.report.collect import Collection, FinishedRun

PLACE_KEYS = ("seed", "run", "dataset", "semantic_ids", "label")
"""Keys that may differ within an arm: the checksum stands for the dataset and the tokenizer's own
config for its codes."""
POPULARITY = "popularity"
ENSEMBLE = "ensemble"
ITEM_IDS = "item"
"""Representation of a ranker that reads item IDs alone."""
_SEED = re.compile(r"seed-\d+")


def name_arms(members: Sequence[Sequence[FinishedRun]], collection: Collection) -> list[str]:
    """Return a name per arm; arms that would share one are told apart by the keys in which they differ.

    Args:
        members: the runs of every arm.
        collection: all runs.
    """
    plain = [_plain_name(runs[0], collection) for runs in members]
    names: list[str] = []
    for index, name in enumerate(plain):
        rivals = [other for other, its_name in enumerate(plain) if its_name == name and other != index]
        if rivals:
            differing = _differences(members[index][0], [members[other][0] for other in rivals], collection)
            name = f"{name} ({', '.join(differing[:3]) or f'arm {index + 1}'})"  # noqa: PLW2901
        names.append(name)
    return [f"{name} #{index + 1}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def representation(run: FinishedRun) -> str:
    """Return what an item is to the model: one word of a ranker, tokens joined by + of a retriever.

    Popularity asks nothing of items, so it is empty.
    """
    if run.job == "rank":
        return str(run.config.get("representation", ITEM_IDS))
    if model_kind(run) == POPULARITY:
        return ""
    if model_kind(run) == ENSEMBLE:
        rows = _rows_of_members(run)
        return rows[0] if len(rows) == 1 else f"{len(rows)} runs"
    item = run.config.get("item", {})
    tokens = ["ID"] if item.get("id", True) else []
    tokens += [*item.get("fields", []), *item.get("content", [])]
    return " + ".join([*tokens, "codes"] if run.config.get("semantic_ids") else tokens)


def model_kind(run: FinishedRun) -> str | None:
    """Return the kind of a retriever's model; None of a ranker."""
    if run.job == "rank":
        return None
    return str(run.config.get("model", {}).get("kind", "sasrec"))


def tokenizer_kind(run: FinishedRun) -> str:
    """Return the kind of tokenizer that a tokenize run fitted."""
    section = run.config.get("tokenizer")
    kind = section.get("kind") if isinstance(section, dict) else None
    return str(kind or run.json("quality.json").get("tokenizer", "tokenizer"))


def own_config(run: FinishedRun) -> dict[str, Any]:
    """Return a run's config without the keys that may differ within an arm.

    Runs of an ensemble are named by their rows: seeds of it may be of other seeds of the same runs.
    """
    own = {key: value for key, value in run.config.items() if key not in PLACE_KEYS}
    if run.job == "retrieve" and model_kind(run) == ENSEMBLE:
        own["model"] = {**own["model"], "runs": _rows_of_members(run)}
    return own


def _rows_of_members(run: FinishedRun) -> list[str]:
    """Return the last part of each run's folder, or the one before it where that is a study's `seed-<n>`."""
    folders = [PurePosixPath(folder) for folder in run.config["model"]["runs"]]
    return [folder.parent.name if _SEED.fullmatch(folder.name) else folder.name for folder in folders]


def has_other_codes(run: FinishedRun, collection: Collection) -> bool:
    """Tell whether the run's tokenize run was made anew since."""
    return run.uri in collection.on_other_codes


def _plain_name(run: FinishedRun, collection: Collection) -> str:
    parts = _rank_parts(run, collection) if run.job == "rank" else _retrieve_parts(run, collection)
    if has_other_codes(run, collection):
        parts.append("codes since replaced")
    label = run.config.get("label")
    return " · ".join([*parts, str(label)] if label else parts)


def _rank_parts(run: FinishedRun, collection: Collection) -> list[str]:
    made, parts = collection.tokenizer_of(run), [representation(run)]
    return [*parts, tokenizer_kind(made)] if made and parts[0] != ITEM_IDS else parts


def _retrieve_parts(run: FinishedRun, collection: Collection) -> list[str]:
    """Return the model's kind and, where it has one, what an item is to it, with the tokenizer by name."""
    made, tokens = collection.tokenizer_of(run), representation(run)
    if made and tokens:
        tokens = f"{tokens.removesuffix('codes')}{tokenizer_kind(made)}"
    return [part for part in (model_kind(run), tokens) if part]


def _differences(run: FinishedRun, rivals: Sequence[FinishedRun], collection: Collection) -> list[str]:
    mine, others = _flat(run, collection), [_flat(rival, collection) for rival in rivals]
    keys = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
    return [f"{key} = {mine[key]}" for key in keys]


def _flat(run: FinishedRun, collection: Collection) -> dict[str, object]:
    made = collection.tokenizer_of(run)
    codes = _flatten(own_config(made), "tokenize.") if made else {}
    return _flatten(own_config(run)) | codes


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
