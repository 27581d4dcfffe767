"""Where a ranker's tables would lie on a cluster."""

from trec_semid.data.features import Feature, describe_features
from trec_semid.embeddings.content_tables import PREFIX, ContentTables
from trec_semid.sharding.plan import TablePlan, plan_tables
from trec_semid.sharding.topology import ClusterConfig
from trec_semid.training.finetune.finetuning import live_items
from trec_semid.training.placement import NOTHING_KEPT
from trec_semid.training.planning.sizes import SizesConfig
from trec_semid.training.ranking.setup import RankConfig, build_model


def plan_ranker(config: RankConfig, sizes: SizesConfig, cluster: ClusterConfig) -> dict[str, TablePlan]:
    """Plan the tables under '' and, where a tokenizer is tuned, the content beside them under 'content'.

    Raises:
        ConfigError: a size is not known, or a rule or a length names nothing there is.
        DataError: the dataset or the semantic IDs are needed and not there.
        PlanError: the tables do not fit the cluster.
    """
    features, batch_size = _features(config, sizes), -(-config.train.batch_size // cluster.world_size)
    plan = plan_tables(
        build_model(config, features, world_size=cluster.world_size),
        cluster,
        config.sharding.part(PREFIX, is_inside=False) if config.finetune else config.sharding,
        batch_size=batch_size,
        optimizer=config.optimizers.tables,
        mean_lengths=_mean_lengths(config, sizes, features),
    )
    if not config.finetune:
        return {"": plan}
    dataset = sizes.dataset(config.dataset)
    widths = sizes.widths(dataset, "finetune")
    content = plan_tables(
        ContentTables(widths, dataset.facts.num_items, device="meta"),
        cluster,
        config.sharding.part(PREFIX, is_inside=True),
        batch_size=batch_size,
        optimizer=NOTHING_KEPT,
        mean_lengths=dict.fromkeys(widths, live_items(config.finetune, config.history.max_len)),
        beside=plan,
    )
    return {"": plan, "content": content}


def _features(config: RankConfig, sizes: SizesConfig) -> tuple[Feature, ...]:
    dataset = sizes.dataset(config.dataset)
    features = describe_features(
        dataset,
        config.features,
        config.representation,
        () if config.representation == "item" else sizes.codebooks(config.semantic_ids, dataset),
        with_history=config.history.max_len > 0,
    )
    return (*features, *sizes.extra_features())


def _mean_lengths(config: RankConfig, sizes: SizesConfig, features: tuple[Feature, ...]) -> dict[str, float]:
    sizes.expect_lengths_of(features)
    full = float(config.history.max_len)
    lengths = {feature.name: full for feature in features if feature.entity == "history"}
    return lengths | sizes.mean_lengths
