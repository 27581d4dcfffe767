"""Whose folder is it: which verb wrote it, and whether another one may write there.

A folder says so by a file: `run.json` names the verb, every other kind has a mark of its own.
"""

import fnmatch
import json
import os
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import (
    exists,
    filesystem,
    is_folder,
    is_local,
    is_private,
    join,
    list_folder,
    parent_of,
    read_bytes,
)
from trec_semid.runtime.leftovers import is_unfinished

Verb = Literal[
    "prepare",
    "tokenize",
    "assign",
    "rank",
    "retrieve",
    "evaluate",
    "export",
    "delta",
    "predict",
    "report",
    "study",
    "daily",
    "generations",
]
"""Verbs, and what else writes a folder; a folder is of the kind of who wrote it."""
_RUN = "run.json"
_MARKS: dict[str, Verb] = {
    "dataset.json": "prepare",
    "drift.json": "assign",
    "manifest.json": "export",
    "delta.json": "delta",
    "study.json": "study",
    "report.json": "report",
    "store.json": "generations",
}
_WHAT: dict[Verb, str] = {
    "prepare": "a dataset",
    "tokenize": "a tokenize run",
    "assign": "an assign run",
    "rank": "a rank run",
    "retrieve": "a retrieve run",
    "evaluate": "an evaluation",
    "export": "a bundle",
    "delta": "a delta between bundles",
    "predict": "answers of a bundle",
    "report": "a report",
    "study": "a study",
    "daily": "a daily training",
    "generations": "a store of semantic IDs",
}
_REPLACED: dict[Verb, re.Pattern[str]] = {
    "prepare": re.compile(r"dataset\.json|config\.toml|(items|users)\.parquet|fields|events|content"),
    "assign": re.compile(r"(drift|codes|run|processes|metrics)\.json|config\.toml|semantic_ids\.parquet"),
    "export": re.compile(
        r"manifest\.json(\.\w+)?|tables|programs|ids|fields|items|histories\.safetensors|README\.md|reader\.py"
        r"|semantic_ids\.parquet|tokenizer|(quality|config)\.\w+"
    ),
    "delta": re.compile(r"delta\.json|target|files|rows"),
}
"""Verbs that replace a whole folder, and what one of theirs has in it: anything else would be lost."""
_WHOLE = {*_REPLACED, "generations"}
"""Verbs whose folders have no room for anything else."""
_OWN_FILES = re.compile(
    r"config\.toml|(run|processes|metrics|quality|codes|evaluated|report|study|days|\w*plan)\.\w+|semantic_ids\.parquet|tokenizer"
    r"|predictions|checkpoints|rows|members"
)
"""What other verbs write into a folder that may hold other things beside."""
_INSIDES = ("checkpoints", "predictions", "rows", "tokenizer")
"""Folders of a run that nothing else may lie in."""


def kinds_of(folder: str) -> set[str]:
    """Return the verbs whose marks a folder bears; `?` stands for a `run.json` that says none."""
    names = set(list_folder(folder))
    kinds: set[str] = {_job_of(folder)} if _RUN in names else set()
    marks = {kind for mark, kind in _MARKS.items() if mark in names}
    return kinds | (marks - {"assign"} if kinds else marks)


def _job_of(folder: str) -> str:
    try:
        said: Any = json.loads(read_bytes(join(folder, _RUN)))
        return said["job"] if said["job"] in get_args(Verb) else "?"
    except (ValueError, KeyError, TypeError, OSError):
        return "?"


def check_owner(folder: str, verb: Verb, inputs: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
    """Check that a verb may write a folder: it is free, or holds what this verb may replace or go on with.

    Args:
        folder: where it writes.
        verb: who asks.
        inputs: folders, files and patterns of raw data that it reads whole; it must not write into them.
        beside: finished runs that the folder may be, such as the one that a report is about.

    Raises:
        DataError: the folder is another verb's or somebody else's, or lies where it would be read as data
            or removed with what is around it.
    """
    if exists(folder) and not is_folder(folder):
        raise DataError("this is a file; a folder is to be written here", file=folder, remedy=_remedy(verb))
    _check_around(folder, verb)
    for place in inputs:
        _check_outside(folder, place, verb)
    if any(same_place(folder, place) for place in beside) or is_unfinished(folder):
        return
    kinds = kinds_of(folder)
    others = sorted(kinds - {verb} - ({"report"} if verb in kinds else set()))
    if "?" in others:
        problem = "holds a run, but its run.json cannot be read"
        raise DataError(problem, file=folder, remedy=_remedy(verb))
    if others:
        problem = f"there is something else than {_WHAT[verb]}: this is {_WHAT[_verb(others[0])]}"
        raise DataError(problem, file=folder, remedy=_remedy(verb))
    _check_content(folder, verb, is_own=verb in kinds)


def check_file(file: str) -> None:
    """Check that a single file may be written: not into what is read as a whole, nor over a verb's own.

    Raises:
        DataError: it is.
    """
    kinds = kinds_of(parent_of(file))
    if kinds and (exists(file) or kinds & _WHOLE):
        what = _WHAT[_verb(sorted(kinds)[0])] if "?" not in kinds else "a run"
        raise DataError(f"lies in {what}, of which it is no part", file=file, remedy="Choose another `out`")


def _check_content(folder: str, verb: Verb, *, is_own: bool) -> None:
    """Refuse to lose what no verb wrote."""
    names = [name for name in list_folder(folder) if not _is_aside(folder, name)]
    known = _REPLACED.get(verb)
    if known:
        strange = [name for name in names if not (is_own and known.fullmatch(name))]
    else:
        strange = [] if is_own else [name for name in names if _OWN_FILES.fullmatch(name)]
    if strange and verb == "report":
        strange = [name for name in strange if name.startswith("report.")]
    if strange and verb == "study":
        strange = [name for name in strange if name.startswith("study.")]
    if strange:
        also = "more than" if is_own else "something else than"
        problem = f"there is {also} {_WHAT[verb]} ('{strange[0]}'), which would be lost"
        raise DataError(problem, file=folder, remedy=_remedy(verb))


def _check_around(folder: str, verb: Verb) -> None:
    """Refuse a place inside a folder that is read or replaced as a whole."""
    inner, place = "", folder.rstrip("/")
    if is_local(folder):
        place = os.path.realpath(filesystem(folder)[1])
    while parent_of(place) not in (place, ".") and not parent_of(place).endswith("://"):
        inner, place = place.rsplit("/", 1)[1], parent_of(place)
        kinds = kinds_of(place)
        whole = sorted(kind for kind in kinds & _WHOLE if _is_really(place, kind))
        if whole or (inner in _INSIDES and kinds & {"tokenize", "rank", "retrieve"}):
            what = _WHAT[_verb((whole or sorted(kinds))[0])]
            problem = f"lies inside {what} ({place}), and would be taken for a part of it"
            raise DataError(problem, file=folder, remedy=_remedy(verb))


def _is_really(place: str, kind: str) -> bool:
    """Return whether a mark is of our kind: other programs have a `manifest.json` as well."""
    mark, key = {
        "prepare": ("dataset.json", "split_rule"),
        "assign": ("drift.json", "tokenizer_run"),
        "export": ("manifest.json", "dataset_checksum"),
        "delta": ("delta.json", "steps"),
        "generations": ("store.json", "store"),
    }[kind]
    try:
        return key in json.loads(read_bytes(join(place, mark)))
    except (ValueError, TypeError, OSError):
        return False


def _check_outside(folder: str, source: str, verb: Verb) -> None:
    """Refuse a place inside raw data: the next time it would be read as data."""
    out = resolved(folder)
    if any(mark in source for mark in "*?[") and not exists(source):
        pattern = resolved(source)
        parts = out.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        depth = None if "**" in pattern else pattern.count("/")
        inside = any(
            fnmatch.fnmatch(each, pattern) for each in above if depth is None or each.count("/") == depth
        )
    else:
        inside = is_folder(source) and (out + "/").startswith(resolved(source) + "/")
    if inside:
        problem = f"lies inside the data that is read ({source}), and would be read as data"
        raise DataError(problem, file=folder, remedy=_remedy(verb))


def resolved(place: str) -> str:
    """Return a place in its one spelling: without `.`, `~`, links and a slash at its end."""
    if not is_local(place):
        return place.rstrip("/")
    return os.path.realpath(filesystem(place)[1])


def same_place(one: str, other: str) -> bool:
    """Return whether two spellings name one place."""
    return resolved(one) == resolved(other)


def refuse_private(folder: str, num_processes: int) -> None:
    """Refuse a place that only one process can see, where several are to write.

    Raises:
        ConfigError: it is one, and they are several.
    """
    if num_processes > 1 and is_private(folder):
        raise ConfigError(
            f"{folder}: memory:// is private to a process, and several write here. Name a disk."
        )


def _is_aside(folder: str, name: str) -> bool:
    """Return whether a name is of a stamp, a lock or an unfinished write: nothing that is lost with it."""
    return (name.startswith(".") and not is_folder(join(folder, name))) or ".partial-" in name


def _verb(name: str) -> Verb:
    return next(verb for verb in _WHAT if verb == name)


def _remedy(verb: Verb) -> str:
    key = "run" if verb in ("tokenize", "rank", "retrieve", "daily") else "out"
    return f"Choose another `{key}`, or remove it"
