"""Validation that cannot tell steps apart: said before training, with remedies that work."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from trec_semid.core.config import load_config
from trec_semid.core.errors import DataError
from trec_semid.data.prepare import PrepareConfig
from trec_semid.data.ranking.source import counts_of_labels
from trec_semid.data.schema import Dataset
from trec_semid.jobs.prepare import run as prepare
from trec_semid.jobs.rank import RankConfig
from trec_semid.jobs.rank import run as rank
from trec_semid.training.ranking.setup import SelectBy, expect_selectable

PREPARE = """
name = "loved"
out = "{folder}/data"
split = {{ kind = "leave_one_out" }}
[label]
kind = "threshold"
threshold = 3
[source]
kind = "tables"
interactions = {{ path = "{folder}/log.csv", user = "u", item = "i", timestamp = "t", rating = "r" }}
"""
RANK = """
dataset = "{folder}/data"
run = "{folder}/run"
representation = "item"
[history]
max_len = 4
[tables]
dim = 4
[model]
layer_dims = [4]
[train]
max_epochs = 1
batch_size = 64
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users like what came last; before it both kinds of ratings occur."""
    folder = tmp_path_factory.mktemp("loved")
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", 1_500_000_000 + user * 100 + at, 5 if at >= 6 else int(rng.integers(1, 6)))
        for user in range(20)
        for at, item in enumerate(rng.permutation(15)[:8])
    ]
    (folder / "log.csv").write_text("u,i,t,r\n" + "".join(f"{u},{i},{t},{r}\n" for u, i, t, r in rows))
    (folder / "prepare.toml").write_text(PREPARE.format(folder=folder))
    (folder / "rank.toml").write_text(RANK.format(folder=folder))
    prepare(load_config(PrepareConfig, [str(folder / "prepare.toml")]))
    return folder


def refusal(folder: Path, *sets: str) -> DataError:
    with pytest.raises(DataError) as caught:
        rank(load_config(RankConfig, [str(folder / "rank.toml")], [f"run={folder}/refused", *sets]))
    assert not (folder / "refused").exists()
    return caught.value


def test_validation_of_one_label_is_named_and_every_remedy_is_taken(folder: Path):
    error = refusal(folder)
    assert "all 20 events of the valid split have label 1, and AUC needs both" in str(error)
    assert str(folder / "data") in str(error)
    assert error.remedy
    sets = re.findall(r"(train\.\w+ = '\w+')", error.remedy)
    assert sets == ["train.select_by = 'log_loss'"]
    trained = rank(load_config(RankConfig, [str(folder / "rank.toml")], sets))
    assert "valid/log_loss" in trained.metrics
    for number, change in enumerate(('split={kind="global_temporal"}', 'negatives={splits=["valid"]}')):
        out = f"{folder}/other-{number}"
        prepare(load_config(PrepareConfig, [str(folder / "prepare.toml")], [f"out={out}", change]))
        sets = [f"dataset={out}", f"run={out}-run"]
        assert "valid/auc" in rank(load_config(RankConfig, [str(folder / "rank.toml")], sets)).metrics


def test_validation_without_a_user_of_both_labels_is_told_apart(folder: Path):
    out = f"{folder}/by-user"
    rows = [f"u{n % 10},i{n % 7},{1_500_000_000 + n},{5 if n % 10 < 5 else 1}\n" for n in range(100)]
    (folder / "split.csv").write_text("u,i,t,r\n" + "".join(rows))
    sets = [f"out={out}", f"source.interactions.path={folder}/split.csv"]
    prepare(load_config(PrepareConfig, [str(folder / "prepare.toml")], sets))
    error = refusal(folder, f"dataset={out}", "train.select_by=gauc")
    assert "no user has events of both labels in the valid split" in str(error)
    for remedy in re.findall(r"(train\.\w+ = '\w+')", str(error.remedy)):
        name = remedy.split("'")[1]
        config = load_config(
            RankConfig, [str(folder / "rank.toml")], [f"dataset={out}", f"run={out}-{name}", remedy]
        )
        assert f"valid/{name}" in rank(config).metrics


class Labelled(NamedTuple):
    """What `expect_selectable` asks of rows."""

    counts: tuple[np.ndarray, np.ndarray]
    size: int

    def label_counts(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        return self.counts

    def num_rows(self, split: str) -> int:
        return self.size


row = st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from([0, 1, 2]))


@given(st.lists(row, min_size=1, max_size=12), st.sampled_from(["auc", "gauc", "log_loss"]))
def test_what_is_refused_is_what_the_metric_does_not_define(
    dataset: Dataset, rows: list[tuple[int, bool, int]], select_by: SelectBy
):
    users, labels, splits = (np.array(column) for column in zip(*rows, strict=True))
    valid = splits == 1
    by_user = [labels[valid & (users == user)] for user in np.unique(users[valid])]
    is_defined = {
        "auc": len(set(labels[valid])) == 2,
        "gauc": any(len(set(own)) == 2 and roc_auc_score(own, own) == 1 for own in by_user),
        "log_loss": True,
    }[select_by] or not valid.any()
    data = Labelled(counts_of_labels(users[valid], labels[valid], 4), int(valid.sum()))
    if is_defined:
        expect_selectable(select_by, data, dataset)
    else:
        with pytest.raises(DataError, match=r"train\.select_by"):
            expect_selectable(select_by, data, dataset)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return Dataset(f"{folder}/data")
