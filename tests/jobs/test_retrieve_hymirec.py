"""HyMiRec from end to end: trained, gone on with, asked again, planned, on one rank and on several."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import losses_of, run_until
from tests.jobs.retrieving import STILL, retrieve_config, retrieve_with_plan
from tests.jobs.test_rank_finetune import write_problem
from tests.jobs.test_retrieve import TUNED
from tests.ranks import run_ranks
from trec_semid.core.config import dump_toml, load_config
from trec_semid.core.errors import ConfigError, StackError
from trec_semid.jobs import evaluate, export, plan, tokenize
from trec_semid.jobs.retrieve import run
from trec_semid.models.hymirec import causal_lm
from trec_semid.serving.engine import RetrieveAsked, open_engine
from trec_semid.tokenizers.cosine_rq import CosineRqConfig

LOSS = {"code_weight": 0.0, "code_share": 0.1, "item_similarity_is_cosine": True, "item_temperature": 0.2}
MODEL = {
    "kind": "hymirec",
    "num_interests": 2,
    "coarse_interests": 3,
    "recent": 4,
    "transformer": STILL,
    "dropout": 0.0,
}
ROWS = {"sequences": {"rows": "sliding"}, "window": 4}


def changes(loss: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {**ROWS, "loss": {**LOSS, **(loss or {})}, "model": {**MODEL, **model}}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("hymirec"))
    problem = write_problem(folder)
    tokenizer = CosineRqConfig(codebook_size=6, levels=3, coefficients="uint4").model_dump()
    asked = {"dataset": problem["dataset"], "run": f"{folder}/cosine_rq", "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate(asked))
    return problem


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model of two layers: its config, and weights."""
    import transformers  # takes a second, which collecting all tests need not

    folder = tmp_path_factory.mktemp("lm")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {**sizes, "num_key_value_heads": 2, "vocab_size": 11, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", **config}))
    torch.manual_seed(0)
    transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(
        folder
    )
    return str(folder)


def of_problem(problem: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return changes with the codes that they need: a codebook's coefficients are those of `cosine_rq`."""
    if given["model"].get("light_reads", "rows") == "rows":
        return given
    return {**given, "semantic_ids": f"{Path(problem['semantic_ids']).parent}/cosine_rq"}


def of_lm(path: str, **settings: Any) -> dict[str, Any]:
    given = changes(backbone="causal_lm", lm={"path": path, "pretrained": False, **settings})
    del given["model"]["transformer"]
    return given


@pytest.mark.parametrize("light_reads", ["rows", "codebook"])
def test_it_is_trained_asked_again_and_planned(
    problem: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], light_reads: str
):
    given = of_problem(problem, changes(light_reads=light_reads, coarse_weight=0.2))
    config = retrieve_config(problem, str(tmp_path / "run"), **given)
    metrics = run(config).metrics
    losses = losses_of(config.run)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert 0 < metrics["test/recall@10"] <= 1
    # An older version had a key that there is no more, and took keys that make no sense together today.
    saved = Path(config.run, "config.toml")
    older = tomllib.loads(saved.read_text())
    older["model"]["depth"], older["loss"]["code_temperature"] = 3, 0.3
    saved.write_text(tomli_w.dumps(older))
    again = evaluate.EvaluateConfig.model_validate({"run": str(tmp_path / "again"), "runs": [config.run]})
    assert evaluate.run(again).metrics == pytest.approx(metrics, abs=1e-6)
    told = "".join(capsys.readouterr().err.split())  # the console breaks lines
    assert "model.depth:thereisnosuchkeyanymore" in told
    assert "leaveoutloss.code_temperature(readallthesame" in told
    file = tmp_path / "retrieve.toml"
    file.write_text(dump_toml(config))
    sets = ['cluster="configs/cluster/h100_1x8.toml"', f"out={tmp_path}/plan.json"]
    planned = plan.run(load_config(plan.PlanConfig, [str(file)], sets))
    assert {"t_item_id", "t_code_0"} <= {table.name for table in planned[0].plan.tables}


@pytest.mark.parametrize(
    "given",
    [
        changes(recent=0),
        changes(light_reads="tuned_codebook"),
        {**changes(coarse_interests=0), "semantic_ids": None},
        {**changes(), "sampled": {"num_sampled": 30}},
        {**changes(), "finetune": TUNED},
        changes(dmil=False, learns_temperature=False),
        {**changes(), "train": {"precision": "bfloat16"}},
    ],
    ids=["light", "codebook", "refined", "sampled", "tuned", "nearest", "bfloat16"],
)
def test_each_arm_learns(problem: dict[str, Any], tmp_path: Path, given: dict[str, Any]):
    config = retrieve_config(problem, str(tmp_path / "run"), **of_problem(problem, given))
    run(config)
    losses = losses_of(config.run)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.ranks
def test_ranks_train_and_retrieve_as_one(problem: dict[str, Any], tmp_path: Path):
    for size, light_reads in ((2, "codebook"), (4, "rows")):
        given = of_problem(problem, changes(light_reads=light_reads)) | {"train": {"max_epochs": 1}}
        one = retrieve_with_plan(problem, str(tmp_path / light_reads), "row_wise", given)
        folder = str(tmp_path / f"{light_reads}-{size}")
        several = run_ranks(retrieve_with_plan, size, problem, folder, "row_wise", given)[0]
        assert len(one["losses"]) > 5
        assert several["losses"] == pytest.approx(one["losses"], rel=1e-3)
        assert several["metrics"]["test/ndcg@10"] == pytest.approx(one["metrics"]["test/ndcg@10"], abs=0.01)


@pytest.mark.parametrize("reads_with", ["transformer", "causal_lm"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    problem: dict[str, Any], lm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_with: str
):
    given = of_lm(lm, pretrained=True, lora_rank=2) if reads_with == "causal_lm" else changes(dropout=0.3)
    whole = run(retrieve_config(problem, str(tmp_path / "whole"), **given)).metrics
    config = retrieve_config(problem, str(tmp_path / "stopped"), checkpoints={"every_steps": 3}, **given)
    run_until(monkeypatch, config, 7, run)
    assert run(config).metrics == whole


@pytest.mark.parametrize("settings", [{}, {"checkpoints_gradients": True}], ids=["plain", "checkpointed"])
def test_a_language_model_reads_in_the_place_of_the_transformer_and_goes_into_a_bundle(
    problem: dict[str, Any],
    lm: str,
    tmp_path: Path,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    config = retrieve_config(problem, str(tmp_path / "run"), **of_lm(lm, **settings))
    run(config)
    losses = losses_of(config.run)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    if settings:
        return
    export_quickly(monkeypatch)
    out = f"{tmp_path}/bundle"
    # Its layers are in the program: what reads the bundle knows nothing of language models.
    assert export.run(export.ExportConfig(run=config.run, out=out)).largest_difference <= 1e-4
    engine = open_engine(out)
    alone, together = (
        RetrieveAsked("u001", None, 5),
        [RetrieveAsked(f"u{row:03d}", None, 5) for row in range(4)],
    )
    assert engine.retrieve([alone])[0].items == engine.retrieve(together)[1].items


def test_a_language_model_that_is_not_there_or_reads_too_little_is_refused(
    problem: dict[str, Any], lm: str, tmp_path: Path
):
    config = retrieve_config(problem, str(tmp_path / "run"), **of_lm(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"model\.lm\.path: no model in"):
        run(config)
    assert not Path(config.run).exists()
    short = json.loads(Path(lm, "config.json").read_text()) | {"max_position_embeddings": 8}
    (tmp_path / "short").mkdir()
    (tmp_path / "short/config.json").write_text(json.dumps(short))
    with pytest.raises(ConfigError, match=r"reads 8 tokens at most, and there are 9: lower model\.recent"):
        run(retrieve_config(problem, str(tmp_path / "run"), **of_lm(str(tmp_path / "short"))))


def test_without_its_packages_a_language_model_names_the_extra(
    problem: dict[str, Any], lm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def absent(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(causal_lm.importlib, "import_module", absent)
    with pytest.raises(StackError, match=r'pip install "trec-semid\[lm\]"'):
        run(retrieve_config(problem, str(tmp_path / "run"), **of_lm(lm)))


def test_other_rows_are_refused(problem: dict[str, Any]):
    with pytest.raises(ValueError, match=r"set sequences\.rows = 'sliding'"):
        retrieve_config(problem, "r", **{**changes(), "sequences": {"rows": "dense"}})
