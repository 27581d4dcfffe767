"""How many codes a soft index has in effect, and the temperature at which it has so many.

Legend: B items of a sample, R positions, K codes of a codebook.
"""

import math

import numpy as np
import torch
from torch import Tensor

from trec_semid.layers.soft_index import effective_codes
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.learned import LearnedTokenizer, Views

_SAMPLE = 4096
"""Items that stand for all."""
_HALVINGS = 40
"""Of the range of log temperatures, of which nothing is left then."""
_RANGE = 1e-6, 1e6
"""Of temperatures, times the tokenizer's own."""


def sample_of(catalogue: ItemContents, device: torch.device) -> Contents:
    """Return the content of some items that have any, the same on every rank and in every run."""
    rows = catalogue.rows_with_content()
    drawn = np.random.default_rng(0).permutation(rows)[:_SAMPLE]
    return catalogue.batch(np.sort(drawn)).to(device)


@torch.no_grad()
def codes_in_effect(tokenizer: LearnedTokenizer, sample: Contents, temperature: Tensor) -> Tensor:
    """Return (R,): exp of the entropy of softmax(similarity / temperature), a mean over items of a sample."""
    return _in_effect(tokenizer, tokenizer.view(sample), temperature)


@torch.no_grad()
def temperatures_of(tokenizer: LearnedTokenizer, sample: Contents, wanted: float) -> Tensor:
    """Return (R,) temperatures at which every position has so many codes in effect.

    Entropy rises with temperature, from one code to all K, so halving a range finds it. What is asked for is
    below K (`tokenizer.expect_effective`).
    """
    own, views = tokenizer.temperatures(), tokenizer.view(sample)
    low, high = (torch.full_like(own, math.log(end)) for end in _RANGE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_less = _in_effect(tokenizer, views, own * middle.exp()) < wanted
        low, high = torch.where(is_less, middle, low), torch.where(is_less, high, middle)
    return own * high.exp()


def _in_effect(tokenizer: LearnedTokenizer, views: Views, temperature: Tensor) -> Tensor:
    return effective_codes(
        views.latents,
        tokenizer.codebooks,
        similarity=tokenizer.similarity,
        temperature=temperature,
        present=views.present,
    )
