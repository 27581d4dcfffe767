"""`trec-semid plan`: where a model's tables would lie on a cluster, computed on any machine.

A plan config is a rank or a retrieve config with a cluster, and sizes where tables are to be larger than the
dataset's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from trec_semid.core.config import Config, Place, load_config
from trec_semid.core.errors import ConfigError, PlanError
from trec_semid.core.paths import find_files, join, parent_of, read_bytes, write_files
from trec_semid.core.toml_text import read_toml
from trec_semid.data.schema import DESCRIPTION, open_dataset
from trec_semid.models.methods import RETRIEVER_KINDS
from trec_semid.runtime.disk import wording_full_disk
from trec_semid.runtime.logs import say, set_up_console, working
from trec_semid.runtime.owners import check_file
from trec_semid.sharding.plan import TablePlan
from trec_semid.sharding.topology import ClusterConfig
from trec_semid.training.planning.sizes import SizesConfig
from trec_semid.training.planning.ways_to_fit import ways_to_fit
from trec_semid.training.ranking.plan import plan_ranker
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.plan import plan_retriever
from trec_semid.training.retrieval.setup import RetrieveConfig

_DESCRIBES = (DESCRIPTION, "config.toml")
_ONLY_RETRIEVE = set(RetrieveConfig.model_fields) - set(RankConfig.model_fields)
"""Keys that tell a retrieve config from a rank config."""


class PlanConfig(Config):
    """What `trec-semid plan` reads: the keys of a rank or a retrieve config, and these."""

    rank: RankConfig | None = None
    """Keys of a rank config may stand here or, as in its own file, at the top."""
    retrieve: RetrieveConfig | None = None
    """Those of a retrieve config likewise: keys at the top are its own where `model.kind` names a retriever
    or, without one, where one of them is in no rank config or all of them are in retrieve configs."""
    sizes: SizesConfig = SizesConfig()
    cluster: list[Place] = Field(min_length=1)
    """TOML file of a cluster, or several to plan for one after another."""
    name: str = "plan"
    """What plans are called that go to the default place; the command line takes the config's file name."""
    out: Place | None = None
    """JSON file for the plan; a folder for several clusters, or where it ends in /. None is
    `plans/<name>-<cluster>.json`."""
    against: Place | None = None
    """A saved plan, perhaps of another cluster or config: what differs from it is printed below each."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _keys_at_the_top(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        at_top = {key: value for key, value in values.items() if key not in cls.model_fields}
        kind = "retrieve" if "retrieve" in own or _is_of_retriever(at_top) else "rank"
        given = own.get(kind, {})
        return {**own, kind: {**at_top, **given} if isinstance(given, dict) else given}

    @model_validator(mode="after")
    def _plans_one_model(self) -> Self:
        if self.rank and self.retrieve:
            raise ValueError("rank, retrieve: a plan is of one of the two")
        return self


class Planned(NamedTuple):
    """What planning comes to."""

    plan: TablePlan
    out: str


def sort_files(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell the files of clusters from those of configs, as `--cluster configs/cluster/*.toml` mixes them."""
    clusters = [file for file in files if _describes_cluster(file)]
    return [file for file in files if file not in clusters], clusters


def _is_of_retriever(values: dict[str, Any]) -> bool:
    model = values.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    if kind is not None or not _ONLY_RETRIEVE.isdisjoint(values):
        return kind in RETRIEVER_KINDS.names or kind is None
    return bool(values) and values.keys() <= RetrieveConfig.model_fields.keys()  # a ranker's has another


def _describes_cluster(file: str) -> bool:
    try:
        keys = read_toml(file).keys()
    except ConfigError:
        return False  # load_config says what is wrong with it
    return {"num_nodes", "devices_per_node"} <= keys <= ClusterConfig.model_fields.keys()


def run(config: PlanConfig) -> list[Planned]:
    """Plan for every cluster, print the placement and what each rank holds, and save the plans.

    No lock is taken: a folder of plans is shared by many configs, which may be planned at the same time.
    Plans of one cluster take their places together, each whole; of two commands that write the same ones, the
    later one's stand.

    Raises:
        ConfigError: no such cluster file or feature, or a sharding rule that fits no table.
        DataError: the dataset or the semantic IDs are needed and not there.
        PlanError: the tables do not fit a cluster; those they fit are planned and saved nevertheless.
    """
    set_up_console()
    with wording_full_disk(config.out or "plans"):
        return _run(config)


def _run(config: PlanConfig) -> list[Planned]:
    clusters = [load_config(ClusterConfig, [file]) for file in config.cluster]
    model = config.retrieve or config.rank
    if model and config.sizes.reads_dataset and _holds_data(model.dataset):
        open_dataset(model.dataset, model.verify)
    before = _saved(config.against) if config.against else None
    places = _places(config, clusters)
    for place in places:
        check_file(place)
    planned: list[Planned] = []
    refusals: list[str] = []
    with working("plan for clusters", len(clusters)) as work:
        for cluster, place in zip(clusters, places, strict=True):
            try:
                plans = _plans(config, cluster)
            except PlanError as error:
                refusals.append(f"{error}\n{_what_would_fit(config, cluster)}")
            else:
                planned += _save({_beside(place, name): plan for name, plan in plans.items()}, before)
            work.advance()
    if refusals:
        raise PlanError("\n".join(refusals))
    return planned


def _what_would_fit(config: PlanConfig, cluster: ClusterConfig) -> str:
    if config.retrieve:
        ways = ways_to_fit(
            lambda *each: plan_retriever(each[0], config.sizes, each[1]), config.retrieve, cluster
        )
    else:
        assert config.rank, "checked by PlanConfig"
        ways = ways_to_fit(lambda *each: plan_ranker(each[0], config.sizes, each[1]), config.rank, cluster)
    if not ways:
        return "No single change of nodes, width, batch, optimizer or rules makes it fit: combine them."
    lines = [f"  {way.change} (now {way.now})" for way in ways]
    return "Any one of these makes it fit; each was planned:\n" + "\n".join(lines)


def _holds_data(dataset: str) -> bool:
    """Return whether more of a dataset is there than its description, which says all sizes by itself."""
    return any(not name.startswith("fields/") and name not in _DESCRIBES for name in find_files(dataset))


def _places(config: PlanConfig, clusters: list[ClusterConfig]) -> list[str]:
    """Return where each plan goes."""
    several = len(clusters) > 1
    if config.out and not several and not config.out.endswith("/"):
        return [config.out]
    if config.out and config.out.endswith(".json"):
        raise ConfigError(f"out: {config.out} is one file for {len(clusters)} plans. Name a folder.")
    places = [join(config.out or "plans", f"{config.name}-{cluster.name}.json") for cluster in clusters]
    if len(set(places)) < len(places):
        raise ConfigError("cluster: two clusters of one name. Name them apart in their files.")
    return places


def _beside(place: str, name: str) -> str:
    return f"{place.removesuffix('.json')}-{name}.json" if name else place


def _saved(place: str) -> TablePlan:
    """Read a plan that was saved: by this verb, or by a run, which has it as plan.json."""
    try:
        return TablePlan.from_json(read_bytes(place).decode())
    except FileNotFoundError:
        raise ConfigError(f"against: {place}: no such file. Name the JSON file of a plan.") from None
    except (PlanError, UnicodeDecodeError) as error:
        raise ConfigError(f"against: {place}: {error}") from None


def _save(plans: dict[str, TablePlan], before: TablePlan | None) -> list[Planned]:
    """Write the plans of a cluster into one folder; print them, and how they differ from before."""
    files = {place.rsplit("/", 1)[-1]: plan.to_json().encode() for place, plan in plans.items()}
    write_files(parent_of(next(iter(plans))), files)
    for place, plan in plans.items():
        say(f"{plan.as_text()}\nPlan saved: {place}")
    if before:
        say(next(iter(plans.values())).changes_since(before))
    return [Planned(plan, place) for place, plan in plans.items()]


def _plans(config: PlanConfig, cluster: ClusterConfig) -> dict[str, TablePlan]:
    """Return the plan of the tables under '', and of what lies beside them under its name."""
    if config.retrieve:
        return plan_retriever(config.retrieve, config.sizes, cluster)
    assert config.rank, "checked by PlanConfig"
    return plan_ranker(config.rank, config.sizes, cluster)
