"""A ranker that read a store's first generation, asked again while the store changes."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.commands import run_command
from tests.datasets import write_small_dataset
from tests.jobs.ranking import rank_config
from tests.ranks import run_ranks
from tests.tokenizers.generations.stores import append
from trec_semid.core.errors import CheckpointError, ConfigError, DataError
from trec_semid.core.ids import id_array
from trec_semid.jobs import evaluate, export, generations, rank, tokenize
from trec_semid.jobs.evaluate import EvaluateConfig
from trec_semid.jobs.export import ExportConfig
from trec_semid.jobs.rank import RankConfig
from trec_semid.serving import check
from trec_semid.serving.engine import open_engine
from trec_semid.tokenizers.generations.manifest import Generation
from trec_semid.tokenizers.generations.store import Store
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.ranking.setup import read_inputs
from trec_semid.training.run import training_ranks, with_pinned_codes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, its tokenize run, a store of that alone, and a rank run that read it."""
    folder = tmp_path_factory.mktemp("world")
    dataset = write_small_dataset(f"{folder}/data")
    tokenizer = {"kind": "rq_kmeans", "codebook_size": 6, "levels": 2}
    config = {"dataset": dataset, "run": f"{folder}/codes", "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    generations.add(f"{folder}/store", f"{folder}/codes", slots=40)
    rank.run(config_of(folder, "ranker"))
    return folder


@pytest.fixture
def at(world: Path, tmp_path: Path) -> Path:
    """Its store and run, to be changed."""
    for name in ("store", "ranker"):
        shutil.copytree(world / name, tmp_path / name)
    (tmp_path / "data").symlink_to(world / "data")
    return tmp_path


def config_of(folder: Path, run: str) -> RankConfig:
    places = {"dataset": f"{folder}/data", "semantic_ids": f"{folder}/store"}
    return rank_config(places, f"{folder}/{run}", train={"max_epochs": 2})


def ask(at: Path, out: str, place: str) -> dict[str, float]:
    values: dict[str, Any] = {"run": f"{at}/{out}", "runs": [f"{at}/ranker"], "semantic_ids": place}
    return evaluate.run(EvaluateConfig.model_validate({**values, "splits": ["test"]})).metrics


def test_a_generation_of_additions_is_read_and_any_other_refused_by_name(at: Path):
    store = f"{at}/store"
    run, said = (json.loads((at / "ranker" / name).read_text()) for name in ("run.json", "metrics.json"))
    assert (run["generation"]["number"], Path(run["generation"]["place"]).name) == (1, "generation-1")
    append(store, {"new": (0, 0)})
    again = ask(at, "again", store)
    assert again == {key: value for key, value in said["metrics"].items() if key.startswith("test")}
    assert json.loads((at / "again/run.json").read_text())["generation"]["number"] == 2
    done = config_of(at, "ranker")
    assert rank.run(done).metrics == said["metrics"]
    assert generations.collect_garbage(store, models=[f"{at}/ranker"], dry_run=True).collected == []
    append(store, {}, removed=["new"])
    told = (
        r"trained on generation 1 \(.*\), which generation 3 cannot stand for: items were removed since gen"
    )
    with pytest.raises(ConfigError, match=rf"{told}eration 1\. Set semantic_ids = '.*generation-1'"):
        ask(at, "removed", store)
    # Other codes for the very same items, of the same sizes.
    ids = SemanticIds.load(f"{store}/generation-1/semantic_ids.parquet")
    SemanticIds(ids.item_ids, ids.codes[::-1].copy(), ids.sizes).save(f"{at}/moved.parquet")
    generations.add(store, f"{at}/moved.parquet")
    for place, why in ((store, "another tokenizer or other codebooks"), (f"{store}@3", "were removed")):
        with pytest.raises(ConfigError, match=why):
            ask(at, "moved", place)
    with pytest.raises(CheckpointError, match=r"step \d+ was trained on generation 1 .*generation 4 cannot"):
        rank.run(done)
    append(store, {}, removed=[ids.item_ids[0].as_py()])
    with pytest.raises(DataError, match=r"generation 5 has no semantic ID for 1 items .* 5 removed it"):
        ask(at, "gone", store)
    assert not {path.name for path in at.iterdir()} & {"removed", "moved", "gone"}
    assert json.loads((at / "ranker/metrics.json").read_text()) == said


def test_a_bundle_gets_the_map_of_a_generation_of_additions(at: Path, monkeypatch: pytest.MonkeyPatch):
    def score(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        done = run_command(*command[2:])  # a fork: an interpreter of its own costs 4 s of a processor
        done.stdout = done.stdout.replace('"torchrec": true', '"torchrec": false')
        return done

    monkeypatch.setattr(check, "subprocess", SimpleNamespace(run=score))
    store = f"{at}/store"
    append(store, {"brand new": (1, 2)})
    config = ExportConfig(run=f"{at}/ranker", out=f"{at}/more", semantic_ids=store, check_rows=50)
    assert export.run(config).largest_difference < 1e-5
    ids = SemanticIds.load(f"{config.out}/semantic_ids.parquet", id_array(["brand new"]))
    facts = open_engine(config.out).manifest.semantic_ids
    assert ids.codes[:, :2].tolist() == [[1, 2]]
    assert facts is not None
    assert facts.generation is not None
    assert facts.generation.number == 2
    append(store, {}, removed=["brand new"])
    with pytest.raises(ConfigError, match=r"the run was trained on generation 1 .* items were removed"):
        export.run(config.model_copy(update={"out": f"{at}/removed"}))
    assert not (at / "removed").exists()


@pytest.mark.ranks
def test_every_rank_reads_the_generation_that_rank_0_saw(at: Path):
    alone = read_inputs(config_of(at, "ranker")).checksums
    read = run_ranks(read_on_ranks, 2, str(at))
    assert [each[:2] for each in read] == [(f"{at}/store/generation-1", alone)] * 2
    said = json.loads((at / "ranker/metrics.json").read_text())["metrics"]
    for *_, asked in read:
        assert asked == pytest.approx({key: said[key] for key in asked}, rel=1e-3, abs=1e-4)


def read_on_ranks(folder: str) -> tuple[str | None, dict[str, str], dict[str, float]]:
    if os.environ["RANK"] != "0":

        def refuse(_: Store) -> Generation:
            raise DataError("another generation was published meanwhile")

        Store.current = refuse
    config = config_of(Path(folder), "ranker")
    with training_ranks(config.train) as ranks:
        pinned = with_pinned_codes(config, ranks)
        checksums = read_inputs(pinned).checksums
    return pinned.semantic_ids, checksums, ask(Path(folder), "again", f"{folder}/store")
