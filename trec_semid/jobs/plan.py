"""`trec-semid plan`: where a ranker's tables would lie on a cluster, made on any machine.

A plan config is a rank config with a cluster, and sizes where tables are to be larger than the dataset's.
"""

import tomllib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from trec_semid.core.config import Config, load_config
from trec_semid.core.errors import ConfigError, PlanError
from trec_semid.core.logs import say, set_up_console, working
from trec_semid.core.paths import arrow_filesystem, join, read_bytes, write_bytes
from trec_semid.data.features import Feature, describe_features
from trec_semid.data.schema import SPLITS, Dataset, DatasetFacts, SplitFacts
from trec_semid.embeddings.content_tables import PREFIX, ContentTables
from trec_semid.jobs.rank_setup import RankConfig, build_model
from trec_semid.jobs.tuning import NOTHING_KEPT, live_items
from trec_semid.sharding.plan import TablePlan, plan_tables
from trec_semid.sharding.topology import ClusterConfig
from trec_semid.tokenizers.semantic_ids import SemanticIds, semantic_ids_file


class SizesConfig(Config):
    """Sizes that replace those of the dataset; with both counts given, no dataset is read at all."""

    num_users: PositiveInt | None = None
    num_items: PositiveInt | None = None
    codebook_sizes: tuple[PositiveInt, ...] | None = None
    """Codes per position of the semantic ID; read from `semantic_ids` where not given."""
    more_tables: dict[str, PositiveInt] = {}
    """Rows of further tables, read by one feature each, e.g. hashed prefixes of semantic IDs."""
    content: dict[str, PositiveInt] = {}
    """Width of each modality, for a tokenizer that is tuned; the dataset's where not given."""
    mean_lengths: dict[str, NonNegativeFloat] = {}
    """Average ids per row of a feature. Otherwise a history counts as full and all else as 1."""


class PlanConfig(Config):
    """What `trec-semid plan` reads: the keys of a rank config, and these."""

    rank: RankConfig
    """Keys of a rank config may stand here or, as in its own file, at the top."""
    sizes: SizesConfig = SizesConfig()
    cluster: list[str] = Field(min_length=1)
    """TOML file of a cluster, or several to plan for one after another."""
    name: str = "plan"
    """What plans are called that go to the default place; the command line takes the config's file name."""
    out: str | None = None
    """JSON file for the plan; for several clusters a folder. None is `plans/<name>-<cluster>.json`."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _rank_keys_at_the_top(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields and key != "rank"}
        rank = {key: value for key, value in values.items() if key not in cls.model_fields}
        given = values.get("rank", {})
        return {**own, "rank": {**rank, **given} if isinstance(given, dict) else given}


class Planned(NamedTuple):
    """What planning comes to."""

    plan: TablePlan
    out: str


def sort_files(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell the files of clusters from those of configs, as `--cluster configs/cluster/*.toml` mixes them."""
    clusters = [file for file in files if _describes_cluster(file)]
    return [file for file in files if file not in clusters], clusters


def _describes_cluster(file: str) -> bool:
    try:
        keys = tomllib.loads(read_bytes(file).decode()).keys()
    except (OSError, ValueError):
        return False  # load_config says what is wrong with it
    return {"num_nodes", "devices_per_node"} <= keys <= ClusterConfig.model_fields.keys()


def run(config: PlanConfig) -> list[Planned]:
    """Plan for every cluster, print the placement and what each rank holds, and save the plans.

    Raises:
        ConfigError: no such cluster file or feature, or a sharding rule that fits no table.
        DataError: the dataset or the semantic IDs are needed and not there.
        PlanError: the tables do not fit a cluster; those they fit are planned and saved nevertheless.
    """
    set_up_console()
    clusters = [load_config(ClusterConfig, [file]) for file in config.cluster]
    places = _places(config, clusters)
    features = _features(config)
    planned: list[Planned] = []
    refusals: list[str] = []
    with working("plan for clusters", len(clusters)) as work:
        for cluster, place in zip(clusters, places, strict=True):
            try:
                plans = _plan(config, cluster, features)
            except PlanError as error:
                refusals.append(str(error))
            else:
                content = place.removesuffix(".json") + "-content.json"
                planned += [_save(plan, at) for plan, at in zip(plans, (place, content), strict=False)]
            work.advance()
    if refusals:
        raise PlanError("\n".join(refusals))
    return planned


def _places(config: PlanConfig, clusters: list[ClusterConfig]) -> list[str]:
    """Return where each plan goes."""
    several = len(clusters) > 1
    if config.out and not several:
        return [config.out]
    if config.out and config.out.endswith(".json"):
        raise ConfigError(f"out: {config.out} is one file for {len(clusters)} plans. Name a folder.")
    places = [join(config.out or "plans", f"{config.name}-{cluster.name}.json") for cluster in clusters]
    if len(set(places)) < len(places):
        raise ConfigError("cluster: two clusters of one name. Name them apart in their files.")
    return places


def _save(plan: TablePlan, place: str) -> Planned:
    write_bytes(place, plan.to_json().encode())
    say(f"{plan.as_text()}\nPlan saved: {place}")
    return Planned(plan, place)


def _plan(config: PlanConfig, cluster: ClusterConfig, features: tuple[Feature, ...]) -> list[TablePlan]:
    """Plan the ranker's tables and, where its tokenizer is tuned, the content beside them."""
    rank, batch_size = config.rank, -(-config.rank.train.batch_size // cluster.world_size)
    plan = plan_tables(
        build_model(rank, features, world_size=cluster.world_size),
        cluster,
        rank.sharding.part(PREFIX, is_inside=False) if rank.tuning else rank.sharding,
        batch_size=batch_size,
        optimizer=rank.optimizers.tables,
        mean_lengths=_mean_lengths(config, features),
    )
    if not rank.tuning:
        return [plan]
    widths = config.sizes.content or _content_widths(config)
    content = plan_tables(
        ContentTables(widths, _sized_dataset(config).facts.num_items, device="meta"),
        cluster,
        rank.sharding.part(PREFIX, is_inside=True),
        batch_size=batch_size,
        optimizer=NOTHING_KEPT,
        mean_lengths=dict.fromkeys(widths, live_items(rank.tuning, rank.history.max_len)),
        beside=plan,
    )
    return [plan, content]


def _content_widths(config: PlanConfig) -> dict[str, int]:
    modalities = _sized_dataset(config).facts.modalities
    if not modalities:
        raise ConfigError("tuning: no content is known to plan for. Give its widths as sizes.content.")
    return {name: facts.dim for name, facts in modalities.items()}


def _features(config: PlanConfig) -> tuple[Feature, ...]:
    rank = config.rank
    features = describe_features(
        _sized_dataset(config),
        rank.features,
        rank.representation,
        () if rank.representation == "item" else _codebook_sizes(config),
        with_history=rank.history.max_len > 0,
    )
    more = (
        Feature(name.removeprefix("t_"), "item_field", name, rows)
        for name, rows in config.sizes.more_tables.items()
    )
    return (*features, *more)


def _sized_dataset(config: PlanConfig) -> Dataset:
    sizes = config.sizes
    if sizes.num_users is None or sizes.num_items is None:
        dataset = Dataset(config.rank.dataset)
        counts = {"num_users": sizes.num_users, "num_items": sizes.num_items}
        given = {name: count for name, count in counts.items() if count is not None}
        return Dataset(dataset.uri, dataset.facts.model_copy(update=given))
    return Dataset(config.rank.dataset, _imagined_facts(sizes.num_users, sizes.num_items))


def _imagined_facts(num_users: int, num_items: int) -> DatasetFacts:
    nothing = SplitFacts(events=0, users=0, items=0, unseen_users=0, unseen_items=0, unseen_item_events=0)
    return DatasetFacts(
        name="imagined",
        num_users=num_users,
        num_items=num_items,
        num_events=0,
        split_rule="none",
        splits=dict.fromkeys(SPLITS, nothing),
        tie_rule="none",
        label_rule="none",
        has_timestamps=False,
        checksum="",
    )


def _codebook_sizes(config: PlanConfig) -> tuple[int, ...]:
    if config.sizes.codebook_sizes:
        return config.sizes.codebook_sizes
    source = config.rank.semantic_ids
    if source is None:
        raise ConfigError("semantic_ids: not given, and neither is sizes.codebook_sizes. Give one of them.")
    file = semantic_ids_file(source)
    return _stated_sizes(file) or SemanticIds.load(file).sizes


def _stated_sizes(file: str) -> tuple[int, ...]:
    """Read sizes from the file's header alone; nothing where it is not there or does not state them."""
    fs, inner = arrow_filesystem(file)
    try:
        stated = (pq.read_schema(inner, filesystem=fs).metadata or {}).get(b"codebook_sizes", b"")
    except (OSError, ValueError):
        return ()
    return tuple(int(size) for size in stated.decode().split(",") if size)


def _mean_lengths(config: PlanConfig, features: tuple[Feature, ...]) -> dict[str, float]:
    full = float(config.rank.history.max_len)
    lengths = {feature.name: full for feature in features if feature.entity == "history"}
    unknown = set(config.sizes.mean_lengths) - {feature.name for feature in features}
    if unknown:
        names = ", ".join(feature.name for feature in features)
        raise ConfigError(
            f"sizes.mean_lengths: no feature '{sorted(unknown)[0]}'. The features are: {names}."
        )
    return lengths | config.sizes.mean_lengths
