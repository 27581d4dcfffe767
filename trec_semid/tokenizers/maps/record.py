"""The signed record of a finished run's semantic IDs: size and sha256 of map, tokenizer and quality."""

from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, is_folder, join, list_folder, read_bytes, write_bytes
from trec_semid.runtime.fingerprints import Fingerprint, fingerprints, read_signed, signed_json, verify
from trec_semid.tokenizers.maps.coefficients import FILE as COEFFICIENTS
from trec_semid.tokenizers.maps.semantic_ids import FILE

RECORD = "codes.json"
TOKENIZER, QUALITY = "tokenizer", "quality.json"
DRIFT = "drift.json"
"""What `assign` says of the items that it added."""
_AGAIN = "Run it again, in another folder or after removing this one"


class Record(Config):
    """`codes.json`."""

    schema_version: Literal[1] = 1
    dataset: str
    dataset_checksum: str
    seed: int
    files: dict[str, Fingerprint]
    """By path in the run folder."""


def code_files(folder: str) -> list[str]:
    """Return which files of a folder belong to its semantic IDs, by path in it."""
    tokenizer = join(folder, TOKENIZER)
    names = [f"{TOKENIZER}/{name}" for name in (list_folder(tokenizer) if is_folder(tokenizer) else [])]
    names = [name for name in names if ".partial-" not in name]
    return [*(name for name in (FILE, COEFFICIENTS, QUALITY) if exists(join(folder, name))), *names]


def write_record(
    folder: str, *, dataset: str, dataset_checksum: str, seed: int, more: Sequence[str] = ()
) -> None:
    """Write the record of the files that are there now, which are whole; nothing where there are none.

    Args:
        folder: of the run.
        dataset: name of what the run read.
        dataset_checksum: of it.
        seed: of the run.
        more: further files of the run that do not change any more.
    """
    names = code_files(folder)
    if names:
        files = fingerprints(folder, [*names, *more])
        record = Record(dataset=dataset, dataset_checksum=dataset_checksum, seed=seed, files=files)
        write_bytes(join(folder, RECORD), signed_json(record.model_dump(mode="json")))


def read_record(folder: str) -> Record:
    """Read a finished run's record.

    Raises:
        DataError: there is none, or it is damaged.
    """
    place = join(folder, RECORD)
    try:
        return Record.model_validate(read_signed(read_bytes(place)))
    except FileNotFoundError:
        problem = "the record of this run's semantic IDs is missing, so its files cannot be checked"
        raise DataError(problem, file=place, remedy=_AGAIN) from None
    except (ValidationError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise DataError(f"damaged: {told}", file=place, remedy=_AGAIN) from None


def verify_record(folder: str) -> Record:
    """Check map, tokenizer and quality of a finished run; in a process group every rank must call this.

    Raises:
        DataError: the record or a file of it is missing or is not what was written, or there is another file.
    """
    record = read_record(folder)
    strange = [name for name in code_files(folder) if name not in record.files]
    if strange:
        problem = "this file is not one that the run wrote"
        raise DataError(problem, file=join(folder, strange[0]), remedy=f"Remove it. Or: {_AGAIN}")
    verify(folder, record.files, remedy=_AGAIN)
    return record
