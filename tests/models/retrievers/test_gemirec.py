"""GemiRec against its parts by hand, and on planted interests that move."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from tests.models.retrievers import planted_interests as planted
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
from trec_semid.core.errors import ConfigError
from trec_semid.layers.attention import TransformerConfig
from trec_semid.models.methods import retriever_of
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.gemirec import GemirecConfig, GemirecModel

STILL = TransformerConfig(num_layers=1, num_heads=2, dropout=0.0, attention_dropout=None, init_std=0.3)
SMALL = {"num_levels": 2, "codebook_size": 3, "revive_below": 0.0}
CODES = torch.tensor([[row % 3, row % 2, 0] for row in range(NUM_ITEMS)], dtype=torch.int16)
SIZES = (3, 2, 1)


def build(loss: LossConfig | None = None, **config: Any) -> Any:
    torch.manual_seed(0)
    has_codes = config.get("dictionary") == "codes"
    items = items_of_ids(CODES, SIZES) if has_codes else items_of_ids()
    values = {"transformer": STILL, "dropout": 0.0, "num_interests": 3, "interest": SMALL, **config}
    frame = Frame(
        DIM,
        MAX_LEN,
        loss or LossConfig(),
        predicts_codes=False,
        has_codes=has_codes,
        num_items=NUM_ITEMS,
    )
    model: Any = retriever_of(GemirecConfig.model_validate(values)).build(items, frame)
    if config.get("dictionary", "learned") == "learned" and config.get("interests") != "free":
        dictionary = model.source.dictionary
        dictionary.codewords.copy_(torch.randn(dictionary.codewords.shape))
        dictionary.usage.fill_(1.0)
    for name, gate in model.named_parameters():
        if name.endswith("_gate"):
            gate.data.normal_()  # they start at 0, where nothing would come in
    return model.eval()


def vector_of(model: Any, history: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """u (D,) of one question (H,) about one history (S, D), without anything that fills up."""
    read = history + model.reader.places[: len(history)] / DIM**0.5
    state = model.reader.transformer(DIM**0.5 * read[None])[0, -1]
    keys = torch.tanh(model.pooled.hidden(read + model.pooled.places[: len(history)]))
    pooled = (keys @ question).softmax(0) @ read
    vector = pooled + model.state_gate * state
    return vector if model.region is None else vector + model.region_gate * (model.region.weight @ question)


def question_of(model: Any, tokens: Any, interest: torch.Tensor) -> torch.Tensor:
    rows = model.source.rows(tokens)
    return model.ask_by(torch.cat([rows[level, code] for level, code in enumerate(interest)]))


@pytest.mark.parametrize("dictionary", ["learned", "codes"])
@pytest.mark.parametrize(("posterior", "taught"), [("joint", "listed"), ("decoupled", "own")])
@pytest.mark.parametrize(("window", "is_cosine"), [(1, False), (3, True)])
def test_losses_are_those_of_the_interests_that_targets_teach(
    dictionary: str, posterior: str, taught: str, window: int, is_cosine: bool
):
    loss = LossConfig(item_similarity_is_cosine=is_cosine, item_temperature=0.5)
    model = build(loss, dictionary=dictionary, posterior=posterior, taught=taught, region=float(is_cosine))
    batch, place = training_batch(window=window), torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        losses, tokens = model(all_listed(), batch.places)
        vectors, rows = tokens.total, model.source.rows(tokens)
        scored = normalize(vectors, dim=-1) if is_cosine else vectors
        interests = (
            CODES[:, :2].long() if dictionary == "codes" else model.source.dictionary.interests(scored)
        )
        reader = model.reader if posterior == "joint" else model.own_reader
        every = interests if dictionary == "codes" else torch.cartesian_prod(*[torch.arange(3)] * 2)
        every = every.unique(dim=0)
        at, others = 0, 0
        for row in ROWS:
            for t in range(1, len(row)):
                history, targets = vectors[torch.tensor(row[:t])], row[t : t + window]
                read = DIM**0.5 * history + reader.places[:t]
                state = reader.transformer(read[None])[0, -1]
                surprise = {
                    tuple(one.tolist()): model.posterior.loss(state[None], rows, one.view(1, 1, -1), place)
                    for one in every
                }
                listed = sorted(surprise, key=lambda one: surprise[one].item())[:3]
                of_items, of_interests = [], []
                for target in targets:
                    own = tuple(interests[target].tolist())
                    of_interests.append(surprise[own].item())
                    candidates = [own] if taught == "own" or own in listed else listed
                    others += candidates is listed
                    each = []
                    for one in candidates:
                        u = vector_of(model, history, question_of(model, tokens, torch.tensor(one)))
                        scores = (cosine_similarity(vectors, u[None]) if is_cosine else vectors @ u) / 0.5
                        # The mean over two levels is half of -log p.
                        worth = scores[target] - 2 * surprise[one].squeeze()
                        each.append((worth.item(), cross_entropy(scores, torch.tensor(target)).item()))
                    of_items.append(max(each)[1])
                mean = sum(of_items) / len(targets)
                assert losses["items"][at].item() == pytest.approx(mean, rel=1e-3, abs=1e-5)
                mean = sum(of_interests) / len(targets)
                assert losses["interests"][at].item() == pytest.approx(mean, rel=1e-3)
                at += 1
    assert at == len(losses["items"])
    assert (others > 0) == (taught == "listed")
    assert ("quantization" in losses) == (dictionary == "learned")
    assert losses.keys() == model.loss_weights.keys()


@pytest.mark.parametrize("interests", ["generated", "history", "free"])
def test_users_are_asked_for_with_distinct_interests_and_their_log_probabilities(interests: str):
    model = build(LossConfig(item_temperature=0.5), interests=interests)
    histories = [[3, 1, 3], [], [5], [0, 1, 2, 3, 4, 5]]
    batch = users_batch(histories)
    with torch.no_grad():
        model.note_catalogue(model.items(all_listed()).total, slice(0, NUM_ITEMS))
        tokens = model.items(listed_of(batch.items))
        vectors, _, log_probs = model.queries(tokens, batch.places)
        rows = model.items(all_listed()).total
        assert not vectors[1].any()
        for user in (0, 2, 3):
            history = rows[torch.tensor(histories[user])]
            if interests == "free":
                questions, probs = model.questions, None
            else:
                state = model.reader.read(tokens.total, batch.places)[0]
                chosen = model._chosen(model.source, tokens, state, batch.places)
                own = chosen.interests[[0, 2, 3].index(user)]
                probs = chosen.log_probs[[0, 2, 3].index(user)]
                there = [tuple(each) for each in own[probs > -torch.inf].tolist()]
                assert len(set(there)) == len(there) >= 1
                assert set(there) <= {tuple(each) for each in model.source.map.tolist()}
                questions = torch.stack([question_of(model, tokens, each) for each in own])
            for number, question in enumerate(questions):
                expected = vector_of(model, history, question) / 0.5
                torch.testing.assert_close(vectors[user, number], expected, atol=1e-4, rtol=1e-3)
            if probs is not None:
                torch.testing.assert_close(log_probs[user], probs)


def test_a_decoupled_posterior_moves_nothing_but_itself():
    model = build(posterior="decoupled").train()
    batch = training_batch()
    losses, _ = model(all_listed(), batch.places)
    losses["interests"].sum().backward()
    moved = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved == {"own_reader", "posterior"}
    joint = build(posterior="joint").train()
    joint(all_listed(), batch.places)[0]["interests"].sum().backward()
    moved = {name.split(".")[0] for name, weight in joint.named_parameters() if weight.grad is not None}
    assert moved == {"items", "reader", "posterior"}


def test_the_dictionary_moves_no_item_and_the_item_loss_no_dictionary():
    model = build().train()
    batch = training_batch()
    losses, _ = model(all_listed(), batch.places)
    losses["quantization"].sum().backward(retain_graph=True)
    moved = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved == {"source"}
    model.zero_grad()
    losses["items"].sum().backward()
    moved = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert "source" not in moved


def test_the_map_of_the_catalogue_is_refreshed_and_tells_what_moved():
    model = build()
    vectors = torch.randn(NUM_ITEMS, DIM)
    first = model.note_catalogue(vectors, slice(0, NUM_ITEMS))
    encoded = model.source.dictionary.encoder(vectors)
    interests = model.source.dictionary.interests(vectors)
    assert model.source.map.tolist() == interests.tolist()
    rows = model.source.rows_of(None)
    left = encoded - rows[0, interests[:, 0]] - rows[1, interests[:, 1]]
    share = left.square().sum() / (encoded - encoded.mean(0)).square().sum()
    assert first["interest_error"] == pytest.approx(share.item(), rel=1e-4)
    entropies = [
        torch.distributions.Categorical(torch.bincount(each).float()).entropy() for each in interests.T
    ]
    assert first["interest_perplexity"] == pytest.approx(sum(e.exp().item() for e in entropies) / 2, rel=1e-4)
    vectors[:4] = vectors[4].clone()
    again = model.note_catalogue(vectors, slice(0, NUM_ITEMS))
    changed = (interests[:4] != interests[4]).any(1).sum().item()
    assert again["interest_moved"] == pytest.approx(changed / NUM_ITEMS)


def test_a_run_that_goes_on_knows_the_interests_of_a_map_that_is_tuned():
    stopped, resumed = (build(dictionary="codes") for _ in range(2))
    for model in (stopped, resumed):
        model.items.live.codes = CODES.clone()
        model.items.live.tokenizer = torch.nn.Identity()  # any: it moves codes
    stopped.note_catalogue(torch.empty(NUM_ITEMS, DIM), slice(0, NUM_ITEMS))
    before = stopped.source.existing(stopped.items.live).tolist()
    stopped.items.live.codes[:, 1] = 1 - stopped.items.live.codes[0, 1]
    resumed.load_state_dict(stopped.state_dict())
    after = [model.source.existing(model.items.live).tolist() for model in (stopped, resumed)]
    assert after[0] == after[1] != before


def test_semantic_ids_shorter_than_the_interests_are_refused():
    with pytest.raises(ConfigError, match=r"semantic IDs have 3 codes, not 4. Set 3 or less"):
        build(dictionary="codes", interest={"num_levels": 4})


def planted_model(*, seed: int = 1, **config: Any) -> Any:
    torch.manual_seed(seed)
    values = {
        "transformer": TransformerConfig.model_validate({"num_layers": 1, "num_heads": 2, "dropout": 0.0}),
        "dropout": 0.0,
        "num_interests": 2,
        "interest": {"codebook_size": 8, "decay": 0.9},
        **config,
    }
    loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.1)
    frame = Frame(DIM, planted.LENGTH, loss, predicts_codes=False, num_items=planted.NUM_ITEMS)
    items = planted.planted_items()
    model = retriever_of(GemirecConfig.model_validate(values)).build(items, frame)
    assert isinstance(model, GemirecModel)
    return model


def noted(model: Any) -> dict[str, float]:
    with torch.no_grad():
        vectors = model.item_vectors(model.items(all_listed(planted.NUM_ITEMS)))
        return model.eval().note_catalogue(vectors, slice(0, planted.NUM_ITEMS))


@pytest.fixture(scope="module")
def quantised() -> Any:
    model = planted_model()
    planted.trained(model, steps=200, rate=0.01)
    noted(model)
    return model


def test_two_opposite_interests_are_retrieved(quantised: Any):
    assert planted.recall_of_interests(quantised) > 0.6
    assert quantised.catalogue_facts == {}  # a search tells them, which builds catalogues
    assert noted(quantised)["interest_perplexity"] > 5  # of eight codewords for eight directions


def test_interests_of_users_are_as_far_apart_as_codewords(quantised: Any):
    """The bound of the paper's Voronoi cells, held against what users have; it is of e_m, not of u_m."""
    bound = quantised.source.dictionary.separation().item()
    rows, _ = planted.histories(64, 7)
    batch = users_batch(rows)
    with torch.no_grad():
        tokens = quantised.items(listed_of(batch.items))
        states, _ = quantised.reader.read(tokens.total, batch.places)
        chosen = quantised._chosen(quantised.source, tokens, states, batch.places)
        embedded = quantised.source.embed(tokens, chosen.interests)
    least = torch.stack([torch.pdist(each).min() for each in embedded]).min().item()
    assert least >= bound - 1e-6
    assert bound > 0.01


def test_free_questions_fall_together_where_users_have_fewer_interests():
    """Nothing holds the vectors of the unquantised model apart: of four, two point nearly the same way."""
    model = planted_model(interests="free", num_interests=4)
    planted.trained(model, steps=120)
    rows, _ = planted.histories(64, 7)
    unit = normalize(planted.interests_of(model, rows), dim=-1)
    cosines = (unit @ unit.mT).masked_fill(torch.eye(4, dtype=torch.bool), -1.0)
    assert cosines.flatten(1).amax(1).mean() > 0.75


def test_the_dictionary_follows_interests_that_shift():
    """Users turn to other directions half-way: what they like is coded as well as before, and retrieved."""
    model = planted_model(interest={"codebook_size": 4, "decay": 0.9})
    likes_now = [row for row in range(planted.NUM_ITEMS) if row // planted.PER_DIRECTION % 4 >= 2]

    def left() -> float:
        with torch.no_grad():
            vectors = model.item_vectors(model.items(listed_of(torch.tensor(likes_now))))
            dictionary = model.source.dictionary
            encoded = dictionary.encoder(vectors)
            return (
                (encoded - dictionary.codewords[0][dictionary.interests(vectors)[:, 0]]).square().sum().item()
            )

    planted.trained(model, steps=100, rate=0.03, axes=[0, 1])
    before, retrieved = left(), planted.recall_of_interests(model, [2, 3])
    planted.trained(model, steps=100, rate=0.03, axes=[2, 3])
    assert left() < 0.6 * before
    assert retrieved < 0.1
    assert planted.recall_of_interests(model, [2, 3]) > 0.5
    assert noted(model)["interest_perplexity"] > 3.5
