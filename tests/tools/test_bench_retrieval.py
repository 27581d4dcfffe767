"""tools/bench/retrieval at a size that tells nothing of speed; the peer takes part where it is installed."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.jobs.retrieving import retrieve_config
from tests.jobs.test_rank_finetune import write_problem
from trec_semid.jobs.retrieve import run

FOLDER = Path(__file__).resolve().parents[2] / "tools/bench/retrieval"
SIZES = {"users": 60, "items": 80, "codebook": 16, "positions": 3, "history": 6, "dim": 8, "beams": 4}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
TINY += ["--turns", "1", "--asked", "8"]
HAS_PEER = importlib.util.find_spec("transformers") is not None
pytestmark = pytest.mark.slow


def told(tool: str, *words: str) -> str:
    return said(tool, *TINY, *words)


def said(tool: str, *words: str) -> str:
    done = run_command(str(FOLDER / tool), *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps_tell_training_and_evaluation_of_every_contestant(tmp_path: Path):
    path = tmp_path / "numbers.json"
    text = told("steps.py", "--batch", "16", "--steps", "1", "--peer-asked", "4", "--json", str(path))
    numbers = json.loads(path.read_text())
    trained, listed = {"HeterRec", "SASRec", "TIGER"}, {"HeterRec, all items", "HeterRec, beam 4"}
    assert set(numbers["training"]) == trained | ({"T5"} if HAS_PEER else set())
    assert listed < set(numbers["evaluation"])
    assert all(seconds > 0 for turns in numbers["evaluation"].values() for seconds in turns[0])
    assert ("pip install 'transformers>=5'" in text) != HAS_PEER
    if HAS_PEER:
        assert "| T5 |" in text
        assert "T5, beam 4 = 1" in text


def test_every_model_is_compared_over_short_and_long_histories(tmp_path: Path):
    path = tmp_path / "numbers.json"
    text = told("models.py", "--histories", "6", "30", "--cells", "60", "--json", str(path))
    numbers = json.loads(path.read_text())
    for length in ("6", "30"):
        models, left_out = numbers[length]["models"], numbers[length]["left out"]
        assert {"SASRec", "ComiRec-SA", "ComiRec-DR", "GemiRec", "HyMiRec", "HeterRec"} < set(models)
        assert {"RPG", "TIGER", "AsymRec"} < set(models)
        assert not left_out
        assert set(numbers[length]["training"]) == set(numbers[length]["listing"]) == set(models)
        assert {name for name, one in models.items() if one["targets"] == int(length)} >= {"SASRec", "RPG"}
        assert models["SASRec"]["history_bytes"] == int(length) * 8 * 4
        assert models["TIGER"]["history_bytes"] == int(length) * 3
    assert "Histories of 30 items" in text


def test_a_model_that_does_not_fit_is_named_with_the_reason(tmp_path: Path):
    path = tmp_path / "numbers.json"
    # Its maps take 188 MiB, a matrix for each place and interest.
    words = ["--models", "ComiRec-DR", "--histories", "3000", "--cells", "3000", "--dim", "64"]
    text = told("models.py", *words, "--memory", "0.15", "--json", str(path))
    assert "ComiRec-DR takes no part: one history does not fit in 0.15 GiB" in text
    assert set(json.loads(path.read_text())["3000"]["models"]) == {"SASRec"}


def test_profile_names_three_costs_of_each_model():
    text = told("steps.py", "--batch", "16", "--steps", "1", "--profile")
    for name in ("HeterRec", "SASRec"):
        line = next(line for line in text.splitlines() if line.startswith(f"{name}: "))
        shares = [int(part.rsplit(" ", 1)[1].removesuffix("%")) for part in line.split(", ")]
        assert len(shares) == 3
        assert 100 > shares[0] >= shares[1] >= shares[2]


def test_beams_are_valid_and_equal_what_they_are_checked_against(tmp_path: Path):
    path = tmp_path / "numbers.json"
    text = told("beam.py", "--peer-asked", "4", "--checked", "4", "--json", str(path))
    numbers = json.loads(path.read_text())
    held = {"TIGER", "HeterRec, parallel heads"} | ({"T5"} if HAS_PEER else set())
    assert {name for name, share in numbers["validity"].items() if share == 1} == held
    assert "item of the exact list: 100.0%" in text
    assert ("has in the same place: 100.0%" in text) == HAS_PEER
    apart = float(text.split("teacher forcing by ")[1].split()[0])
    assert apart < 1e-4


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_problem(str(tmp_path_factory.mktemp("bench")))


def test_contestants_are_given_a_dataset_and_its_codes(problem: dict[str, str]):
    given = ["--dataset", problem["dataset"], "--codes", problem["semantic_ids"]]
    text = told("beam.py", *given, "--peer-asked", "4", "--checked", "4")
    assert text.startswith("40 items of 6 codes of 6, ")
    assert "tuples that exist: TIGER 100.0%" in text
    assert "item of the exact list: 100.0%" in text


def test_a_beam_as_wide_as_there_are_tuples_agrees_with_exact_lists(problem: dict[str, str], tmp_path: Path):
    codes_alone = {"loss": {"item_weight": 0.0, "code_weight": 1.0}, "train": {"max_epochs": 1}}
    config = retrieve_config(problem, str(tmp_path / "run"), **codes_alone)
    run(config)
    lines = said("agreement.py", config.run, "--widths", "10", "40").splitlines()
    narrow, wide = (line.split(" | ") for line in lines[-2:])
    assert narrow[0] == "| beam of 10"
    assert 0 < float(narrow[3]) < 1
    assert wide[1:5] == ["1.000"] * 4
    assert wide[-2] == lines[-3].split(" | ")[-2]
