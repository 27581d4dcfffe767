import torch

from trec_semid.layers.attention import TransformerConfig
from trec_semid.models.hymirec.refined_half import RefinedHalf, TransformerBackbone, recent_places

STILL = TransformerConfig(num_layers=2, num_heads=2, dropout=0.0, init_std=0.3)


def half(num_recent: int = 5) -> RefinedHalf:
    torch.manual_seed(0)
    backbone = TransformerBackbone(8, num_recent + 2 + 3, STILL)
    return RefinedHalf(backbone, 8, 3, num_recent, 0.0).eval()


def test_the_last_items_are_aligned_at_their_end():
    recent = recent_places(torch.tensor([7, 2, 0]), 3)
    assert recent.places.tolist() == [[4, 5, 6], [0, 0, 1], [0, 0, 0]]
    assert recent.is_there.tolist() == [[True] * 3, [False, True, True], [False] * 3]


def test_a_short_history_is_read_alike_in_a_batch_of_long_ones_and_alone():
    items, coarse = torch.randn(4, 5, 8), torch.randn(4, 2, 8)
    is_there = recent_places(torch.tensor([5, 2, 0, 4]), 5).is_there
    refined = half()
    together = refined(items, is_there, coarse)
    for user, length in enumerate([5, 2, 0, 4]):
        own = slice(user, user + 1)
        alone = refined(items[own, 5 - length :], torch.ones(1, length, dtype=torch.bool), coarse[own])
        torch.testing.assert_close(together[own], alone)
    assert together.isfinite().all()


def test_interests_read_items_coarse_interests_and_the_queries_before_them():
    refined, items, coarse = half(), torch.randn(1, 5, 8), torch.randn(1, 2, 8)
    is_there = torch.tensor([[False, True, True, True, True]])
    before = refined(items, is_there, coarse)

    def moved(**changes: torch.Tensor) -> list[bool]:
        after = refined(**{"items": items, "is_there": is_there, "coarse": coarse, **changes})
        return (after - before).abs().amax(2)[0].gt(1e-5).tolist()

    for place, expected in ((0, [False] * 3), (1, [True] * 3), (4, [True] * 3)):
        other = items.clone()
        other[0, place, 0] += 1
        assert moved(items=other) == expected
    assert moved(coarse=coarse.flip(2)) == [True] * 3
    with torch.no_grad():
        refined.queries[1, 0] += 1
    assert moved() == [False, True, True]
