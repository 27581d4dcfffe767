import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.commands import run_command
from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.config import dump_toml, load_config
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import find_files, read_bytes, write_bytes
from trec_semid.data.schema import Dataset
from trec_semid.jobs import tokenize
from trec_semid.jobs.tokenize import TokenizeConfig, run
from trec_semid.runtime.logs import read_events
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.tokenizers.mmq import MmqConfig, MmqFitConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig

FIT = CodebookFitConfig(epochs=4, warmup_epochs=1, batch_size=16)
CARRYING = MmqFitConfig(**FIT.model_dump())
MMQ = MmqConfig(codebook_size=6, latent_dim=8, decoder_widths=(16,), fit=CARRYING)
RQ = RqKmeansConfig(codebook_size=6, levels=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_small_dataset(str(tmp_path_factory.mktemp("data") / "small"))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> TokenizeConfig:
    config = TokenizeConfig(
        dataset=dataset, run=str(tmp_path_factory.mktemp("runs") / "mmq"), seed=3, tokenizer=MMQ
    )
    run(config)
    return config


def read_json(config: TokenizeConfig, name: str) -> dict:
    return json.loads(read_bytes(f"{config.run}/{name}"))


def test_run_folder_holds_everything_that_other_programs_read(finished):
    names = set(find_files(finished.run))
    assert {
        "config.toml",
        "run.json",
        "log.jsonl",
        "semantic_ids.parquet",
        "quality.json",
        "metrics.json",
        "tokenizer/config.json",
        "tokenizer/weights.safetensors",
    } <= names
    assert any(name.startswith("events.") for name in names)


def test_every_item_has_the_codes_that_the_saved_tokenizer_gives_it(finished, dataset):
    opened = Dataset(dataset)
    ids = SemanticIds.load(f"{finished.run}/semantic_ids.parquet", opened.item_ids)
    names = ("text", "image")
    catalogue = ItemContents(
        {name: opened.content(name) for name in names}, {name: opened.content_mask(name) for name in names}
    )
    codes = load_tokenizer(f"{finished.run}/tokenizer").encode(catalogue.batch(np.arange(40)))
    np.testing.assert_array_equal(ids.codes, codes.numpy())
    assert ids.sizes == (6,) * 6
    missing = ~np.asarray(opened.content_mask("image"))
    np.testing.assert_array_equal(ids.codes[:, [3, 5]] == 6, np.stack([missing, missing], axis=1))


def test_metrics_say_what_the_quality_file_says(finished, dataset):
    quality, metrics = read_json(finished, "quality.json"), read_json(finished, "metrics.json")
    assert metrics["job"] == "tokenize"
    assert metrics["seed"] == 3
    assert metrics["dataset_checksum"] == Dataset(dataset).facts.checksum
    assert metrics["metrics"]["all/reconstruction"] == quality["reconstruction"]
    assert metrics["counts"]["all/items"] == quality["num_items"] == 40
    assert quality["tokenizer"] == "mmq"


def test_log_tells_every_epoch(finished):
    events = read_events(f"{finished.run}/log.jsonl")
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "finish"
    scalars = [event for event in events if event["event"] == "scalars"]
    assert [event["step"] for event in scalars] == [1, 2, 3, 4]
    assert "fit/reconstruction" in scalars[0]  # the warm-up has no codes
    assert {"fit/quantization", "fit/entropy", "fit/utilisation", "fit/revived_codes"} <= set(scalars[-1])


def test_finished_run_is_left_alone(finished, monkeypatch):
    monkeypatch.setattr(tokenize, "build_tokenizer", None)
    before = read_bytes(f"{finished.run}/metrics.json")
    assert run(finished).metrics == json.loads(before)["metrics"]
    assert read_bytes(f"{finished.run}/metrics.json") == before


def test_run_is_made_again_for_another_config_or_another_dataset(dataset, tmp_path):
    config = TokenizeConfig(dataset=dataset, run=str(tmp_path / "rq"), tokenizer=RQ)
    first = run(config).metrics
    other = config.model_copy(update={"seed": 1})
    assert run(other).metrics != first
    moved = config.model_copy(update={"dataset": write_small_dataset(str(tmp_path / "data"), seed=9)})
    again = moved.model_copy(update={"run": str(tmp_path / "moved")})
    one = run(again).metrics
    write_small_dataset(moved.dataset, seed=10)
    assert run(again).metrics != one


def test_config_file_of_a_run_makes_the_same_run(finished, tmp_path):
    write_bytes(str(tmp_path / "c.toml"), dump_toml(finished).encode())
    assert load_config(TokenizeConfig, [str(tmp_path / "c.toml")]) == finished


def test_run_in_memory_has_no_local_files(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TokenizeConfig(dataset=dataset, run="memory://runs/rq", tokenizer=RQ)
    run(config)
    assert list(tmp_path.iterdir()) == []
    assert any(name.startswith("events.") for name in find_files(config.run))
    assert "log.jsonl" in find_files(config.run)


def test_one_modality_can_be_chosen(dataset, tmp_path):
    config = TokenizeConfig(dataset=dataset, run=str(tmp_path / "text"), modalities=("text",), tokenizer=MMQ)
    run(config)
    names = [position["name"] for position in read_json(config, "quality.json")["positions"]]
    assert names == ["shared_0", "shared_1", "text_0", "text_1"]


def test_unknown_modality_is_refused_with_the_known_ones(dataset, tmp_path):
    config = TokenizeConfig(dataset=dataset, run=str(tmp_path / "x"), modalities=("txt",), tokenizer=RQ)
    with pytest.raises(ConfigError, match=r"no 'txt' in .*did you mean 'text'.*It has: text, image"):
        run(config)
    assert not (tmp_path / "x").exists()


def test_fitting_on_training_items_leaves_the_others_for_measuring(dataset, tmp_path):
    config = TokenizeConfig(dataset=dataset, run=str(tmp_path / "t"), fit_on="train_items", tokenizer=RQ)
    metrics = run(config).metrics
    events = Dataset(dataset).events(["item_row"], split="train")
    num_seen = len(set(events["item_row"].to_pylist()))
    assert read_json(config, "metrics.json")["counts"]["fitted/items"] == num_seen < 40
    assert metrics["unfitted/reconstruction"] > metrics["all/reconstruction"]


def test_items_that_only_sampled_negatives_show_are_not_fitted_on(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "data").as_posix()
    place = f"{folder}/events/part-00000.parquet"
    table = pq.read_table(place)
    observed = {row for row in set(table["item_row"].to_pylist()) if row % 2}
    names = ["impression" if row in observed else "negative" for row in table["item_row"].to_pylist()]
    at = table.schema.get_field_index("behaviour")
    kind = table.schema.field(at)
    pq.write_table(table.set_column(at, kind, pa.array(names).dictionary_encode().cast(kind.type)), place)
    describe_again(folder)
    config = TokenizeConfig(dataset=folder, run=str(tmp_path / "t"), fit_on="train_items", tokenizer=RQ)
    run(config)
    in_train = table.filter(pc.equal(table["split"].cast("string"), "train"))["item_row"].to_pylist()
    assert read_json(config, "metrics.json")["counts"]["fitted/items"] == len(observed & set(in_train)) < 20


def test_example_configs_are_valid():
    folder = Path(__file__).resolve().parents[2] / "configs" / "tokenizers"
    files = sorted(folder.glob("*.toml"))
    both = [f"{way}_{kind}" for way in ("ma", "ms") for kind in ("opq", "rq_kmeans", "rq_vae")]
    assert [file.stem for file in files] == ["cosine_rq", *both[:3], "mhq", "mmq", "mmq_published", *both[3:]]
    for file in files:
        config = load_config(TokenizeConfig, [str(file)])
        assert config.tokenizer.kind == file.stem.removeprefix("ma_").removeprefix("ms_")
        assert config.run.endswith(f"/{file.stem}")
        is_separated = getattr(config.tokenizer, "modalities", None) == "separated"
        assert is_separated == file.stem.startswith("ms_")


def test_collisions_are_resolved_and_reported(dataset, tmp_path):
    tokenizer = RqKmeansConfig(codebook_size=6, levels=2)
    plain = TokenizeConfig(dataset=dataset, run=str(tmp_path / "keep"), tokenizer=tokenizer)
    before = run(plain).metrics
    kept = SemanticIds.load(f"{plain.run}/semantic_ids.parquet")
    assert read_json(plain, "quality.json")["collisions"]["resolution"] == "keep"
    for resolution, sizes in (("extra_code", 3), ("next_nearest", 2)):
        config = plain.model_copy(update={"run": str(tmp_path / resolution), "collisions": resolution})
        after = run(config).metrics
        ids, quality = (
            SemanticIds.load(f"{config.run}/semantic_ids.parquet"),
            read_json(config, "quality.json"),
        )
        assert len(ids.sizes) == sizes
        assert len(np.unique(ids.codes, axis=0)) == quality["unique_tuples"]
        assert after["all/unique_share"] > before["all/unique_share"]
        collisions = quality["collisions"]
        assert collisions["before"]["unique_tuples"] == len(np.unique(kept.codes, axis=0)) < 40
        assert collisions["after"]["unique_tuples"] == quality["unique_tuples"]
        changed = int((ids.codes[:, :2] != kept.codes).any(1).sum())
        assert collisions["moved_items"] == changed
        assert (changed == 0) == (resolution == "extra_code")


@pytest.mark.ranks
def test_job_under_torchrun_makes_the_codes_of_one_process(finished, dataset, tmp_path):
    write_bytes(str(tmp_path / "c.toml"), dump_toml(finished).encode())
    words = ["--standalone", "--nproc-per-node", "2", "-m", "trec_semid.cli.main", "tokenize"]
    words += [str(tmp_path / "c.toml"), "--set", f"run={tmp_path / 'two'}"]
    done = run_command("tests.forking_torchrun", *words)
    assert done.returncode == 0, done.stderr
    one, two = (
        SemanticIds.load(f"{place}/semantic_ids.parquet") for place in (finished.run, tmp_path / "two")
    )
    assert (one.codes == two.codes).mean() > 0.99
    assert (tmp_path / "two" / "log.rank-1.jsonl").exists()
