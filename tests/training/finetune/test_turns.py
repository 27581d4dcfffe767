"""Turns of tokenizer and model, and temperatures by codes in effect, in whole runs."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.jobs.test_rank_finetune import TUNING, looks_of, tuned, write_problem
from trec_semid.jobs.rank import run
from trec_semid.runtime.logs import read_events
from trec_semid.tokenizers.encode import encode_catalogue
from trec_semid.training.finetune.finetuning import Finetuning, live_codes_of
from trec_semid.training.loop import Loop


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("turns")))


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
    assert len(looks_of(config)) == 2


def test_the_log_says_how_many_codes_are_in_effect_and_the_temperature_can_be_set_by_it(
    problem: dict[str, Any], tmp_path: Any
):
    said = []
    for number, wanted in enumerate((1.5, 5.0)):
        tuning = {**TUNING, "learning_rate": 1e-6, "effective_codes": wanted}
        config = tuned(problem, f"{tmp_path}/{number}", finetune=tuning, train={"max_epochs": 2})
        run(config)
        (look,) = looks_of(config)
        assert look["codes/effective"] == pytest.approx(wanted, rel=0.01)
        said.append({name: value for name, value in look.items() if name.startswith("codes/effective/")})
    assert all(value == pytest.approx(1.5, rel=0.02) for value in said[0].values())
    assert len(said[0]) == len(said[1]) > 1


def test_a_temperature_and_the_codes_that_set_it_are_not_given_together(problem: dict[str, Any]):
    with pytest.raises(ValueError, match="effective_codes sets the temperature: leave out one of the two"):
        tuned(problem, "r", finetune={"temperature": 0.1, "effective_codes": 4})
