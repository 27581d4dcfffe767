"""Input files: finding them, opening them as streams, and wording what can go wrong with them."""

import csv
import gzip
import importlib.util
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import polars as pl
import pyarrow as pa

from trec_semid.core.errors import ConfigError, DataError, SemidError
from trec_semid.core.paths import filesystem, join, open_file

PACKAGE_PREFIX = "package:"
"""`package:NAME/FOLDER` is a folder that an installed package carries."""


def resolve(path: str) -> str:
    """Return a path as it is, or the folder on disk behind `package:NAME/FOLDER`.

    The package is located and not imported, so its own dependencies need not be there.

    Raises:
        ConfigError: the package is not installed.
    """
    if not path.startswith(PACKAGE_PREFIX):
        return path
    name, _, inner = path.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{path}: package '{name}' is not installed. Remedy: pip install {name}.")
    return join(spec.submodule_search_locations[0], inner)


def size_of(uri: str) -> int:
    """Return a file's size [bytes], -1 where there is none."""
    fs, inner = filesystem(uri)
    return int(cast("int", fs.size(inner))) if fs.exists(inner) else -1


@contextmanager
def open_stream(uri: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Yield the (unpacked) bytes of a file and, to follow progress, the stored file below them."""
    with open_file(uri) as stored:
        if uri.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=stored) as unpacked:
                yield cast("IO[bytes]", unpacked), stored
        else:
            yield stored, stored


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn whatever a reader raises about `file` into a DataError.

    Raises:
        DataError: the file is missing, truncated, damaged, or not what its name says.
    """
    try:
        yield
    except SemidError:
        raise
    except FileNotFoundError:
        raise DataError("no such file", file=file, remedy="Correct the path in the config") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        remedy = "Copy or download it again and compare its size with the original"
        raise DataError(f"truncated or damaged gzip file: {error}", file=file, remedy=remedy) from None
    except (pa.ArrowException, pl.exceptions.PolarsError, UnicodeError, OSError, csv.Error) as error:
        raise DataError(f"cannot be read: {first_line(error)}", file=file, remedy=_remedy(file)) from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without machine addresses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\s+at 0x[0-9a-f]+", "", lines[0]).rstrip(".")


def _remedy(file: str) -> str:
    if file.endswith(".parquet"):
        return "It is truncated, damaged or no Parquet file: write or download it again"
    return "Check that it is complete and that format, separator and encoding in the config fit it"
