import json

import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.collisions import resolve_collisions
from trec_semid.tokenizers.encode import Encoded, encode_catalogue
from trec_semid.tokenizers.measures import quality as quality_module
from trec_semid.tokenizers.measures.quality import describe_quality, quality_metrics
from trec_semid.tokenizers.mmq_published import PublishedMmq, PublishedMmqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig

NUM_ITEMS = 150


def describe(tokenizer, catalogue, encoded, fitted):
    resolved = resolve_collisions("keep", tokenizer, catalogue, encoded)
    return describe_quality(tokenizer, "rq_kmeans", catalogue, resolved, fitted, seed=0)


@pytest.fixture(scope="module")
def described():
    catalogue = plant(NUM_ITEMS, missing=0.2).catalogue
    torch.manual_seed(0)
    tokenizer = RqKmeans(RqKmeansConfig(codebook_size=12, levels=3), DIMS)
    fitted = np.arange(100)
    list(tokenizer.fit(catalogue, fitted, 0))
    encoded = encode_catalogue(tokenizer, catalogue)
    return (
        catalogue,
        tokenizer,
        encoded,
        describe(tokenizer, catalogue, encoded, fitted),
    )


def test_positions_are_described_by_their_counts(described):
    _, _, encoded, quality = described
    assert [position["name"] for position in quality["positions"]] == ["level_0", "level_1", "level_2"]
    for r, position in enumerate(quality["positions"]):
        counts = np.bincount(encoded.codes[:, r], minlength=12)
        assert position["counts"] == counts.tolist()
        shares = counts[counts > 0] / NUM_ITEMS
        assert position["entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
        assert position["perplexity"] == pytest.approx(np.exp(position["entropy"]))
        assert position["utilisation"] == position["used"] / 12
    for name in ("utilisation", "entropy", "perplexity"):
        assert quality[name] == pytest.approx(np.mean([each[name] for each in quality["positions"]]))


def test_reconstruction_follows_the_stated_convention(described):
    catalogue, tokenizer, encoded, quality = described
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    rebuilt = (
        tokenizer.reconstruct(contents, torch.from_numpy(encoded.codes).long()) + tokenizer.standardiser.mean
    )
    present = catalogue.present["vision"]
    squares = (tokenizer.standardiser.unit(contents) - rebuilt).square().numpy()
    text, vision = squares[:, :12].sum(1), squares[:, 12:].sum(1) * present
    assert quality["reconstruction"] == pytest.approx((text + vision).mean(), rel=1e-4)
    assert quality["modalities"]["text"]["reconstruction"] == pytest.approx(text.mean(), rel=1e-4)
    assert quality["modalities"]["vision"]["reconstruction"] == pytest.approx(
        vision.sum() / present.sum(), rel=1e-4
    )
    assert quality["modalities"]["vision"] | {"reconstruction": 0} == {
        "dim": 20,
        "present": int(present.sum()),
        "reconstruction": 0,
    }
    assert quality["reconstruction_of_unfitted_items"] == pytest.approx(
        (text + vision)[100:].mean(), rel=1e-4
    )
    assert quality["reconstruction_of_unfitted_items"] > quality["reconstruction"]
    assert "mean over items" in quality["reconstruction_convention"]


def test_tuples_are_counted(described):
    _, _, encoded, quality = described
    tuples = [tuple(row) for row in encoded.codes.tolist()]
    assert quality["unique_tuples"] == len(set(tuples))
    assert quality["unique_share"] == len(set(tuples)) / NUM_ITEMS
    colliding = [item for item in tuples if tuples.count(item) > 1]
    assert quality["items_in_collisions"] == len(colliding)
    assert quality["collision_groups"] == len(set(colliding))
    assert quality["largest_group"] == max(tuples.count(item) for item in tuples)


def test_what_positions_say_together_and_alone_is_in_the_file(described):
    _, _, encoded, quality = described
    tuples = [tuple(row) for row in encoded.codes.tolist()]
    alone = sum(tuples.count(own) == 1 for own in tuples)
    assert quality["alone_share"] == pytest.approx(alone / NUM_ITEMS)
    assert [(pair["left"], pair["right"]) for pair in quality["pairs"]] == [
        ("level_0", "level_1"),
        ("level_0", "level_2"),
        ("level_1", "level_2"),
    ]
    for key, name in (("shared_information", "shared"), ("joint_entropy", "joint_entropy")):
        assert quality[key] == pytest.approx(np.mean([pair[name] for pair in quality["pairs"]]))
    assert quality["reconstruction_from_codes"] == pytest.approx(quality["reconstruction"], rel=1e-5)
    assert set(quality["readout_by_modality"]) == set(DIMS)
    assert 0.2 < quality["readout"] < 1
    assert quality["readout"] == pytest.approx(
        np.mean(list(quality["readout_by_modality"].values())), abs=0.2
    )


def test_codes_that_say_the_same_twice_and_a_decoder_that_reads_content_are_called_by_name():
    catalogue = plant(NUM_ITEMS, missing=0.2).catalogue
    torch.manual_seed(0)
    small = PublishedMmqConfig(
        codebook_size=4,
        num_shared=2,
        num_specific=2,
        latent_dim=6,
        decoder_widths=(16,),
        fit=CodebookFitConfig(epochs=30, warmup_epochs=10, batch_size=50),
    )
    tokenizer = PublishedMmq(small, DIMS)
    list(tokenizer.fit(catalogue, np.arange(NUM_ITEMS), 0))
    encoded = encode_catalogue(tokenizer, catalogue)
    twice = encoded._replace(codes=encoded.codes[:, [0, 0, 2, 3, 4, 5]])
    quality = describe(tokenizer, catalogue, twice, np.arange(NUM_ITEMS))
    assert "positions shared_0 and shared_1 say the same: 100% of what" in quality["remarks"][0]
    assert any("of the items share their tuple" in remark for remark in quality["remarks"])
    # Decoded by hand with the gates of x = 0: an item of which nothing is known.
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    gates = torch.cat(
        [
            torch.ones(2),
            *(
                torch.softmax(gate(torch.zeros(dim)), 0)
                for gate, dim in zip(tokenizer.gates, DIMS.values(), strict=True)
            ),
        ]
    )
    here = torch.cat([contents.present.new_ones(NUM_ITEMS, 2), contents.present.repeat_interleave(2, 1)], 1)
    words = torch.stack(
        [
            book[c.clamp(max=3)]
            for book, c in zip(tokenizer.codebooks, torch.from_numpy(twice.codes).long().T, strict=True)
        ],
        1,
    )
    rebuilt = tokenizer.decoder((words * (gates * here).unsqueeze(2)).sum(1)).detach()
    x = tokenizer.standardiser(contents)
    expected = tokenizer.standardiser.errors(x, rebuilt, contents.present).sum(1).mean()
    assert quality["reconstruction_from_codes"] == pytest.approx(float(expected), rel=1e-4)


def test_near_items_share_more_codes_than_pairs_drawn_by_chance(described):
    _, _, _, quality = described
    agreement = quality["neighbour_agreement"]
    assert agreement["mean_code_overlap_of_neighbours"] > 2 * agreement["mean_code_overlap_of_random_pairs"]
    assert sum(row["pairs"] for row in agreement["by_shared_codes"]) == NUM_ITEMS * (NUM_ITEMS - 1)


def test_metrics_are_plain_numbers_drawn_from_the_file(described):
    _, _, _, quality = described
    metrics, counts = quality_metrics(json.loads(json.dumps(quality, allow_nan=False)))
    assert metrics["all/reconstruction"] == quality["reconstruction"]
    assert metrics["unfitted/reconstruction"] == quality["reconstruction_of_unfitted_items"]
    assert metrics["all/reconstruction/vision"] == quality["modalities"]["vision"]["reconstruction"]
    assert all(isinstance(value, float) for value in metrics.values())
    assert counts["all/items"] == NUM_ITEMS
    assert counts["fitted/items"] == 100
    assert all(isinstance(value, int) for value in counts.values())


def test_tokenizer_fitted_on_everything_has_no_unfitted_items(described):
    catalogue, tokenizer, encoded, _ = described
    quality = describe(tokenizer, catalogue, encoded, np.arange(NUM_ITEMS))
    assert quality["reconstruction_of_unfitted_items"] is None
    assert "unfitted/reconstruction" not in quality_metrics(quality)[0]


def test_large_catalogues_are_compared_on_a_sample(described, monkeypatch):
    catalogue, tokenizer, encoded, _ = described
    monkeypatch.setattr(quality_module, "MAX_COMPARED_ITEMS", 40)
    quality = describe(tokenizer, catalogue, Encoded(*encoded), np.arange(NUM_ITEMS))
    pairs = sum(row["pairs"] for row in quality["neighbour_agreement"]["by_shared_codes"])
    assert pairs == 40 * 39
