import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from trec_semid.layers.full_softmax import (
    Drawn,
    full_softmax_loss,
    list_softmax_loss,
    masked_softmax_loss,
    sampled_softmax_loss,
)


def drawn(num_queries: int = 7, num_items: int = 53, dim: int = 5):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(num_queries, dim, generator=generator, requires_grad=True)
    items = torch.randn(num_items, dim, generator=generator, requires_grad=True)
    return queries, items, torch.randint(num_items, (num_queries,), generator=generator)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 7 * 10, 4 * 7 * 53, None])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_it_is_the_cross_entropy_of_all_scores_whatever_the_chunk(scale, chunk_bytes):
    queries, items, targets = drawn()
    weights = torch.linspace(0, 2, len(queries))
    loss = full_softmax_loss(queries, items, targets, scale=scale, chunk_bytes=chunk_bytes)
    (loss * weights).sum().backward()
    ours = loss.detach(), queries.grad, items.grad
    queries, items, targets = drawn()
    loss = cross_entropy(scale * queries @ items.T, targets, reduction="none")
    (loss * weights).sum().backward()
    torch.testing.assert_close(ours, (loss.detach(), queries.grad, items.grad), atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow():
    queries = torch.tensor([[100.0, 0.0]], requires_grad=True)
    items = torch.tensor([[100.0, 0.0], [99.0, 0.0], [-100.0, 0.0]], requires_grad=True)
    loss = full_softmax_loss(queries, items, torch.tensor([1]), chunk_bytes=4)
    loss.sum().backward()
    assert loss.item() == pytest.approx(100.0)
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


MEASURE = """
import resource, sys, torch
from trec_semid.layers.full_softmax import Drawn, full_softmax_loss, sampled_softmax_loss
torch.set_num_threads(1)
num_items = int(sys.argv[1])
queries = torch.randn(256, 8, requires_grad=True)
items = torch.randn(num_items, 8, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
full_softmax_loss(queries, items, torch.zeros(256, dtype=torch.int64), chunk_bytes=2**20).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_that_of_the_gradients_not_of_the_scores():
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, "400000"], capture_output=True, text=True, check=True
    )
    grown_mib = int(run.stdout) / 1024
    # All scores would take 390 MiB, gradients of the items 12 MiB and one temporary as much.
    assert grown_mib < 100


def test_autocast_makes_products_in_the_lower_precision_and_gradients_stay_close():
    queries, items, targets = drawn(num_queries=40, num_items=300, dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = full_softmax_loss(queries, items, targets, chunk_bytes=4 * 40 * 64)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    lower = loss.detach(), queries.grad, items.grad
    queries, items, targets = drawn(num_queries=40, num_items=300, dim=16)
    exact = full_softmax_loss(queries, items, targets)
    exact.mean().backward()
    assert not torch.equal(lower[0], exact.detach())
    torch.testing.assert_close(lower, (exact.detach(), queries.grad, items.grad), atol=0.05, rtol=0.02)


def sampled(num_targets: int):
    queries, items, _ = drawn(num_items=30)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(-1, 30, (len(queries), num_targets), generator=generator)
    rows = torch.randint(30, (21,), generator=generator)
    return queries, items, targets, rows, torch.randn(21, generator=generator)


def sampled_by_hand(queries, items, targets, rows, log_q):
    """One target at a time: -log of its share beside the drawn items that it is not among."""
    losses = torch.zeros(targets.shape)
    for b, w in (targets >= 0).nonzero().tolist():
        own = queries[b] @ items[targets[b, w]]
        others = (items[rows] @ queries[b] - log_q)[rows != targets[b, w]]
        losses[b, w] = torch.cat([own[None], others]).logsumexp(0) - own
    return losses


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 7 * 10, None])
@pytest.mark.parametrize("num_targets", [1, 3])
def test_a_sampled_loss_is_that_of_the_target_beside_the_drawn_items(num_targets, chunk_bytes):
    queries, items, targets, rows, log_q = sampled(num_targets)
    weights = torch.linspace(0, 2, targets.numel()).view(targets.shape)
    loss = sampled_softmax_loss(
        queries, items, targets, Drawn(items[rows], rows, log_q), chunk_bytes=chunk_bytes
    )
    (loss * weights).sum().backward()
    ours = loss.detach(), queries.grad, items.grad
    queries, items, *rest = sampled(num_targets)
    loss = sampled_by_hand(queries, items, *rest)
    (loss * weights).sum().backward()
    torch.testing.assert_close(ours, (loss.detach(), queries.grad, items.grad), atol=1e-5, rtol=1e-5)


def test_a_target_that_is_all_that_was_drawn_costs_nothing():
    queries, items, _ = drawn()
    targets, rows = torch.full((7, 1), 3), torch.full((5,), 3)
    loss = sampled_softmax_loss(queries, items, targets, Drawn(items[rows], rows, torch.zeros(5)))
    loss.sum().backward()
    assert not loss.any()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


def test_queries_beyond_those_handled_at_once_are_no_others():
    queries, items, targets = drawn(num_queries=2500, num_items=40)
    loss = full_softmax_loss(queries, items, targets)
    expected = cross_entropy(queries @ items.T, targets, reduction="none")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(loss.sum(), (queries, items))
    torch.testing.assert_close(
        ours, torch.autograd.grad(expected.sum(), (queries, items)), atol=1e-4, rtol=1e-4
    )


def nearly_the_same(num_items: int = 12):
    """Items of unit length, of which every third is nearly the one before."""
    items = normalize(torch.randn(num_items, 5, generator=torch.Generator().manual_seed(3)), dim=1)
    items[2::3] = normalize(items[1::3] + 0.02, dim=1)
    queries = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    return queries.requires_grad_(), items.requires_grad_(), torch.tensor([1, 2, 0, 11, -1, 1])


@pytest.mark.parametrize("chunk_bytes", [None, 64])
@pytest.mark.parametrize("is_drawn", [False, True])
def test_items_nearly_the_target_are_no_wrong_answers(is_drawn, chunk_bytes):
    queries, items, targets = nearly_the_same()
    rows = torch.tensor([0, 1, 2, 2, 5, 7, 11, 10]) if is_drawn else torch.arange(12)
    log_q = torch.linspace(-1, 1, len(rows)) if is_drawn else torch.zeros(12)
    expected = []
    for query, target in zip(queries, targets.tolist(), strict=True):
        if target < 0:
            expected.append(query.sum() * 0)
            continue
        wrong = [
            query @ items[row] - log_q[place]
            for place, row in enumerate(rows.tolist())
            if row != target and items[row] @ items[target] <= 0.98
        ]
        assert len(wrong) < len(rows) - 1 or target == 0
        scores = torch.stack([query @ items[target], *wrong])
        expected.append(cross_entropy(scores, torch.tensor(0)))
    weights = torch.linspace(0.5, 1.5, 6)
    drawn_items = Drawn(items[rows], rows, log_q) if is_drawn else None
    losses = masked_softmax_loss(
        queries, items, targets, max_cosine=0.98, drawn=drawn_items, chunk_bytes=chunk_bytes
    )
    torch.testing.assert_close(losses, torch.stack(expected))
    gradients = torch.autograd.grad((losses * weights).sum(), (queries, items))
    by_hand = torch.autograd.grad((torch.stack(expected) * weights).sum(), (queries, items))
    for gradient, other in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(gradient, other)


def test_without_items_nearly_the_same_it_is_the_plain_softmax():
    queries, items, targets = nearly_the_same()
    masked = masked_softmax_loss(queries, items, targets, max_cosine=1.1)
    torch.testing.assert_close(masked, full_softmax_loss(queries, items, targets))


def test_a_target_with_nothing_but_its_like_costs_nothing():
    items = torch.ones(3, 4) / 2
    losses = masked_softmax_loss(torch.randn(2, 4), items, torch.tensor([0, 2]), max_cosine=0.9)
    assert losses.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 6 * 10, None])
@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("is_drawn", [False, True])
def test_items_of_a_list_are_scored_beside_all_others_by_every_query(
    is_drawn: bool, num_queries: int, chunk_bytes: int | None
):
    """Every sum is written out: items of the list once, and each draw of any other by its weight."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(6, num_queries, 5, generator=generator, requires_grad=True)
    items = torch.randn(20, 5, generator=generator, requires_grad=True)
    lists = torch.stack([torch.randperm(20, generator=generator)[:4] for _ in range(6)])
    lists[torch.rand(lists.shape, generator=generator) < 0.3] = -1
    lists[2] = -1
    rows = torch.randint(20, (9,), generator=generator)
    log_q = torch.rand(9, generator=generator)
    others = Drawn(items[rows], rows, log_q) if is_drawn else None
    weights = torch.rand(6, num_queries, 4, generator=generator)
    losses = list_softmax_loss(queries, items, lists, others, chunk_bytes=chunk_bytes)
    (losses * weights).sum().backward()
    ours = losses.detach(), queries.grad, items.grad
    queries, items = (part.detach().clone().requires_grad_() for part in (queries, items))
    each: list[torch.Tensor] = []
    for user in range(6):
        listed = [item for item in lists[user].tolist() if item >= 0]
        for query in queries[user]:
            scores = items @ query
            counted = [scores[item] for item in listed]
            if is_drawn:
                pairs = zip(rows.tolist(), log_q.tolist(), strict=True)
                counted += [scores[row] - q for row, q in pairs if row not in listed]
            else:
                counted += [scores[item] for item in range(20) if item not in listed]
            total = torch.stack(counted).logsumexp(0)
            each += [total - scores[item] if item >= 0 else total * 0 for item in lists[user].tolist()]
    by_hand = torch.stack(each).view(losses.shape)
    (by_hand * weights).sum().backward()
    torch.testing.assert_close(ours, (by_hand.detach(), queries.grad, items.grad), atol=1e-5, rtol=1e-5)


def test_a_list_that_is_all_that_was_drawn_has_no_other_wrong_answers():
    queries, items = torch.randn(1, 1, 3), torch.randn(4, 3)
    lists = torch.tensor([[3, 1]])
    others = Drawn(items[[1, 3, 3]], torch.tensor([1, 3, 3]), torch.zeros(3))
    wanted = -(items[[3, 1]] @ queries[0, 0]).log_softmax(0)
    torch.testing.assert_close(list_softmax_loss(queries, items, lists, others)[0, 0], wanted)
