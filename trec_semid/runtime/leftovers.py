"""What killed processes left behind: known by its name, and removed by the next owner of the folder."""

import re

from trec_semid.core.paths import (
    exists,
    filesystem,
    find_files,
    is_folder,
    is_local,
    join,
    list_folder,
    move,
    parent_of,
    read_bytes,
    remove,
    unfinished_note,
)
from trec_semid.runtime.locks import folder_of, holder_of

_PARTIAL = re.compile(r"(?P<name>.+)\.partial-[0-9a-f]{8}(?P<old>-old)?")
_OURS = re.compile(
    # Of these kinds every name: a list of what verbs call theirs would lack what the next verb writes.
    r"[\w-]+\.(json|json\.gz|toml|md|html|parquet)"
    r"|manifest\.json\.\w+|(\w+_)?plan\.txt|log(\.rank-\d+)?\.jsonl|events\.out\.tfevents\..+"
    r"|tokenizer|weights\.safetensors|shard-\d+\.safetensors|program\.pt2|\w+(\.mask)?\.npy|step-\d+.*"
    r"|generation-\d+"
)
"""Names that jobs write: what is called `<one of these>.partial-<8 hex digits>` is a job's own."""


def sweep(folder: str) -> list[str]:
    """Remove what was never finished in a folder and beside it; only the one that holds its lock may.

    A folder that was about to be replaced comes back when its successor did not take its place. What lies in
    a folder below that somebody else works on, such as a run of a study that was killed, is theirs.

    Returns:
        What was removed, sorted.
    """
    removed = _sweep_beside(folder) + _sweep_unfinished(folder)
    if is_folder(folder):
        for name in _unfinished_below(folder):
            remove(join(folder, name))
            removed.append(join(folder, name))
        for note in (name for name in list_folder(folder) if name == ".tokenizer.unfinished"):
            removed += _sweep_unfinished(join(folder, note.split(".")[1]))
    return sorted(removed)


def is_unfinished(folder: str) -> bool:
    """Return whether a job began to write a folder on an object store and never came to its end."""
    note = unfinished_note(folder)
    if is_local(folder) or not exists(note):
        return False
    mark = read_bytes(note).decode()
    return not (mark and exists(join(folder, mark)))


def _sweep_unfinished(folder: str) -> list[str]:
    if is_local(folder) or not exists(unfinished_note(folder)):
        return []
    removed = [folder] if is_unfinished(folder) else []
    for uri in (*removed, unfinished_note(folder)):
        remove(uri)
    return removed


def _sweep_beside(folder: str) -> list[str]:
    """Remove staged folders of this one, after putting back what one of them was to replace."""
    parent, own = parent_of(folder), folder.rstrip("/").rsplit("/", 1)[-1]
    matches = [match for name in list_folder(parent) if (match := _PARTIAL.fullmatch(name))]
    mine = [match for match in matches if match["name"] == own and is_folder(join(parent, match[0]))]
    for match in mine:
        if match["old"] and not exists(folder):
            move(join(parent, match[0]), folder)
    names = [match[0] for match in mine if is_folder(join(parent, match[0]))]
    for name in names:
        remove(join(parent, name))
    return [join(parent, name) for name in names]


def _unfinished_below(folder: str) -> set[str]:
    """Return what jobs never finished below a folder, relative to it, but for what others work on."""
    files = _all_below(folder)
    locked = [inner for file in files if (inner := folder_of(file)) and holder_of(join(folder, inner))]
    theirs = tuple(f"{inner}{end}" for inner in locked for end in ("/", ".partial-"))
    return {part for file in files if not file.startswith(theirs) for part in _partial_parts(file)}


def _all_below(folder: str) -> list[str]:
    """Return files and, on a disk, folders below a folder, relative to it."""
    if not is_local(folder):
        return find_files(folder)
    fs, inner = filesystem(folder)
    root = inner.rstrip("/") + "/"
    return sorted(str(name).removeprefix(root) for name in fs.find(inner, withdirs=True))


def _partial_parts(file: str) -> list[str]:
    """Return the path down to the first part whose name says that a job never finished it; or nothing."""
    parts = file.split("/")
    for depth, part in enumerate(parts, 1):
        match = _PARTIAL.fullmatch(part)
        if match and _OURS.fullmatch(match["name"]):
            return ["/".join(parts[:depth])]
    return []
