"""Texts from item columns: `"{title}"`, or pieces of which those without content are left out."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

import string
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trec_semid.data.encoders.chunks import Items
from trec_semid.data.encoders.columns import read_texts

_LIST_SEPARATOR = ", "
_PIECE_SEPARATOR = "; "
_TEXT = pa.large_string()


def template_columns(pieces: list[str]) -> list[str]:
    """Return the columns that the pieces name, each once.

    Raises:
        ValueError: a brace without its partner, a format specification, or no column at all.
    """
    columns: dict[str, None] = {}
    for piece in pieces:
        for _, column, specification, conversion in string.Formatter().parse(piece):
            if column is None:
                continue
            if not column or specification or conversion:
                raise ValueError(f"'{piece}': write a column name between braces, such as {{title}}")
            columns[column] = None
    if not columns:
        raise ValueError("names no column; write a column name between braces, such as {title}")
    return list(columns)


def fill_template(pieces: list[str], items: Items, start: int, stop: int) -> list[str]:
    """Return one text per item; '' where none of the columns has anything.

    Columns may hold strings, numbers, booleans, or lists of these; whole numbers are written
    without a decimal point. A piece of several is left out when one of its columns is missing; in a
    single piece a missing column is written as nothing.
    """
    names = template_columns(pieces)
    texts = {name: read_texts(items, name, start, stop, joined_by=_LIST_SEPARATOR) for name in names}
    filled = [_fill(piece, texts, stop - start, alone=len(pieces) == 1) for piece in pieces]
    absent = np.logical_and.reduce([np.asarray(text.is_null()) for text in texts.values()])
    # Joined by Python: pyarrow 26 drops rows of nulls when it joins with null_handling="skip".
    rows = zip(*(piece.to_pylist() for piece in filled), strict=True)
    joined = [_PIECE_SEPARATOR.join(piece for piece in row if piece is not None) for row in rows]
    return ["" if nothing else text for nothing, text in zip(absent.tolist(), joined, strict=True)]


def _fill(piece: str, texts: dict[str, pa.Array], rows: int, *, alone: bool) -> pa.Array:
    parts: list[Any] = []
    for literal, column, _, _ in string.Formatter().parse(piece):
        parts.append(pa.repeat(pa.scalar(literal, _TEXT), rows))
        if column is not None:
            parts.append(texts[column].fill_null("") if alone else texts[column])
    return pc.binary_join_element_wise(*parts, pa.scalar("", _TEXT))
