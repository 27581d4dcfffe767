import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.datasets import write_small_dataset
from tests.jobs.ranking import losses_of, rank_config
from trec_semid.checkpoints.folder import TENSORS, best_step, complete_steps, step_folder
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError, TrainingError
from trec_semid.core.paths import exists, read_bytes, write_bytes
from trec_semid.jobs import report, tokenize
from trec_semid.jobs.rank import RankConfig, run
from trec_semid.runtime.logs import read_events
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.tokenizers.mmq import MmqConfig, MmqFitConfig
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVaeConfig
from trec_semid.training import loop as training_loop
from trec_semid.training.finetune.finetuning import live_codes_of
from trec_semid.training.loop import Loop
from trec_semid.training.passes import Passes

FIT = CodebookFitConfig(epochs=4, warmup_epochs=1, batch_size=16)
CARRYING = MmqFitConfig(**FIT.model_dump())
MMQ = MmqConfig(codebook_size=6, latent_dim=8, decoder_widths=(16,), fit=CARRYING)
PUBLISHED = PublishedMmqConfig(codebook_size=6, latent_dim=8, decoder_widths=(16,), fit=FIT)
TUNING = {"learning_rate": 0.003, "warmup_epochs": 1}


def write_problem(folder: str) -> dict[str, Any]:
    """Write a dataset with content and tokenize it."""
    dataset = write_small_dataset(f"{folder}/data")
    tokenizers: dict[str, Any] = {
        "mmq": MMQ,
        "published": PUBLISHED,
        "rq_kmeans": RqKmeansConfig(codebook_size=6, levels=3),
    }
    for modalities in ("aligned", "separated"):
        tokenizers[f"rq_vae_{modalities}"] = RqVaeConfig(
            codebook_size=6, levels=4, latent_dim=8, hidden_widths=(16,), modalities=modalities, fit=FIT
        )
    for name, tokenizer in tokenizers.items():
        config = {"dataset": dataset, "run": f"{folder}/{name}", "tokenizer": tokenizer.model_dump()}
        tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    return {"dataset": dataset, "semantic_ids": f"{folder}/mmq"}


def side_by_side(problem: dict[str, Any]) -> dict[str, Any]:
    return {**problem, "semantic_ids": str(problem["semantic_ids"]).replace("/mmq", "/published")}


def tuned(problem: dict[str, Any], run_folder: str, **changes: Any) -> RankConfig:
    return rank_config(problem, run_folder, **{"finetune": TUNING, **changes})


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("tuning")))


@pytest.fixture(scope="module")
def finished(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RankConfig:
    config = tuned(problem, str(tmp_path_factory.mktemp("runs") / "tuned"))
    run(config)
    return config


def codes_of(uri: str) -> np.ndarray:
    return SemanticIds.load(uri).codes


def looks_of(config: RankConfig) -> list[dict[str, Any]]:
    return [event for event in read_events(f"{config.run}/log.jsonl") if event["event"] == "codes"]


def test_the_tokenizer_moves_after_the_warmup_and_its_map_with_it(
    finished: RankConfig, problem: dict[str, Any]
):
    before, after = (
        load_tokenizer(f"{run_folder}/tokenizer").state_dict()
        for run_folder in (problem["semantic_ids"], finished.run)
    )
    assert not np.allclose(before["codebooks"].numpy(), after["codebooks"].numpy())
    assert np.array_equal(before["standardiser.mean"].numpy(), after["standardiser.mean"].numpy())
    start, end = (
        codes_of(f"{folder}/semantic_ids.parquet") for folder in (problem["semantic_ids"], finished.run)
    )
    looks = looks_of(finished)
    assert len(looks) == 2  # the first of three epochs is the warm-up
    assert 0 < looks[-1]["codes/churn"] <= 1
    metrics = run(finished).metrics
    assert metrics["all/churn"] == pytest.approx((start != end).any(1).mean())
    assert {"all/reconstruction", "all/entropy", "test/gauc"} <= set(metrics)


@pytest.mark.parametrize("features", [{}, {"prefixes": {"lengths": [2, 3], "num_rows": 50}}])
def test_a_frozen_tokenizer_in_the_same_harness_trains_like_the_plain_ranker(
    problem: dict[str, Any], tmp_path: Any, features: dict[str, Any]
):
    frozen = tuned(
        problem, f"{tmp_path}/frozen", finetune={"estimator": "frozen", "recent_items": 3}, features=features
    )
    plain = rank_config(problem, f"{tmp_path}/plain", features=features)
    metrics = run(frozen).metrics
    wanted = run(plain).metrics
    assert losses_of(frozen.run) == pytest.approx(losses_of(plain.run), abs=2e-5)
    shared = [name for name in wanted if name.startswith(("valid/", "test/"))]
    assert shared
    assert {name: metrics[name] for name in shared} == pytest.approx(
        {name: wanted[name] for name in shared}, abs=2e-3
    )
    assert metrics["all/churn"] == 0


def test_checkpoints_hold_map_and_tokenizer_that_belong_together(finished: RankConfig, tmp_path: Any):
    folder = f"{finished.run}/checkpoints"
    for step in complete_steps(folder):
        at = step_folder(folder, step)
        assert exists(f"{at}/{TENSORS}/.metadata")
        tokenizer = load_tokenizer(f"{at}/tokenizer")
        assert tokenizer.codebook_sizes == SemanticIds.load(f"{at}/semantic_ids.parquet").sizes
    best = max(
        (event for event in read_events(f"{finished.run}/log.jsonl") if event["event"] == "best"),
        key=lambda event: event["step"],
    )["step"]
    assert read_bytes(f"{step_folder(folder, best)}/semantic_ids.parquet") == read_bytes(
        f"{finished.run}/semantic_ids.parquet"
    )


def test_the_report_shows_what_became_of_the_codes(
    finished: RankConfig, problem: dict[str, Any], tmp_path: Any
):
    frozen = tuned(problem, f"{tmp_path}/frozen", finetune={"estimator": "frozen"})
    run(frozen)
    asked = {"runs": [finished.run, frozen.run], "out": f"{tmp_path}/report"}
    report.run(report.ReportConfig.model_validate(asked))
    content = json.loads(read_bytes(f"{tmp_path}/report/report.json"))
    names = {book["name"] for book in content["codebooks"]}
    assert names == {"mmq", "mmq, tuned"}
    assert not [note for note in content["notes"] if "other semantic IDs" in note]
    learning = {each["arm"]: each["scalars"] for each in content["learning"]}
    assert len(learning) == 2
    churn = [scalars["codes/churn"] for scalars in learning.values() if "codes/churn" in scalars]
    assert len(churn) == 1
    assert len(churn[0]) == 2
    assert (
        "Share of items whose semantic ID is not the one"
        in read_bytes(f"{tmp_path}/report/report.html").decode()
    )


class InterruptedForTestError(Exception):
    pass


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
def test_an_interrupted_run_ends_like_one_that_was_not(
    problem: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, estimator: str
):
    if estimator == "gumbel":  # noise is for codes that are chosen side by side
        problem = side_by_side(problem)
    changes = {
        "finetune": {**TUNING, "estimator": estimator, "refresh_steps": 3, "recent_items": 2},
        "checkpoints": {"every_steps": 4},
    }
    whole = run(tuned(problem, f"{tmp_path}/whole", **changes))
    broken = tuned(problem, f"{tmp_path}/broken", **changes)
    save: Any = vars(Loop)["_save"]

    def save_then_stop(self: Loop, *, is_best: bool) -> None:
        save(self, is_best=is_best)
        if self.steps >= 12:
            raise InterruptedForTestError

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save", save_then_stop)
        with pytest.raises(InterruptedForTestError):
            run(broken)
    assert run(broken).metrics == whole.metrics
    assert np.array_equal(
        codes_of(f"{tmp_path}/whole/semantic_ids.parquet"),
        codes_of(f"{tmp_path}/broken/semantic_ids.parquet"),
    )
    # What was counted before the interruption is in the next look; only the map of the look before is gone.
    forgotten = ("time", "codes/churn_since_last")
    looks = [
        [{k: v for k, v in look.items() if k not in forgotten} for look in looks_of(config)]
        for config in (tuned(problem, f"{tmp_path}/whole", **changes), broken)
    ]
    assert looks[0] == looks[1]


def test_noise_makes_codes_disagree_with_the_map_until_it_has_faded(problem: dict[str, Any], tmp_path: Any):
    noise = {"estimator": "gumbel", "noise_start": 5.0, "noise_decay_epochs": 1, "learning_rate": 1e-6}
    config = tuned(side_by_side(problem), f"{tmp_path}/noisy", finetune={**TUNING, **noise})
    run(config)
    first, last = (look["codes/agreement"] for look in looks_of(config))
    assert first < 0.8
    assert last > 0.97


def test_a_collapse_stops_the_run_and_names_the_last_good_checkpoint(problem: dict[str, Any], tmp_path: Any):
    wild = {"learning_rate": 3.0, "reconstruction_weight": 0.0, "auxiliary_weight": 0.0, "entropy_floor": 0.9}
    config = tuned(problem, f"{tmp_path}/wild", finetune={**TUNING, **wild})
    with pytest.raises(TrainingError, match=r"have collapsed: .*last good checkpoint is .*step-\d+") as error:
        run(config)
    named = str(error.value).split("checkpoint is ")[1].split(". Start")[0]
    assert exists(f"{named}/{TENSORS}/.metadata")
    assert codes_of(f"{named}/semantic_ids.parquet").shape[1] == 6


@pytest.mark.parametrize("modalities", ["aligned", "separated"])
def test_rq_vae_is_finetuned_as_well(problem: dict[str, Any], tmp_path: Any, modalities: str):
    folder = problem["semantic_ids"].rpartition("/")[0]
    problem = {**problem, "semantic_ids": f"{folder}/rq_vae_{modalities}"}
    still = tuned(problem, f"{tmp_path}/still", finetune={**TUNING, "learning_rate": 1e-9})
    run(still)
    # A tokenizer that hardly moves chooses in training what its map says: both pick codes alike.
    assert all(look["codes/agreement"] > 0.99 for look in looks_of(still))
    assert all(look["codes/churn"] == 0 for look in looks_of(still))
    moving = tuned(problem, f"{tmp_path}/moving")
    run(moving)
    assert looks_of(moving)[-1]["codes/churn"] > 0
    present = np.load(f"{folder}/data/content/image.mask.npy") if modalities == "separated" else None
    if present is not None:
        codes = codes_of(f"{moving.run}/semantic_ids.parquet")
        assert np.array_equal(codes[:, 2:] == 6, np.repeat(~present[:, None], 2, axis=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"semantic_ids": "{folder}/mmq/semantic_ids.parquet"}, "Name the run folder"),
        ({"semantic_ids": "{folder}/rq_kmeans"}, "'rq_kmeans' do not learn by gradient"),
    ],
)
def test_only_a_tokenizer_that_learns_can_be_tuned(
    problem: dict[str, Any], tmp_path: Any, changes: dict[str, Any], said: str
):
    folder = problem["semantic_ids"].rpartition("/")[0]
    changes = {key: value.format(folder=folder) for key, value in changes.items()}
    with pytest.raises(ConfigError, match=said):
        run(tuned(problem, f"{tmp_path}/run", **changes))


def test_the_best_step_is_one_at_which_the_tokenizer_had_moved(problem: dict[str, Any], tmp_path: Any):
    # A rate that ruins the codes: the frozen epochs before were better, and would have been selected.
    train = {"max_epochs": 5, "patience": 1, "select_by": "log_loss"}
    ruined = tuned(
        problem,
        f"{tmp_path}/ruined",
        train=train,
        finetune={"learning_rate": 0.3, "warmup_epochs": 3, "entropy_floor": 0.0},
    )
    run(ruined)
    events = read_events(f"{ruined.run}/log.jsonl")
    steps_per_epoch = next(event["steps_per_epoch"] for event in events if event["event"] == "start")
    assert [event for event in events if event["event"] == "finish"][-1]["best_step"] > 3 * steps_per_epoch
    assert run(ruined).metrics["all/churn"] > 0


@pytest.mark.parametrize(("at", "said"), [(4, "step 5: the loss is nan"), (6, "step 6: .* is not finite")])
def test_no_map_is_made_of_a_tokenizer_whose_weights_are_no_numbers(
    problem: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, at: int, said: str
):
    plain, maps = training_loop.train_steps, {}
    models: list[nn.Module] = []

    def poisoned(passes: Passes, *args: Any, **kwargs: Any) -> Any:
        models.append(passes.trained.model)
        live = live_codes_of(passes.trained.model)
        for done in plain(passes, *args, **kwargs):
            maps[done.step] = live.codes.numpy().copy()  # as the step read it
            if done.step == at:
                assert live.tokenizer is not None
                with torch.no_grad():
                    next(live.tokenizer.parameters()).fill_(float("nan"))
            yield done

    monkeypatch.setattr(training_loop, "train_steps", poisoned)
    config = tuned(
        problem,
        f"{tmp_path}/run",
        train={"log_every_steps": 1000},
        finetune={"learning_rate": 0.05, "warmup_epochs": 0, "entropy_floor": 0.0, "refresh_steps": 3},
        checkpoints={"every_steps": 3},
    )
    with pytest.raises(TrainingError, match=said):
        run(config)
    assert max(maps) == 6
    assert not np.array_equal(maps[4], maps[3])  # the refresh after step 3, of sound weights
    assert np.array_equal(live_codes_of(models[0]).codes.numpy(), maps[4])
    start = codes_of(f"{problem['semantic_ids']}/{FILE}")
    assert np.array_equal(codes_of(f"{config.run}/{FILE}"), start)
    checkpoints = f"{config.run}/checkpoints"
    assert complete_steps(checkpoints) == [3]
    assert np.array_equal(codes_of(f"{step_folder(checkpoints, 3)}/{FILE}"), maps[4])
    assert not exists(f"{config.run}/metrics.json")


def test_a_warmup_that_leaves_nothing_to_tune_is_refused(problem: dict[str, Any], tmp_path: Any):
    with pytest.raises(ValueError, match=r"leaves no epoch of train.max_epochs \(3\)"):
        tuned(problem, str(tmp_path), finetune={"warmup_epochs": 3})


def test_noise_on_residual_levels_is_refused(problem: dict[str, Any], tmp_path: Any):
    folder = problem["semantic_ids"].rpartition("/")[0]
    config = tuned(
        {**problem, "semantic_ids": f"{folder}/rq_vae_aligned"},
        f"{tmp_path}/run",
        finetune={"estimator": "gumbel"},
    )
    with pytest.raises(ConfigError, match=r"noise on the codes of residual levels"):
        run(config)


def test_item_ids_alone_have_nothing_to_tune(problem: dict[str, Any]):
    with pytest.raises(ValueError, match="finetune needs codes to tune"):
        tuned(problem, "nowhere", representation="item")


def test_a_run_starts_from_the_weights_tokenizer_and_map_of_a_checkpoint(finished: RankConfig, tmp_path: Any):
    step = best_step(f"{finished.run}/checkpoints")
    still = {"learning_rate": 1e-12}
    values = finished.model_dump() | {
        "run": str(tmp_path / "next"),
        "start_from": f"{finished.run}/checkpoints/step-{step}",
        "optimizers": {"dense": still, "tables": {**finished.optimizers.tables.model_dump(), **still}},
        "train": {**finished.train.model_dump(), "max_epochs": 1},
        "finetune": {**TUNING, "estimator": "frozen", "warmup_epochs": 0},
    }
    again = run(RankConfig.model_validate(values)).metrics
    metrics = json.loads(Path(finished.run, "metrics.json").read_text())["metrics"]
    assert again["test/log_loss"] == pytest.approx(metrics["test/log_loss"], abs=1e-6)
    assert (codes_of(f"{values['run']}/{FILE}") == codes_of(f"{finished.run}/{FILE}")).all()


def test_a_start_that_is_no_checkpoint_is_refused(finished: RankConfig, tmp_path: Any):
    values = finished.model_dump() | {"run": str(tmp_path / "next"), "start_from": finished.run}
    with pytest.raises(ConfigError, match="is no checkpoint"):
        run(RankConfig.model_validate(values))


def test_codes_that_were_resolved_cannot_be_tuned(problem: dict[str, Any], tmp_path: Any):
    config = json.loads(json.dumps({"dataset": problem["dataset"], "run": f"{tmp_path}/resolved"}))
    tokenized = {**config, "tokenizer": MMQ.model_dump(), "collisions": "next_nearest"}
    tokenize.run(tokenize.TokenizeConfig.model_validate(tokenized))
    with pytest.raises(ConfigError, match=r"resolved by 'next_nearest'"):
        run(tuned({**problem, "semantic_ids": f"{tmp_path}/resolved"}, f"{tmp_path}/run"))


def test_codes_of_a_tokenize_run_that_did_not_finish_are_refused(problem: dict[str, Any], tmp_path: Any):
    shutil.copytree(problem["semantic_ids"], f"{tmp_path}/half")
    Path(f"{tmp_path}/half/metrics.json").unlink()
    with pytest.raises(DataError, match="not a finished run"):
        run(tuned({**problem, "semantic_ids": f"{tmp_path}/half"}, f"{tmp_path}/run"))


def test_a_run_begun_with_the_section_tuning_is_of_the_config_with_finetune(finished: RankConfig):
    written = f"{finished.run}/config.toml"
    new = read_bytes(written)
    assert b"[finetune]" in new
    before = RunFolder(finished.run, "rank").read_json("run.json")
    try:
        write_bytes(written, new.replace(b"[finetune]", b"[tuning]"))
        RunFolder(finished.run, "rank").write_json("run.json", {**before, "config_checksum": "of then"})
        assert load_config(RankConfig, [written]) == finished
        assert RunFolder(finished.run, "rank").is_finished(finished)
    finally:
        write_bytes(written, new)
        RunFolder(finished.run, "rank").write_json("run.json", before)


def test_the_section_is_given_under_one_of_its_names(problem: dict[str, Any], tmp_path: Any):
    with pytest.raises(ValueError, match="tuning and finetune are one section by two names"):
        tuned(problem, str(tmp_path), tuning=TUNING)
