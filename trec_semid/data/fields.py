"""Side fields: categories and numbers of items and users as small integer ids with a vocabulary."""

from typing import Annotated, Any, Literal, NamedTuple, Self, cast

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, PositiveInt, field_validator, model_validator

from trec_semid.core.arrays import Floats, Ints
from trec_semid.core.config import Config, keys_given
from trec_semid.data.raw.columns import Where, as_numbers, as_text, series
from trec_semid.data.raw.entities import Entities
from trec_semid.data.schema import FieldFacts


class CategoryField(Config):
    """One value or several per entity; ids are counted over the sorted values."""

    kind: Literal["category"] = "category"
    column: str
    separator: str | None = Field(default=None, min_length=1)
    """Where one text holds several values, what stands between them. List columns need none."""
    min_count: PositiveInt = 1
    """Values of fewer entities become id 0."""


class NumberField(Config):
    """A number in buckets; edges are quantiles of the entities of the dataset, or given, and stored."""

    kind: Literal["number"] = "number"
    column: str
    buckets: int = Field(10, ge=2, le=10_000)
    """Equal values never lie in two buckets, so there can be fewer."""
    edges: list[float] | None = Field(default=None, min_length=1)
    """Where buckets begin, but the first; the same for every dataset that they are given for."""

    @field_validator("edges")
    @classmethod
    def _rise(cls, edges: list[float] | None) -> list[float] | None:
        if edges and not np.all(np.diff(edges) > 0):
            raise ValueError("edges: each has to be larger than the one before")
        return edges

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        # By the value: a config that was written out in full and is read again names the default as well.
        if self.edges and keys_given(self, "", ["buckets"]):
            raise ValueError("buckets and edges: edges say how many buckets there are; leave buckets out")
        return self


FieldConfig = Annotated[CategoryField | NumberField, Field(discriminator="kind")]


class SideField(NamedTuple):
    """A field as it is stored."""

    facts: FieldFacts
    ids: pa.Array
    """int32, or list<int32>, in row order."""
    vocabulary: pa.Table
    """`id`, `value`, and for numbers `low` (included) and `high` (excluded)."""


def build_field(config: CategoryField | NumberField, entities: Entities, rows: Ints) -> SideField:
    """Turn a source column into ids.

    Args:
        config: the field.
        entities: all items or users of the source.
        rows: (N,) which of them the dataset has, in row order.

    Raises:
        DataError: there is no such column, or a value does not fit the kind of field.
    """
    column, where = entities.column(config.column)
    if isinstance(config, NumberField):
        numbers = as_numbers(column, where, nan_is_missing=True)
        own = numbers[rows]
        edges = _quantiles(own, config.buckets) if config.edges is None else np.array(config.edges)
        return _bucket(own, edges, has_buckets=config.edges is not None or not np.isnan(own).all())
    return _index(_values(config, column, where).gather(rows), config.min_count)


def _values(config: CategoryField, column: pa.ChunkedArray, where: Where) -> pl.Series:
    """Return text, or lists of text."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        if config.separator:
            where.refuse_type(column.type, "text where a separator is given")
        values = series(column, where)
        if not _are_words(cast("pl.List", values.dtype).inner):
            where.refuse_type(values.dtype, "lists of text or integers")
        return values.cast(pl.List(pl.String))
    if pa.types.is_boolean(column.type):
        return cast("pl.Series", pl.from_arrow(column)).cast(pl.String)
    text = as_text(column, where)
    return text.str.split(config.separator) if config.separator else text


def _are_words(kind: Any) -> bool:
    named = isinstance(kind, (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null))
    return named or kind.is_integer()


def _index(values: pl.Series, min_count: int) -> SideField:
    is_list = isinstance(values.dtype, pl.List)
    frame = pl.DataFrame({"row": np.arange(len(values)), "value": values})
    frame = frame.explode("value") if is_list else frame
    frame = frame.with_columns(pl.col("value").str.strip_chars()).filter(pl.col("value").fill_null("") != "")
    frame = frame.unique(["row", "value"], keep="first", maintain_order=True)
    counts = frame.group_by("value").len().filter(pl.col("len") >= min_count).sort("value")
    vocabulary = counts.select("value").with_row_index("id", offset=1).cast({"id": pl.Int32})
    matched = frame.join(vocabulary, on="value", how="inner", maintain_order="left")
    rows, ids = matched["row"].to_numpy(), matched["id"].to_numpy()
    facts = FieldFacts(kind="category", size=len(vocabulary) + 1, is_list=is_list)
    table = pa.table({name: vocabulary[name].to_arrow() for name in ("id", "value")})
    table = table.cast(pa.schema([("id", pa.int32()), ("value", pa.string())]))
    if not is_list:
        column = np.zeros(len(values), np.int32)
        column[rows] = ids
        return SideField(facts, pa.array(column), table)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(values)))]).astype(np.int32)
    return SideField(facts, pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)), table)


def _quantiles(numbers: Floats, buckets: int) -> Floats:
    """Return where buckets begin that hold about as many each, but the first."""
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return np.zeros(0)
    # Edges are values that occur, so that whole numbers stay readable.
    shares = np.linspace(0, 1, buckets + 1)[1:-1]
    edges = np.unique(np.quantile(known, shares, method="higher"))
    return edges[edges > known.min()]


def _bucket(numbers: Floats, edges: Floats, *, has_buckets: bool) -> SideField:
    ids = np.where(np.isnan(numbers), 0, 1 + np.searchsorted(edges, numbers, side="right")).astype(np.int32)
    num_buckets = len(edges) + 1 if has_buckets else 0
    low = [None, *edges.tolist()][:num_buckets]
    high = [*edges.tolist(), None][:num_buckets]
    table = pa.table(
        {
            "id": pa.array(range(1, num_buckets + 1), pa.int32()),
            "value": pa.array([_interval(a, b) for a, b in zip(low, high, strict=True)], pa.string()),
            "low": pa.array(low, pa.float64()),
            "high": pa.array(high, pa.float64()),
        }
    )
    return SideField(FieldFacts(kind="number", size=num_buckets + 1), pa.array(ids), table)


def _interval(low: float | None, high: float | None) -> str:
    if low is None:
        return "all" if high is None else f"< {high:g}"
    return f">= {low:g}" if high is None else f"{low:g} to < {high:g}"
