import math

import pytest
import torch
from torch.nn.functional import normalize

from trec_semid.layers import contrastive
from trec_semid.layers.contrastive import PairedItems, paired_info_nce


@pytest.fixture(autouse=True)
def stretches_of_two_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contrastive, "_ROWS_AT_ONCE", 2)


@pytest.mark.parametrize("temperature", [0.1, 0.004])  # exp(1 / .004) is no number of single precision
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 3.0, 0.2, 2.0])])
def test_loss_of_pairs_is_that_of_the_formula_worked_out_pair_by_pair(
    temperature: float, weights: torch.Tensor | None
):
    generator = torch.Generator().manual_seed(0)
    shares = [1 / 5] * 5 if weights is None else (weights / weights.sum()).tolist()
    vectors = normalize(torch.randn(6, 4, generator=generator), dim=1)
    penalties = torch.rand(6, generator=generator)
    left, right = (
        torch.tensor([0, 1, 2, 0, 4]),
        torch.tensor([1, 2, 1, 3, 5]),
    )  # items come back on both sides

    def one_way(asked: list[int], choices: list[int]) -> float:
        total = 0.0
        for i, j, share in zip(asked, choices, shares, strict=True):
            own = float(vectors[i] @ vectors[j]) / temperature - float(penalties[j])
            others = [k for k in choices if k not in (i, j)]
            scores = [float(vectors[i] @ vectors[k]) / temperature - float(penalties[k]) for k in others]
            top = max(own, *scores)
            total -= share * (own - top - math.log(sum(math.exp(score - top) for score in (own, *scores))))
        return total

    sides = [PairedItems(vectors[side], side, penalties[side]) for side in (left, right)]
    expected = (one_way(left.tolist(), right.tolist()) + one_way(right.tolist(), left.tolist())) / 2
    assert float(paired_info_nce(*sides, temperature=temperature, weights=weights)) == pytest.approx(
        expected, rel=1e-5
    )


def test_gradient_of_the_loss_of_pairs_is_its_slope():
    generator = torch.Generator().manual_seed(1)
    sides = [
        torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
    ]
    left, right = torch.tensor([0, 1, 2, 0, 4]), torch.tensor([1, 2, 1, 3, 0])
    penalties = torch.rand(5, generator=generator, dtype=torch.float64)

    def loss(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        one, other = normalize(one, dim=1), normalize(other, dim=1)
        pairs = PairedItems(one, left, penalties[left]), PairedItems(other, right, penalties[right])
        return 3 * paired_info_nce(*pairs, temperature=0.5, weights=torch.arange(1.0, 6.0).double())

    assert torch.autograd.gradcheck(loss, sides)
