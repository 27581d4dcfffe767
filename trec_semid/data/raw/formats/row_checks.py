"""What delimited text must not hold: the rules of RFC 4180 that lenient readers bend."""

from typing import Any

import numpy as np

from trec_semid.core.arrays import Bytes
from trec_semid.data.raw.formats.rows import (
    CARRIAGE_RETURN,
    LINE_FEED,
    QUOTE,
    Block,
    Layout,
    end_of_row,
    row_ends,
)
from trec_semid.data.raw.formats.utf8 import MalformedError, first_not_utf8, not_text

CLOSE = "Close the quote, double quotes inside a quoted field, or set quoted = false where quotes are text"
_ENDS = "End every row in one way: by a line feed, or by a carriage return and a line feed"
_MARK = "\ufeff".encode()
_SLICE = 1 << 18
"""Bytes looked at together: they stay in the processor's cache."""


class RowChecker:
    """Checks the blocks of one file in their order: what ends its first row must end all."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._by_two: bool | None = None
        """Whether rows end by a carriage return and a line feed."""

    def check(self, block: Block) -> None:
        """Look through a block.

        Raises:
            MalformedError: its first fault of the first kind that it has.
        """
        data = block.data
        at = data.find(b"\0")
        if at >= 0:
            is_wide = self._layout.encoding.lower().startswith(("utf-16", "utf-32", "utf16", "utf32"))
            remedy = "Take it out" + ("" if is_wide else "; where the file is UTF-16, set encoding")
            raise _fault("a NUL character", remedy, block, at)
        is_ascii = data.isascii()
        at = -1 if is_ascii else first_not_utf8(data)
        if at >= 0:
            raise not_text(self._layout.encoding, block.offset, data, at)
        has_quotes = self._layout.quoted and b'"' in data
        if has_quotes:
            self._check_quotes(block)
        self._check_line_ends(block, has_quotes=has_quotes)
        if not is_ascii:
            self._check_marks(block)

    def _check_quotes(self, block: Block) -> None:
        array = np.frombuffer(block.data, np.uint8)
        num_quotes = 0
        for start in range(0, len(array), _SLICE):
            quotes = np.flatnonzero(array[start : start + _SLICE] == QUOTE)
            odd = num_quotes % 2
            opening, closing = quotes[odd::2], quotes[1 - odd :: 2]
            bent = opening[~self._may_open(_shifted(array, start - 1)[opening])]
            closed = closing[~self._may_close(_shifted(array, start + 1)[closing])]
            if len(closed) and not (len(bent) and bent[0] < closed[0]):
                raise _text_after_quote(block, start + int(closed[0]))
            if len(bent):
                problem = "a quote inside a field that does not begin with one"
                raise _fault(problem, CLOSE, block, start + int(bent[0]))
            num_quotes += len(quotes)
        if num_quotes % 2:
            raise _fault("a quote is not closed", CLOSE, block, block.data.rfind(b'"'))

    def _may_open(self, before: Bytes) -> Any:
        # A quote right before an opening one closes a field: the two stand for one.
        return (before == self._layout.mark[0]) | (before == LINE_FEED) | (before == QUOTE)

    def _may_close(self, after: Bytes) -> Any:
        may = (after == self._layout.mark[0]) | (after == LINE_FEED) | (after == QUOTE)
        return may | (after == CARRIAGE_RETURN)

    def _check_line_ends(self, block: Block, *, has_quotes: bool) -> None:
        data, array = block.data, np.frombuffer(block.data, np.uint8)
        if self._by_two is None:
            end = end_of_row(data, self._layout) - 1
            self._by_two = data[max(end - 1, 0) : end] == b"\r"
        if not self._by_two and b"\r" not in data:
            return
        if self._by_two and not has_quotes and _ends_by_two(array):
            return
        self._find_other_end(block, array)

    def _find_other_end(self, block: Block, array: Bytes) -> None:
        ends = row_ends(block.data, self._layout)
        other = ends[((array[ends - 1] == CARRIAGE_RETURN) & (ends > 0)) != bool(self._by_two)]
        returns = np.flatnonzero(array == CARRIAGE_RETURN)
        if self._layout.quoted:
            quotes = np.flatnonzero(array == QUOTE)
            returns = returns[np.searchsorted(quotes, returns) % 2 == 0]
        lone = returns[
            (returns == len(array) - 1) | (array[np.minimum(returns + 1, len(array) - 1)] != LINE_FEED)
        ]
        if len(lone):
            raise _fault("a carriage return without a line feed", _ENDS, block, int(lone[0]))
        if len(other):
            raise _fault("a row that ends otherwise than the first", _ENDS, block, int(other[0]))

    def _check_marks(self, block: Block) -> None:
        data, at = block.data, -1
        while (at := data.find(_MARK, at + 1)) >= 0:
            begins_line = at == 0 or data[at - 1] == LINE_FEED
            if begins_line and not (self._layout.quoted and data.count(b'"', 0, at) % 2):
                remedy = "Take it out: it belongs to the beginning of a file"
                raise _fault("a byte order mark inside the file", remedy, block, at)


def _shifted(array: Bytes, start: int) -> Bytes:
    """Return a slice, with a line feed before the first byte and after the last."""
    part = array[max(start, 0) : start + _SLICE]
    if start >= 0 and start + _SLICE <= len(array):
        return part
    ends = np.full(1, LINE_FEED, np.uint8)
    return np.concatenate([ends, part, ends] if start < 0 else [part, ends])


def _ends_by_two(array: Bytes) -> bool:
    """Return whether every carriage return stands before a line feed, and every line feed after one."""
    if array[0] == LINE_FEED or array[-1] == CARRIAGE_RETURN:
        return False
    for start in range(0, len(array), _SLICE):
        first, second = array[start : start + _SLICE], array[start + 1 : start + _SLICE + 1]
        if not np.array_equal(first[: len(second)] == CARRIAGE_RETURN, second == LINE_FEED):
            return False
    return True


def _fault(problem: str, remedy: str, block: Block, at: int) -> MalformedError:
    return MalformedError(problem, remedy, offset=block.offset, data=block.data, at=at)


def _text_after_quote(block: Block, at: int) -> MalformedError:
    opened = block.data.rfind(b'"', 0, at)
    if b"\n" in block.data[opened:at]:
        return _fault(
            "a quote is not closed in its line, and text follows the next one", CLOSE, block, opened
        )
    return _fault("text after a closing quote", CLOSE, block, opened)
