import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.hashing import tuple_keys
from trec_semid.tokenizers.measures.drift import (
    DriftMeter,
    describe_errors,
    divergence,
    divergence_by_chance,
)

counts = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


@given(counts, counts)
def test_divergence_is_the_textbook_sum_symmetric_and_within_a_bit(first: list[int], second: list[int]):
    p, q = ([n / sum(each) for n in each] for each in (first, second))
    expected = 0.0
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        expected += 0.5 * sum(x * math.log2(x / middle) for x in (a, b) if x)
    found = divergence(np.array(first), np.array(second))
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx(divergence(np.array(second), np.array(first)))
    assert 0 <= found <= 1 + 1e-12


def test_divergence_of_equal_and_of_apart_histograms():
    assert divergence(np.array([2, 4, 0]), np.array([1, 2, 0])) == 0
    assert divergence(np.array([3, 0]), np.array([0, 9])) == pytest.approx(1)


def test_few_items_diverge_by_chance_about_as_much_as_stated_and_shifted_ones_more():
    known = np.arange(1, 201)
    generator = np.random.default_rng(3)
    limit = divergence_by_chance(known, 150, "codes")
    drawn = [divergence(known, generator.multinomial(150, known / known.sum())) for _ in range(400)]
    assert 0.90 < np.mean(np.array(drawn) <= limit) < 0.99
    shifted = generator.multinomial(150, known[::-1] / known.sum())
    assert divergence(known, shifted) > limit


def test_errors_are_described_over_items_that_have_what_is_asked_about():
    generator = np.random.default_rng(1)
    errors = generator.random((1000, 2)).astype(np.float32)
    present = generator.random((1000, 2)) < 0.8
    described = describe_errors(errors * present, present, ["text", "vision"])
    complete = [float(row.sum()) for row, has in zip(errors, present, strict=True) if has.all()]
    assert described["every_modality"]["items"] == len(complete) == sum(described["every_modality"]["counts"])
    assert described["every_modality"]["mean"] == pytest.approx(np.mean(complete), rel=1e-6)
    beyond = sum(value > described["every_modality"]["quantile_99"] for value in complete)
    assert beyond == pytest.approx(0.01 * len(complete), abs=1)
    text = described["modalities"]["text"]
    assert text["items"] == present[:, 0].sum()
    assert max(text["counts"]) - min(text["counts"]) <= 2  # bins of equally many items
    nobody = describe_errors(errors, np.zeros_like(present), ["text", "vision"])
    assert nobody == {"every_modality": None, "modalities": {"text": None, "vision": None}}


def meter_of(trained: np.ndarray, codes: np.ndarray) -> DriftMeter:
    usage = np.bincount(codes[:, 0], minlength=5)
    quality = {
        "num_items": len(codes),
        "positions": [{"name": "only", "counts": usage[:4].tolist(), "missing": int(usage[4])}],
        "modalities": {"text": {"present": len(codes)}},
        "training_errors": describe_errors(trained, np.ones_like(trained, bool), ["text"]),
    }
    return DriftMeter(quality, (4,))


def test_meter_counts_what_a_loop_over_items_counts_whatever_the_batches():
    generator = np.random.default_rng(2)
    trained, old = generator.random((500, 1)), generator.integers(0, 3, (500, 1))
    errors, codes = 1.2 * generator.random((300, 1)), generator.integers(1, 5, (300, 1))
    present = generator.random((300, 1)) < 0.9
    reports = []
    for size in (300, 7):
        meter = meter_of(trained, old)
        for at in range(0, 300, size):
            meter.add(codes[at : at + size], errors[at : at + size], present[at : at + size])
        reports.append(meter.report(tuple_keys(old, (4,))))
    whole, pieces = reports
    whole["errors"]["every_modality"]["mean"] = pieces["errors"]["every_modality"]["mean"]
    whole["errors"]["modalities"]["text"]["mean"] = pieces["errors"]["modalities"]["text"]["mean"]
    assert whole == pieces
    limit = np.quantile(trained, 0.99)
    has = present[:, 0]
    found = whole["errors"]["modalities"]["text"]
    assert found["outside_share"] == pytest.approx(np.mean([e > limit for e in errors[has, 0]]))
    assert found["items"] == has.sum()
    assert whole["missing"]["text"]["new_share"] == pytest.approx(1 - has.mean())
    assert whole["positions"][0]["new_items_on_unused_codes"] == sum(c >= 3 for c in codes[:, 0])
    assert whole["collisions"]["with_existing_items"] == sum(c in set(old[:, 0]) for c in codes[:, 0])
    assert whole["collisions"]["among_new_items"] == 300
    assert whole["collisions"]["largest_new_group"] == max(np.bincount(codes[:, 0]))
