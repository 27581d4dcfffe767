"""What a dataset was prepared from, as `dataset.json` keeps it, and whether the same is still there.

Legend: an input is what a config names: a file, a folder of files, a glob pattern, or a folder of pictures.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import filesystem, is_folder, open_file
from trec_semid.data.raw.formats.files import reading, size_of
from trec_semid.data.raw.formats.parts import Part, find_parts
from trec_semid.runtime.logs import working

_BLOCK_BYTES = 1 << 23


class InputFile(NamedTuple):
    """What identifies one file of an input, or a whole folder of pictures."""

    input: str
    """The input, as the config names it."""
    file: str
    size: int
    """Bytes; of all pictures together, for a folder of them."""
    modified: str | None
    """When it was last written; None where the file system does not say."""
    sha256: str
    """Of the content; of a folder of pictures, over their names, sizes and times."""


def describe_inputs(inputs: Iterable[str], picture_folders: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read every file of the inputs once, and look at the pictures, and return what identifies them.

    Raises:
        DataError: a file cannot be read.
    """
    files = [(place, part.file) for place in inputs for part in _parts(place)]
    described: list[InputFile] = []
    with working("checksums of the input [bytes]", sum(size_of(file) for _, file in files)) as work:
        for place, file in files:
            sha256 = _sha256(file)
            described.append(InputFile(place, file, size_of(file), _modified(file), sha256))
            work.advance(described[-1].size)
    described += [_pictures(folder) for folder in picture_folders if is_folder(folder)]
    return [each._asdict() for each in described]


def have_changed(
    recorded: Iterable[dict[str, Any]], inputs: Iterable[str], picture_folders: Iterable[str] = ()
) -> bool:
    """Return whether an input has other files, or files of other content, than when it was described.

    A file of the same size and time of writing counts as the same and is not read again. An input that is
    gone altogether has not changed: what was prepared from it can stay.
    """
    before: dict[str, list[InputFile]] = {}
    for each in recorded:
        known = {name: each.get(name) for name in InputFile._fields}
        before.setdefault(str(known["input"]), []).append(InputFile(**known))  # pyright: ignore[reportArgumentType]
    for place in inputs:
        now = _parts(place)
        if now and not _are_same(before.get(place, []), now):
            return True
    folders = [folder for folder in picture_folders if is_folder(folder)]
    return any([_pictures(folder)] != before.get(folder) for folder in folders)


def _parts(place: str) -> list[Part]:
    """Return the files of an input, none where it is gone."""
    try:
        return find_parts(place)
    except (DataError, ConfigError):
        return []


def _are_same(before: list[InputFile], now: list[Part]) -> bool:
    # By paths below the input: a package may have moved with its environment.
    if len(before) != len(now):
        return False
    return all(
        each.file.endswith(f"/{part.name}") and _is_same(each, part.file)
        for each, part in zip(before, now, strict=True)
    )


def _is_same(before: InputFile, file: str) -> bool:
    if size_of(file) != before.size:
        return False
    modified = _modified(file)
    return (modified is not None and modified == before.modified) or _sha256(file) == before.sha256


def _sha256(uri: str) -> str:
    digest = hashlib.sha256()
    with reading(uri), open_file(uri) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _modified(uri: str) -> str | None:
    fs, inner = filesystem(uri)
    return _time_of(fs.info(inner))


def _time_of(about: dict[str, Any]) -> str | None:
    # What local disks, object stores and memory call it.
    time = next((about[key] for key in ("mtime", "LastModified", "updated", "created") if key in about), None)
    return None if time is None else str(time)


def _pictures(folder: str) -> InputFile:
    fs, inner = filesystem(folder)
    entries: Any = fs.find(inner, detail=True)
    about = {str(name).removeprefix(inner): each for name, each in entries.items()}
    lines = [f"{name}\0{each['size']}\0{_time_of(each)}\n" for name, each in sorted(about.items())]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return InputFile(folder, folder, sum(int(each["size"]) for each in about.values()), None, digest)
