import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.seeds import derive_seed, numpy_generator, seed_everything, torch_generator


@given(st.integers(0, 2**63), st.text(max_size=8), st.integers(0, 1000))
def test_seed_fits_what_generators_take(seed: int, purpose: str, rank: int):
    derived = derive_seed(seed, purpose, rank)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, purpose, rank)


def test_streams_differ_by_seed_purpose_and_rank():
    streams = [
        derive_seed(seed, purpose, rank) for seed in range(20) for purpose in ("a", "b") for rank in range(20)
    ]
    assert len(set(streams)) == len(streams)


def test_stream_is_the_same_in_every_process():
    code = "from trec_semid.core.seeds import derive_seed; print(derive_seed(7, 'negatives', 3))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) == derive_seed(7, "negatives", 3)


def test_generators_repeat_and_do_not_touch_the_global_ones():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again = (torch.rand(3, generator=torch_generator(1, "x")) for _ in range(2))
    assert torch.equal(first, again)
    assert np.array_equal(numpy_generator(1, "x").random(3), numpy_generator(1, "x").random(3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_neighbouring_seeds_are_uncorrelated():
    draws = np.stack([numpy_generator(seed, "x").standard_normal(4000) for seed in range(10)])
    correlation = np.corrcoef(draws) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_global_generators_follow_the_seed():
    seed_everything(3, "model")
    first = torch.rand(2)
    seed_everything(3, "model")
    assert torch.equal(first, torch.rand(2))
    seed_everything(4, "model")
    assert not torch.equal(first, torch.rand(2))
