"""Items or users as they come: every source column, ids checked, every row traceable to its file."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trec_semid.core.errors import DataError
from trec_semid.data.raw.columns import Where, as_ids
from trec_semid.data.raw.formats.chunks import Chunk, Origins, locate

Entity = Literal["item", "user"]


class Entities(NamedTuple):
    """All items or all users of a source, in source order."""

    entity: Entity
    ids: pa.Array
    """Text, unique."""
    table: pa.Table
    """The source's columns, by their names there."""
    origins: Origins

    def column(self, name: str) -> tuple[pa.ChunkedArray, Where]:
        """Return a source column and its place.

        Raises:
            DataError: there is no such column.
        """
        file = self.origins[0][1] if self.origins else None
        if name not in self.table.column_names:
            have = ", ".join(self.table.column_names[:30]) or "none"
            problem = f"no such {self.entity} column"
            raise DataError(problem, file=file, field=name, remedy=f"Map one of: {have}")
        return self.table.column(name), Where(self.origins, name)

    def locate(self, index: int) -> tuple[str, int]:
        """Return the file and row of an entity."""
        return locate(self.origins, index)


def collect_entities(chunks: Iterable[Chunk], id_column: str, entity: Entity) -> Entities:
    """Read a table of items or users.

    Raises:
        DataError: an id is missing or occurs twice, or files disagree in their columns.
    """
    tables: list[pa.Table] = []
    ids: list[pa.Array] = []
    origins: Origins = []
    num_rows = 0
    for chunk in chunks:
        if chunk.table.num_rows == 0:
            continue
        if id_column not in chunk.table.column_names:
            have = ", ".join(chunk.table.column_names)
            raise DataError("no such column", file=chunk.file, field=id_column, remedy=f"Map one of: {have}")
        origins += chunk.origins_from(num_rows)
        num_rows += chunk.table.num_rows
        where = Where(chunk.origins, id_column)
        ids.append(as_ids(chunk.table.column(id_column), where))
        index = chunk.table.column_names.index(id_column)
        tables.append(chunk.table.set_column(index, id_column, ids[-1]))
    if not tables:
        raise DataError(f"no {entity}s", field=id_column, remedy="The table has no rows: write it again")
    table = _joined(tables, origins)
    entities = Entities(entity, pa.concat_arrays(ids), table, origins)
    _check_unique(entities, id_column)
    return entities


def _joined(tables: list[pa.Table], origins: Origins) -> pa.Table:
    try:
        tables = _with_text(tables)
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        remedy = "Write all files of the table with the same column types"
        raise DataError(f"files disagree: {error}", file=origins[0][1], remedy=remedy) from None


def _with_text(tables: list[pa.Table]) -> list[pa.Table]:
    """Make integers text in columns that are text in another table: codes and ids, written as they came."""
    is_text = {field.name for table in tables for field in table.schema if pa.types.is_string(field.type)}
    return [
        table.cast(
            pa.schema([_text_field(field) if field.name in is_text else field for field in table.schema])
        )
        for table in tables
    ]


def _text_field(field: pa.Field) -> pa.Field:
    return field.with_type(pa.string()) if pa.types.is_integer(field.type) else field


def _check_unique(entities: Entities, id_column: str) -> None:
    codes = entities.ids.dictionary_encode().indices.to_numpy()
    repeated = codes != np.arange(len(codes))  # codes count by first appearance: 0, 1, 2, ... without repeats
    if not repeated.any():
        return
    second = int(np.argmax(repeated))
    file, row = entities.locate(second)
    first_file, first_row = entities.locate(int(np.argmax(codes == codes[second])))
    raise DataError(
        f"duplicate {entities.entity} id, first seen in {first_file}, row {first_row}",
        file=file,
        row=row,
        field=id_column,
        value=entities.ids[second].as_py(),
        remedy=f"Keep one row for each {entities.entity}",
    )


def named_entities(ids: pa.Array, entity: Entity) -> Entities:
    """Return entities known by their (n,) ids alone, as they occur in the interactions."""
    return Entities(entity, ids, pa.table({}), [])


def with_unknown(entities: Entities, ids: pa.Array) -> Entities:
    """Return the entities with those of (n,) `ids` appended that are not among them; all else is null."""
    known = pc.is_in(ids, entities.ids)  # pyright: ignore[reportAttributeAccessIssue]
    new = ids.filter(pc.invert(known))  # pyright: ignore[reportAttributeAccessIssue]
    schema = entities.table.schema
    nulls = pa.table([pa.nulls(len(new), field.type) for field in schema], schema=_nullable(schema))
    table = pa.concat_tables([entities.table.cast(_nullable(schema)), nulls])
    return entities._replace(ids=pa.concat_arrays([entities.ids, new]), table=table)


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(nullable=True) for field in schema])
