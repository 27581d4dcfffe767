"""The recipes 'a new retriever' and 'a new ranker' of CONTRIBUTING.md: all verbs know it then."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.datasets import write_small_dataset
from tests.jobs.ranking import losses_of, rank_config
from tests.jobs.retrieving import retrieve_config
from trec_semid.core.config import dump_toml, load_config
from trec_semid.core.errors import ConfigError
from trec_semid.data.features import Feature
from trec_semid.data.retrieval.places import Places
from trec_semid.jobs import evaluate, plan, rank, report, retrieve
from trec_semid.layers.full_softmax import full_softmax_loss
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.methods import RANKERS, RETRIEVERS
from trec_semid.models.queries import Queries
from trec_semid.models.ranker import DenseRanker, RankerConfig
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.models.retriever import Frame, Needs, Retriever, RetrieverConfig

CLUSTER = 'cluster="configs/cluster/h100_1x8.toml"'


class AverageConfig(RetrieverConfig):
    """What comes next is near the average of what came before."""

    kind: Literal["average"] = "average"
    shrinkage: float = 0.01
    """Weight of a loss of its own, which holds states small."""


@final
class AverageModel(RetrievalModel):
    def __init__(self, config: AverageConfig, items: ItemTokens) -> None:
        super().__init__()
        self.items, self.map = items, nn.Linear(items.dim, items.dim)
        self.loss_weights = {"items": 1.0, "shrinkage": config.shrinkage}

    @property
    def has_item_vectors(self) -> bool:
        return True

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        tokens = self.items(listed)
        states = self.states(tokens, places)
        loss = full_softmax_loss(states, tokens.as_targets(), places.targets).squeeze(1)
        return {"items": loss, "shrinkage": states.square().sum(1)}, tokens

    def states(self, tokens: Tokens, places: Places) -> Tensor:
        sums = tokens.total[places.inputs].cumsum(1)
        counts = torch.arange(1, sums.shape[1] + 1, device=sums.device).unsqueeze(1)
        return self.map((sums / counts).flatten(0, 1)[places.predicting])

    def item_vectors(self, tokens: Tokens) -> Tensor:
        return tokens.as_targets()

    def queries(self, tokens: Tokens, places: Places) -> Queries:
        return Queries(self.states(tokens, places), None)


@final
class Average(Retriever[AverageConfig]):
    needs = Needs(rows="dense")

    def build(self, items: ItemTokens, frame: Frame) -> AverageModel:
        return AverageModel(self.config, items)


class LinearConfig(RankerConfig):
    """One weight a column."""

    kind: Literal["linear"] = "linear"


@final
class Linear(DenseRanker):
    def __init__(self, config: LinearConfig, features: Sequence[Feature], table_dim: int) -> None:
        super().__init__()
        self.weights = nn.Linear(len(features) * table_dim, 1)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.weights(embedded).squeeze(1)


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RETRIEVERS, AverageConfig, Average)
    monkeypatch.setitem(RANKERS, LinearConfig, Linear)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"dataset": write_small_dataset(str(tmp_path_factory.mktemp("methods") / "data"))}


def reported(runs: list[str], out: Path) -> dict[str, Any]:
    report.run(report.ReportConfig.model_validate({"runs": runs, "out": str(out), "replicates": 100}))
    return json.loads((out / "report.json").read_text())


def planned(config: Any, tmp_path: Path) -> set[str]:
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config))
    (found,) = plan.run(load_config(plan.PlanConfig, [str(file)], [CLUSTER, f"out={tmp_path}/plan.json"]))
    return {table.name for table in found.plan.tables}


@pytest.mark.usefixtures("methods")
def test_a_new_retriever_is_trained_evaluated_asked_again_planned_and_reported(data, tmp_path):
    item = {"content": []}
    config = retrieve_config(data, str(tmp_path / "average"), model={"kind": "average"}, item=item)
    metrics = retrieve.run(config).metrics
    losses = losses_of(config.run)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert 0 < metrics["test/recall@10"] <= 1
    again = {"run": str(tmp_path / "again"), "runs": [config.run]}
    assert evaluate.run(evaluate.EvaluateConfig.model_validate(again)).metrics == metrics
    assert planned(config, tmp_path) == {"t_item_id", "t_item_genres"}
    popular = retrieve_config(data, str(tmp_path / "popular"), model={"kind": "popularity"})
    retrieve.run(popular)
    arms = [arm["name"] for arm in reported([popular.run, config.run], tmp_path / "report")["arms"]]
    assert len(arms) == 2
    assert arms[1].startswith("average")


@pytest.mark.usefixtures("methods")
def test_what_a_new_retriever_needs_is_asked_of_its_configs(data, tmp_path):
    with pytest.raises(ValueError, match=r"'average' reads dense rows: set sequences\.rows = 'dense'"):
        retrieve_config(data, "r", model={"kind": "average"}, sequences={"rows": "last"})
    file = tmp_path / "retrieve.toml"
    file.write_text('dataset = "d"\nrun = "r"\n[model]\nkind = "averige"\n')
    with pytest.raises(ConfigError, match=r"model\.kind: no such kind .*did you mean 'average'\?"):
        load_config(retrieve.RetrieveConfig, [str(file)])
    file.write_text('dataset = "d"\nrun = "r"\n[model]\nkind = "average"\nshrinkege = 1\n')
    with pytest.raises(ConfigError, match=r"model\.shrinkege: unknown key; did you mean 'shrinkage'"):
        load_config(retrieve.RetrieveConfig, [str(file)])


@pytest.mark.usefixtures("methods")
def test_a_new_ranker_is_trained_planned_and_reported(data, tmp_path):
    runs = []
    for model in ({"kind": "linear"}, {"kind": "ppnet", "layer_dims": [8], "gate_dim": 8}):
        values = rank_config(data, str(tmp_path / str(model["kind"])), representation="item").model_dump()
        config = rank.RankConfig.model_validate({**values, "model": model})
        assert 0 < rank.run(config).metrics["test/auc"] < 1
        runs.append(config)
    losses = losses_of(runs[0].run)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert "t_item_id" in planned(runs[0], tmp_path)
    assert len(reported([config.run for config in runs], tmp_path / "report")["arms"]) == 2


def test_without_its_row_a_method_is_no_method(data):
    with pytest.raises(ValueError, match="average"):
        retrieve_config(data, "r", model={"kind": "average"})
