"""Small catalogues and models whose scores are exact in float32, and plain Python answers to them."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from trec_semid.models.heads.beams import Beams, NextLogProbs


class Catalogue(NamedTuple):
    codes: np.ndarray
    sizes: tuple[int, ...]

    @property
    def tuples(self) -> list[tuple[int, ...]]:
        return [tuple(row) for row in self.codes.tolist()]


def draw_catalogue(
    seed: int, sizes: tuple[int, ...], num_items: int, num_tuples: int | None = None
) -> Catalogue:
    """Draw items of at most `num_tuples` tuples; codes may be 'missing'."""
    rng = np.random.default_rng(seed)
    pool = np.stack([rng.integers(size + 1, size=num_tuples or num_items) for size in sizes], 1)
    chosen = rng.integers(len(pool), size=num_items)
    return Catalogue(pool[chosen].astype(np.int32), sizes)


catalogues = st.builds(
    draw_catalogue,
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    st.integers(1, 40),
    st.integers(1, 30),
)


def draw_heads(seed: int, num_users: int, sizes: tuple[int, ...]) -> list[Tensor]:
    """Draw log-probabilities in quarters: their sums are exact, ties are many, some are -inf."""
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for size in sizes:
        head = -torch.randint(12, (num_users, size + 1), generator=generator) / 4
        heads.append(head.masked_fill(torch.rand(head.shape, generator=generator) < 0.1, -torch.inf))
    return heads


def side_by_side(heads: list[Tensor]) -> Tensor:
    """Return (B, R, K) of R heads (B, K_r); what a shorter head does not have is -inf."""
    longest = max(head.shape[1] for head in heads)
    room = [(0, longest - head.shape[1]) for head in heads]
    return torch.stack([pad(head, end, value=-torch.inf) for head, end in zip(heads, room, strict=True)], 1)


def prefix_log_probs(user: int, prefix: tuple[int, ...], num_codes: int) -> list[float]:
    """Return what an autoregressive model says after a prefix, drawn from its hash."""
    rng = np.random.default_rng([user, len(prefix), *prefix])
    return [-np.inf if draw == 12 else -draw / 4 for draw in rng.integers(13, size=num_codes)]


def autoregressive(sizes: tuple[int, ...]) -> NextLogProbs:
    """Return the step function of that model; it reads the prefix from `beams.codes`."""

    def next_log_probs(position: int, beams: Beams) -> Tensor:
        rows = [
            [prefix_log_probs(user, tuple(prefix), sizes[position] + 1) for prefix in prefixes]
            for user, prefixes in enumerate(beams.codes.tolist())
        ]
        return torch.tensor(rows, dtype=torch.float32)

    return next_log_probs


def searched_by_hand(
    catalogue: Catalogue, user: int, width: int, step, left_out: tuple[int, ...] = ()
) -> list[tuple[float, tuple[int, ...]]]:
    """Return (score, tuple) of a beam search in plain Python; `step(user, prefix, num_codes)` a model.

    Prefixes all of whose items are left out are none.
    """
    left = {own for item, own in enumerate(catalogue.tuples) if item not in left_out}
    beams = [(0.0, ())]
    for position, size in enumerate(catalogue.sizes):
        prefixes = {found[: position + 1] for found in left}
        grown = []
        for score, prefix in beams:
            log_probs = step(user, prefix, size + 1)
            grown += [
                (score + log_probs[code], (*prefix, code))
                for code in range(size + 1)
                if (*prefix, code) in prefixes and log_probs[code] > -np.inf
            ]
        beams = sorted(grown, key=lambda beam: (-beam[0], beam[1]))[:width]
    return beams


def owned_by_hand(
    catalogue: Catalogue, beams: list[tuple[float, tuple[int, ...]]], left_out: tuple[int, ...] = ()
) -> list[tuple[float, int]]:
    """Return (score, item) of all items of these tuples, in the stated order."""
    items = [
        (score, item)
        for score, found in beams
        for item, own in enumerate(catalogue.tuples)
        if own == found and item not in left_out
    ]
    return sorted(items, key=lambda pair: (-pair[0], pair[1]))
