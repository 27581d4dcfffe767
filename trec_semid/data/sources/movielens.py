"""MovieLens as GroupLens publishes it, https://grouplens.org/datasets/movielens (Harper and Konstan 2015)."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import polars as pl
import pyarrow as pa

from trec_semid.core.config import Config, Place
from trec_semid.core.paths import join
from trec_semid.data.raw.entities import collect_entities
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import Chunk, FileConfig
from trec_semid.data.raw.formats.files import resolve
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.data.sources.source import Needs, Source

_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The 19 flags at the end of a line of u.item, in their order."""
_EVENTS = ["user_id", "item_id", "rating", "timestamp"]
_NO_GENRES = "(no genres listed)"


class MovielensConfig(Config):
    """An unpacked MovieLens folder.

    Item columns: `title`, `year` (from the end of the title), `genres` (separated by '|'), and in 100k
    `release_date`. User columns (100k and 1m): `age`, `gender`, `occupation`, `zip_code`.
    """

    kind: Literal["movielens"] = "movielens"
    release: Literal["100k", "1m", "10m", "csv"]
    """csv is every later one: 20m, 25m, 32m, latest."""
    folder: Place

    def event_columns(self) -> EventColumns:
        """Return the mapping of the interactions."""
        return EventColumns(user="user_id", item="item_id", rating="rating", timestamp="timestamp")

    def inputs(self) -> list[str]:
        """Return the files it reads."""
        form = _form(self.release, self.folder)
        return [table.path for table in (form.events, form.items, form.users) if table]


class _Form(NamedTuple):
    """How one release writes its tables."""

    events: FileConfig
    items: FileConfig
    users: FileConfig | None


def read_movielens(config: MovielensConfig, needs: Needs) -> Source:
    """Read a MovieLens folder.

    Raises:
        DataError: a file or a value that cannot be used.
    """
    form = _form(config.release, resolve(config.folder))
    columns = config.event_columns()
    items = collect_entities(_movies(form.items), "item_id", "item")
    users = None
    if form.users:
        users = collect_entities(read_chunks(form.users, None, work="users"), "user_id", "user")
    events = collect_events(_renamed(read_chunks(form.events, None, work="interactions")), columns)
    return Source(items, users, events)


def _form(release: str, folder: str) -> _Form:
    if release == "100k":
        flags = [f"is_{genre}" for genre in _GENRES]
        movie = ["item_id", "title", "release_date", "video_release_date", "imdb_url", *flags]
        user = ["user_id", "age", "gender", "occupation", "zip_code"]
        return _Form(
            _text(folder, "u.data", "\t", _EVENTS),
            _text(folder, "u.item", "|", movie),
            _text(folder, "u.user", "|", user),
        )
    if release in ("1m", "10m"):
        movie, user = ["item_id", "title", "genres"], ["user_id", "gender", "age", "occupation", "zip_code"]
        encoding = "latin-1" if release == "1m" else "utf-8"
        return _Form(
            _text(folder, "ratings.dat", "::", _EVENTS),
            _text(folder, "movies.dat", "::", movie, encoding),
            _text(folder, "users.dat", "::", user) if release == "1m" else None,
        )
    events = FileConfig(path=join(folder, "ratings.csv"), format="csv")
    return _Form(events, FileConfig(path=join(folder, "movies.csv"), format="csv"), None)


def _text(folder: str, name: str, separator: str, header: list[str], encoding: str = "latin-1") -> FileConfig:
    return FileConfig(
        path=join(folder, name),
        format="csv",
        separator=separator,
        header=header,
        encoding=encoding,
        quoted=False,
    )


def _renamed(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Give the later releases' columns the names of the earlier ones."""
    names = {"userId": "user_id", "movieId": "item_id"}
    for chunk in chunks:
        table = chunk.table.rename_columns([names.get(name, name) for name in chunk.table.column_names])
        yield chunk._replace(table=table)


def _movies(form: FileConfig) -> Iterator[Chunk]:
    for chunk in _renamed(read_chunks(form, None, work="items")):
        frame = pl.from_arrow(chunk.table)
        assert isinstance(frame, pl.DataFrame)
        if "genres" not in frame.columns:
            frame = frame.with_columns(_from_flags().alias("genres")).drop([f"is_{name}" for name in _GENRES])
        genres = pl.col("genres").replace(_NO_GENRES, "")
        year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
        frame = frame.with_columns(genres, year.alias("year"))
        yield chunk._replace(table=_arrow(frame))


def _from_flags() -> pl.Expr:
    named = [pl.when(pl.col(f"is_{name}") == "1").then(pl.lit(name)) for name in _GENRES[1:]]
    return pl.concat_str(named, separator="|", ignore_nulls=True)


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
