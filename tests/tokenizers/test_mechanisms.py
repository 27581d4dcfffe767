"""What MMQ's parts are for, shown on planted items whose factors are known."""

import numpy as np
import pytest
import torch

from tests.tokenizers.planted import plant
from trec_semid.data.synthetic.world import CountsConfig, SyntheticConfig, World
from trec_semid.layers.experts import Experts
from trec_semid.metrics.codes import code_pairs
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.encode import encode_catalogue
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.mmq_published import PublishedMmq, PublishedMmqConfig

NUM_ITEMS, CODES = 3000, 16
WORLD = World(
    SyntheticConfig(
        folder="nowhere",
        num_items=NUM_ITEMS,
        factors=CountsConfig(text=1, vision=1, redundant=0, synergy=1),
        text_dim=8,
        vision_dim=8,
    )
)
FIT = CodebookFitConfig(epochs=12, warmup_epochs=3, batch_size=100)


def catalogue() -> ItemContents:
    vectors = {name: WORLD.content(0, NUM_ITEMS, name) for name in ("text", "vision")}
    return ItemContents(vectors, {name: np.ones(NUM_ITEMS, bool) for name in vectors})


def fitted(**changes: float) -> tuple[PublishedMmq, np.ndarray]:
    config = PublishedMmqConfig.model_validate(
        {"codebook_size": CODES, "latent_dim": 8, "decoder_widths": (32,), "fit": FIT, **changes}
    )
    torch.manual_seed(0)
    items = catalogue()
    tokenizer = PublishedMmq(config, items.dims)
    for _ in tokenizer.fit(items, np.arange(NUM_ITEMS), 0):
        pass
    return tokenizer, encode_catalogue(tokenizer, items).codes


@pytest.fixture(scope="module")
def both_kinds() -> tuple[PublishedMmq, np.ndarray]:
    return fitted(num_shared=2, num_specific=2)


def bits(codes: np.ndarray, factor: np.ndarray) -> float:
    """Return the mutual information of a code and a factor of -1 and +1 [bits], less its bias."""
    table = np.zeros((codes.max() + 1, 2))
    np.add.at(table, (codes, (factor > 0).astype(int)), 1)
    joint = table / table.sum()
    expected = np.outer(joint.sum(1), joint.sum(0))
    seen = joint > 0
    information = float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum())
    return information - (len(table) - 1) / (2 * len(codes) * np.log(2))  # Miller and Madow


def test_only_shared_experts_find_what_lies_in_both_modalities_together(
    both_kinds: tuple[PublishedMmq, np.ndarray],
):
    tokenizer, codes = both_kinds
    synergy = WORLD.factors.synergy[:, 0]
    found = {name: bits(codes[:, r], synergy) for r, name in enumerate(tokenizer.position_names)}
    assert min(found["shared_0"], found["shared_1"]) > 0.3
    for name in ("text_0", "text_1", "vision_0", "vision_1"):
        assert found[name] < 0.01


def test_specific_experts_hold_the_factors_of_their_own_modality(both_kinds: tuple[PublishedMmq, np.ndarray]):
    tokenizer, codes = both_kinds
    of = {"text": WORLD.factors.text[:, 0], "vision": WORLD.factors.vision[:, 0]}
    for r, name in enumerate(tokenizer.position_names[2:], 2):
        own = name.partition("_")[0]
        other = "vision" if own == "text" else "text"
        assert bits(codes[:, r], of[own]) > 0.4
        assert bits(codes[:, r], of[other]) < 0.01


def test_orthogonality_keeps_experts_apart():
    def overlap(weight: float) -> float:
        tokenizer, _ = fitted(num_shared=3, num_specific=3, orthogonality_weight=weight)
        groups = [module for module in tokenizer.modules() if isinstance(module, Experts)]
        return float(sum(group.overlap().detach() for group in groups))

    without, published, strong = overlap(0.0), overlap(0.005), overlap(1.0)
    assert strong < 0.1 * without
    assert 0.8 * without < published < without  # the published weight of 0.005 keeps them apart only a little


def test_decorrelated_positions_of_the_published_mmq_have_less_in_common():
    catalogue = plant(400, 8, noise=0.6).catalogue
    fit = CodebookFitConfig(epochs=15, warmup_epochs=5, batch_size=100)
    shared: list[float] = []
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        config = PublishedMmqConfig(
            codebook_size=8,
            num_shared=3,
            num_specific=1,
            latent_dim=8,
            decoder_widths=(32,),
            decorrelation_weight=weight,
            fit=fit,
        )
        mmq = PublishedMmq(config, catalogue.dims)
        list(mmq.fit(catalogue, np.arange(400), 0))
        codes = mmq.encode(catalogue.batch(np.arange(400))).numpy()[:, :3]
        shared.append(float(np.mean([pair.shared for pair in code_pairs(codes, (8, 8, 8), seed=0)])))
    assert shared[1] < 0.8 * shared[0]
