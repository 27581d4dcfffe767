import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import TrainingError
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig, revive_codes, start_codebooks
from trec_semid.tokenizers.mmq_published import PublishedMmq, PublishedMmqConfig

NUM_ITEMS = 200


def build(**fit) -> PublishedMmq:
    torch.manual_seed(0)
    quick = CodebookFitConfig(**{"epochs": 8, "warmup_epochs": 2, "batch_size": 64} | fit)
    mmq = PublishedMmq(
        PublishedMmqConfig(codebook_size=6, latent_dim=8, decoder_widths=(32,), fit=quick), DIMS
    )
    mmq.standardiser.fit(plant(NUM_ITEMS).catalogue, np.arange(NUM_ITEMS))
    return mmq


def test_warm_up_leaves_codebooks_alone_and_the_start_puts_them_among_the_latents():
    catalogue, mmq = plant(NUM_ITEMS).catalogue, build()
    drawn = mmq.codebooks.detach().clone()
    fitting = mmq.fit(catalogue, np.arange(NUM_ITEMS), 0)
    reports = [next(fitting), next(fitting)]
    assert all("entropy" not in report.scalars for report in reports)
    torch.testing.assert_close(mmq.codebooks.detach(), drawn)
    third = next(fitting)
    assert third.scalars["utilisation"] == 1.0
    assert not torch.allclose(mmq.codebooks.detach(), drawn, atol=0.1)


@torch.no_grad()
def test_codebooks_start_as_long_as_latents_and_close_to_them():
    catalogue, mmq = plant(NUM_ITEMS).catalogue, build()
    start_codebooks(mmq, catalogue, np.arange(NUM_ITEMS), seed=0, num_items=NUM_ITEMS)
    latents, _ = mmq.latents(catalogue.batch(np.arange(NUM_ITEMS)))
    for position in range(latents.shape[1]):
        lengths = mmq.codebooks[position].norm(dim=1)
        torch.testing.assert_close(lengths, latents[:, position].norm(dim=1).mean().expand(6))
    cosine = torch.nn.functional.cosine_similarity(latents.unsqueeze(2), mmq.codebooks.unsqueeze(0), dim=-1)
    assert cosine.max(-1).values.mean() > 0.8


@torch.no_grad()
def test_masked_items_take_no_part_in_the_start_of_specific_codebooks():
    first, second = (plant(NUM_ITEMS, missing=0.5, seed=1).catalogue for _ in range(2))
    absent = ~second.present["vision"]
    second.vectors["vision"][absent] = 5.0
    books = []
    for catalogue in (first, second):
        mmq = build()
        start_codebooks(mmq, catalogue, np.arange(NUM_ITEMS), seed=0, num_items=NUM_ITEMS)
        books.append(mmq.codebooks.clone())
    assert torch.equal(*books)


def test_dead_codes_move_onto_latents_of_items_and_lose_their_momentum():
    catalogue, mmq = plant(NUM_ITEMS, missing=0.5).catalogue, build()
    optimizer = torch.optim.AdamW(mmq.parameters())
    mmq.objective(catalogue.batch(np.arange(NUM_ITEMS)), quantized=True).items.backward()
    optimizer.step()
    usage = torch.ones(6, 6)
    usage[1, 2] = usage[5, 0] = usage[5, 3] = 0
    before = mmq.codebooks.detach().clone()
    assert revive_codes(mmq, optimizer, catalogue, np.arange(NUM_ITEMS), usage, seed=0) == 3
    moved = (mmq.codebooks.detach() != before).any(-1)
    assert torch.equal(moved, usage == 0)
    with torch.no_grad():
        latents, present = mmq.latents(catalogue.batch(np.arange(NUM_ITEMS)))
    for position, code in ((1, 2), (5, 0), (5, 3)):
        candidates = latents[present[:, position], position]
        assert (candidates - mmq.codebooks[position, code]).abs().sum(1).min() < 1e-4
    moments = optimizer.state[mmq.codebooks]["exp_avg"].abs().sum(-1)
    assert not moments[usage == 0].any()
    assert (moments[usage > 0] > 0).any()


def test_codes_that_died_are_revived_while_training_and_only_in_its_first_half():
    catalogue, mmq = plant(NUM_ITEMS).catalogue, build(epochs=12, revive_every=1)
    revived: dict[int, float] = {}
    for report in mmq.fit(catalogue, np.arange(NUM_ITEMS), 0):
        revived[report.round] = report.scalars.get("revived_codes", 0)
        if report.round in (4, 9):
            with torch.no_grad():  # kill: a code opposite to another one's direction wins nothing
                mmq.codebooks[:, 0] = -latent_mean(mmq, catalogue)
    assert revived[5] >= 1
    assert all(count == 0 for epoch, count in revived.items() if epoch > 6)


def latent_mean(mmq: PublishedMmq, catalogue) -> torch.Tensor:
    latents, _ = mmq.latents(catalogue.batch(np.arange(NUM_ITEMS)))
    # Far from every latent: minus the sum of all clusters' directions.
    return torch.nn.functional.normalize(latents, dim=-1).mean(0)


def test_training_stops_after_epochs_without_progress():
    catalogue = plant(NUM_ITEMS).catalogue
    mmq = build(epochs=30, learning_rate=1e-9, patience=4)
    rounds = [report.round for report in mmq.fit(catalogue, np.arange(NUM_ITEMS), 0)]
    assert 6 <= rounds[-1] < 12


def test_loss_that_is_not_finite_ends_training_with_a_remedy():
    catalogue, mmq = plant(NUM_ITEMS).catalogue, build()
    fitting = mmq.fit(catalogue, np.arange(NUM_ITEMS), 0)
    next(fitting)
    with torch.no_grad():
        mmq.decoder.layers[0].weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"not finite\. Lower fit\.learning_rate"):
        next(fitting)


def test_warm_up_as_long_as_training_is_refused():
    with pytest.raises(ValidationError, match=r"warmup_epochs must be below epochs \(5\)"):
        CodebookFitConfig(epochs=5, warmup_epochs=5)
