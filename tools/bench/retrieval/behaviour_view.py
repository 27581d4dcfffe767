"""The behaviour view: what it knows of events to come, and its pairs/s beside its matrix products.

    .venv/bin/python tools/bench/retrieval/behaviour_view.py DATASET [--modalities A B] [--epochs N]

What it knows: how often the cosine of a user's last training item and next (validation) item is above that
of the same item and one drawn at random, by content as it is and by the view. The view is learnt from
training events; test events are not read. Its speed: pairs a second of processor time while it is learnt,
and of the matrix products alone that its network and its scores take, forward and backward, each item of a
batch once. One thread.
"""

import argparse
import os
import time
from itertools import pairwise

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("dataset", help="dataset folder")
PARSER.add_argument("--modalities", nargs="+", default=None, help="all of the dataset's where not given")
PARSER.add_argument("--epochs", type=int, default=4)
PARSER.add_argument("--seed", type=int, default=0)
OPTIONS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

from trec_semid.data.schema import Dataset, open_dataset  # noqa: E402
from trec_semid.tokenizers.inputs.behaviour import BEHAVIOUR, BehaviourView  # noqa: E402
from trec_semid.tokenizers.inputs.behaviour_fit import (  # noqa: E402
    BehaviourConfig,
    TrainingPairs,
    training_pairs,
)
from trec_semid.tokenizers.inputs.contents import ItemContents  # noqa: E402


def read_content(dataset: Dataset) -> ItemContents:
    """Return the content in memory."""
    names = OPTIONS.modalities or list(dataset.facts.modalities)
    vectors = {name: np.array(dataset.content(name)) for name in names}
    return ItemContents(vectors, {name: np.array(dataset.content_mask(name)) for name in names})


def area(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """Return how often a pair's cosine is above that of a left item and one drawn at random."""
    random = np.random.default_rng(0)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    drawn = random.integers(len(unit), size=len(left))
    pairs, others = (np.einsum("nd,nd->n", unit[left], unit[side]) for side in (right, drawn))
    return float((pairs[:, None] > random.permutation(others)[None, :2000]).mean())


def seconds_of_products(view: BehaviourView, pairs: TrainingPairs) -> float:
    """Return the processor time that the matrix products of an epoch take, batch by batch."""
    size, dims = (
        view.config.batch_size,
        [sum(view.dims.values()), *view.config.hidden_widths, view.config.dim],
    )
    order = np.random.default_rng(0).permutation(len(pairs.left))
    inputs = [torch.ones(2 * size + 2, dim) for dim in dims]
    weights = [torch.ones(fan_in, fan_out) for fan_in, fan_out in pairwise(dims)]
    begun = time.process_time()
    for batch in np.array_split(order, len(order) // size):
        num_items = len(np.unique(np.concatenate([pairs.left[batch], pairs.right[batch]])))
        for x, weight, y in zip(inputs, weights, inputs[1:], strict=False):
            x[:num_items] @ weight, x[:num_items].T @ y[:num_items]  # forward, and the weight's gradient
            if x is not inputs[0]:
                y[:num_items] @ weight.T  # content has no gradient
        h = inputs[-1][: len(batch)]
        scores = h @ h.T
        scores @ h, scores.T @ h
    return time.process_time() - begun


def main() -> None:
    """Learn the view and print what it knows and what it took."""
    torch.set_num_threads(1)
    dataset = open_dataset(OPTIONS.dataset)
    content = read_content(dataset)
    train, valid = (dataset.events(["user_row", "item_row"], split=split) for split in ("train", "valid"))
    users, items = (train[name].to_numpy() for name in ("user_row", "item_row"))
    pairs = training_pairs(users, items, content.num_items, 1)
    last = np.full(dataset.facts.num_users, -1)
    last[users] = items  # events are in order: the last one stays
    asked, right = valid["user_row"].to_numpy(), valid["item_row"].to_numpy()
    known = last[asked] >= 0
    left, right = last[asked][known], right[known]
    view = BehaviourView(BehaviourConfig(epochs=OPTIONS.epochs), content.dims)
    begun = time.process_time()
    view.fit(content, content.rows_with_content(), {BEHAVIOUR: pairs}, OPTIONS.seed)
    spent = (time.process_time() - begun) / OPTIONS.epochs
    x = view.standardiser.unit(content.batch(np.arange(content.num_items))).numpy()
    h = view.complete_catalogue(content).vectors["behaviour"].astype(np.float32)
    products = seconds_of_products(view, pairs)
    print(f"{len(pairs.left):,} pairs of training, {len(left):,} of validation")
    areas = [area(vectors, left, right) for vectors in (x - x.mean(0), h)]
    print(f"validation pairs above random ones: content {areas[0]:.3f}, view {areas[1]:.3f}")
    rates = [len(pairs.left) / took for took in (spent, products)]
    print(f"{rates[0]:,.0f} pairs/s, {rates[1]:,.0f} by its matrix products alone")


if __name__ == "__main__":
    main()
