"""What holds for every tokenizer and every way to read several modalities."""

import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.paths import find_files
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.cosine_rq import CosineRqConfig
from trec_semid.tokenizers.facet_fit import FacetFitConfig
from trec_semid.tokenizers.inputs.alignment import ContrastiveConfig
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.methods import build_tokenizer, load_tokenizer
from trec_semid.tokenizers.mhq import MhqConfig
from trec_semid.tokenizers.mmq import MmqConfig, MmqFitConfig
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVaeConfig

NUM_ITEMS, NUM_CLUSTERS, SIZE = 240, 6, 10
QUICK = CodebookFitConfig(epochs=8, warmup_epochs=2, batch_size=64, learning_rate=5e-3)
CARRYING = MmqFitConfig(epochs=8, batch_size=64)
LONGER = QUICK.model_copy(update={"epochs": 16, "warmup_epochs": 5})
WAYS = {
    "concat": {},
    "contrastive": {
        "alignment": "contrastive",
        "contrastive": ContrastiveConfig(dim=16, epochs=20, batch_size=64, learning_rate=1e-2),
    },
    "separated": {"modalities": "separated"},
}
METHODS = {
    "rq_vae": lambda **way: RqVaeConfig(
        codebook_size=SIZE, levels=5, latent_dim=16, hidden_widths=(64,), fit=LONGER, **way
    ),
    "rq_kmeans": lambda **way: RqKmeansConfig(codebook_size=SIZE, levels=5, **way),
    "opq": lambda **way: OpqConfig(codebook_size=SIZE, subspaces=5, turns=4, **way),
    "cosine_rq": lambda **way: CosineRqConfig(codebook_size=SIZE, levels=5, **way),
}
CONFIGS = {
    "mmq": MmqConfig(codebook_size=SIZE, latent_dim=16, decoder_widths=(64,), fit=CARRYING),
    "mmq by angle": MmqConfig(
        codebook_size=SIZE,
        latent_dim=16,
        expert_hidden_dim=8,
        decoder_widths=(64,),
        similarity="cosine",
        fit=CARRYING,
    ),
    "published": PublishedMmqConfig(codebook_size=SIZE, latent_dim=16, decoder_widths=(64,), fit=QUICK),
    "published by distance": PublishedMmqConfig(
        codebook_size=SIZE, latent_dim=16, decoder_widths=(64,), similarity="euclidean", fit=QUICK
    ),
    "mhq": MhqConfig(
        codebook_size=SIZE, facets=2, levels=2, dim=8, fit=FacetFitConfig(epochs=6, batch_size=80)
    ),
    **{f"{name}-{way}": make(**keys) for name, make in METHODS.items() for way, keys in WAYS.items()},
}


def fit(config, catalogue, seed=0):
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(config, DIMS)
    reports = list(tokenizer.fit(catalogue, catalogue.rows_with_content(), seed))
    return tokenizer.eval(), reports


@pytest.fixture(scope="module", params=list(CONFIGS))
def learned(request):
    planted = plant(NUM_ITEMS, NUM_CLUSTERS, missing=0.2)
    tokenizer, reports = fit(CONFIGS[request.param], planted.catalogue)
    return request.param, planted, tokenizer, reports


def all_of(catalogue):
    return catalogue.batch(np.arange(catalogue.num_items))


def test_codes_lie_in_their_codebooks(learned):
    _, planted, tokenizer, _ = learned
    codes = tokenizer.encode(all_of(planted.catalogue))
    assert codes.dtype == torch.int64
    assert codes.shape == (NUM_ITEMS, len(tokenizer.codebook_sizes))
    assert len(tokenizer.position_names) == len(set(tokenizer.position_names)) == codes.shape[1]
    assert (codes >= 0).all()
    assert (codes <= torch.tensor(tokenizer.codebook_sizes)).all()


def test_codes_do_not_change_when_the_batch_is_permuted_or_split(learned):
    _, planted, tokenizer, _ = learned
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    codes = tokenizer.encode(all_of(planted.catalogue))
    assert torch.equal(tokenizer.encode(planted.catalogue.batch(order)), codes[torch.from_numpy(order)])
    for size in (7, 1):
        parts = [tokenizer.encode(read) for _, read in planted.catalogue.chunks(np.arange(60), size)]
        assert torch.equal(torch.cat(parts), codes[:60])


def test_most_codes_are_used_and_reconstruction_beats_the_mean(learned):
    _, planted, tokenizer, _ = learned
    contents = all_of(planted.catalogue)
    codes = tokenizer.encode(contents)
    used = [len(codes[:, r][codes[:, r] < SIZE].unique()) / SIZE for r in range(codes.shape[1])]
    assert min(used) > 0.7
    x, rebuilt = tokenizer.standardiser(contents), tokenizer.reconstruct(contents, codes)
    assert rebuilt.shape == x.shape
    mean_error = tokenizer.standardiser.errors(x, torch.zeros_like(x), contents.present).sum()
    assert tokenizer.standardiser.errors(x, rebuilt, contents.present).sum() < 0.6 * mean_error


def purity(codes: np.ndarray, clusters: np.ndarray) -> float:
    """Share of items in the most frequent cluster of their tuple of codes."""
    _, tuples = np.unique(codes, axis=0, return_inverse=True)
    tuples = tuples.ravel()
    return sum(np.bincount(clusters[tuples == each]).max() for each in np.unique(tuples)) / len(codes)


def test_two_codes_recover_the_planted_clusters(learned):
    name, planted, tokenizer, _ = learned
    codes = tokenizer.encode(all_of(planted.catalogue)).numpy()
    has_vision = planted.catalogue.present["vision"]
    if name.startswith("published") or name.endswith("separated"):
        positions = {m: [r for r, at in enumerate(tokenizer.position_names) if m in at][:2] for m in DIMS}
        for modality, at in positions.items():
            found = purity(codes[has_vision][:, at], planted.clusters[modality][has_vision])
            assert found > 0.85, modality
    else:  # one tuple tells of both: 6 x 6 clusters
        together = NUM_CLUSTERS * planted.clusters["text"] + planted.clusters["vision"]
        least = 0.4 if name.endswith("contrastive") else 0.6  # nothing here can be aligned
        assert purity(codes[has_vision][:, :2], together[has_vision]) > least


def test_missing_modality_has_missing_codes_or_none_at_all(learned):
    name, planted, tokenizer, _ = learned
    codes = tokenizer.encode(all_of(planted.catalogue)).numpy()
    missing = ~planted.catalogue.present["vision"]
    if name.startswith(("mmq", "published")) or name.endswith("separated"):
        of_vision = [r for r, at in enumerate(tokenizer.position_names) if at.startswith("vision")]
        expected = missing[:, None] & np.isin(np.arange(codes.shape[1]), of_vision)
        np.testing.assert_array_equal(codes == SIZE, expected)
    else:
        assert codes.max() < SIZE


def test_what_stands_in_the_place_of_missing_content_is_never_read(learned):
    _, planted, tokenizer, _ = learned
    catalogue = planted.catalogue
    other = {"text": catalogue.vectors["text"], "vision": catalogue.vectors["vision"].copy()}
    other["vision"][~catalogue.present["vision"]] = 3.0
    again = ItemContents(other, catalogue.present)
    assert torch.equal(tokenizer.encode(all_of(again)), tokenizer.encode(all_of(catalogue)))


def test_item_without_any_content_has_a_tuple_and_always_the_same_one(learned):
    _, planted, tokenizer, _ = learned
    nothing = {name: np.zeros(NUM_ITEMS, bool) for name in DIMS}
    codes = tokenizer.encode(ItemContents(planted.catalogue.vectors, nothing).batch(np.arange(4)))
    assert (codes == codes[0]).all()


def test_rounds_are_counted_and_measured(learned):
    _, _, _, reports = learned
    assert [report.round for report in reports] == list(range(1, len(reports) + 1))
    assert {report.num_rounds for report in reports} == {len(reports)}
    assert all(np.isfinite(list(report.scalars.values())).all() for report in reports)


def test_seed_decides_the_codes(learned):
    name, planted, tokenizer, _ = learned
    contents = all_of(planted.catalogue)
    again, other = (fit(CONFIGS[name], planted.catalogue, seed)[0] for seed in (0, 1))
    assert torch.equal(again.encode(contents), tokenizer.encode(contents))
    assert not torch.equal(other.encode(contents), tokenizer.encode(contents))


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_saved_tokenizer_gives_the_same_codes_and_reconstruction(learned, tmp_path, place):
    name, planted, tokenizer, _ = learned
    uri = str(tmp_path / "tokenizer") if place == "folder" else f"memory://tokenizers/{name}"
    tokenizer.save(uri)
    assert find_files(uri) == ["config.json", "weights.safetensors"]
    loaded = load_tokenizer(uri)
    contents = all_of(planted.catalogue)
    codes = loaded.encode(contents)
    assert torch.equal(codes, tokenizer.encode(contents))
    assert torch.equal(loaded.reconstruct(contents, codes), tokenizer.reconstruct(contents, codes))
    assert (loaded.config, loaded.dims) == (CONFIGS[name], DIMS)
    assert not loaded.training


def test_distances_rank_the_codes_of_a_position(learned):
    name, planted, tokenizer, _ = learned
    contents = all_of(planted.catalogue)
    codes = tokenizer.encode(contents)
    for position in range(codes.shape[1]):
        distances = tokenizer.distances(contents, codes, position)
        assert distances.shape == (NUM_ITEMS, SIZE)
        is_last = (
            position + 1 == codes.shape[1]
            if name.startswith("mmq")
            else (
                tokenizer.position_names[position].split("_")[0]
                != "".join(tokenizer.position_names[position + 1 : position + 2]).split("_")[0]
            )
        )
        if name.startswith(("published", "opq")) or is_last:  # residual levels choose before later ones do
            here = codes[:, position] < SIZE
            assert torch.equal(distances.argmin(1)[here], codes[here, position])


def test_learned_tokenizer_shows_a_ranker_what_it_chooses_from(learned):
    _, planted, tokenizer, _ = learned
    if not isinstance(tokenizer, LearnedTokenizer):
        assert not list(tokenizer.parameters())
        return
    contents = all_of(planted.catalogue)
    views, codes = tokenizer.view(contents), tokenizer.encode(contents)
    num_positions, size, width = tokenizer.codebooks.shape
    assert views.latents.shape == (NUM_ITEMS, num_positions, width)
    assert views.x.shape == (NUM_ITEMS, sum(DIMS.values()))
    assert torch.equal(views.present, codes < size)
    assert not views.gates[~views.present].any()
    for r in range(num_positions):
        here = views.present[:, r]
        latents, codebook = views.latents[here, r], tokenizer.codebooks[r]
        if tokenizer.similarity == "cosine":
            nearest = torch.nn.functional.cosine_similarity(latents[:, None], codebook, dim=-1).argmax(1)
        else:
            nearest = torch.cdist(latents, codebook).argmin(1)
        assert torch.equal(nearest, codes[here, r])
    assert (tokenizer.temperatures() > 0).all()
    assert tokenizer.temperatures().shape == (tokenizer.codebooks.shape[0],)


def test_errors_from_the_chosen_codewords_are_the_reported_ones_and_teach_everything(learned):
    name, planted, tokenizer, _ = learned
    if not isinstance(tokenizer, LearnedTokenizer):
        return
    contents = all_of(planted.catalogue)
    codes = tokenizer.encode(contents)
    tokenizer.zero_grad()
    views = tokenizer.view(contents)
    chosen = torch.stack(
        [book[code.clamp(max=SIZE - 1)] for book, code in zip(tokenizer.codebooks, codes.T, strict=True)], 1
    )
    errors = tokenizer.errors(views, chosen)
    assert set(errors) == (
        {"reconstruction", "auxiliary"} if name.startswith("published") else {"reconstruction"}
    )
    rebuilt = tokenizer.reconstruct(contents, codes)
    expected = tokenizer.standardiser.errors(tokenizer.standardiser(contents), rebuilt, contents.present)
    torch.testing.assert_close(errors["reconstruction"], expected.sum(1), rtol=1e-4, atol=1e-5)
    (errors["reconstruction"].sum() + views.latents.square().sum()).backward()
    for key, parameter in tokenizer.named_parameters():
        if not key.startswith("auxiliary"):
            assert parameter.grad is not None, key
            assert parameter.grad.any(), key
    tokenizer.zero_grad()


@pytest.mark.parametrize("name", ["rq_vae-concat", "rq_kmeans-separated", "opq-separated", "opq-concat"])
def test_codebooks_of_any_size_fit(name):
    catalogue = plant(230, 20, noise=0.4).catalogue
    config = CONFIGS[name].model_copy(update={"codebook_size": 100})
    tokenizer, _ = fit(config, catalogue)
    codes = tokenizer.encode(all_of(catalogue))
    assert tokenizer.codebook_sizes == (100,) * 5
    least = 20 if name.startswith("rq_vae") else 50  # few items make its steps noisy, and codes die
    assert min(len(column.unique()) for column in codes.T) > least
