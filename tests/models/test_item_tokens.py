"""Tokens of content: how they start, how fast they learn, and what a checkpoint keeps of them."""

import pytest
import torch
from torch import nn

from tests.checkpoints.training import save_checkpoint
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.errors import CheckpointError
from trec_semid.models.item_tokens import ItemTokens, Listed, ProjectedContent
from trec_semid.tokenizers.inputs.contents import Standardised


def test_tokens_of_content_start_as_rows_of_tables_do():
    torch.manual_seed(0)
    items = ItemTokens(None, {"text": 384, "image": 12}, None, 64, content_std=0.03, content_is_unit=True)
    present = torch.tensor([True, False]).repeat(2000, 1)
    listed = Listed(torch.arange(2000), None, Standardised(torch.randn(2000, 396), present))
    tokens = items(listed).at(torch.arange(2000))
    assert tokens[:, 0].std().item() == pytest.approx(0.03, rel=0.02)
    assert not tokens[:, 1].any()


@pytest.mark.parametrize(
    ("is_unit", "width", "steps"), [(True, 16, 4), (True, 1600, 40), (False, 1600, 1600)]
)
def test_a_step_moves_a_token_of_content_by_the_root_of_its_width(is_unit, width, steps):
    torch.manual_seed(0)
    items = ItemTokens(None, {"text": width}, None, 64, content_std=0.02, content_is_unit=is_unit)
    present = torch.ones(1, 1, dtype=torch.bool)
    listed = Listed(torch.arange(1), None, Standardised(torch.randn(1, width).sign(), present))
    before = items(listed).total
    assert before.std().item() == pytest.approx(0.02, rel=0.4)
    step = torch.optim.AdamW(items.parameters(), lr=0.001, weight_decay=0.0)
    before.sum().backward()
    step.step()
    expected = torch.full_like(before, 0.001 * (steps + 1))  # The bias adds a step.
    torch.testing.assert_close(before - items(listed).total, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("was_unit", "word"), [(False, "false"), (True, "true")])
def test_a_checkpoint_that_was_learnt_with_another_scale_is_refused(tmp_path, was_unit, word):
    saved, other = (ProjectedContent({"text": 9}, 4, 0.02, is_unit=unit) for unit in (was_unit, not was_unit))
    save_checkpoint(str(tmp_path), 0, Trainable(saved), loop={})
    with pytest.raises(CheckpointError, match=f"Set item.content_is_unit = {word}"):
        load_checkpoint(str(tmp_path), Trainable(other))


def test_a_checkpoint_that_does_not_say_its_scale_is_refused(tmp_path):
    content = ProjectedContent({"text": 9}, 4, 0.02, is_unit=True)
    silent = nn.Module()
    silent.maps, silent.absent = content.maps, content.absent
    save_checkpoint(str(tmp_path), 0, Trainable(silent), loop={})
    words = (
        r"model/scales: in the model, not in the checkpoint\n.*another version of trec_semid .* trained again"
    )
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(str(tmp_path), Trainable(content))
