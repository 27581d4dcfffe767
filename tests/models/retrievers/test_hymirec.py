"""HyMiRec's losses written out on plain tensors, and what its halves are for on planted users."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests.models.hymirec.planted import (
    AHEAD,
    DIM,
    FEATURES,
    NUM_ITEMS,
    NUM_TOPICS,
    RECENT,
    STILL,
    batch_of,
    built,
    codes,
    drawn_rows,
    histories_of,
    listed_of,
    ragged,
    recalls,
    train,
)
from trec_semid.data.retrieval.batches import history_batch
from trec_semid.layers.interests.matching import matched_interests
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.hymirec import Hymirec, HymirecConfig, HymirecModel
from trec_semid.tokenizers.maps.compressed import CompressedItems

ROWS = [[0, 1, 2, 13, 40, 41, 7], [4, 5], [6, 7, 8, 1, 0, 6, 7, 8, 30, 31, 32, 33], [2, 2, 3]]


def vectors_of(model: HymirecModel) -> torch.Tensor:
    """(N, D): an item's ID and codes added up."""
    weights = dict(model.named_parameters())
    total = weights["items.sparse.tables.embedding_bags.t_item_id.weight"]
    for r in range(2):
        table = weights[f"items.live.tables.rows.tables.embedding_bags.t_code_{r}.weight"]
        total = total + table[codes()[:, r].long()]
    return total


def interests_of(model: HymirecModel, history: list[int]) -> torch.Tensor:
    batch = histories_of([history])
    return model.interests(model.items(listed_of(batch)), batch.places)[0][0]


@pytest.mark.parametrize("dmil", [True, False])
def test_a_target_is_taught_to_the_interest_of_its_group_or_to_the_nearest_one(dmil):
    model = built(max_len=12, num_interests=3, dmil=dmil).requires_grad_(requires_grad=False)
    with torch.no_grad():  # items 0 and 1 nearly one: neither is a wrong answer for the other
        ids = model.get_parameter("items.sparse.tables.embedding_bags.t_item_id.weight")
        ids[1] = vectors_of(model)[0] - vectors_of(model)[1] + ids[1] + 1e-3
    batch = batch_of(ROWS)
    losses, _ = model(listed_of(batch), batch.places)
    units = normalize(vectors_of(model), dim=-1)
    for number, row in enumerate(ROWS):
        cut = max(1, len(row) - AHEAD)
        interests, targets = interests_of(model, row[:cut]), row[cut:]
        exists = torch.ones(1, len(targets), dtype=torch.bool)
        chosen = (
            matched_interests(interests[None], units[targets][None], exists)[0]
            if dmil
            else (units[targets] @ interests.T).argmax(1)
        )
        each = []
        for target, interest in zip(targets, chosen.tolist(), strict=True):
            scores = 10.0 * units @ interests[interest]
            alike = units @ units[target] > 0.98
            alike[target] = False
            each.append(cross_entropy(scores.masked_fill(alike, -torch.inf), torch.tensor(target)))
        assert losses["items"][number].item() == pytest.approx(float(sum(each)) / len(each), rel=1e-4)


@pytest.mark.parametrize("recent", [0, 3, RECENT])
def test_older_items_brought_by_their_codes_alone_are_learnt_from_as_those_brought_in_full(recent):
    """Losses and gradients of both ways to make the batch."""
    gradients = []
    for num_in_full in (None, max(recent, 1)):
        model, batch = built(max_len=12, recent=recent), batch_of(ROWS, num_in_full=num_in_full)
        losses, _ = model(listed_of(batch), batch.places)
        losses["items"].sum().backward()
        gradients.append([losses["items"], *(weight.grad for weight in model.parameters())])
    for whole, coded in zip(*gradients, strict=True):
        torch.testing.assert_close(coded, whole, atol=1e-6, rtol=1e-4)


COMPRESSED = CompressedItems(
    torch.randn(2, NUM_TOPICS, 5, generator=torch.Generator().manual_seed(7)),
    torch.randn(NUM_ITEMS, 2, generator=torch.Generator().manual_seed(8)).half(),
    torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
)


def test_an_item_without_anything_learnt_of_it_is_read_by_its_code_and_coefficient():
    model = built(max_len=12, recent=0, light_reads="codebook", compressed=COMPRESSED).eval()
    batch, item = history_batch(ragged([[5, 9, 21]]), np.arange(1), FEATURES, 1, num_in_full=1), 9
    with torch.no_grad():
        before = model.queries(model.items(listed_of(batch)), batch.places).vectors
        for name, weight in model.named_parameters():
            if "embedding_bags" in name:
                weight.normal_()
        same = model.queries(model.items(listed_of(batch)), batch.places).vectors
        torch.testing.assert_close(same, before)
        assert model.codebook is not None
        assert model.codebook.stored is not None
        model.codebook.stored[item, 1] += 1
        other = model.queries(model.items(listed_of(batch)), batch.places).vectors
    assert not torch.allclose(other, before)


@pytest.mark.parametrize("light_reads", ["rows", "codebook", "tuned_codebook"])
def test_all_weights_learn(light_reads):
    compressed = None if light_reads == "rows" else COMPRESSED
    model = built(max_len=12, coarse_weight=0.5, light_reads=light_reads, compressed=compressed)
    batch = batch_of(ROWS, num_in_full=RECENT)
    assert (light_reads == "tuned_codebook") == ("codebook.codewords" in dict(model.named_parameters()))
    losses, _ = model(listed_of(batch), batch.places)
    (losses["items"].sum() + losses["coarse"].sum()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_learnt_temperature_stays_at_its_bound_and_comes_back_from_there():
    model = built(max_len=12)
    with torch.no_grad():
        model.log_scale.fill_(6.0)  # as a large step may leave it
    batch = batch_of(ROWS)
    losses, _ = model(listed_of(batch), batch.places)
    assert model.scale.item() == pytest.approx(100.0)
    losses["items"].sum().backward()
    assert model.log_scale.grad is not None
    assert model.log_scale.grad.item() > 0  # so sharp a softmax is wrong of drawn vectors
    torch.optim.SGD([model.log_scale], lr=1e-3).step()
    assert model.scale.item() < 100.0


def test_a_temperature_that_is_set_is_the_one_that_counts():
    loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.005)
    items = built(max_len=12).items
    config = HymirecConfig(num_interests=2, transformer=STILL, learns_temperature=False)
    model = HymirecModel(items, config, loss, max_len=12)
    batch = batch_of(ROWS)
    model(listed_of(batch), batch.places)
    assert model.scale.item() == pytest.approx(200.0)


def test_a_score_is_that_of_the_interest_that_likes_an_item_best():
    model = built(max_len=12)
    batch = histories_of([row[:-1] for row in ROWS])
    with torch.no_grad():
        asked = model.queries(model.items(listed_of(batch)), batch.places).vectors
    assert asked is not None
    assert asked.shape == (len(ROWS), 2, DIM)
    torch.testing.assert_close(asked.norm(dim=2), torch.full((len(ROWS), 2), 10.0))
    for user, row in enumerate(ROWS):
        torch.testing.assert_close(asked[user], 10.0 * interests_of(model, row[:-1]).detach())


def test_a_user_without_a_history_has_interests_that_are_numbers():
    model = built(max_len=12)
    batch = histories_of([[], [1, 2]])
    with torch.no_grad():
        asked = model.queries(model.items(listed_of(batch)), batch.places).vectors
    assert asked is not None
    assert asked.isfinite().all()


def test_events_before_the_recent_ones_are_read_by_the_light_half_alone():
    model = built(max_len=32)
    history = drawn_rows(1, seed=3)[0][0][:-AHEAD]
    other = [(history[0] + 7) % NUM_ITEMS, *history[1:]]
    with torch.no_grad():
        assert not torch.allclose(interests_of(model, history), interests_of(model, other))
        model = built(max_len=32, coarse_interests=0)
        torch.testing.assert_close(interests_of(model, history), interests_of(model, history[-RECENT:]))
        # Of items before the recent ones it is the codes that are read, not IDs.
        model = built(max_len=32, recent=0)
        before = interests_of(model, history)
        model.get_parameter("items.sparse.tables.embedding_bags.t_item_id.weight").add_(1.0)
        torch.testing.assert_close(interests_of(model, history), before)


def test_an_old_interest_is_retrieved_by_both_halves_and_not_by_the_recent_one_alone():
    """Chance is 1/8; the recent items tell nothing of the old topic."""
    shares = {}
    for name, changes in (("both", {}), ("recent", {"coarse_interests": 0}), ("light", {"recent": 0})):
        model = built(**changes)
        train(model, 30)
        shares[name] = recalls(model)
    assert min(shares["both"]) > 0.85
    assert min(shares["light"]) > 0.85
    assert shares["recent"][0] < 0.3
    assert shares["recent"][1] > 0.8


FRAME = Frame(
    8,
    20,
    LossConfig(item_similarity_is_cosine=True),
    predicts_codes=False,
    has_codes=True,
    window=10,
)
LM = {"path": "somewhere"}
SHARP = LossConfig(item_similarity_is_cosine=True, item_temperature=0.005)


@pytest.mark.parametrize(
    ("changes", "frame", "words"),
    [
        ({}, {}, []),
        ({"recent": 0, "coarse_interests": 0}, {}, ["leaves nothing to read: set model.recent = 50"]),
        ({}, {"has_codes": False}, ["give semantic_ids, or set model.coarse_interests = 0"]),
        ({"coarse_interests": 0}, {"has_codes": False}, []),
        ({"coarse_interests": 0, "coarse_weight": 1.0}, {}, ["set model.coarse_weight = 0"]),
        ({}, {"window": 1}, ["set window = 10 or so, or model.dmil = false"]),
        ({"dmil": False}, {"window": 1}, []),
        ({"num_interests": 1}, {"window": 1}, []),
        ({}, {"loss": LossConfig()}, ["set loss.item_similarity_is_cosine = true"]),
        ({"backbone": "causal_lm"}, {}, ["give model.lm.path"]),
        ({"lm": LM}, {}, ["set model.backbone = 'causal_lm'"]),
        ({"lm": LM, "backbone": "causal_lm"}, {}, []),
        (
            {"lm": {**LM, "lora_rank": 2, "pretrained": False}, "backbone": "causal_lm"},
            {},
            ["set model.lm.lora_rank = 0, or model.lm.pretrained = true"],
        ),
        ({"lm": {**LM, "lora_rank": 2, "lora_alpha": 9.0}, "backbone": "causal_lm"}, {}, []),
        (
            {"lm": {**LM, "lora_alpha": 9.0, "lora_dropout": 0.1}, "backbone": "causal_lm"},
            {},
            ["leave out model.lm.lora_alpha, model.lm.lora_dropout, or set model.lm.lora_rank = 8"],
        ),
        (
            {"lm": LM, "backbone": "causal_lm", "transformer": {"num_layers": 3}},
            {},
            ["model.transformer: a language model reads instead: leave out model.transformer"],
        ),
        ({"recent": 0, "dropout": 0.5}, {}, ["leave out model.dropout"]),
        ({"recent": 30}, {}, ["leave out model.recent, or raise sequences.max_len to 30"]),
        ({"recent": 20}, {}, []),
        ({"coarse_interests": 0, "light_reads": "codebook"}, {}, ["leave out model.light_reads"]),
        ({}, {"window": 101}, ["set window = 100 or less, or model.dmil = false"]),
        ({"dmil": False}, {"window": 101}, []),
        ({}, {"loss": SHARP}, ["set loss.item_temperature = 0.01, or model.learns_temperature = false"]),
        ({"learns_temperature": False}, {"loss": SHARP}, []),
        ({"transformer": {"num_heads": 3}}, {}, ["3 heads do not divide width 8"]),
    ],
)
def test_faults_say_what_to_do(changes, frame, words):
    faults = Hymirec(HymirecConfig.model_validate(changes)).faults(FRAME._replace(**frame))
    assert len(faults) == len(words)
    for fault, expected in zip(faults, words, strict=True):
        assert expected in fault


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 5.0])
def test_a_dropout_of_additions_that_is_no_share_is_refused(dropout):
    with pytest.raises(ValueError, match="lora_dropout"):
        HymirecConfig.model_validate({"lm": {**LM, "lora_rank": 2, "lora_dropout": dropout}})


def test_more_interests_than_can_be_matched_are_refused():
    with pytest.raises(ValueError, match="less than or equal to 6"):
        HymirecConfig.model_validate({"num_interests": 7})
