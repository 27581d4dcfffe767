"""ComiRec against the published arithmetic, one prefix at a time."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from tests.layers.prefixes.test_routing import routed_alone
from tests.models.retrievers import planted_interests
from tests.models.retrievers.small_items import (
    DIM,
    MAX_LEN,
    NUM_ITEMS,
    ROWS,
    all_listed,
    items_of_ids,
    listed_of,
    training_batch,
    users_batch,
)
from trec_semid.data.retrieval.batches import sampled_by_popularity
from trec_semid.layers.attention import TransformerConfig
from trec_semid.models.interests import MultiInterestModel
from trec_semid.models.methods import retriever_of
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.comirec import ComirecConfig

STILL = TransformerConfig(num_layers=1, num_heads=2, dropout=0.0, attention_dropout=None, init_std=0.3)


def build(loss: LossConfig | None = None, **config: Any) -> Any:
    torch.manual_seed(0)
    items = items_of_ids()
    method = retriever_of(ComirecConfig.model_validate(config))
    model = method.build(items, Frame(DIM, MAX_LEN, loss or LossConfig(), predicts_codes=False))
    assert isinstance(model, MultiInterestModel)
    return model.eval()


def of_prefix(model: Any, items: torch.Tensor) -> torch.Tensor:
    """Interests (M, D) of one history (S, D), as the paper has them."""
    extractor, length = model.extractor, len(items)
    if extractor.transformer is not None:
        items = extractor.transformer(math.sqrt(DIM) * items[None] + extractor.places[:length])[0]
    if extractor.routes:
        told = torch.stack(
            [
                torch.stack([extractor.maps[s, m] @ items[s] for m in range(extractor.num_interests)])
                for s in range(length)
            ]
        )
        return routed_alone(told, 3)
    hidden = torch.tanh(extractor.hidden(items + extractor.places[:length]))
    shares = (hidden @ extractor.attend.weight.T).softmax(0)
    return torch.stack([shares[:, m] @ items for m in range(shares.shape[1])])


def rows_of_ids(model: Any) -> torch.Tensor:
    return dict(model.named_parameters())["items.sparse.tables.embedding_bags.t_item_id.weight"]


@pytest.mark.parametrize("extractor", ["attention", "routing"])
@pytest.mark.parametrize("transformer", [None, STILL])
@pytest.mark.parametrize("num_interests", [1, 3])
def test_interests_and_losses_are_those_of_every_prefix_by_itself(
    extractor: Any, transformer: Any, num_interests: int
):
    model = build(extractor=extractor, transformer=transformer, num_interests=num_interests)
    batch, vectors = training_batch(window=2), rows_of_ids(model)
    with torch.no_grad():
        interests = model.interests(model.items(all_listed()), batch.places)
        losses = model(all_listed(), batch.places)[0]["items"]
        at = 0
        for row in ROWS:
            for t in range(1, len(row)):
                own = of_prefix(model, vectors[torch.tensor(row[:t])])
                torch.testing.assert_close(interests[at], own, atol=1e-5, rtol=1e-4)
                each = []
                for target in row[t : t + 2]:
                    best = max(range(num_interests), key=lambda m: float(own[m] @ vectors[target]))
                    each.append(cross_entropy(vectors @ own[best], torch.tensor(target)))
                assert losses[at].item() == pytest.approx(sum(map(float, each)) / len(each), rel=1e-4)
                at += 1
    assert at == len(losses)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_cosines_over_a_temperature_choose_and_score(window: int):
    loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.3)
    model = build(loss, num_interests=2)
    batch, vectors = training_batch(window=window), rows_of_ids(model)
    with torch.no_grad():
        interests = model.interests(model.items(all_listed()), batch.places)
        losses = model(all_listed(), batch.places)[0]["items"]
        for own, targets, found in zip(interests, batch.places.targets, losses, strict=True):
            each = []
            for target in targets[targets >= 0]:
                scores = torch.stack([cosine_similarity(vectors, u[None]) / 0.3 for u in own])
                each.append(float(cross_entropy(scores[scores[:, target].argmax()], target)))
            assert found.item() == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_only_the_chosen_interest_learns_from_a_target():
    model = build(num_interests=3)
    batch = training_batch([[0, 1, 2, 3]], is_last_only=True)
    tokens = model.items(all_listed())
    interests = model.interests(tokens, batch.places).detach().requires_grad_()
    model.interests = lambda *_: interests
    model(all_listed(), batch.places)[0]["items"].sum().backward(inputs=[interests])
    assert interests.grad is not None
    best = int((interests[0] @ rows_of_ids(model)[3]).argmax())
    assert interests.grad[0].any(1).nonzero().flatten().tolist() == [best]


@pytest.mark.parametrize("window", [1, 5])
def test_sampled_losses_average_to_the_loss_over_all_items(window: int):
    model = build(num_interests=2)
    with torch.no_grad():
        exact = model(all_listed(), training_batch(window=window).places)[0]["items"]
        drawn = sampled_by_popularity(torch.arange(NUM_ITEMS).numpy() ** 2, 60_000, 1.0)
        batch = training_batch(window=window, sampled=drawn)
        sampled = model(listed_of(batch.items), batch.places)[0]["items"]
    torch.testing.assert_close(sampled, exact, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("extractor", ["attention", "routing"])
def test_users_are_asked_for_with_all_their_interests_and_nothing_without_a_history(extractor: Any):
    model = build(LossConfig(item_temperature=0.5), extractor=extractor, num_interests=2)
    histories = [[3, 1], [], [5], [0, 1, 2, 3, 4, 5]]
    batch = users_batch(histories)
    with torch.no_grad():
        vectors = model.queries(model.items(listed_of(batch.items)), batch.places).vectors
        assert vectors is not None
        assert vectors.shape == (4, 2, DIM)
        assert not vectors[1].any()
        for number in (0, 2, 3):
            own = of_prefix(model, rows_of_ids(model)[torch.tensor(histories[number])])
            torch.testing.assert_close(vectors[number], own / 0.5, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("extractor", "by_two", "by_one"), [("attention", 0.9, 0.05), ("routing", 0.6, 0.15)]
)
def test_two_opposite_interests_are_retrieved_by_two_vectors_and_not_by_one(
    extractor: Any, by_two: float, by_one: float
):
    """Routing, whose agreement is linear in items, tells the two apart for most of the items."""
    shares = []
    for num_interests in (2, 1):
        torch.manual_seed(2)
        config = ComirecConfig.model_validate({"extractor": extractor, "num_interests": num_interests})
        loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.1)
        frame = Frame(DIM, planted_interests.LENGTH, loss, predicts_codes=False)
        model = retriever_of(config).build(planted_interests.planted_items(), frame)
        shares.append(planted_interests.recall_of_interests(planted_interests.trained(model, rate=0.05)))
    assert shares[0] > by_two
    assert shares[1] < by_one
