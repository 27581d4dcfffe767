"""The files that an input names, and what the names of their folders say about their rows.

Legend: a part is one file of an input; `dt=2024-01-01` is a partition folder, as Hive and Spark write them.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, filesystem, is_folder, is_local, join
from trec_semid.data.raw.formats.chunks import Chunk, locate
from trec_semid.data.raw.formats.files import resolve

_NULL = "__HIVE_DEFAULT_PARTITION__"


class Part(NamedTuple):
    """One file of an input."""

    file: str
    name: str
    """Its path below the input; of a file, its name."""

    @property
    def partitions(self) -> dict[str, str | None]:
        """Return the columns that its folders name, with the value that all its rows have."""
        folders = (folder.partition("=") for folder in self.name.split("/")[:-1])
        return {unquote(key): _value(text) for key, mark, text in folders if key and mark}


def _value(text: str) -> str | None:
    return None if text == _NULL else unquote(text)


def find_inputs(path: str) -> list[str]:
    """Return the files that a file, folder or glob pattern names, sorted.

    Folders are read with all their subfolders. Names that start with a dot or underscore are markers of
    other programs and are left out, but for partition folders such as `_dt=1`.

    Raises:
        DataError: nothing is there, or files lie in partition folders of different names.
    """
    return [part.file for part in find_parts(path)]


def find_parts(path: str) -> list[Part]:
    """Return the same with what their folders say.

    Raises:
        DataError: as above.
    """
    path = resolve(path)
    if is_folder(path):
        parts = [Part(join(path, name), name) for name in _names_below(path) if not _is_hidden(name)]
    elif any(mark in path for mark in "*?[") and not exists(path):
        parts = _matching(path)
    else:
        parts = [Part(path, path.rstrip("/").rsplit("/", 1)[-1])] if exists(path) else []
    if not parts:
        problem = "no files in this folder" if is_folder(path) else "no such file"
        raise DataError(problem, file=path, remedy="Correct the path in the config")
    _expect_same_columns(parts)
    return parts


def _names_below(folder: str) -> list[str]:
    """Return every file below a folder, by its path there, sorted."""
    fs, inner = filesystem(folder)
    root = inner.rstrip("/") + "/"
    if is_local(folder):
        return sorted(name.removeprefix(root) for name in _walk(root, set()))
    names_below = (str(name).removeprefix(root) for name in fs.find(inner))
    # Keys that end so stand for folders.
    return sorted(name for name in names_below if name and not name.endswith("/"))


def _walk(folder: str, above: set[str]) -> Iterator[str]:
    """Yield the files below a local folder, through links too, but not round in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _walk(entry.path + "/", above | {real})
        else:
            yield entry.path


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith((".", "_")) or any(
        folder.startswith(".") or (folder.startswith("_") and "=" not in folder) for folder in folders
    )


def _matching(pattern: str) -> list[Part]:
    fs, inner = filesystem(pattern)
    steps = inner.split("/")
    fixed = next(number for number, step in enumerate(steps) if any(mark in step for mark in "*?["))
    root = "".join(f"{step}/" for step in steps[:fixed])
    # As in a shell, a name that begins with a mark is meant only where the pattern begins so.
    asks_for_hidden = any(step.startswith((".", "_")) for step in steps[fixed:])
    parts: dict[str, Part] = {}
    for match in cast("list[str]", fs.glob(inner)):
        uri = match if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(match))
        names = [f"/{name}" for name in _names_below(uri)] if fs.isdir(match) else [""]
        for name in names:
            below = f"{match.rstrip('/')}{name}".removeprefix(root)
            if asks_for_hidden or not _is_hidden(below):
                file = f"{uri.rstrip('/')}{name}"
                parts[file] = Part(file, below)
    return [parts[file] for file in sorted(parts)]


def _expect_same_columns(parts: list[Part]) -> None:
    first = parts[0]
    for part in parts:
        if part.partitions.keys() != first.partitions.keys():
            expected = ", ".join(first.partitions) or "none"
            raise DataError(
                f"lies in other partition folders than {first.file}",
                file=part.file,
                value=", ".join(part.partitions) or "none",
                remedy=f"Expected {expected}: put all files below folders of the same names",
            )


def to_read(needed: Sequence[str], have: Sequence[str], said: Mapping[str, str | None]) -> list[str]:
    """Return the columns to read from a file, those of its partition folders too where it has them.

    Args:
        needed: columns that are asked for.
        have: columns of the file.
        said: what its partition folders say.
    """
    names = [name for name in needed if name in have or name not in said]
    names += [name for name in said if name in have and name not in names]
    return names or list(have[:1])  # one column at least: it tells how many rows there are


def with_partitions(chunk: Chunk, said: Mapping[str, str | None]) -> Chunk:
    """Return a chunk with the columns that its folders name; a column that is there must say the same.

    Raises:
        DataError: it does not.
    """
    table = chunk.table
    for name, value in said.items():
        if name in table.column_names:
            _expect_value(chunk, name, value)
        else:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return chunk._replace(table=table)


def _expect_value(chunk: Chunk, name: str, value: str | None) -> None:
    column = chunk.table.column(name)
    same = pc.fill_null(_says(column, value), False)
    index = pc.index(same, False).as_py()
    if index >= 0:
        file, row = locate(chunk.origins, index)
        remedy = f"Its folder says {value!r}: correct one of them"
        raise DataError(
            "another value than the partition folder's",
            file=file, row=row, field=name, value=column[index].as_py(), remedy=remedy,
        )  # fmt: skip


def _says(column: pa.ChunkedArray, value: str | None) -> pa.ChunkedArray:
    if value is None:
        return pc.is_null(column)
    if pa.types.is_integer(column.type) and value.removeprefix("-").isdecimal():
        value = str(int(value))  # a folder may say 01
    return pc.equal(column.cast(pa.string()), pa.scalar(value))
