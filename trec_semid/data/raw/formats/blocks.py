"""Delimited text cut into blocks of whole rows, so that no reader meets a row in two pieces."""

from collections.abc import Iterator

from trec_semid.data.raw.formats.row_checks import CLOSE, RowChecker
from trec_semid.data.raw.formats.rows import QUOTE, UNIT_SEPARATOR, Block, Layout, count_byte, end_of_row
from trec_semid.data.raw.formats.utf8 import MalformedError, Utf8

LONGEST_ROW_BYTES = 1 << 24


def read_blocks(text: Utf8, layout: Layout, block_bytes: int) -> Iterator[Block]:
    """Yield the rows of a file in blocks of about `block_bytes`, each checked.

    Raises:
        MalformedError: a row that is no delimited text, or longer than LONGEST_ROW_BYTES.
    """
    checker = RowChecker(layout)
    rest, offset = b"", 0
    while True:
        piece = text.read(block_bytes)
        whole, left = _split(rest, piece, layout)
        data = whole or left
        if rest and end_of_row(data, layout) > LONGEST_ROW_BYTES:  # other rows are shorter than a piece
            raise _too_long(data, layout, offset)
        if whole:
            block = Block(_with_mark(whole, layout, offset), offset)
            checker.check(block)
            yield block
        if not piece:
            return
        rest, offset = left, offset + len(whole)


def _split(rest: bytes, piece: bytes, layout: Layout) -> tuple[bytes, bytes]:
    """Return the whole rows of `rest` and `piece` together, and what is left; all where there is no piece."""
    if not piece:
        return rest, b""
    if layout.quoted and (b'"' in rest or b'"' in piece):
        data = rest + piece
        cut = _end_of_rows(data)
        return data[:cut], data[cut:]
    cut = piece.rfind(b"\n") + 1
    if not cut:
        return b"", rest + piece
    return b"".join((rest, memoryview(piece)[:cut])), piece[cut:]


def _end_of_rows(data: bytes) -> int:
    """Return where the last row that ends outside quotes ends, 0 where none does."""
    end = data.rfind(b"\n")
    inside = count_byte(data, QUOTE, max(end, 0)) % 2
    while end >= 0 and inside:
        quote = data.rfind(b'"', 0, end)
        before = data.rfind(b"\n", 0, quote)
        inside ^= data.count(b'"', max(before, 0), end) % 2
        end = before
    return end + 1


def _with_mark(data: bytes, layout: Layout, offset: int) -> bytes:
    if len(layout.separator) == 1:
        return data
    at = data.find(UNIT_SEPARATOR)
    if at >= 0:
        remedy = "Take it out, or separate fields by one character"
        raise MalformedError("the control character U+001F", remedy, offset=offset, data=data, at=at)
    parts = data.split(b'"') if layout.quoted else [data]
    parts[::2] = [part.replace(layout.separator, UNIT_SEPARATOR) for part in parts[::2]]
    return b'"'.join(parts)


def _too_long(data: bytes, layout: Layout, offset: int) -> MalformedError:
    problem = f"a row of more than {LONGEST_ROW_BYTES >> 20} MiB"
    if layout.quoted and b'"' in data:
        return MalformedError(f"{problem}: a quote may not be closed", CLOSE, offset=offset, data=data)
    return MalformedError(problem, "End every row with a line feed", offset=offset, data=data)
