import math

import pytest
import torch

from trec_semid.core.errors import DataError
from trec_semid.metrics.effective_rank import effective_rank, gram_of


def rank_of(vectors: torch.Tensor) -> float:
    return effective_rank(gram_of(vectors, lambda whole: whole))


def test_it_is_the_width_where_all_directions_count_alike_and_one_on_a_line():
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0))).Q
    assert rank_of(3 * rotation) == pytest.approx(7, abs=1e-5)
    assert rank_of(torch.outer(torch.arange(1.0, 9), torch.tensor([1.0, -2, 3]))) == pytest.approx(
        1, abs=1e-5
    )


def test_it_is_the_exponential_of_the_entropy_of_singular_values():
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [9.0, 4, 2, 1, 1, 0.1]
    )
    values = torch.linalg.svdvals(vectors)
    shares = (values / values.sum()).tolist()
    assert rank_of(vectors) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_vectors_of_several_processes_add_up():
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    parts = [gram_of(part, lambda own: own) for part in vectors.split(11)]
    assert effective_rank(sum(parts)) == pytest.approx(rank_of(vectors), rel=1e-9)


def test_vectors_without_direction_have_none():
    with pytest.raises(DataError, match="no direction"):
        rank_of(torch.zeros(3, 2))
