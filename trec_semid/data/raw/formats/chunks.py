"""How an input table is written, and a piece of its rows."""

import codecs
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple

import pyarrow as pa
from pydantic import Field, field_validator

from trec_semid.core.config import Config, Place
from trec_semid.core.errors import DataError

Format = Literal["parquet", "csv", "tsv", "jsonl"]
_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
_PROBE = 'a1,;"\t\r\n'
_OF_NO_FILES = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")
"""Codecs of host names and of Python's source."""
_PACKINGS = (
    ".zst",
    ".zstd",
    ".bz2",
    ".xz",
    ".lzma",
    ".zip",
    ".7z",
    ".lz4",
    ".br",
    ".snappy",
    ".sz",
    ".tar",
    ".tgz",
    ".z",
)
_SHOWN = 60
"""Characters of a column's name that an error shows."""
_SEPARATORS: dict[Format, str] = {"csv": ",", "tsv": "\t"}


class Chunk(NamedTuple):
    """Consecutive rows of one file."""

    table: pa.Table
    file: str
    first_row: int
    """Number of its first row in the file; counted from 1, without header and blank lines."""
    stored_bytes: int
    """How much of the stored file this chunk stands for."""
    with_blanks: "CountBlanks | None" = None
    """Where blank lines can lie between rows: how to count them in, for errors."""

    @property
    def origins(self) -> "Origins":
        """Return where the chunk's rows come from."""
        return self.origins_from(0)

    def origins_from(self, index: int) -> "Origins":
        """Return the same where the chunk's first row is number `index` of all that was read."""
        return [(index, self.file, self.first_row, self.with_blanks)]


CountBlanks = Callable[[int], int]
"""From a row's number in its file to the number a person finds it by, blank lines counted too."""
Origins = list[tuple[int, str, int, CountBlanks | None]]
"""Of rows read in chunks: index of each chunk's first row, its file, and that row's number there."""


def locate(origins: Origins, index: int) -> tuple[str, int]:
    """Return the file and row number of one of the rows read in chunks; a header line is not counted."""
    last = max((origin for origin in origins if origin[0] <= index), key=itemgetter(0))
    start, file, first_row, with_blanks = last
    row = first_row + index - start
    return file, with_blanks(row) if with_blanks else row


class FileConfig(Config):
    """One input table: a file, a folder of files, or a glob pattern."""

    path: Place
    format: Format | None = None
    """None takes it from the file name: .parquet, .csv, .tsv, .jsonl, the text forms also with .gz."""
    separator: str | None = Field(default=None, min_length=1)
    """Between fields of a text file; None is ',' in csv and a tab in tsv."""
    header: list[str] | None = None
    """Column names of text files that have no header line."""
    encoding: str = "utf-8"
    """Of text files; a byte order mark at the beginning is no part of the text."""
    quoted: bool = True
    """Whether '"' encloses fields that hold separators or line ends."""
    null_values: list[str] = []
    """Texts of text files that mean 'missing', e.g. ["NA"]; an empty field always does."""

    @field_validator("separator")
    @classmethod
    def _separates(cls, separator: str | None) -> str | None:
        if separator and any(mark in separator for mark in '"\r\n'):
            raise ValueError("a quote or a line end cannot separate fields")
        return separator

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        common = "common ones are utf-8, utf-16, latin-1, cp1252"
        try:
            is_plain = _PROBE.encode(encoding).decode(encoding) == _PROBE
        except LookupError:  # also of a codec such as zip, that turns bytes into bytes
            raise ValueError(f"unknown encoding, or none of text; {common}") from None
        except UnicodeError:
            is_plain = False
        if not is_plain or codecs.lookup(encoding).name in _OF_NO_FILES:
            raise ValueError(f"no encoding of text files; {common}")
        return encoding

    def format_of(self, file: str) -> Format:
        """Return the format of one file.

        Raises:
            DataError: neither the config nor the name says it, or the file is packed in a way not read here.
        """
        _expect_packing(file)
        if self.format:
            return self.format
        name = file.lower().removesuffix(".gz")
        for suffix, named in _SUFFIXES.items():
            if name.endswith(suffix):
                return named
        remedy = f"Name it by one of {', '.join(_SUFFIXES)} or set format"
        raise DataError("unknown file format", file=file, remedy=remedy)

    def separator_of(self, file: str) -> str:
        """Return what stands between the fields of a text file."""
        return self.separator or _SEPARATORS[self.format_of(file)]


def _expect_packing(file: str) -> None:
    name = file.lower()
    if name.endswith(".parquet.gz"):
        raise DataError("packed Parquet", file=file, remedy="Unpack it: Parquet is packed inside")
    for packing in _PACKINGS:
        if name.endswith(packing):
            remedy = "Unpack it, or pack it with gzip and name it .gz"
            raise DataError(f"packed as {packing}", file=file, remedy=remedy)


def check_columns(file: str, have: Sequence[str], needed: Iterable[str] | None) -> None:
    """Check that a file has the columns the config maps, and each once.

    Raises:
        DataError: one is not there, or two have one name.
    """
    if len(set(have)) < len(have):
        twice = next(name for name in have if list(have).count(name) > 1)
        raise DataError("two columns of one name", file=file, field=twice, remedy="Rename one of them")
    for name in needed or ():
        if name not in have:
            remedy = f"Map one of: {', '.join(column[:_SHOWN] for column in list(have)[:30])}"
            raise DataError("no such column", file=file, field=name, remedy=remedy)
