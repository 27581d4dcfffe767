"""Text files as UTF-8: unpacked, decoded from the encoding of the config, without a byte order mark."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
import pyarrow as pa

from trec_semid.core.errors import DataError
from trec_semid.data.raw.formats.files import open_stream

_MARK = "\ufeff"
_OF_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks; the four bytes of UTF-32 come first, as they begin like UTF-16."""
_PACKED = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip", b"PAR1": "parquet",
}  # fmt: skip


class MalformedError(Exception):
    """Text that breaks the rules of its format.

    `offset` counts the UTF-8 bytes of the file before `data`, a piece that begins with a row; the fault lies
    at byte `at` of it.
    """

    def __init__(
        self,
        problem: str,
        remedy: str,
        *,
        offset: int,
        data: bytes = b"",
        at: int = 0,
        value: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.value = problem, remedy, value
        self.offset, self.data, self.at = offset, data, at


class Utf8:
    """A stream of UTF-8 decoded from a stream of another encoding; bytes that are UTF-8 pass unchecked."""

    def __init__(self, file: str, stream: IO[bytes], encoding: str) -> None:
        self._file, self._stream, self._encoding = file, stream, encoding
        plain = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        self._decoder = None if plain else codecs.getincrementaldecoder(encoding)()
        self._given = 0
        self._has_begun = False
        self._failed = False

    def read(self, size: int) -> bytes:
        """Return about `size` bytes of whole characters where it decodes, at most `size` where it does not.

        Raises:
            DataError: the file is packed, or its byte order mark is that of another encoding.
            MalformedError: bytes that are no text of the encoding.
        """
        block = b""
        while not block:
            piece = self._stream.read(size)
            if not self._has_begun:
                _expect_text(self._file, piece, self._encoding)
            block = self._decode(piece) if self._decoder else piece
            if block and not self._has_begun:
                self._has_begun = True
                block = block.removeprefix(_MARK.encode())
            if not piece:
                break
        self._given += len(block)
        return block

    def _decode(self, piece: bytes) -> bytes:
        assert self._decoder is not None
        if self._failed:
            raise self._undecodable()
        state = self._decoder.getstate()
        try:
            return self._decoder.decode(piece, final=not piece).encode()
        except UnicodeError:
            self._decoder.setstate(state)
            self._failed = True
        good = self._decode_what_can_be(piece)
        if not good:
            raise self._undecodable()
        return good

    def _decode_what_can_be(self, piece: bytes) -> bytes:
        """Decode byte by byte up to the fault, so that its row can be named."""
        assert self._decoder is not None
        good: list[str] = []
        try:
            for byte in piece:
                good.append(self._decoder.decode(bytes([byte])))
                good[-1].encode()
        except UnicodeError:
            pass
        return "".join(good).encode(errors="replace")

    def _undecodable(self) -> MalformedError:
        return not_text(self._encoding, self._given)


def not_text(encoding: str, offset: int, data: bytes = b"", at: int = 0) -> MalformedError:
    """Return the fault of bytes that are no text of the encoding."""
    remedy = "Set encoding to that of the file; common ones are utf-8, utf-16, latin-1, cp1252"
    return MalformedError(f"bytes that are no text in '{encoding}'", remedy, offset=offset, data=data, at=at)


@contextmanager
def open_text(file: str, encoding: str) -> Iterator[tuple[Utf8, IO[bytes]]]:
    """Yield the UTF-8 text of a file and, to follow progress, the stored file below it."""
    with open_stream(file) as (stream, stored):
        yield Utf8(file, stream, encoding), stored


def first_not_utf8(data: bytes) -> int:
    """Return the offset of the first byte that is no UTF-8, -1 where all are."""
    if data.isascii():
        return -1
    ends = np.array([0, len(data)], np.int32)
    try:
        # Arrow's check is several times as fast as decoding, and needs no memory.
        pa.StringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return error.start
    return -1


def _expect_text(file: str, head: bytes, encoding: str) -> None:
    for magic, packing in _PACKED.items():
        if head.startswith(magic):
            remedy = "Name it .gz" if packing == "gzip" else "Unpack it, or pack it with gzip and name it .gz"
            if packing == "parquet":
                remedy = 'Name it .parquet, or set format = "parquet"'
            raise DataError(f"not text but a {packing} file", file=file, remedy=remedy)
    for mark, name in _OF_OTHER_ENCODINGS.items():
        if head.startswith(mark) and not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
            problem = f"begins with the byte order mark of {name}, read as '{encoding}'"
            raise DataError(problem, file=file, remedy=f'Set encoding = "{name}"')
