"""A modality that few of many items have is measured on the few that have it (ranks: `test_on_ranks`)."""

import numpy as np
import pytest
import torch

from tests.tokenizers.rare import NUM_CODES, NUM_ITEMS, NUM_PICTURES, built, rare
from trec_semid.tokenizers.codebook_fit import latent_variance, revive_codes, start_codebooks


@torch.no_grad()
@pytest.mark.parametrize("name", ["mmq", "rq_vae"])
def test_variance_of_latents_is_that_of_the_items_that_have_the_modality_whatever_the_seed(name):
    catalogue, tokenizer = rare(), built(name)
    rows = np.arange(NUM_ITEMS)
    tokenizer.standardiser.fit(catalogue, rows)
    latents, present = tokenizer.latents(catalogue.batch(rows))
    exact = [latents[present[:, r], r].var(0, correction=0).sum() for r in range(latents.shape[1])]
    for seed in range(5):
        torch.testing.assert_close(
            latent_variance(tokenizer, catalogue, rows, seed), torch.stack(exact), rtol=0.1, atol=0
        )


@torch.no_grad()
@pytest.mark.parametrize("name", ["mmq", "rq_vae"])
def test_codebooks_start_and_revive_among_the_latents_of_those_that_have_the_modality(name):
    catalogue, tokenizer = rare(), built(name)
    rows = np.arange(NUM_ITEMS)
    tokenizer.standardiser.fit(catalogue, rows)
    start_codebooks(tokenizer, catalogue, rows, seed=0, num_items=200)
    last = len(tokenizer.codebooks) - 1
    latents, present = tokenizer.latents(catalogue.batch(rows))
    own = latents[present[:, last], last]
    assert len(own) == NUM_PICTURES
    tokenizer.codebooks[last] = 1e3
    optimizer = torch.optim.AdamW(tokenizer.parameters())
    optimizer.state[tokenizer.codebooks] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.ones_like(tokenizer.codebooks),
    }
    usage = torch.ones(tokenizer.codebooks.shape[:2])
    usage[last] = 0
    assert revive_codes(tokenizer, optimizer, catalogue, rows, usage, seed=0) == NUM_CODES
    apart = (tokenizer.codebooks[last].unsqueeze(1) - own).abs().amax(2)
    assert apart.amin(1).max() < 1e-6
