import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.tokenizers.planted import DIMS, plant
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig, start_codebooks
from trec_semid.tokenizers.rq_vae import RqVae, RqVaeConfig

FIT = CodebookFitConfig(epochs=20, warmup_epochs=4, batch_size=64, learning_rate=5e-3)
SMALL = RqVaeConfig(codebook_size=12, levels=4, latent_dim=12, hidden_widths=(32,), fit=FIT)
NUM_ITEMS = 200


def build(**changes) -> RqVae:
    torch.manual_seed(0)
    vae = RqVae(SMALL.model_copy(update=changes), DIMS)
    vae.standardiser.fit(plant(NUM_ITEMS).catalogue, np.arange(NUM_ITEMS))
    return vae


@pytest.mark.parametrize("modalities", ["aligned", "separated"])
@torch.no_grad()
def test_losses_equal_the_equations_worked_out_item_by_item(modalities):
    vae = build(modalities=modalities)
    catalogue = plant(NUM_ITEMS, missing=0.3).catalogue
    vae.spread.fill_(2.0)
    contents = catalogue.batch(np.arange(20))
    objective = vae.objective(contents, quantized=True)
    x, reconstruction, quantization = vae.standardiser(contents), 0.0, 0.0
    for row in range(20):
        parts = [x[row]] if modalities == "aligned" else x[row].split(list(DIMS.values()))
        rebuilt = []
        for index, (part, channel) in enumerate(zip(parts, vae.fusion.channels, strict=True)):
            left = z = vae.encoders[index](part)
            for book in vae.codebooks[channel.positions]:
                word = book[(book - left).square().sum(1).argmin()]
                if modalities == "aligned" or contents.present[row, index]:
                    quantization += 1.25 * float((left - word).square().sum()) / 2.0
                left = left - word
            rebuilt.append(vae.decoders[index](z - left))
        gap = (x[row] - torch.cat(rebuilt)) * vae.standardiser.std
        reconstruction += float(gap[vae.standardiser.spread(contents.present)[row]].square().sum())
    assert float(objective.terms["reconstruction"]) == pytest.approx(reconstruction, rel=1e-4)
    assert float(objective.terms["quantization"]) == pytest.approx(quantization, rel=1e-4)
    weighted = objective.terms["reconstruction"] + 0.03 * objective.terms["quantization"]
    torch.testing.assert_close(objective.items, weighted)


def test_gradient_passes_straight_through_to_the_encoder():
    vae = build(quantization_weight=0.0)
    contents = plant(NUM_ITEMS).catalogue.batch(np.arange(50))
    vae.objective(contents, quantized=True).items.backward()
    found = [parameter.grad.clone() for parameter in vae.encoders.parameters()]
    z = vae.encoders[0](vae.standardiser(contents))
    chosen = vae._codewords(vae.encode(contents)).sum(1)
    rebuilt = vae.decoders[0](z + (chosen - z).detach())
    loss = vae.standardiser.errors(vae.standardiser(contents), rebuilt, contents.present).sum()
    expected = torch.autograd.grad(loss, list(vae.encoders.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert vae.codebooks.grad is None or not vae.codebooks.grad.any()


@torch.no_grad()
def test_every_level_starts_from_clusters_of_what_the_levels_above_left_over():
    catalogue = plant(NUM_ITEMS, noise=0.4).catalogue
    vae = build()
    start_codebooks(vae, catalogue, np.arange(NUM_ITEMS), seed=0, num_items=NUM_ITEMS)
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    left = vae.encoders[0](vae.standardiser(contents))
    lengths = [float(left.square().sum(1).mean())]
    for book in vae.codebooks:
        codes = torch.cdist(left, book).argmin(1)
        assert len(codes.unique()) == 12
        for code in range(12):  # a converged centroid is the mean of its own
            torch.testing.assert_close(left[codes == code].mean(0), book[code], atol=1e-3, rtol=1e-3)
        left = left - book[codes]
        lengths.append(float(left.square().sum(1).mean()))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 0.3 * lengths[0]


def test_fitting_lowers_reconstruction_and_keeps_codes_alive():
    catalogue = plant(400, 8, noise=0.3).catalogue
    reports = [report.scalars for report in build().fit(catalogue, np.arange(400), 0)]
    assert reports[-1]["reconstruction"] < 0.8 * reports[FIT.warmup_epochs]["reconstruction"]
    assert reports[-1]["utilisation"] > 0.95
    assert reports[-1]["entropy"] > 0.8 * np.log(12)


def test_temperature_is_in_units_of_the_latents_own_spread():
    catalogue = plant(NUM_ITEMS).catalogue
    vae = build()
    fitting = vae.fit(catalogue, np.arange(NUM_ITEMS), 0)
    for _ in range(FIT.warmup_epochs):
        next(fitting)
    with torch.no_grad():
        z = vae.encoders[0](vae.standardiser(catalogue.batch(np.arange(NUM_ITEMS))))
    spread = float((z - z.mean(0)).square().sum(1).mean())
    next(fitting)  # measured when codebooks start
    assert vae.temperatures().tolist() == pytest.approx([0.1 * spread] * 4, rel=1e-4)
    assert vae.temperatures(0.5).tolist() == pytest.approx([0.5 * spread] * 4, rel=1e-4)


def test_without_warm_up_the_spread_is_that_of_the_first_latents():
    catalogue = plant(NUM_ITEMS).catalogue
    vae = build(fit=FIT.model_copy(update={"warmup_epochs": 0}))
    next(vae.fit(catalogue, np.arange(NUM_ITEMS), 0))
    assert (vae.spread != 1.0).all()


def test_separated_modalities_take_turns_in_stages_and_the_first_gets_what_is_over():
    vae = build(modalities="separated", levels=5)
    assert vae.position_names == ("text_0", "text_1", "text_2", "vision_0", "vision_1")
    assert vae.stages == ((0, 3), (1, 4), (2,))
    assert build().stages == ((0,), (1,), (2,), (3,))


def test_contrast_between_separated_modalities_is_refused():
    with pytest.raises(ValidationError, match='alignment "contrastive" is for modalities = "aligned"'):
        RqVaeConfig(modalities="separated", alignment="contrastive")
