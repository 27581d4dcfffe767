"""Amazon reviews of 2014 (McAuley et al. 2015; He and McAuley 2016): reviews_*.json.gz and meta_*.json.gz."""

import ast
import json
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from trec_semid.core.config import Config, Place
from trec_semid.core.errors import DataError
from trec_semid.data.raw.entities import collect_entities
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import Chunk, FileConfig
from trec_semid.data.raw.formats.files import first_line, open_stream, reading
from trec_semid.data.raw.formats.json_lines import line_of, whole_lines
from trec_semid.data.raw.formats.parts import find_inputs
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.data.sources.source import Needs, Source

_ITEM_SCHEMA = pa.schema(
    [
        ("asin", pa.string()),
        ("title", pa.string()),
        ("brand", pa.string()),
        ("description", pa.string()),
        ("categories", pa.string()),
        ("price", pa.float64()),
        ("image_url", pa.string()),
        ("sales_rank", pa.int64()),
        ("sales_type", pa.string()),
    ]
)
_BETWEEN = " | "
_TOO_DEEP = (RecursionError, MemoryError)
"""What Python's parser raises on thousands of brackets."""


class Amazon2014Config(Config):
    """One category: its reviews and the metadata of its products.

    Item columns: `title`, `brand`, `description`, `categories` (names on all its paths, separated by
    ' | '), `price`, `image_url`, `sales_rank` with `sales_type`. Reviews give a rating of 1 to 5 and a day.
    """

    kind: Literal["amazon2014"] = "amazon2014"
    reviews: Place
    """File, folder or pattern of reviews_*.json.gz."""
    meta: Place | None = None
    """File of meta_*.json.gz; without it products are known by their id only."""

    def event_columns(self) -> EventColumns:
        """Return the mapping of the interactions."""
        return EventColumns(user="reviewerID", item="asin", rating="overall", timestamp="unixReviewTime")

    def inputs(self) -> list[str]:
        """Return the files, folders and patterns it reads."""
        return [self.reviews, *([self.meta] if self.meta else [])]


def read_amazon2014(config: Amazon2014Config, needs: Needs) -> Source:
    """Read reviews and metadata.

    Raises:
        DataError: a file or a value that cannot be used.
    """
    columns = config.event_columns()
    reviews = FileConfig(path=config.reviews, format="jsonl")
    items = collect_entities(_products(config.meta), "asin", "item") if config.meta else None
    events = collect_events(read_chunks(reviews, columns.names(), work="reviews"), columns)
    return Source(items, None, events)


def _products(path: str) -> Iterator[Chunk]:
    for file in find_inputs(path):
        row, position = 1, 0
        with reading(file), open_stream(file) as (stream, stored):
            for block in whole_lines(stream):
                products = _parse_block(block, file, row)
                before, position = position, stored.tell()
                table = pa.Table.from_pylist(products, _ITEM_SCHEMA)
                yield Chunk(table, file, row, position - before, partial(line_of, file))
                row += len(products)
        if row == 1:
            raise DataError("no rows", file=file, remedy="Download it again or leave it out")


def _parse_block(block: bytes, file: str, first_row: int) -> list[dict[str, Any]]:
    products: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # descriptions hold backslashes that escape nothing
        for line in block.splitlines():
            if line.strip():
                products.append(_product(line, file, first_row + len(products)))
    return products


def _product(line: bytes, file: str, row: int) -> dict[str, Any]:
    try:
        record = _parse(line.decode())
        rank_type, rank = next(iter((record.get("salesRank") or {}).items()), (None, None))
        paths: list[list[str]] = record.get("categories") or []
        names = dict.fromkeys(_text(name) or "" for path in paths for name in path)
        return {
            **{name: _text(record.get(name)) for name in ("asin", "title", "brand", "description")},
            "categories": _BETWEEN.join(names) or None,
            "price": None if record.get("price") is None else float(record["price"]),
            "image_url": _text(record.get("imUrl")),
            "sales_rank": None if rank is None else int(np.int64(rank)),
            "sales_type": _text(rank_type),
        }
    except (ValueError, SyntaxError, TypeError, AttributeError, ArithmeticError, *_TOO_DEEP) as error:
        remedy = "Every line must be one JSON object or Python dict, as in the release of 2014"
        at = line_of(file, row)
        raise DataError(f"not a product: {first_line(error)}", file=file, row=at, remedy=remedy) from None


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _parse(line: str) -> dict[str, Any]:
    """Read JSON or a Python literal: the metadata of 2014 are written as `{'asin': ...}`."""
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line)
