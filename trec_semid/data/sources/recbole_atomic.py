"""RecBole's atomic files: tab-separated, every column with its type in the header (`rating:float`)."""

from collections.abc import Iterator, Sequence
from typing import Literal

import polars as pl
import pyarrow as pa

from trec_semid.core.config import Place
from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, join
from trec_semid.data.raw.columns import Where, as_text
from trec_semid.data.raw.entities import Entities, Entity, collect_entities
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import Chunk, FileConfig, check_columns
from trec_semid.data.raw.formats.delimited import column_names
from trec_semid.data.raw.formats.files import resolve
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.data.sources.source import Needs, Source

_TYPES = ("token", "token_seq", "float", "float_seq")


class RecboleConfig(EventColumns):
    """A folder with NAME.inter and, where they exist, NAME.item and NAME.user.

    Columns are called as in the header, without their type. A `token_seq` stays one text (RecBole puts
    spaces between its values), a `float_seq` becomes a list of numbers.
    """

    kind: Literal["recbole"] = "recbole"
    folder: Place
    """May be `package:NAME/FOLDER`, e.g. "package:recbole/dataset_example/ml-100k"."""
    dataset: str | None = None
    """NAME of the files; None is the name of the folder."""
    user: str = "user_id"
    item: str = "item_id"
    null_values: list[str] = []
    """Texts that mean 'missing'; an empty field always does."""

    def event_columns(self) -> EventColumns:
        """Return the mapping of the interactions."""
        return self

    def inputs(self) -> list[str]:
        """Return the files it reads; those of items and users need not be there."""
        return [_file(self, part) for part in ("inter", "item", "user")]


def read_recbole(config: RecboleConfig, needs: Needs) -> Source:
    """Read atomic files.

    Raises:
        ConfigError: the package that should carry the folder is not installed.
        DataError: a file or a value that cannot be used.
    """
    events = collect_events(_read(_form(config, "inter"), config.names(), "interactions"), config)
    items = _read_entities(_form(config, "item"), config.item, "item")
    users = _read_entities(_form(config, "user"), config.user, "user")
    return Source(items, users, events)


def _file(config: RecboleConfig, part: str) -> str:
    name = config.dataset or config.folder.rstrip("/").rsplit("/", 1)[-1]
    return join(config.folder, f"{name}.{part}")


def _form(config: RecboleConfig, part: str) -> FileConfig:
    return FileConfig(
        path=resolve(_file(config, part)), format="tsv", quoted=False, null_values=config.null_values
    )


def _read_entities(form: FileConfig, id_column: str, entity: Entity) -> Entities | None:
    if not exists(form.path):
        return None
    return collect_entities(_read(form, None, f"{entity}s"), id_column, entity)


def _read(form: FileConfig, columns: Sequence[str] | None, work: str) -> Iterator[Chunk]:
    types = _typed_header(form)
    check_columns(form.path, list(types), columns)
    typed_columns = [f"{name}:{types[name]}" for name in (columns or types)]
    for chunk in read_chunks(form, typed_columns, work=work):
        names = [name.rpartition(":")[0] for name in chunk.table.column_names]
        table = chunk.table.rename_columns(names)
        for name in names:
            if types[name] == "float_seq":
                index = table.column_names.index(name)
                lists = _float_lists(table.column(name), Where(chunk.origins, name))
                table = table.set_column(index, name, lists)
        yield chunk._replace(table=table)


def _typed_header(form: FileConfig) -> dict[str, str]:
    types: dict[str, str] = {}
    for column in column_names(form, form.path):
        name, _, kind = column.rpartition(":")
        if not name or kind not in _TYPES:
            remedy = f"RecBole writes name:type with a type of {', '.join(_TYPES)}"
            raise DataError("not a typed column header", file=form.path, field=column, remedy=remedy)
        if name in types:
            problem = f"one name under two types: {name}:{types[name]} and {column}"
            raise DataError(problem, file=form.path, field=name, remedy="Rename one of the two columns")
        types[name] = kind
    return types


def _float_lists(column: pa.ChunkedArray, where: Where) -> pa.Array:
    text = as_text(column, where).str.strip_chars()
    lists = pl.select(pl.when(text == "").then(None).otherwise(text.str.split(" "))).to_series()
    numbers = lists.cast(pl.List(pl.Float32), strict=False)
    lost = numbers.list.eval(pl.element().is_null()).list.any()
    where.refuse("not a list of numbers", text, lost, "Separate numbers by one space")
    return numbers.to_arrow(compat_level=pl.CompatLevel.oldest())
