"""The interest dictionary against its arithmetic, number by number."""

from typing import Any

import pytest
import torch

from trec_semid.models.dictionary.dictionary import DictionaryConfig, InterestDictionary
from trec_semid.models.dictionary.revival import draw_rows

DIM = 3


def dictionary(**config: Any) -> Any:
    torch.manual_seed(0)
    values = {"num_levels": 2, "codebook_size": 4, "decay": 0.8, "revive_below": 0.0, **config}
    return InterestDictionary(DictionaryConfig.model_validate(values), DIM)


def filled(**config: Any) -> Any:
    """One that has been used, so that nothing is unused."""
    made = dictionary(**config)
    with torch.no_grad():
        made.codewords.copy_(torch.randn(made.codewords.shape))
        made.usage.copy_(1 + torch.rand(made.usage.shape))
    return made


def nearest(point: torch.Tensor, codewords: torch.Tensor) -> int:
    return min(range(len(codewords)), key=lambda k: (point - codewords[k]).detach().square().sum().item())


def batch(num_rows: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    present = torch.ones(num_rows, dtype=torch.bool)
    present[3] = False
    return torch.randn(num_rows, DIM), torch.arange(num_rows), present


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_interests_and_losses_are_those_of_one_item_after_another(update: str):
    made = filled(update=update).eval()
    vectors, items, present = batch()
    quantised = made(vectors, items, present)
    for row in range(len(vectors)):
        left, interests, loss, told = made.encoder(vectors[row]), [], 0.0, []
        for level in range(2):
            code = nearest(left, made.codewords[level])
            own = made.codewords[level][code]
            loss += 0.25 * (left - own).square().sum() * (1 if update == "ema" else 5)
            interests.append(code)
            told.append(own)
            left = left - own
        loss = loss + (vectors[row] - made.decoder(torch.cat(told))).square().sum()
        assert quantised.interests[row].tolist() == interests
        assert quantised.losses[row].item() == pytest.approx(loss.item() * bool(present[row]), rel=1e-4)
    torch.testing.assert_close(made.interests(vectors), quantised.interests)


def test_codewords_are_moving_means_of_what_chose_them():
    made = filled()
    vectors, items, present = batch()
    codewords, usage = made.codewords.clone(), made.usage.clone()
    quantised = made.train()(vectors, items, present)
    for level in range(2):
        for code in range(4):
            chosen = []
            for row in range(len(vectors)):
                first = made.encoder(vectors[row])
                left = first if level == 0 else first - codewords[0][quantised.interests[row, 0]]
                if present[row] and quantised.interests[row, level] == code:
                    chosen.append(left)
            counted = 0.8 * usage[level, code] + 0.2 * len(chosen)
            total = 0.8 * usage[level, code] * codewords[level, code] + 0.2 * sum(chosen, torch.zeros(DIM))
            torch.testing.assert_close(made.usage[level, code], counted)
            torch.testing.assert_close(made.codewords[level, code], (total / counted).detach())
    assert int(made.num_updates) == 1


def test_a_loss_moves_encoder_and_decoder_and_no_item():
    for update in ("ema", "gradient"):
        made = filled(update=update).train()
        vectors, items, present = batch()
        vectors.requires_grad_()
        made(vectors, items, present).losses.sum().backward()
        assert vectors.grad is None
        named = {name for name, weight in made.named_parameters() if weight.grad is not None}
        assert named == {name for name, _ in made.named_parameters()}
        assert ("codewords" in named) == (update == "gradient")


def test_the_gradient_to_the_encoder_is_that_of_a_straight_through_choice():
    made = filled().eval()
    vectors, items, present = batch(5)
    made(vectors, items, present).losses.sum().backward()
    found = made.encoder.layers[0].weight.grad.clone()
    made.zero_grad()
    encoded = made.encoder(vectors)
    told, left, loss = [], encoded, torch.zeros(())
    for level in range(2):
        own = made.codewords[level][made.interests(vectors)[:, level]]
        told.append(left + (own - left).detach())
        loss = loss + 0.25 * ((left - own).square().sum(1) * present).sum()
        left = left - own
    loss = loss + ((vectors - made.decoder(torch.cat(told, 1))).square().sum(1) * present).sum()
    loss.backward()
    torch.testing.assert_close(found, made.encoder.layers[0].weight.grad)


def test_a_fresh_dictionary_takes_distinct_items_of_its_first_batch():
    made = dictionary(num_levels=1, codebook_size=5)
    vectors = torch.randn(3, DIM)[torch.tensor([0, 0, 1, 2, 2, 2])]
    made.train()(vectors, torch.tensor([0, 0, 1, 2, 2, 2]), torch.ones(6, dtype=torch.bool))
    used = made.usage[0] > 0
    assert used.sum() == 3  # so many distinct items there are; two codewords wait
    encoded = made.encoder(vectors[[0, 2, 3]]).detach()
    assert torch.cdist(made.codewords[0][used], encoded).amin(1).max() < 1e-5


def test_an_unused_codeword_is_replaced_by_a_residual_and_a_used_one_stays():
    made = filled(revive_below=0.1, decay=0.5)
    made.usage.fill_(1.0)
    made.usage[1, 2] = 0.05
    codewords = made.codewords.clone()
    vectors, items, present = batch()
    interests = made.train()(vectors, items, present).interests
    left = made.encoder(vectors) - codewords[0][interests[:, 0]]
    # Where nothing has chosen a codeword, it is as it was; the replaced one is at least its own choice.
    chosen = left[interests[:, 1] == 2]
    assert len(chosen) >= 1
    assert made.usage[1, 2] > 0.3
    for code in set(range(4)) - set(interests[:, 1].tolist()):
        torch.testing.assert_close(made.codewords[1, code], codewords[1, code])


def test_draws_depend_on_items_and_seed_and_not_on_rows_or_repeats():
    items = torch.tensor([5, 9, 5, 2, 7, 9])
    present = torch.tensor([True, True, True, True, True, True])
    seed = torch.tensor(3)
    one = draw_rows(items, present, 3, seed)
    drawn = items[one.own[one.order]]
    assert len(set(drawn.tolist())) == 3
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    other = draw_rows(items[order], present, 3, seed)
    assert items[order][other.own[other.order]].tolist() == drawn.tolist()
    seeds = {tuple(items[draw_rows(items, present, 3, torch.tensor(s)).own].tolist()) for s in range(20)}
    assert len(seeds) > 5
    few = draw_rows(items, torch.tensor([False, False, False, True, False, False]), 3, seed)
    assert int(few.num_drawn) == 1
    assert items[few.own[few.order[0]]] == 2


def test_the_separation_is_the_least_distance_of_two_codewords_of_a_level():
    made = filled()
    pairs = [
        (made.codewords[level, j] - made.codewords[level, k]).norm().item()
        for level in range(2)
        for j in range(4)
        for k in range(j)
    ]
    assert made.separation().item() == pytest.approx(min(pairs))
