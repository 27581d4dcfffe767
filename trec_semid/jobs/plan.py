"""`trec-semid plan`: where a ranker's tables would lie on a cluster, made on any machine.

A plan config is a rank config with a cluster, and sizes where tables are to be larger than the dataset's.
"""

from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import NonNegativeFloat, PositiveInt, model_validator

from trec_semid.core.config import Config, load_config
from trec_semid.core.errors import ConfigError
from trec_semid.core.logs import say, set_up_console
from trec_semid.core.paths import arrow_filesystem, write_bytes
from trec_semid.data.features import Feature, describe_features
from trec_semid.data.schema import SPLITS, Dataset, DatasetFacts, SplitFacts
from trec_semid.jobs.rank_setup import RankConfig, build_model
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
    mean_lengths: dict[str, NonNegativeFloat] = {}
    """Average ids per row of a feature. Otherwise a history counts as full and all else as 1."""


class PlanConfig(Config):
    """What `trec-semid plan` reads: the keys of a rank config, and these."""

    rank: RankConfig
    """Keys of a rank config may stand here or, as in its own file, at the top."""
    sizes: SizesConfig = SizesConfig()
    cluster: str
    """TOML file of the cluster."""
    out: str | None = None
    """JSON file for the plan."""

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
    out: str | None


def run(config: PlanConfig) -> Planned:
    """Plan, print the placement and what each rank holds, and save the plan where `out` says.

    Raises:
        ConfigError: no such cluster file or feature, or a sharding rule that fits no table.
        DataError: the dataset or the semantic IDs are needed and not there.
        PlanError: the tables do not fit the cluster.
    """
    set_up_console()
    cluster = load_config(ClusterConfig, [config.cluster])
    features = _features(config)
    train = config.rank.train
    plan = plan_tables(
        build_model(config.rank, features, world_size=cluster.world_size),
        cluster,
        config.rank.sharding,
        batch_size=-(-train.batch_size // cluster.world_size),
        optimizer=config.rank.optimizers.tables,
        mean_lengths=_mean_lengths(config, features),
    )
    say(plan.as_text())
    if config.out:
        write_bytes(config.out, plan.to_json().encode())
        say(f"Plan saved: {config.out}")
    return Planned(plan, config.out)


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
        dataset.facts = dataset.facts.model_copy(update=given)
        return dataset
    imagined = Dataset.__new__(Dataset)  # opening it would read a folder
    imagined.uri, imagined.facts = config.rank.dataset, _imagined_facts(sizes.num_users, sizes.num_items)
    return imagined


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
