"""What the planted world promises, measured from its files and with other people's tools."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from trec_semid.core.config import load_config
from trec_semid.core.errors import DataError
from trec_semid.data.prepare import PrepareConfig, prepare_dataset
from trec_semid.data.schema import Dataset
from trec_semid.data.synthetic.files import write_world
from trec_semid.data.synthetic.truth import Ceilings, coin_bits, information, parity_bits
from trec_semid.data.synthetic.world import SyntheticConfig, World, mixing
from trec_semid.metrics.auc import auc

ROOT = Path(__file__).resolve().parents[3]


def config(folder: object = "unused", **changes: object) -> SyntheticConfig:
    return SyntheticConfig.model_validate({"folder": str(folder), **changes})


@pytest.fixture(scope="module")
def catalogue() -> tuple[World, np.ndarray, np.ndarray]:
    factors = {"text": 1, "vision": 1, "redundant": 1, "synergy": 1}
    world = World(config(num_items=8000, factors=factors, text_noise=0.6, vision_noise=0.6))
    return world, world.content(0, 8000, "text"), world.content(0, 8000, "vision")


def probe_bits(features: np.ndarray, factor: np.ndarray) -> float:
    """What a logistic probe, fitted on one half, knows of a fair coin in the other half [bits]."""
    half = len(factor) // 2
    probe = LogisticRegression(C=10.0).fit(features[:half], factor[:half] > 0)
    right = probe.predict_proba(features[half:])[np.arange(half), (factor[half:] > 0).astype(int)]
    return 1 + np.mean(np.log2(right))


def products(text: np.ndarray, vision: np.ndarray) -> np.ndarray:
    both = np.concatenate([text, vision], axis=1)
    return np.concatenate([both, (text[:, :, None] * vision[:, None, :]).reshape(len(text), -1)], axis=1)


def quadratic(one: np.ndarray) -> np.ndarray:
    return products(one, one)


def test_synergy_is_in_no_modality_alone_whatever_the_probe_and_in_both_together(
    catalogue: tuple[World, np.ndarray, np.ndarray],
):
    world, text, vision = catalogue
    synergy = world.factors.synergy[:, 0]
    side_by_side = np.concatenate([text, vision], axis=1)
    for features in (text, vision, quadratic(text), quadratic(vision), side_by_side):
        assert probe_bits(features, synergy) < 0.01
    known = information(world.config)["synergy"].both
    found = probe_bits(products(text, vision), synergy)
    # A logistic probe of products is not quite the posterior tanh · tanh, and overfits a little.
    assert 0.5 * known < found < known + 0.03


def test_each_other_factor_shows_where_it_should_with_the_stated_information(
    catalogue: tuple[World, np.ndarray, np.ndarray],
):
    world, text, vision = catalogue
    stated = information(world.config)
    for kind in ("text", "vision", "redundant"):
        factor = getattr(world.factors, kind)[:, 0]
        # One coin in Gaussian noise has a logistic posterior, so the probe reaches the information.
        assert probe_bits(text, factor) == pytest.approx(stated[kind].text, abs=0.03)
        assert probe_bits(vision, factor) == pytest.approx(stated[kind].vision, abs=0.03)
        both = probe_bits(np.concatenate([text, vision], axis=1), factor)
        assert both == pytest.approx(stated[kind].both, abs=0.03)


def test_loudness_is_the_step_of_a_factor_and_the_bits_follow():
    factors = {"text": 1, "vision": 1, "redundant": 1, "synergy": 1}
    loudness = {"text": 0.5, "vision": 2.0, "redundant": 0.4, "synergy": 1.5}
    noises = {"text_noise": 0.6, "vision_noise": 0.6}
    plain = World(config(num_items=8000, factors=factors, **noises))
    world = World(config(num_items=8000, factors=factors, loudness=loudness, **noises))
    text, vision = (world.content(0, 8000, name) for name in ("text", "vision"))
    louder = (text - plain.content(0, 8000, "text")) @ mixing(world.config, "text")
    coins = (world.factors.text, world.factors.redundant, world.factors.text_half)
    steps = np.concatenate(coins, axis=1) * [-0.5, -0.6, 0.5]
    np.testing.assert_allclose(louder, steps, atol=1e-5)
    stated = information(world.config)
    for kind, features in (("text", text), ("vision", vision), ("redundant", np.hstack([text, vision]))):
        found = probe_bits(features, getattr(world.factors, kind)[:, 0])
        assert found == pytest.approx(stated[kind].both, abs=0.03)
    assert stated["synergy"].both == pytest.approx(parity_bits(0.4, 0.4))


@pytest.mark.parametrize("noise", [0.25, 0.7, 1.5])
def test_bits_of_a_coin_and_of_a_parity_are_those_of_the_exact_posterior_on_drawn_data(noise: float):
    generator = np.random.default_rng(5)
    first, second = 2 * generator.integers(0, 2, (2, 400_000)) - 1
    y, z = (
        first + noise * generator.standard_normal(400_000),
        second + noise * generator.standard_normal(400_000),
    )
    knows = 1 / (1 + np.exp(-2 * y * first / noise**2))
    assert coin_bits(noise) == pytest.approx(1 + np.mean(np.log2(knows)), abs=0.005)
    # P(both as they are) + P(both the other way), by enumeration.
    mine, other = 1 / (1 + np.exp(-2 * y / noise**2)), 1 / (1 + np.exp(-2 * z / noise**2))
    positive = mine * other + (1 - mine) * (1 - other)
    right = np.where(first * second > 0, positive, 1 - positive)
    assert parity_bits(noise, noise) == pytest.approx(1 + np.mean(np.log2(right)), abs=0.005)


def test_factors_are_independent_fair_coins_and_mixing_keeps_them_apart():
    world = World(config(num_items=20_000, factors={"redundant": 2}))
    every = np.concatenate([*world.factors, world.factors.synergy], axis=1).astype(float)
    moments = every.T @ every / len(every)
    assert np.abs(moments - np.eye(len(moments))).max() < 0.03
    assert np.abs(every.mean(0)).max() < 0.03
    axes = mixing(world.config, "text")
    np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-6)


def test_probability_is_the_formula_and_the_one_without_synergy_its_average_over_all_patterns():
    world = World(config(num_events=300, num_users=20, num_items=30, factors={"synergy": 3, "redundant": 1}))
    events = world.events(0, 300)
    counts, strength = world.config.factors, world.config.strength
    for row in range(300):
        user, item = events.users[row], events.items[row]
        groups = np.split(
            world.preferences[user].astype(float),
            np.cumsum([counts.text, counts.vision, counts.redundant]),
        )

        def likes(synergy: np.ndarray, groups: list = groups, item: int = item) -> float:
            shown = [getattr(world.factors, kind)[item] for kind in ("text", "vision", "redundant")]
            names = ("text", "vision", "redundant", "synergy")
            logit = world.config.bias
            for name, theta, values in zip(names, groups, [*shown, synergy], strict=True):
                logit += getattr(strength, name) * float(theta @ values) / len(values) ** 0.5
            return 1 / (1 + np.exp(-logit))

        assert events.probability[row] == pytest.approx(likes(world.factors.synergy[item]), abs=1e-5)
        patterns = [np.array([a, b, c]) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
        average = np.mean([likes(pattern) for pattern in patterns])
        assert events.without_synergy[row] == pytest.approx(average, abs=1e-5)


def test_stated_ceilings_are_the_auc_of_the_true_probabilities_on_a_million_events():
    world, ceilings = World(config(num_events=1_000_000)), Ceilings()
    events = world.events(0, 1_000_000)
    ceilings.add(events)
    stated = ceilings.result()
    assert stated["auc"] == pytest.approx(auc(events.probability, events.labels), abs=0.002)
    assert stated["auc_without_synergy"] == pytest.approx(
        auc(events.without_synergy, events.labels), abs=0.002
    )
    assert stated["auc"] - stated["auc_without_synergy"] > 0.2  # users' preferences need the synergy
    assert events.labels.mean() == pytest.approx(events.probability.mean(), abs=0.002)


def test_expected_auc_is_that_of_a_sum_over_all_pairs():
    world, ceilings = World(config(num_events=700)), Ceilings()
    events = world.events(0, 700)
    ceilings.add(events)
    p = events.probability.astype(np.float64)
    better = (p[:, None] > p[None, :]) + 0.5 * (p[:, None] == p[None, :])
    pairs = p[:, None] * (1 - p)[None, :]
    assert ceilings.result()["auc"] == pytest.approx((better * pairs).sum() / pairs.sum(), abs=1e-4)


@pytest.mark.parametrize("chunk_rows", [1, 999, 65_536, 70_000])
def test_rows_do_not_depend_on_how_many_are_drawn_at_a_time(chunk_rows: int):
    world = World(config(num_events=200_000, num_items=9000))
    start, stop = (65_400, 65_700) if chunk_rows == 1 else (0, 200_000)
    pieces = [world.events(at, min(at + chunk_rows, stop)) for at in range(start, stop, chunk_rows)]
    for whole, parts in zip(world.events(start, stop), zip(*pieces, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    step = max(chunk_rows // 10, 7)
    text = [world.content(at, min(at + step, 9000), "text") for at in range(0, 9000, step)]
    np.testing.assert_allclose(np.concatenate(text), world.content(0, 9000, "text"), atol=1e-6)


def table(folder: Path, name: str) -> dict[str, np.ndarray]:
    read = pq.read_table(folder / name)
    return {key: read[key].to_numpy() for key in read.column_names}


def test_files_are_the_world_whatever_the_chunks_and_other_seeds_are_other_worlds(tmp_path: Path):
    for name, changes, chunk_rows in (("a", {}, 1000), ("b", {}, 1 << 18), ("c", {"seed": 1}, 1 << 18)):
        write_world(config(tmp_path / name, num_events=5000, **changes), chunk_rows=chunk_rows)
    a, b, c = (table(tmp_path / name, "interactions") for name in "abc")
    world = World(config(num_events=5000))
    events = world.events(0, 5000)
    np.testing.assert_array_equal(a["item_id"], events.items)
    assert all((a[key] == b[key]).all() for key in a)
    assert (a["item_id"] != c["item_id"]).any()
    np.testing.assert_array_equal(np.load(tmp_path / "a/text.npy"), world.content(0, 500, "text"))
    truth = table(tmp_path / "a", "truth/events")
    np.testing.assert_array_equal(truth["probability"], events.probability)
    assert json.loads((tmp_path / "a/truth.json").read_text())["positives"] == events.labels.sum()


def prepared(tmp_path: Path) -> PrepareConfig:
    sets = [f"out={tmp_path}/data", f"source.folder={tmp_path}/raw", "source.num_events=20000"]
    sets += [f"content.{name}.file={tmp_path}/raw/{name}.npy" for name in ("text", "vision")]
    return load_config(PrepareConfig, [str(ROOT / "configs/data/synthetic.toml")], sets)


def test_ordinary_prepare_reads_it_and_the_truth_joins_on_order(tmp_path: Path):
    prepare_dataset(prepared(tmp_path))
    dataset = Dataset(str(tmp_path / "data"))
    assert dataset.facts.num_events == 20_000
    assert dataset.facts.tied_events == 0
    events = dataset.events(["user_row", "item_row", "label", "order"])
    raw, truth = table(tmp_path / "raw", "interactions"), table(tmp_path / "raw", "truth/events")
    order = events["order"].to_numpy()
    items = np.array(dataset.item_ids.to_pylist()).astype(int)
    np.testing.assert_array_equal(items[events["item_row"].to_numpy()], raw["item_id"][order])
    np.testing.assert_array_equal(events["label"].to_numpy(), raw["label"][order])
    assert auc(truth["probability"][order], events["label"].to_numpy()) > 0.8
    np.testing.assert_array_equal(dataset.content("text"), np.load(tmp_path / "raw/text.npy")[items])


def test_world_that_is_there_is_kept_and_another_one_replaces_it(tmp_path: Path):
    first = prepared(tmp_path)
    prepare_dataset(first)
    made = (tmp_path / "raw/truth.json").stat().st_mtime_ns
    prepare_dataset(first)
    assert (tmp_path / "raw/truth.json").stat().st_mtime_ns == made
    other = first.model_copy(update={"source": first.source.model_copy(update={"seed": 3})})
    prepare_dataset(other)
    assert json.loads((tmp_path / "raw/truth.json").read_text())["config"]["seed"] == 3


def test_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="something else than a planted world"):
        prepare_dataset(prepared(tmp_path))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "changes",
    [
        {"text_dim": 3},
        {"factors": {"synergy": 7}},
        {"text_noise": 0},
        {"popularity_skew": 0.5},
        {"loudness": {"text": 1, "vision": 1, "redundant": 1, "synergy": 0}},
    ],
)
def test_worlds_that_cannot_be_are_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        config(**changes)


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path):
    program = (
        "import resource, sys\n"
        "from trec_semid.data.synthetic.world import SyntheticConfig\n"
        "from trec_semid.data.synthetic.files import write_world\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for rows in (200_000, 200_000, 1_200_000):\n"
        "    write_world(SyntheticConfig(folder=sys.argv[1], num_events=rows), chunk_rows=1 << 16)\n"
        "    print(peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "raw")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    _, small, large = (int(line) for line in done.stdout.split())
    # A million rows more of what is drawn and written are 49 MB at the very least.
    assert large - small < 25_000  # [KiB]
