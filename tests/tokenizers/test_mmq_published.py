import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import DataError
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.mmq_published import PublishedMmq, PublishedMmqConfig

QUICK = CodebookFitConfig(epochs=20, warmup_epochs=3, batch_size=64)
SMALL = PublishedMmqConfig(
    codebook_size=8, latent_dim=16, decoder_widths=(64,), auxiliary_widths=(32,), fit=QUICK
)
BOTH_WAYS = pytest.mark.parametrize("learning", ["soft_index", "straight_through"])


def build(config: PublishedMmqConfig = SMALL, dims: dict[str, int] = DIMS, seed: int = 0) -> PublishedMmq:
    torch.manual_seed(seed)
    return PublishedMmq(config, dims)


def fitted(catalogue: ItemContents, config: PublishedMmqConfig = SMALL, seed: int = 0) -> PublishedMmq:
    mmq = build(config, catalogue.dims, seed)
    for _ in mmq.fit(catalogue, np.arange(catalogue.num_items), seed):
        pass
    return mmq


@pytest.fixture(scope="module")
def learned():
    planted = plant(400, 8, missing=0.25)
    return planted, fitted(planted.catalogue)


def test_positions_are_named_after_their_experts():
    mmq = build(SMALL.model_copy(update={"num_shared": 1, "num_specific": 3}))
    assert mmq.position_names == (
        "shared_0",
        "text_0",
        "text_1",
        "text_2",
        "vision_0",
        "vision_1",
        "vision_2",
    )
    assert mmq.codebook_sizes == (8,) * 7


def by_hand(mmq: PublishedMmq, contents: Contents, row: int) -> dict[str, float]:
    """Follow eq 2-12 for one item, position by position, with the corrections of the docs page."""
    s, present = mmq.standardiser, contents.present[row]
    e = [normalize(part[row], dim=0) for part in contents.vectors]
    flat = torch.cat(e)
    x = torch.where(s.spread(present.unsqueeze(0))[0], (flat - s.mean) / s.std, 0.0)
    parts = list(x.split(s.dims))
    latents, gates, owners = [], [], []
    for i in range(mmq.shared.weight.shape[0]):
        latents.append(x / len(x) ** 0.5 @ mmq.shared.weight[i] + mmq.shared.bias[i])
        gates.append(torch.tensor(1.0))
        owners.append(None)
    for m, (experts, gate) in enumerate(zip(mmq.specific, mmq.gates, strict=True)):
        weights = torch.softmax(gate(parts[m]), dim=0)
        for i in range(len(weights)):
            latents.append(parts[m] / len(parts[m]) ** 0.5 @ experts.weight[i] + experts.bias[i])
            gates.append(weights[i] if present[m] else torch.tensor(0.0))
            owners.append(m)
    chosen, quantization = [], 0.0
    for position, latent in enumerate(latents):
        cosines = cosine_similarity(latent.unsqueeze(0), mmq.codebooks[position])
        word = mmq.codebooks[position, int(cosines.argmax())]
        chosen.append(word)
        if owners[position] is None or present[owners[position]]:
            quantization += 2.25 * float((normalize(word, dim=0) - normalize(latent, dim=0)).square().sum())
    fused = sum(gate * word for gate, word in zip(gates, chosen, strict=True))
    guess = (s.mean + s.std * mmq.decoder(fused)).split(s.dims)
    losses = {"reconstruction": 0.0, "auxiliary": 0.0, "quantization": quantization}
    for m, decoder in enumerate(mmq.auxiliary_decoders):
        if not present[m]:
            continue
        alone = sum(word for word, owner in zip(chosen, owners, strict=True) if owner == m)
        mean, std = s.mean.split(s.dims)[m], s.std.split(s.dims)[m]
        losses["reconstruction"] += float((e[m] - guess[m]).square().sum())
        losses["auxiliary"] += float((e[m] - mean - std * decoder(alone)).square().sum())
    return losses


@torch.no_grad()
def test_losses_equal_the_equations_worked_out_item_by_item(learned):
    planted, mmq = learned
    rows = np.arange(30)
    contents = planted.catalogue.batch(rows)
    assert not contents.present.all()
    objective = mmq.objective(contents, quantized=True)
    items = [by_hand(mmq, contents, row) for row in rows]
    for name, value in objective.terms.items():
        assert float(value) == pytest.approx(sum(item[name] for item in items), rel=1e-4), name
    weighted = 12 * objective.terms["reconstruction"] + 10 * objective.terms["auxiliary"]
    torch.testing.assert_close(objective.items, weighted + 0.05 * objective.terms["quantization"])
    groups = (mmq.shared, *mmq.specific)
    torch.testing.assert_close(objective.weights, 0.005 * sum(group.overlap() for group in groups))


@BOTH_WAYS
def test_every_codebook_and_every_expert_receives_a_gradient(learning):
    config = SMALL.model_copy(update={"codebook_learning": learning})
    planted = plant(200)
    mmq = build(config)
    mmq.standardiser.fit(planted.catalogue, np.arange(200))
    mmq.objective(planted.catalogue.batch(np.arange(200)), quantized=True).items.backward()
    assert mmq.codebooks.grad is not None
    assert (mmq.codebooks.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in mmq.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_soft_index_alone_moves_every_codeword_without_the_loss_the_paper_lacks():
    config = SMALL.model_copy(update={"quantization_weight": 0.0})
    planted = plant(200)
    mmq = build(config)
    mmq.objective(planted.catalogue.batch(np.arange(200)), quantized=True).items.backward()
    assert mmq.codebooks.grad is not None
    assert (mmq.codebooks.grad.abs().sum(-1) > 0).all()


@BOTH_WAYS
def test_fitting_lowers_reconstruction_and_quantization_error_and_keeps_codes_alive(learning):
    catalogue = plant(400, 8, noise=0.3).catalogue
    gentle = QUICK.model_copy(update={"learning_rate": 3e-3})
    changes = {"codebook_learning": learning, "quantization_weight": 1.0, "fit": gentle}
    mmq = build(SMALL.model_copy(update=changes))
    reports = [report.scalars for report in mmq.fit(catalogue, np.arange(400), 0)]
    first, last = reports[QUICK.warmup_epochs], reports[-1]
    assert last["reconstruction"] < 0.75 * first["reconstruction"]
    assert last["quantization"] < 0.98 * first["quantization"]  # clusters were a good start already
    assert last["utilisation"] > 0.95
    assert last["entropy"] > 0.85 * np.log(8)


def purity(codes: np.ndarray, clusters: np.ndarray) -> float:
    """Share of items in the most frequent cluster of their code."""
    return sum(np.bincount(clusters[codes == code]).max() for code in np.unique(codes)) / len(codes)


def test_codes_of_a_modality_recover_its_own_clusters_and_not_the_other_ones(learned):
    planted, mmq = learned
    codes = mmq.encode(planted.catalogue.batch(np.arange(400))).numpy()
    has_vision = planted.catalogue.present["vision"]
    for position in (2, 3):
        assert purity(codes[:, position], planted.clusters["text"]) > 0.8
        assert purity(codes[:, position], planted.clusters["vision"]) < 0.4
    for position in (4, 5):
        assert purity(codes[has_vision, position], planted.clusters["vision"][has_vision]) > 0.8
        assert purity(codes[has_vision, position], planted.clusters["text"][has_vision]) < 0.4


def test_positions_of_a_missing_modality_hold_the_missing_code_and_no_other_does(learned):
    planted, mmq = learned
    codes = mmq.encode(planted.catalogue.batch(np.arange(400))).numpy()
    missing = ~planted.catalogue.present["vision"]
    np.testing.assert_array_equal(codes[:, 4:] == 8, np.stack([missing, missing], axis=1))
    assert codes[:, :4].max() < 8


def test_item_without_any_content_has_shared_codes_and_always_the_same_ones(learned):
    planted, mmq = learned
    present = {name: mask.copy() for name, mask in planted.catalogue.present.items()}
    for mask in present.values():
        mask[:3] = False
    codes = mmq.encode(ItemContents(planted.catalogue.vectors, present).batch(np.arange(3)))
    assert (codes == codes[0]).all()
    assert (codes[0, :2] < 8).all()
    assert (codes[0, 2:] == 8).all()


def test_missing_content_moves_neither_loss_nor_gradient(learned):
    planted, mmq = learned
    contents = planted.catalogue.batch(np.arange(60))
    noisy = [part.clone() for part in contents.vectors]
    noisy[1][~contents.present[:, 1]] = 7.0
    first = mmq.objective(contents, quantized=True)
    second = mmq.objective(Contents(tuple(noisy), contents.present), quantized=True)
    assert torch.equal(first.items, second.items)
    only_missing = planted.catalogue.batch(np.flatnonzero(~planted.catalogue.present["vision"])[:20])
    mmq.zero_grad()
    mmq.objective(only_missing, quantized=True).items.backward()
    for parameter in (*mmq.specific[1].parameters(), *mmq.auxiliary_decoders[1].parameters()):
        assert parameter.grad is None or not parameter.grad.any()
    assert mmq.codebooks.grad is not None
    assert not mmq.codebooks.grad[4:].any()
    mmq.zero_grad()


def test_gates_sum_to_one_for_every_modality_that_is_there(learned):
    planted, mmq = learned
    contents = planted.catalogue.batch(np.arange(50))
    gates = mmq.view(contents).gates
    torch.testing.assert_close(gates[:, 2:4].sum(1), torch.ones(50))
    torch.testing.assert_close(gates[:, 4:].sum(1), contents.present[:, 1].float())
    assert (gates[:, :2] == 1).all()


def test_reconstruction_from_codes_is_the_one_training_saw(learned):
    planted, mmq = learned
    contents = planted.catalogue.batch(np.arange(50))
    rebuilt = mmq.reconstruct(contents, mmq.encode(contents))
    errors = mmq.standardiser.errors(mmq.standardiser(contents), rebuilt, contents.present)
    with torch.no_grad():
        trained = mmq.objective(contents, quantized=True).terms["reconstruction"]
    torch.testing.assert_close(errors.sum(), trained)


@pytest.mark.parametrize(
    ("changes", "num_positions"),
    [({"num_shared": 0}, 6), ({"expert_hidden_dim": 24}, 9), ({"num_shared": 3, "num_specific": 1}, 6)],
)
def test_other_numbers_of_experts_and_a_third_modality_fit_as_well(changes, num_positions):
    two = plant(150, 5).catalogue
    audio = np.random.default_rng(0).normal(size=(150, 7)).astype(np.float32)
    three = ItemContents({**two.vectors, "audio": audio}, {**two.present, "audio": np.ones(150, bool)})
    config = SMALL.model_copy(update={"num_shared": 3} | changes)
    mmq = fitted(three, config.model_copy(update={"fit": QUICK.model_copy(update={"epochs": 5})}))
    assert mmq.encode(three.batch(np.arange(150))).shape == (150, num_positions)


def test_one_modality_is_enough():
    catalogue = plant(150, 5).catalogue
    alone = ItemContents({"text": catalogue.vectors["text"]}, {"text": catalogue.present["text"]})
    mmq = fitted(alone, SMALL.model_copy(update={"fit": QUICK.model_copy(update={"epochs": 5})}))
    assert mmq.position_names == ("shared_0", "shared_1", "text_0", "text_1")


def test_too_few_items_with_a_modality_are_refused_before_training():
    catalogue = plant(50).catalogue
    catalogue.present["vision"][6:] = False
    with pytest.raises(DataError, match=r"field 'vision': a codebook of 8 codes .* \(got 6\)"):
        next(build().fit(catalogue, np.arange(50), 0))


@BOTH_WAYS
def test_rank_that_has_no_row_of_a_batch_adds_nothing(learning):
    mmq = build(SMALL.model_copy(update={"codebook_learning": learning}))
    objective = mmq.objective(plant(20).catalogue.batch(np.arange(0)), quantized=True)
    assert float(objective.items.detach()) == 0
    objective.items.backward()
    for parameter in mmq.parameters():
        assert parameter.grad is None or not parameter.grad.any()
