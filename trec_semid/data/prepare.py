"""From raw data to a dataset folder."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from trec_semid.core.config import Config, Place, dump_toml
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, staged_folder, write_bytes
from trec_semid.data.content import ContentConfig, write_contents
from trec_semid.data.encoders.arrays import NpyConfig
from trec_semid.data.encoders.image import ImageConfig
from trec_semid.data.events.filters import FilterConfig
from trec_semid.data.events.labels import (
    LabelConfig,
    check_classes,
    check_label_columns,
    label_rule,
    make_labels,
)
from trec_semid.data.events.linking import Kept, Links, link
from trec_semid.data.events.negatives import NegativesConfig
from trec_semid.data.events.ordering import TieRule, tie_rule
from trec_semid.data.events.splits import (
    EMPTY_DAY,
    ItemHoldout,
    SplitConfig,
    needs_times,
    split_rule,
    unknown_events,
)
from trec_semid.data.events.timeline import Timeline, arrange, describe_splits, with_negatives
from trec_semid.data.fields import FieldConfig, SideField, build_field
from trec_semid.data.folder import (
    CONFIG,
    DESCRIPTION,
    checksum,
    describe_files,
    write_description,
    write_entities,
    write_events,
    writing,
)
from trec_semid.data.histories import Events
from trec_semid.data.ranking.row_files import RowsConfig, write_rows
from trec_semid.data.raw.inputs import describe_inputs
from trec_semid.data.raw.times import text_of
from trec_semid.data.schema import DatasetFacts, ModalityFacts, RowCounts, SimilarIds
from trec_semid.data.similar_ids import find_similar_ids
from trec_semid.data.sources.kinds import SourceConfig, read_source
from trec_semid.data.sources.source import Needs, Source
from trec_semid.runtime.owners import check_owner

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_RESERVED = {"item_id", "user_id", "row", "id"}


class EntityConfig(Config):
    """What the dataset keeps of items or users beside their ids."""

    readable: dict[Name, str] = {}
    """Columns that people read in reports, such as a title: name in the dataset = source column."""
    fields: dict[Name, FieldConfig] = {}
    """Side fields: name in the dataset = how it comes about."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "EntityConfig":
        taken = (self.readable.keys() & self.fields.keys()) | (_RESERVED & {*self.readable, *self.fields})
        if taken:
            raise ValueError(
                f"name used twice or reserved for the dataset itself: {', '.join(sorted(taken))}"
            )
        return self

    def columns(self) -> list[str]:
        """Return the source columns it needs."""
        return [*self.readable.values(), *(field.column for field in self.fields.values())]


class ItemsConfig(EntityConfig):
    """What the dataset keeps of items."""

    keep_where: str | None = None
    """Column of true and false (or 1 and 0); only items where it is true stay."""


class PrepareConfig(Config):
    """A dataset: where it comes from, what stays, what counts as positive, how it is split."""

    name: str = Field(min_length=1)
    out: Place
    """Path or URI of the dataset folder."""
    seed: int = Field(default=0, ge=0)
    source: SourceConfig
    items: ItemsConfig = ItemsConfig()
    users: EntityConfig = EntityConfig()
    filter: FilterConfig = FilterConfig()
    label: LabelConfig
    split: SplitConfig
    ties: TieRule = "shuffled"
    """Order of events of equal time: shuffled with the seed, or as published (`order` column, then row)."""
    negatives: NegativesConfig | None = None
    rows: RowsConfig | None = None
    """Given where `rank` is to stream rows from files, instead of holding all events in memory."""
    content: dict[Name, ContentConfig] = {}
    cache: Place | None = None
    """Folder for encoded content, shared by all datasets."""

    @model_validator(mode="after")
    def _fits_source(self) -> "PrepareConfig":
        columns = self.source.event_columns()
        has_rating, has_behaviour = columns.rating is not None, columns.behaviour is not None
        check_label_columns(self.label, has_rating=has_rating, has_behaviour=has_behaviour)
        if needs_times(self.split) and columns.timestamp is None:
            raise ValueError(
                f"split '{self.split.kind}' needs timestamps: map that column, or split 'leave_one_out' or "
                "'per_user_temporal'"
            )
        if self.rows and self.label.kind == "none":
            raise ValueError("rows are for ranking, which needs labels: label.kind is 'none'")
        if self.negatives and self.label.kind == "none":
            raise ValueError("negatives need positives: label.kind is 'none'")
        if self.negatives and isinstance(self.split, ItemHoldout):
            raise ValueError(
                "negatives are drawn from items of training, which a model tells from those that split "
                "'item_holdout' holds out; use a label with both classes"
            )
        return self

    def needs(self) -> Needs:
        """Return the item and user columns it uses."""
        content = [column for config in self.content.values() for column in config.columns]
        keep = [self.items.keep_where] if self.items.keep_where else []
        return Needs([*self.items.columns(), *content, *keep], self.users.columns())

    def inputs(self) -> list[str]:
        """Return the files, folders and patterns it reads, pictures aside."""
        arrays = [content.file for content in self.content.values() if isinstance(content, NpyConfig)]
        return list(dict.fromkeys([*self.source.inputs(), *arrays]))

    def picture_folders(self) -> list[str]:
        """Return the folders its pictures lie in."""
        folders = [content.folder for content in self.content.values() if isinstance(content, ImageConfig)]
        return list(dict.fromkeys(folders))


def prepare_dataset(config: PrepareConfig) -> DatasetFacts:
    """Write the dataset folder, all of it or nothing.

    Raises:
        ConfigError: a package that carries the data is not installed.
        DataError: input that cannot be used, or a place that cannot be written.
    """
    check_owner(config.out, "prepare", [*config.inputs(), *config.picture_folders()])
    source, links, timeline, unknown = _read(config)
    with writing(config.out), staged_folder(config.out, DESCRIPTION) as folder:
        item_fields = _write_linked(folder, links.items, config.items)
        user_fields = _write_linked(folder, links.users, config.users)
        modalities = _write_content(folder, links.items, config)
        write_events(folder, timeline)
        if config.rows:
            _write_rows(folder, timeline, links, config.rows, config)
        write_bytes(join(folder, CONFIG), dump_toml(config).encode())
        files = describe_files(folder)
        facts = DatasetFacts(
            name=config.name,
            num_users=len(links.users.ids),
            num_items=len(links.items.ids),
            num_events=len(timeline.users),
            modalities=modalities,
            item_fields={name: field.facts for name, field in item_fields.items()},
            user_fields={name: field.facts for name, field in user_fields.items()},
            split_rule=split_rule(config.split),
            splits=describe_splits(timeline, len(links.users.ids), len(links.items.ids)),
            label_rule=label_rule(config.label) + (config.negatives.rule() if config.negatives else ""),
            unlabelled_events=_unlabelled(timeline),
            sampled_negatives=int(timeline.is_negative.sum()),
            rows=config.rows and config.rows.facts(),
            filter_rule=config.filter.rule(config.items.keep_where),
            read=links.read.model_copy(update={"events": links.read.events + sum(unknown.values())}),
            dropped=_dropped(links, timeline, unknown),
            duplicate_events=links.duplicates,
            similar_ids=_similar_ids(source),
            source=_origin(config),
            files=files,
            checksum=checksum(files),
            **_clock(config, source, timeline),
        )
        write_description(folder, facts)
    return facts


def _read(config: PrepareConfig) -> tuple[Source, Links, Timeline, dict[str, int]]:
    """Return what there is, joined and in order, and how many events the split does not know, by why."""
    source = read_source(config.source, config.needs())
    raw, unknown = source.events, unknown_events(config.split, source.events.times)
    if unknown:
        # Before all else: nothing of them may count, be it in the order of ids or in a filter.
        known = ~np.logical_or.reduce(list(unknown.values()))
        if not known.any():
            told = ", ".join(f"{int(events.sum()):,} {why}" for why, events in unknown.items())
            remedy = "Name a day of the log, or one after it has begun; or give more known_days"
            problem = f"no event is known by then ({told}; {split_rule(config.split)})"
            raise DataError(problem, field=EMPTY_DAY, remedy=remedy)
        raw = raw.select(known)
        source = source._replace(events=raw)
    links = link(source, make_labels(config.label, raw), config.filter, config.items.keep_where)
    timeline = arrange(
        links.events,
        raw.behaviour_names,
        config.split,
        config.ties,
        config.seed,
        unit=raw.times.unit if raw.times else "s",
        file=raw.file,
    )
    if config.negatives:
        timeline = with_negatives(timeline, config.negatives, len(links.items.ids), config.seed)
    check_classes(config.label, timeline.labels, raw.file)
    return source, links, timeline, {why: int(events.sum()) for why, events in unknown.items()}


def _write_rows(
    folder: str, timeline: Timeline, links: Links, rows: RowsConfig, config: PrepareConfig
) -> None:
    assert timeline.labels is not None, "asked for by the config"
    events = Events(
        timeline.users.astype(np.int64),
        timeline.items.astype(np.int64),
        timeline.labels,
        timeline.order if timeline.times is None else timeline.times,
        timeline.parts,
        timeline.is_negative,
    )
    num_users, num_items = len(links.users.ids), len(links.items.ids)
    write_rows(
        folder, events, rows, num_users=num_users, num_items=num_items, seed=config.seed, file=config.out
    )


def _unlabelled(timeline: Timeline) -> int:
    if timeline.labels is None:
        return 0  # no event is asked to have one
    return int(np.isnan(timeline.labels).sum())


def _dropped(links: Links, timeline: Timeline, unknown: Mapping[str, int]) -> dict[str, RowCounts]:
    by_time = {why: RowCounts(events=count) for why, count in unknown.items() if count}
    held_out = {"item_holdout": RowCounts(events=timeline.held_out)} if timeline.held_out else {}
    return by_time | links.dropped | held_out


def _clock(config: PrepareConfig, source: Source, timeline: Timeline) -> dict[str, Any]:
    """Return what `dataset.json` says of times and of the order of events."""
    raw, times = source.events.times, timeline.times
    about: dict[str, Any] = {
        "tie_rule": tie_rule(config.ties, config.seed, has_times=times is not None),
        "tied_events": timeline.tied_events,
        "has_timestamps": times is not None,
    }
    if raw is not None and times is not None:
        first, last = (text_of(int(time), raw.unit) for time in (times.min(), times.max()))
        about |= {"timestamp_unit": raw.unit, "first_time": first, "last_time": last}
    return about


def _similar_ids(source: Source) -> dict[Literal["items", "users"], SimilarIds]:
    raw = source.events
    similar_by_entity: dict[Literal["items", "users"], SimilarIds | None] = {
        "items": find_similar_ids(raw.item_ids, *([source.items.ids] if source.items else [])),
        "users": find_similar_ids(raw.user_ids, *([source.users.ids] if source.users else [])),
    }
    return {name: similar for name, similar in similar_by_entity.items() if similar}


def _origin(config: PrepareConfig) -> dict[str, Any]:
    read = describe_inputs(config.inputs(), config.picture_folders())
    return {"kind": config.source.kind, "files": read}


def _write_linked(folder: str, linked: Kept, config: EntityConfig) -> dict[str, SideField]:
    fields = {name: build_field(field, linked.entities, linked.rows) for name, field in config.fields.items()}
    readable = {name: _readable(linked, column) for name, column in config.readable.items()}
    write_entities(folder, linked.entities.entity, linked.ids, readable, fields)
    return fields


def _readable(linked: Kept, name: str) -> pa.ChunkedArray:
    column, where = linked.entities.column(name)
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if pa.types.is_nested(kind.value_type if is_list else kind):  # JSON lines hold none either
        where.refuse_type(column.type, "text, numbers, times, or lists of these")
    return _taken(linked, name)


def _taken(linked: Kept, column: str) -> pa.ChunkedArray:
    return linked.entities.column(column)[0].take(pa.array(linked.rows))


def _write_content(folder: str, linked: Kept, config: PrepareConfig) -> dict[str, ModalityFacts]:
    names = list(dict.fromkeys(name for content in config.content.values() for name in content.columns))
    columns = {name: _taken(linked, name) for name in names if name != "item_id"}
    table = pa.table({"item_id": linked.ids, **columns})
    return write_contents(
        config.content,
        table,
        linked.rows.astype(np.int64),
        folder,
        config.cache,
        num_source_rows=len(linked.entities.ids),
        items_file=linked.entities.origins[0][1] if linked.entities.origins else None,
        locate=linked.entities.locate if linked.entities.origins else None,
    )
