import pytest
import torch
from torch.nn.functional import gelu, softmax

from tests.models.hymirec.planted import histories_of
from trec_semid.models.hymirec.light_half import LightHalf

ROWS = [[0, 1, 2, 3, 2, 2], [4], [], [5, 6, 7, 8, 0, 1, 3, 3, 3, 2, 1], [2, 2, 2]]


def half(at_once: int | None = None) -> LightHalf:
    torch.manual_seed(0)
    light = LightHalf(6, 3, 16, at_once=at_once)
    with torch.no_grad():
        light.recency.normal_()
    return light


def by_hand(light: LightHalf, vectors: torch.Tensor) -> torch.Tensor:
    """(Q, D) of one history of (L, D) vectors, event by event."""
    pooled = []
    for q in range(3):
        scores, values = [], []
        for place, vector in enumerate(vectors):
            x = light.norm(vector)
            back = len(vectors) - 1 - place
            bucket = int(4 * torch.log2(torch.tensor(1.0 + back)))
            scores.append(light.score(torch.tanh(light.widen(x)))[q] + light.recency[bucket, q])
            values.append(light.value(x))
        weights = softmax(torch.stack(scores), dim=0) if scores else torch.zeros(0)
        mixed = sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros(6))
        pooled.append(mixed + light.types[q])
    x = torch.stack(pooled)
    return light.out_norm(x + light.back(gelu(light.feed(light.feed_norm(x)))))


@pytest.mark.parametrize("at_once", [None, 1])
def test_it_pools_each_history_alone_whatever_is_read_at_once(at_once):
    light, batch = half(at_once), histories_of(ROWS)
    vectors = torch.randn(len(batch.items), 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    pooled = light(vectors, batch.places)
    place = {item: at for at, item in enumerate(batch.items.tolist())}
    expected = torch.stack([by_hand(light, vectors[[place[i] for i in row]]) for row in ROWS])
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    inputs = [vectors, *light.parameters()]
    gradients = torch.autograd.grad((pooled * weights).sum(), inputs)
    for gradient, other in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)


def test_no_history_is_no_trouble():
    light, batch = half(), histories_of([[1, 2]])
    nobody = batch.places._replace(
        inputs=batch.places.inputs[:0],
        lengths=batch.places.lengths[:0],
        order=batch.places.order[:0],
        stretches=((0, 1),),
    )
    assert light(torch.randn(2, 6), nobody).shape == (0, 3, 6)


def test_what_backward_keeps_of_a_history_is_numbers_of_items_not_vectors():
    """Tensors that autograd saves, of 32 histories of 500 events over 9 items."""
    torch.manual_seed(0)
    light, batch = LightHalf(16, 4, 500), histories_of([[place % 9 for place in range(500)]] * 32)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
        light(torch.randn(9, 16).requires_grad_(), batch.places)
    vectors = 32 * 500 * 16 * 4
    assert sum(saved) < vectors / 2


def test_queries_begin_with_horizons_of_their_own():
    """Items that score alike: weights fall as (1 + events back)^-p, p = 0, 1 and 2, bucket by bucket."""
    light = LightHalf(6, 3, 16)
    with torch.no_grad():
        light.score.weight.zero_()
    back = torch.arange(7).flip(0)
    lower = 2 ** ((back.float() + 1).log2() * 4).floor().div(4)
    values = torch.eye(7, 6)
    read = light.value(light.norm(values))
    pooled = light._pool(read, torch.zeros(7, 3), torch.arange(7)[None], torch.tensor([7]))[0]
    for query, power in enumerate((0.0, 1.0, 2.0)):
        weights = lower**-power / (lower**-power).sum()
        torch.testing.assert_close(pooled[query], weights @ read)
