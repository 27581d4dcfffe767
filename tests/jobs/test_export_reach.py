"""What a bundle says of its lists before it ships: how far they reach, and how sure metrics are."""

import json
from pathlib import Path

import pytest

from tests.jobs.conftest import Bundles
from trec_semid.checkpoints.bundle_files import read_manifest
from trec_semid.evaluation.target_positions import bootstrap_target_positions, read_target_positions
from trec_semid.metrics.intervals import interval
from trec_semid.serving.engine import open_engine
from trec_semid.serving.reader import Reader

EVERYTHING = 40
"""Items of the planted dataset."""


@pytest.mark.parametrize("name", ["hybrid", "rpg by a beam", "popularity"])
def test_a_bundle_says_how_far_its_lists_reach_and_how_sure_its_metrics_are(
    runs: Bundles, bundles: Bundles, name: str
):
    manifest, card = read_manifest(bundles(name)), Path(bundles(name), "README.md").read_text()
    result = json.loads(Path(runs(name), "metrics.json").read_text())
    measured, seed = manifest.measured, result["seed"]
    assert measured is not None
    assert (measured.num_users, measured.seeds) == (result["counts"]["test/users"], (seed,))
    targets = read_target_positions(runs(name), "test")
    drawn = interval([bootstrap_target_positions(targets, cutoffs=[10])["ndcg@10"]])
    low, high = measured.intervals["test/ndcg@10"]
    assert (low, high) == pytest.approx((drawn.low, drawn.high))
    assert f"| test/ndcg@10 | {drawn.value:.4f} | {low:.4f} to {high:.4f} |" in card
    assert f"Over {measured.num_users:,} users of the test split; seed of the training: {seed}." in card
    assert drawn.value == pytest.approx(result["metrics"]["test/ndcg@10"])
    facts = manifest.reach
    if name == "popularity":
        assert facts is None
        return
    assert facts is not None
    # Users without a history count in the run's coverage, and are none of those that the bundle lists for.
    coverage = result["metrics"]["test/coverage@10"]
    assert 0 < facts.listed[5] < facts.listed[10] <= coverage + 1e-9
    engine = open_engine(bundles(name))
    vectors, codes = engine._listers.members[0].catalogue.vectors, Reader(bundles(name)).codes
    keys = [
        ("" if vectors is None else vectors[row].numpy().tobytes(), tuple(codes[row].tolist()))
        for row in range(EVERYTHING)
    ]
    penalties = engine._listers._penalties.tolist()
    if name == "rpg by a beam":  # naive Bayes puts the more frequent of one tuple first
        penalties = (-engine._listers._counts).tolist()
    order = sorted(range(EVERYTHING), key=lambda row: (penalties[row], row))
    behind = {row: [keys[other] for other in order[:at]].count(keys[row]) for at, row in enumerate(order)}
    for length in (5, 10):
        hidden = [row for row in range(EVERYTHING) if behind[row] >= length]
        assert facts.hidden(length) * EVERYTHING == pytest.approx(len(hidden))
    assert {each.reason for each in facts.absent} <= {"duplicate", "blank", "missed"}
    if name == "rpg by a beam":
        (missed,) = [each for each in facts.absent if each.reason == "missed"]
        assert missed.counts[5] > 0
        assert f"`{missed.examples[0]}`" in card
        assert "missed by `beam`" in card
