"""Turns of tokenizer and model, and temperatures by codes in effect, in whole runs."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.jobs.ranking import rank_config
from tests.jobs.retrieving import retrieve_config
from tests.jobs.test_rank_finetune import TUNING, looks_of, tuned, write_problem
from trec_semid.checkpoints.folder import best_step, step_folder
from trec_semid.jobs import retrieve
from trec_semid.jobs.rank import RankConfig, run
from trec_semid.runtime.logs import read_events
from trec_semid.tokenizers.encode import encode_catalogue
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.training.finetune.finetuning import Finetuning, live_codes_of
from trec_semid.training.loop import Loop


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("turns")))


def start_of(config: RankConfig) -> dict[str, Any]:
    """Return what the log says of the codes before the first step."""
    (start,) = (
        event for event in read_events(f"{config.run}/log.jsonl") if event["event"] == "codes_at_start"
    )
    return start


def test_in_the_model_s_turn_the_tokenizer_stands_still_and_all_read_its_map(
    problem: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    """Turns of 3 steps after a warm-up of an epoch: codebooks move in a step of the tokenizer's alone."""
    seen: list[tuple[int, torch.Tensor, bool]] = []
    after: Any = vars(Finetuning)["after_step"]

    def looking(self: Finetuning, report: Any) -> None:
        after(self, report)
        live = live_codes_of(self_model[0])
        fresh = encode_catalogue(self.tokenizer, self.catalogue, with_errors=False).codes
        is_read = bool((live.codes.numpy() == fresh).all())
        seen.append((report.step, self.tokenizer.codebooks.detach().clone(), is_read))

    self_model: list[nn.Module] = []
    start: Any = vars(Loop)["resume"]

    def resuming(self: Loop, weights: Any) -> None:
        self_model.append(self.task.model)
        start(self, weights)

    monkeypatch.setattr(Finetuning, "after_step", looking)
    monkeypatch.setattr(Loop, "resume", resuming)
    config = tuned(problem, f"{tmp_path}/turns", finetune={**TUNING, "learning_rate": 0.05, "turn_steps": 3})
    run(config)
    per_epoch = read_events(f"{config.run}/log.jsonl")[0]["steps_per_epoch"]
    assert len(seen) == 3 * per_epoch
    for (_, before, _), (step, now, is_read) in pairwise(seen):
        of_tokenizer = step > per_epoch and (step - per_epoch - 1) // 3 % 2 == 0
        assert torch.equal(before, now) != of_tokenizer
        assert is_read or of_tokenizer
    looks = looks_of(config)
    stale, told = 0, []
    for step in range(per_epoch + 1, 3 * per_epoch + 1):
        moves, moves_next = ((each - per_epoch - 1) // 3 % 2 == 0 for each in (step, step + 1))
        stale = 0 if moves and not moves_next else stale + moves
        if step % per_epoch == 0:
            told.append(stale)
            stale = 0
    assert [look["codes/staleness_steps"] for look in looks] == told


def test_the_log_says_how_many_codes_are_in_effect_and_the_temperature_can_be_set_by_it(
    problem: dict[str, Any], tmp_path: Any
):
    said = []
    for number, wanted in enumerate((1.5, 5.0)):
        tuning = {**TUNING, "learning_rate": 1e-6, "effective_codes": wanted}
        config = tuned(problem, f"{tmp_path}/{number}", finetune=tuning, train={"max_epochs": 2})
        run(config)
        (look,) = looks_of(config)
        start = start_of(config)
        assert start["codes/effective"] == pytest.approx(wanted, rel=1e-3)
        assert look["codes/effective"] == pytest.approx(wanted, rel=0.01)
        said.append({name: value for name, value in look.items() if name.startswith("codes/effective/")})
    assert all(value == pytest.approx(1.5, rel=0.02) for value in said[0].values())
    assert len(said[0]) == len(said[1]) > 1


def test_a_temperature_and_the_codes_that_set_it_are_not_given_together(problem: dict[str, Any]):
    with pytest.raises(ValueError, match="effective_codes sets the temperature: leave out one of the two"):
        tuned(problem, "r", finetune={"temperature": 0.1, "effective_codes": 4})


def test_the_temperature_is_set_by_the_tokenizer_that_a_run_starts_from_and_stays_when_it_goes_on(
    problem: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    """The first run moves its tokenizer far; the second one starts from there, and is stopped in a turn."""
    first = tuned(problem, f"{tmp_path}/first", finetune={**TUNING, "learning_rate": 0.1})
    run(first)
    start = {"start_from": step_folder(f"{first.run}/checkpoints", best_step(f"{first.run}/checkpoints"))}
    tuning = {**TUNING, "effective_codes": 3.0, "turn_steps": 3}
    changes = {"finetune": tuning, "checkpoints": {"every_steps": 2}, **start}
    whole = tuned(problem, f"{tmp_path}/whole", **changes)
    run(whole)
    assert start_of(whole)["codes/effective"] == pytest.approx(3.0, rel=1e-3)
    broken = tuned(problem, f"{tmp_path}/broken", **changes)
    save: Any = vars(Loop)["_save"]
    per_epoch = read_events(f"{whole.run}/log.jsonl")[0]["steps_per_epoch"]

    def save_then_stop(self: Loop, *, is_best: bool) -> None:
        save(self, is_best=is_best)
        if self.steps >= per_epoch + 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    assert run(broken).metrics == run(whole).metrics
    assert looks_of(broken)[-1]["codes/effective"] == looks_of(whole)[-1]["codes/effective"]


def test_rows_that_a_checkpoint_brings_do_not_start_as_codewords(problem: dict[str, Any]):
    tuning = {**TUNING, "starts_from_codebooks": True}
    with pytest.raises(ValueError, match="start_from brings rows of codes"):
        tuned(problem, "r", finetune=tuning, start_from="runs/x/checkpoints/step-3")


def test_targets_that_choose_teach_the_tokenizer_of_a_retriever(problem: dict[str, Any], tmp_path: Any):
    """Else a run is the same: what its tokenizer comes to differs by the choice of those alone."""
    ends = []
    for moves in (False, True):
        tuning = {"learning_rate": 0.01, "warmup_epochs": 0.5, "moves_targets": moves}
        loss = {"code_weight": 0.0}
        config = retrieve_config(problem, f"{tmp_path}/{moves}", finetune=tuning, loss=loss)
        retrieve.run(config)
        ends.append(load_tokenizer(f"{config.run}/tokenizer").state_dict()["codebooks"])
    assert not torch.allclose(ends[0], ends[1])


@pytest.mark.parametrize(
    ("job", "changes"),
    [("rank", {}), ("retrieve", {"loss": {"item_weight": 0.0, "code_weight": 1.0}})],
)
def test_targets_that_choose_are_those_that_are_scored(
    problem: dict[str, Any], job: str, changes: dict[str, Any]
):
    make = tuned if job == "rank" else retrieve_config
    with pytest.raises(ValueError, match=r"finetune\.moves_targets: is of"):
        make(problem, "r", finetune={**TUNING, "moves_targets": True}, **changes)


@pytest.mark.parametrize("job", ["rank", "retrieve"])
def test_gradients_that_are_sums_do_not_travel_as_fp16(problem: dict[str, Any], job: str):
    tuning = {"finetune": TUNING} if job == "rank" else {}
    make = rank_config if job == "rank" else retrieve_config
    with pytest.raises(ValueError, match=r"sharding\.comms\.backward = 'fp16': .* set 'bf16'"):
        make(problem, "r", sharding={"comms": {"backward": "fp16"}}, **tuning)
