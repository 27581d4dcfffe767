"""The same global batch on 1, 2 and 4 ranks gives the same tokenizer; of rare modalities on 1 and 2."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from tests.tokenizers import rare
from tests.tokenizers.planted import DIMS, plant
from trec_semid.runtime.ranks import process_group
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.cosine_rq import CosineRq, CosineRqConfig
from trec_semid.tokenizers.encode import encode_catalogue
from trec_semid.tokenizers.facet_fit import FacetFitConfig
from trec_semid.tokenizers.inputs.alignment import ContrastiveConfig
from trec_semid.tokenizers.inputs.shards import my_share, sum_over_ranks
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.methods import build_tokenizer
from trec_semid.tokenizers.mhq import MhqConfig
from trec_semid.tokenizers.mmq import MmqConfig
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVaeConfig

NUM_ITEMS = 203  # not a multiple of the ranks or of the batch
FIT = CodebookFitConfig(epochs=6, warmup_epochs=1, batch_size=50, revive_every=1)
SMALL: dict[str, Any] = {"codebook_size": 30, "latent_dim": 16, "decoder_widths": (32,), "fit": FIT}
CONFIGS = {
    "mmq": MmqConfig.model_validate({**SMALL, "fit": FIT.model_dump(), "decay": 0.5}),
    "soft_index": PublishedMmqConfig(**SMALL),
    "straight_through": PublishedMmqConfig(**SMALL, codebook_learning="straight_through"),
    "rq_vae": RqVaeConfig(
        codebook_size=30, levels=3, latent_dim=16, hidden_widths=(32,), modalities="separated", fit=FIT
    ),
    "rq_kmeans": RqKmeansConfig(codebook_size=20, levels=3),
    "cosine_rq": CosineRqConfig(codebook_size=20, levels=3, coefficients="uint8"),
    "mhq": MhqConfig(
        codebook_size=20,
        facets=3,
        levels=2,
        fit=FacetFitConfig(epochs=4, batch_size=50, decay=0.5, revive_every=1),
    ),
    "opq": OpqConfig(
        codebook_size=20, subspaces=3, turns=3, alignment="contrastive", contrastive=ContrastiveConfig(dim=12)
    ),
}
LEARNED = ("soft_index", "straight_through", "rq_vae")


Facts = dict[int, list[dict[str, Any]]]
"""Number of ranks -> what each of them ends with."""


def fit_on_this_rank(with_rare: bool) -> dict[str, Any]:
    """Fit every config on all ranks; return what this rank ends with as plain arrays."""
    torch.set_num_threads(1)
    with process_group():
        share = my_share(np.arange(NUM_ITEMS))
        facts: dict[str, Any] = {"rare": rare.rare_on_this_rank()} if with_rare else {}
        facts |= {"share": share, "sum": int(sum_over_ranks(torch.tensor(len(share))))}
        for name, config in CONFIGS.items():
            catalogue = plant(NUM_ITEMS, 9, missing=0.2).catalogue
            torch.manual_seed(0)
            tokenizer = build_tokenizer(config, DIMS)
            reports: list[dict[str, float]] = []
            for report in tokenizer.fit(catalogue, np.arange(NUM_ITEMS), 0):
                reports.append(report.scalars)
                if report.round == 2 and isinstance(tokenizer, LearnedTokenizer):
                    with torch.no_grad():  # kill a code: it points away from all others
                        tokenizer.codebooks[:, 0] = -tokenizer.codebooks[:, 1:].mean(1)
            if isinstance(tokenizer, CosineRq):
                facts["moved"] = tokenizer.update(plant(NUM_ITEMS, 9, seed=1).catalogue.batch(share), 0.1)
            encoded = encode_catalogue(tokenizer, catalogue)
            weights = {key: value.numpy() for key, value in tokenizer.state_dict().items()}
            facts[name] = {"reports": reports, "weights": weights, "encoded": encoded._asdict()}
        return facts


@pytest.fixture(scope="module")
def facts() -> Facts:
    return {
        1: [fit_on_this_rank(True)],
        2: run_ranks(fit_on_this_rank, 2, True),
        4: run_ranks(fit_on_this_rank, 4, False),
    }


pytestmark = pytest.mark.ranks
ON = pytest.mark.parametrize("num_ranks", [2, 4])
EACH = pytest.mark.parametrize("name", list(CONFIGS))


@ON
def test_shares_of_the_ranks_make_up_the_rows(facts: Facts, num_ranks: int):
    shares = [rank["share"] for rank in facts[num_ranks]]
    assert sorted(np.concatenate(shares).tolist()) == list(range(NUM_ITEMS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(rank["sum"] == NUM_ITEMS for rank in facts[num_ranks])


@ON
@EACH
def test_all_ranks_end_with_the_same_weights_codes_and_reports(facts: Facts, num_ranks: int, name: str):
    first, *others = (rank[name] for rank in facts[num_ranks])
    for other in others:
        assert other["reports"] == first["reports"]
        for key, value in first["weights"].items():
            np.testing.assert_array_equal(other["weights"][key], value, err_msg=key)
        np.testing.assert_array_equal(other["encoded"]["codes"], first["encoded"]["codes"])
        np.testing.assert_array_equal(other["encoded"]["errors"], first["encoded"]["errors"])


@ON
@EACH
def test_losses_codebooks_and_codes_are_those_of_one_rank(facts: Facts, num_ranks: int, name: str):
    alone, among = facts[1][0][name], facts[num_ranks][0][name]
    for one, many in zip(alone["reports"], among["reports"], strict=True):
        assert many == pytest.approx(one, rel=1e-3, abs=1e-6)
    for key, value in alone["weights"].items():
        np.testing.assert_allclose(among["weights"][key], value, atol=2e-3, err_msg=key)
    same = (alone["encoded"]["codes"] == among["encoded"]["codes"]).mean()
    assert same > 0.995


@ON
def test_directions_move_towards_the_new_items_of_all_ranks(facts: Facts, num_ranks: int):
    alone = facts[1][0]["moved"]
    assert alone.num_moved > 40
    for rank in facts[num_ranks]:
        assert rank["moved"] == pytest.approx(alone, rel=1e-4)


@EACH
def test_the_comparison_covers_revival_and_masked_items(facts: Facts, name: str):
    alone = facts[1][0][name]
    if name in LEARNED:
        assert sum(report.get("revived_codes", 0) for report in alone["reports"]) > 0
        assert (alone["encoded"]["codes"] == 30).any()


@pytest.mark.parametrize("name", list(rare.CONFIGS))
def test_forty_pictures_among_many_items_make_codebooks_of_sixteen_on_one_rank_and_two(
    facts: Facts, name: str
):
    for seed in (0, 1):
        alone = facts[1][0]["rare"]["fitted"][name, seed]
        assert all(np.isfinite(value).all() for value in alone["weights"].values())
        first, other = (rank["rare"]["fitted"][name, seed] for rank in facts[2])
        np.testing.assert_array_equal(other["codes"], first["codes"])
        assert (first["codes"] == alone["codes"]).mean() > 0.9  # gradients are summed in another order


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_fewer_pictures_than_codes_are_refused_on_every_rank_with_their_number(facts: Facts, num_ranks: int):
    for rank in facts[num_ranks]:
        for told in rank["rare"]["refusals"].values():
            assert told.startswith("field 'picture': a codebook of 16 codes needs")
            assert "(got 15)" in told


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_vector_that_one_rank_reads_and_refuses_is_refused_on_all(facts: Facts, num_ranks: int):
    for rank in facts[num_ranks]:
        for told in rank["rare"]["damaged"].values():
            assert told.startswith("row 4322, field 'text': NaN or infinite")
