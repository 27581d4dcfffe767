import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.layers.contrastive import PairedItems, paired_info_nce
from trec_semid.tokenizers.inputs import behaviour_fit
from trec_semid.tokenizers.inputs.behaviour import BehaviourView
from trec_semid.tokenizers.inputs.behaviour_fit import (
    BehaviourConfig,
    TaughtVectors,
    TrainingPairs,
    principal_part,
    training_pairs,
)
from trec_semid.tokenizers.inputs.contents import ItemContents

NUM_ITEMS, KINDS = 240, 6
CONFIG = BehaviourConfig(
    dim=8, hidden_widths=(32,), epochs=12, batch_size=128, learning_rate=5e-3, dropout=0.1
)


def catalogue() -> tuple[ItemContents, np.ndarray]:
    """Draw items whose looks are mostly of another grouping, and a little of what users care for."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(KINDS, size=NUM_ITEMS)
    looks = 4 * rng.normal(size=(5, 16))[rng.integers(5, size=NUM_ITEMS)]
    text = looks + rng.normal(size=(NUM_ITEMS, 16)) + rng.normal(size=(KINDS, 16))[kinds]
    image = rng.normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    present = {"text": np.arange(NUM_ITEMS) % 40 != 7, "image": np.arange(NUM_ITEMS) % 20 != 7}
    return ItemContents({"text": text.astype(np.float32), "image": image}, present), kinds


def events(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw users who stay with one kind."""
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(150), 12)
    return users, np.array([rng.choice(np.flatnonzero(kinds == user % KINDS)) for user in users])


def fit(
    view: BehaviourView, items: ItemContents, source: TrainingPairs | TaughtVectors, seed: int
) -> list[float]:
    return view.fit(items, items.rows_with_content(), {"behaviour": source}, seed)["behaviour"]


@pytest.fixture(scope="module")
def learned() -> tuple[BehaviourView, list[float]]:
    items, kinds = catalogue()
    view = BehaviourView(CONFIG, items.dims)
    return view, fit(view, items, training_pairs(*events(kinds), NUM_ITEMS, 1), 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=25),
    st.integers(1, 4),
)
def test_pairs_are_those_that_lie_near_in_one_users_events(log: list[tuple[int, int]], window: int):
    users, items = (np.array([event[side] for event in log], np.int64) for side in (0, 1))
    expected = []
    for user in set(users.tolist()):
        own = [item for each, item in log if each == user]
        for at, item in enumerate(own):
            expected += [(item, other) for other in own[at + 1 : at + 1 + window] if other != item]
    pairs = training_pairs(users, items, 5, window)
    assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == sorted(expected)
    assert pairs.counts.tolist() == [sum(item == each for _, each in log) for item in range(5)]


def auc_of_kinds(vectors: torch.Tensor, kinds: np.ndarray) -> float:
    vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
    cosines, same = (vectors @ vectors.T).numpy(), kinds[:, None] == kinds
    apart = ~np.eye(len(kinds), dtype=bool)
    inside, across = cosines[same & apart], cosines[~same]
    return float((inside[:, None] > across[np.random.default_rng(0).integers(len(across), size=500)]).mean())


def test_items_of_one_users_taste_come_to_lie_together_whatever_they_look_like(learned):
    view, losses = learned
    items, kinds = catalogue()
    both = np.flatnonzero(items.present["text"] & items.present["image"])
    contents = items.batch(both)
    before = auc_of_kinds(view.standardiser(contents), kinds[both])
    assert before < 0.75
    assert auc_of_kinds(view.of(contents)[0], kinds[both]) > 0.9
    assert losses[-1] < losses[0]


def test_view_is_the_last_modality_of_a_batch_and_of_the_catalogue_alike(learned):
    view, _ = learned
    items, _ = catalogue()
    whole = view.complete_catalogue(items)
    rows = np.random.default_rng(2).permutation(NUM_ITEMS)[:50]
    completed = view.complete(items.batch(rows))
    assert list(whole.dims) == ["text", "image", "behaviour"]
    nothing = ~(items.present["text"] | items.present["image"])
    assert nothing.any()
    np.testing.assert_array_equal(whole.present["behaviour"], ~nothing)
    np.testing.assert_array_equal(completed.present[:, 2].numpy(), ~nothing[rows])
    np.testing.assert_allclose(completed.vectors[2].numpy(), whole.vectors["behaviour"][rows], atol=1e-3)
    lengths = np.linalg.norm(whole.vectors["behaviour"].astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, ~nothing, atol=2e-3)


def test_saved_view_is_the_same_and_its_seed_decides_it(learned):
    view, _ = learned
    items, kinds = catalogue()
    again = BehaviourView.restored(json.loads(json.dumps(view.described())), view.weights())
    assert torch.equal(again.of(items.batch(np.arange(30)))[0], view.of(items.batch(np.arange(30)))[0])
    pairs = training_pairs(*events(kinds), NUM_ITEMS, 1)
    same, other = (BehaviourView(CONFIG.model_copy(update={"epochs": 12}), items.dims) for _ in range(2))
    fit(same, items, pairs, 0)
    fit(other, items, pairs, 1)
    assert same.weights() == view.weights() != other.weights()


def test_nothing_to_learn_from_is_refused():
    items, _ = catalogue()
    nobody = training_pairs(np.arange(5), np.arange(5), NUM_ITEMS, 1)
    with pytest.raises(
        DataError, match=r"field 'behaviour': .* that follow each other in training \(got 0\)"
    ):
        fit(BehaviourView(CONFIG, items.dims), items, nobody, 0)
    nothing = TaughtVectors(np.ones((NUM_ITEMS, 8), np.float32), np.zeros(NUM_ITEMS, np.int64))
    with pytest.raises(DataError, match=r"that its teacher has seen in training \(got 0\)"):
        fit(BehaviourView(CONFIG, items.dims), items, nothing, 0)


def test_a_pair_counts_by_its_rarer_item(monkeypatch: pytest.MonkeyPatch):
    items, kinds = catalogue()
    pairs, told = training_pairs(*events(kinds), NUM_ITEMS, 1), []

    def noted(
        left: PairedItems, right: PairedItems, *, weights: torch.Tensor, **settings: float
    ) -> torch.Tensor:
        told.extend(zip(left.penalty.tolist(), right.penalty.tolist(), weights.tolist(), strict=True))
        return paired_info_nce(left, right, weights=weights, **settings)

    monkeypatch.setattr(behaviour_fit, "paired_info_nce", noted)
    fit(
        BehaviourView(CONFIG.model_copy(update={"reliability": 6.0, "epochs": 1}), items.dims),
        items,
        pairs,
        0,
    )
    for left, right, weight in told:  # a penalty is log(events + 1)
        rarer = np.expm1(min(left, right))
        assert weight == pytest.approx(rarer / (rarer + 6), rel=1e-4)
    assert len(told) > 1000
    assert len({round(weight, 4) for *_, weight in told}) > 5


def test_a_teachers_vectors_are_rebuilt_of_content_also_for_items_it_has_not_seen():
    items, _ = catalogue()
    view = BehaviourView(CONFIG.model_copy(update={"teacher": "bundle", "dim": 4, "epochs": 80}), items.dims)
    rng = np.random.default_rng(3)
    view.standardiser.fit(items, items.rows_with_content())
    x = view.standardiser(items.batch(np.arange(NUM_ITEMS)))
    taught = (x[:, :16] @ torch.tensor(rng.normal(size=(16, 9)), dtype=torch.float32)).numpy()
    counts = np.where(np.arange(NUM_ITEMS) < 180, 1 + rng.integers(20, size=NUM_ITEMS), 0)
    losses = fit(view, items, TaughtVectors(taught * rng.uniform(1, 9, (NUM_ITEMS, 1)), counts), 0)
    assert losses[-1] < 0.1 < losses[0]
    new = np.flatnonzero((counts == 0) & items.present["text"])
    expected, rebuilt = torch.from_numpy(principal_part(taught, 4)[new]), view.of(items.batch(new))[0].float()
    assert float((expected * rebuilt).sum(1).mean()) > 0.8


def test_the_part_of_vectors_that_is_taught_has_their_cosines_as_far_as_so_few_numbers_can():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(50, 3)) @ rng.normal(size=(3, 7))).astype(np.float32)  # of rank 3
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for dim in (3, 5):
        part = principal_part(vectors, dim)
        np.testing.assert_allclose(part @ part.T, unit @ unit.T, atol=1e-4)
    with pytest.raises(DataError, match=r"are 7 wide \(got 8\)\. Set behaviour.dim = 7 or less"):
        principal_part(vectors, 8)
