"""A report on retrievers against plain loops over the files of their runs."""

import glob
import math
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.datasets import write_small_dataset
from tests.report.fake_retrieval import COVERED, write_positions, write_retrieve_run
from tests.report.fake_runs import write_rank_run, write_tokenize_run
from trec_semid.core.errors import DataError
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import Report, TargetCounts

FIRST, HYBRID, POPULAR, BEAM = "sasrec · ID", "sasrec · ID + text + mmq", "popularity", "tiger · mmq"
SEEDS = (0, 1, 2)
CUTOFFS = (5, 10)


@dataclass(frozen=True)
class Retrieval:
    root: str
    runs: dict[str, list[str]]
    """Arm -> folders, by seed."""
    report: Report

    @property
    def events(self) -> pd.DataFrame:
        return Dataset(f"{self.root}/data").events().to_pandas()


def write_arms(root: str) -> dict[str, list[str]]:
    data = write_small_dataset(f"{root}/data", num_users=150, num_items=120)
    codes = write_tokenize_run(f"{root}/mmq", data)
    beam = {"cutoffs": (5, 10, 20), "beam_width": 20}
    arms = {
        FIRST: {"skill": 0.7},
        POPULAR: {"kind": "popularity", "skill": 0.2},
        HYBRID: {"skill": 1.1, "semantic_ids": codes, "item": {"content": ["text"]}},
        BEAM: {
            "kind": "tiger",
            "skill": 0.6,
            "semantic_ids": codes,
            "item": {"id": False},
            "evaluation": beam,
        },
    }
    return {
        arm: [
            write_retrieve_run(f"{root}/{number}-{seed}", data, seed=seed, **values)
            for seed in (SEEDS[:1] if arm == POPULAR else SEEDS)
        ]
        for number, (arm, values) in enumerate(arms.items())
    }


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    root = str(tmp_path_factory.mktemp("retrieval_report"))
    runs = write_arms(root)
    given = [run for folders in runs.values() for run in folders]
    return Retrieval(root, runs, build_report(collect_runs(given), num_replicates=1000))


def read_frame(run: str, split: str = "test") -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in glob.glob(f"{run}/predictions/{split}-*.parquet")])


def slow_values(frame: pd.DataFrame, cutoff: int) -> dict[str, list[float]]:
    """Return recall and NDCG of every user, by the places of their lists one after the other."""
    recalls: list[float] = []
    ndcgs: list[float] = []
    for _, own in frame.groupby("user_row"):
        places = set(own["rank"])
        hits = [place for place in range(1, cutoff + 1) if place in places]
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(cutoff, len(own)) + 1))
        recalls.append(len(hits) / len(own))
        ndcgs.append(sum(1 / math.log2(place + 1) for place in hits) / ideal)
    return {f"recall@{cutoff}": recalls, f"ndcg@{cutoff}": ndcgs}


def test_every_metric_of_every_arm_is_the_mean_over_seeds_of_plain_loops(retrieval: Retrieval):
    (scores,) = retrieval.report.scores
    assert list(scores.metrics) == [
        f"{name}@{cutoff}" for name in ("recall", "ndcg", "coverage") for cutoff in CUTOFFS
    ]
    for arm, runs in retrieval.runs.items():
        for cutoff in CUTOFFS:
            tests = [slow_values(read_frame(run), cutoff) for run in runs]
            valids = [slow_values(read_frame(run, "valid"), cutoff) for run in runs]
            for name in tests[0]:
                found = scores.metrics[name][arm]
                values = [np.mean(each[name]) for each in tests]
                assert found.by_seed == pytest.approx(values)
                assert found.value == pytest.approx(np.mean(values))
                assert found.valid == pytest.approx(np.mean([np.mean(each[name]) for each in valids]))
                if len(runs) > 1:
                    assert found.sd == pytest.approx(np.std(values, ddof=1))
                assert found.low is not None
                assert found.high is not None
                assert 0 <= found.low <= np.mean(values) <= found.high <= 1
            covered = scores.metrics[f"coverage@{cutoff}"][arm]
            assert (covered.value, covered.valid, covered.low) == (COVERED, COVERED, None)


def test_a_difference_of_single_runs_is_as_sure_as_the_spread_over_users_says(tmp_path: Path):
    data = write_small_dataset(str(tmp_path / "data"), num_users=300, num_items=120)
    runs = [
        write_retrieve_run(str(tmp_path / f"{skill}"), data, skill=skill, item={"fields": fields})
        for skill, fields in ((0.8, []), (1.0, ["year"]))
    ]
    report = build_report(collect_runs(runs), num_replicates=2000)
    for name in ("ndcg@10", "recall@5"):
        cutoff = int(name.partition("@")[2])
        base, own = (np.array(slow_values(read_frame(run), cutoff)[name]) for run in runs)
        error = (own - base).std(ddof=1) / math.sqrt(len(base))
        (found,) = [each for each in report.comparisons if each.metric == name and each.stratum is None]
        assert found.baseline == "sasrec · ID"
        assert found.difference == pytest.approx((own - base).mean())
        assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.3 * error)
        assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.3 * error)
        assert found.smallest_detectable == pytest.approx(2.8 * error, rel=0.12)


def test_verdicts_need_a_detectable_difference(retrieval: Retrieval):
    assert {each.metric for each in retrieval.report.comparisons if each.stratum is None} == {
        f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in CUTOFFS
    }
    for each in retrieval.report.comparisons:
        is_detectable = abs(each.difference) >= each.smallest_detectable and (each.low > 0 or each.high < 0)
        is_sure = is_detectable and each.p_holm < 0.05
        assert (each.verdict == "better") == (is_sure and each.difference > 0)
        assert (each.verdict == "worse") == (is_sure and each.difference < 0)
    assert any(each.verdict == "better" and each.arm == HYBRID for each in retrieval.report.comparisons)


def test_slices_hold_targets_of_their_items_and_of_their_users(retrieval: Retrieval):
    train = retrieval.events[retrieval.events.split == "train"]
    of_item, of_user = train.groupby("item_row").size(), train.groupby("user_row").size()
    items = sorted(of_item.index, key=lambda item: (of_item[item], item))
    users = sorted(of_user.index, key=lambda user: (of_user[user], user))
    parts = {
        "popularity_head": ("item_row", set(items[len(items) - len(items) // 4 :])),
        "popularity_tail": ("item_row", set(items[: len(items) // 4])),
        "popularity_unseen": ("item_row", set(range(120)) - set(items)),
        "activity_high": ("user_row", set(users[len(users) - len(users) // 3 :])),
    }
    for key, (column, members) in parts.items():
        (stratum,) = [each for each in retrieval.report.strata if each.key == key]
        for arm, runs in retrieval.runs.items():
            frames = [read_frame(run) for run in runs]
            frames = [frame[frame[column].isin(members)] for frame in frames]
            sizes = TargetCounts(targets=len(frames[0]), users=frames[0].user_row.nunique())
            assert stratum.counts == sizes
            for name in ("recall@10", "ndcg@10"):
                expected = np.mean([np.mean(slow_values(frame, 10)[name]) for frame in frames])
                assert stratum.metrics[name][arm].value == pytest.approx(expected)
    assert "coverage@10" not in stratum.metrics


def test_reach_is_the_share_found_in_lists_of_every_length(retrieval: Retrieval):
    for each in retrieval.report.reach:
        frames = [read_frame(run) for run in retrieval.runs[each.arm]]
        for length, recall in list(zip(each.lengths, each.recall, strict=True))[::5]:
            shares = [
                np.mean([(own <= length).mean() for _, own in frame.groupby("user_row")["rank"]])
                for frame in frames
            ]
            assert recall == pytest.approx(np.mean(shares), abs=1e-6)
        # The lists of a beam end; others hold the catalogue.
        assert each.lengths[-1] == (20 if each.arm == BEAM else 120)
        assert set(CUTOFFS) < set(each.lengths)
        assert all(one < other for one, other in pairwise(each.lengths))


def test_examples_show_what_came_before_and_the_places_of_what_came_next(retrieval: Retrieval):
    titles = Dataset(f"{retrieval.root}/data").items()["title"].to_pylist()
    frames = {arm: read_frame(runs[0]).sort_values("row") for arm, runs in retrieval.runs.items()}
    events = retrieval.events
    assert len(retrieval.report.examples) == 4 + 2 * 3
    for example in retrieval.report.examples:
        shown = [(target.title, target.ranks) for target in example.targets]
        matches = []
        for user, own in frames[FIRST].groupby("user_row"):
            places = [
                (
                    titles[item],
                    {
                        arm: None if frame["rank"].iloc[row] > 120 else int(frame["rank"].iloc[row])
                        for arm, frame in frames.items()
                    },
                )
                for row, item in zip(own.row, own.item_row, strict=True)
            ]
            if places[:3] == shown and len(places) == len(shown) + example.num_further:
                matches.append(user)
        (user,) = matches
        before = events[(events.user_row == user) & (events.split != "test")].sort_values("order")
        assert example.history == [titles[item] for item in before.item_row.tail(4)]
        assert example.num_earlier == max(0, len(before) - 4)


def test_the_user_who_gains_most_is_among_the_examples(retrieval: Retrieval):
    (example,) = [each for each in retrieval.report.examples if each.why.startswith(f"{HYBRID} gains most")]
    base, own = (
        read_frame(retrieval.runs[arm][0]).groupby("user_row")["rank"].min() for arm in (FIRST, HYBRID)
    )
    gain = 1 / np.log2(own + 1) - 1 / np.log2(base + 1)
    ranks = [target.ranks[HYBRID] for target in example.targets]
    assert min(rank for rank in ranks if rank is not None) == own[gain.idxmax()] == 1


def test_arms_are_named_by_model_item_and_tokenizer_and_the_first_is_the_baseline(retrieval: Retrieval):
    assert [arm.name for arm in retrieval.report.arms] == sorted(
        retrieval.runs, key=lambda name: (name != FIRST, name)
    )
    arms = {arm.name: arm for arm in retrieval.report.arms}
    assert (arms[HYBRID].model, arms[HYBRID].tokenizer) == ("sasrec", "mmq")
    assert arms[HYBRID].representation == "ID + text + codes"
    assert arms[BEAM].lists == "beam of 20 tuples, history left out"
    assert retrieval.report.baseline == FIRST
    (books,) = retrieval.report.codebooks
    assert books.arms == [HYBRID, BEAM]


def test_the_answer_on_two_arms_gives_the_numbers_of_their_comparison(retrieval: Retrieval):
    assert not [each for each in retrieval.report.headline if "smallest detectable" in each]
    for arm in (POPULAR, HYBRID, BEAM):
        runs = [*retrieval.runs[FIRST], *retrieval.runs[arm]]
        report = build_report(collect_runs(runs), num_replicates=100)
        told = report.headline
        assert told[0].startswith("In NDCG@10, ")
        (sentence,) = [each for each in told if each.startswith(f"{arm} against {FIRST}: ")]
        (found,) = [
            each
            for each in report.comparisons
            if (each.arm, each.metric, each.stratum) == (arm, "recall@10", None)
        ]
        for number in (found.low, found.high, found.smallest_detectable):
            assert f"{abs(number):.4f}" in sentence
        spread = report.scores[0].metrics["recall@10"][FIRST].sd
        assert f"± {spread:.4f}" in sentence
        frame = read_frame(retrieval.runs[FIRST][0])
        assert f"{len(frame)} test items of {frame.user_row.nunique()} users" in told[1]


def test_a_run_without_log_and_plan_has_no_training_to_show(retrieval: Retrieval):
    assert {each.arm for each in retrieval.report.learning} == {FIRST, HYBRID, BEAM}
    assert POPULAR not in {arm for plan in retrieval.report.plans for arm in plan.arms}
    assert not any(POPULAR in note for note in retrieval.report.notes)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_small_dataset(str(tmp_path / "data"), num_users=30)


def test_rankers_and_retrievers_are_not_reported_together(tmp_path: Path, dataset: str):
    runs = [write_rank_run(str(tmp_path / "rank"), dataset), write_retrieve_run(str(tmp_path / "r"), dataset)]
    with pytest.raises(DataError, match="rankers and retrievers cannot be compared") as error:
        collect_runs(runs)
    assert error.value.exit_code == 2
    assert "Report them apart" in str(error.value)


def test_runs_on_another_dataset_are_refused(tmp_path: Path, dataset: str):
    other = write_small_dataset(str(tmp_path / "other"), num_users=30, seed=1)
    runs = [write_retrieve_run(str(tmp_path / f"r{at}"), data) for at, data in enumerate((dataset, other))]
    with pytest.raises(DataError, match="different datasets"):
        collect_runs(runs)


def test_other_targets_are_refused_and_the_run_is_named(tmp_path: Path, dataset: str):
    runs = [write_retrieve_run(str(tmp_path / name), dataset, kind=name) for name in ("sasrec", "rpg")]
    found = read_target_positions(runs[1], "test")
    write_positions(runs[1], "test", found._replace(item_row=found.item_row[::-1].copy()))
    with pytest.raises(DataError, match="not those of run 'sasrec'") as error:
        build_report(collect_runs(runs), num_replicates=100)
    assert error.value.field == "item_row"
    assert "sequences.events" in str(error.value)


def test_ranks_that_do_not_fit_the_metrics_beside_them_are_refused(tmp_path: Path, dataset: str):
    good, other = (
        write_retrieve_run(str(tmp_path / f"{skill}"), dataset, skill=skill) for skill in (0.2, 1.4)
    )
    shutil.rmtree(f"{other}/predictions")
    shutil.copytree(f"{good}/predictions", f"{other}/predictions")
    with pytest.raises(DataError, match="metrics and predictions are not of one run"):
        build_report(collect_runs([other]), num_replicates=100)


def test_only_lengths_at_which_all_were_evaluated_are_compared(tmp_path: Path, dataset: str):
    runs = [
        write_retrieve_run(str(tmp_path / f"r{at}"), dataset, evaluation={"cutoffs": cutoffs})
        for at, cutoffs in enumerate(((1, 5, 20), (5, 20, 30), (50,)))
    ]
    report = build_report(collect_runs(runs[:2]), num_replicates=100)
    assert {key.partition("@")[2] for key in report.scores[0].metrics} == {"5", "20"}
    assert report.headline_metric == "ndcg@5"
    with pytest.raises(DataError, match="no list length") as error:
        build_report(collect_runs(runs), num_replicates=100)
    assert error.value.field == "evaluation.cutoffs"


def test_lists_with_and_without_history_are_compared_with_a_warning(tmp_path: Path, dataset: str):
    runs = [
        write_retrieve_run(str(tmp_path / f"r{at}"), dataset, evaluation={"masks_history": masks})
        for at, masks in enumerate((True, False))
    ]
    report = build_report(collect_runs(runs), num_replicates=100)
    assert [arm.name for arm in report.arms] == [
        "sasrec · ID (masks_history = true)",
        "sasrec · ID (masks_history = false)",
    ]
    assert any("hold items of the user's history" in note for note in report.notes)


def test_finished_runs_asked_again_are_one_arm_of_their_seeds(tmp_path: Path, dataset: str):
    members = [write_retrieve_run(str(tmp_path / f"hybrid/seed-{s}"), dataset, seed=s) for s in SEEDS]
    again = [
        write_retrieve_run(
            str(tmp_path / f"again/{penalty}/seed-{seed}"),
            dataset,
            "ensemble",
            seed=seed,
            model={"kind": "ensemble", "runs": [member]},
            evaluation={"unseen_penalty": penalty},
        )
        for penalty, seeds in ((0.5, SEEDS), (1.0, SEEDS[:2]))
        for seed, member in zip(seeds, members, strict=False)
    ]
    popular = write_retrieve_run(str(tmp_path / "popular"), dataset, "popularity")
    report = build_report(collect_runs([*members, *again, popular]), num_replicates=100)
    names = [f"ensemble · hybrid (unseen_penalty = {penalty})" for penalty in (0.5, 1.0)]
    assert {arm.name: len(arm.seeds) for arm in report.arms} == {
        "sasrec · ID": 3,
        names[0]: 3,
        names[1]: 2,
        "popularity": 1,
    }
    (note,) = [note for note in report.notes if note.startswith("Fewer than three seeds for ")]
    assert note.startswith(f"Fewer than three seeds for {names[1]}: ")


def test_one_run_alone_gives_a_report_without_comparisons(tmp_path: Path, dataset: str):
    report = build_report(
        collect_runs([write_retrieve_run(str(tmp_path / "r"), dataset)]), num_replicates=100
    )
    assert report.comparisons == []
    assert "nothing to compare" in report.headline[0]
    assert {each.why for each in report.examples} == {"Drawn at random"}
