"""Rows that start as codewords stand to each other as these do, on any number of ranks."""

from typing import Any

import pytest
import torch

from tests.jobs.test_rank_finetune import tuned, write_problem
from tests.ranks import run_ranks
from trec_semid.jobs.rank import run
from trec_semid.tokenizers.methods import as_learned, load_tokenizer
from trec_semid.training.finetune.code_rows import rows_like
from trec_semid.training.finetune.finetuning import live_codes_of
from trec_semid.training.loop import Loop


@pytest.mark.parametrize("width", [4, 16, 24])
def test_rows_as_wide_as_codewords_or_wider_have_their_distances_to_scale(width: int):
    codewords = torch.randn(9, 4) + 3.0
    rows = rows_like(codewords, width, std=0.02, seed=5)
    assert rows.shape == (9, width)
    assert rows.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-4)
    ratio = torch.pdist(rows) / torch.pdist(codewords)
    assert ratio.tolist() == pytest.approx([ratio[0].item()] * len(ratio), rel=1e-4)
    assert torch.equal(rows, rows_like(codewords, width, std=0.02, seed=5))
    assert not torch.allclose(rows, rows_like(codewords, width, std=0.02, seed=6))


def test_narrower_rows_are_like_codewords_where_these_are_like():
    generator = torch.Generator().manual_seed(0)
    codewords = torch.randn(40, 128, generator=generator)
    rows = rows_like(codewords, 32, std=1.0, seed=0)
    both = torch.stack([torch.pdist(rows), torch.pdist(codewords)])
    near = codewords[:1] + 0.01 * torch.randn(1, 128, generator=generator)
    beside = rows_like(torch.cat([codewords, near]), 32, std=1.0, seed=0)
    assert (beside[0] - beside[-1]).norm() < 0.05 * torch.pdist(rows).mean()
    assert (both[0] / both[1]).std() / (both[0] / both[1]).mean() < 0.2


def test_codewords_that_are_all_one_start_at_nought():
    assert torch.equal(rows_like(torch.ones(3, 4), 4, std=0.1, seed=0), torch.zeros(3, 4))


def rows_at_the_start(problem: dict[str, Any], folder: str) -> list[torch.Tensor]:
    """Return (R, K + 1, D): what the model looks up before its first step."""
    seen: list[torch.Tensor] = []
    resume: Any = vars(Loop)["resume"]

    def looking(self: Loop, weights: object) -> None:
        resume(self, weights)
        with torch.no_grad():
            seen.append(live_codes_of(self.task.model).tables().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "resume", looking)
        rules = {"tables": {"t_*code*": {"sharding_types": ["row_wise"]}}}
        tuning = {"learning_rate": 0.003, "warmup_epochs": 0.5, "starts_from_codebooks": True}
        run(tuned(problem, folder, finetune=tuning, train={"max_epochs": 1}, sharding=rules))
    return seen


@pytest.mark.ranks
def test_a_run_starts_with_them_on_one_rank_and_on_two(tmp_path: Any):
    problem = write_problem(str(tmp_path))
    tokenizer = as_learned(load_tokenizer(f"{problem['semantic_ids']}/tokenizer"))
    assert tokenizer is not None
    (one,) = rows_at_the_start(problem, f"{tmp_path}/one")
    for position, codewords in enumerate(tokenizer.codebooks.detach()):
        wanted = rows_like(codewords, one.shape[2], std=0.01, seed=0)
        torch.testing.assert_close(one[position, :-1], wanted)
        assert one[position, -1].abs().sum() > 0  # of what is missing, as it was drawn
    for (two,) in run_ranks(rows_at_the_start, 2, problem, f"{tmp_path}/two"):
        torch.testing.assert_close(two, one)
