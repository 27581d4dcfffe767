"""A catalogue in which few of many items have pictures, and what tokenizers make of it on these ranks."""

from typing import Any

import numpy as np
import torch

from trec_semid.core.errors import DataError
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.cosine_rq import CosineRqConfig
from trec_semid.tokenizers.inputs.alignment import ContrastiveConfig
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.methods import build_tokenizer
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVaeConfig

NUM_ITEMS, NUM_PICTURES, NUM_CODES = 6000, 40, 16
DIMS = {"text": 6, "picture": 8}
FIT = CodebookFitConfig(epochs=2, warmup_epochs=1, batch_size=1000, revive_every=1, kmeans_items=200)
SMALL: dict[str, Any] = {"codebook_size": NUM_CODES, "latent_dim": 4, "fit": FIT}
CONFIGS = {
    "mmq": PublishedMmqConfig(**SMALL, decoder_widths=(8,), auxiliary_widths=(8,)),
    "rq_vae": RqVaeConfig(**SMALL, levels=4, hidden_widths=(8,), modalities="separated"),
    "rq_kmeans": RqKmeansConfig(codebook_size=NUM_CODES, levels=2, modalities="separated", items_per_code=4),
    "cosine_rq": CosineRqConfig(
        codebook_size=NUM_CODES, levels=2, modalities="separated", coefficients="uint4", items_per_code=4
    ),
    "opq": OpqConfig(codebook_size=NUM_CODES, subspaces=2, turns=2, modalities="separated", items_per_code=4),
    "aligned": RqKmeansConfig(
        codebook_size=NUM_CODES,
        levels=2,
        alignment="contrastive",
        contrastive=ContrastiveConfig(dim=4, epochs=1),
    ),
}


def rare(num_pictures: int = NUM_PICTURES, seed: int = 0) -> ItemContents:
    """Texts of all items, pictures of a few; rows of items without one hold NaN."""
    rng = np.random.default_rng(seed)
    vectors = {name: rng.normal(size=(NUM_ITEMS, dim)).astype(np.float32) for name, dim in DIMS.items()}
    has = np.zeros(NUM_ITEMS, bool)
    has[rng.permutation(NUM_ITEMS)[:num_pictures]] = True
    vectors["picture"][~has] = np.nan
    return ItemContents(vectors, {"text": np.ones(NUM_ITEMS, bool), "picture": has})


def built(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_tokenizer(CONFIGS[name], DIMS)


def fitted(name: str, seed: int) -> dict[str, Any]:
    tokenizer, catalogue = built(name, seed), rare()
    list(tokenizer.fit(catalogue, np.arange(NUM_ITEMS), seed))
    rows = np.flatnonzero(catalogue.present["picture"])
    codes = tokenizer.encode(catalogue.batch(rows)).numpy()
    return {"codes": codes, "weights": {key: value.numpy() for key, value in tokenizer.state_dict().items()}}


def refusal(name: str, num_pictures: int) -> str:
    try:
        list(built(name).fit(rare(num_pictures), np.arange(NUM_ITEMS), 0))
    except DataError as error:
        return str(error)
    return "fitted"


def damaged(name: str) -> str:
    """One vector that is not finite, which one rank alone reads."""
    catalogue = rare()
    catalogue.vectors["text"][4321, 2] = np.inf
    try:
        list(built(name).fit(catalogue, np.arange(NUM_ITEMS), 0))
    except DataError as error:
        return str(error)
    return "fitted"


def rare_on_this_rank() -> dict[str, Any]:
    """Fit every config on all ranks that are there; return what this rank ends with, and what it refused."""
    return {
        "fitted": {(name, seed): fitted(name, seed) for name in CONFIGS for seed in (0, 1)},
        "refusals": {name: refusal(name, NUM_CODES - 1) for name in CONFIGS if name != "aligned"},
        "damaged": {name: damaged(name) for name in CONFIGS},
    }
