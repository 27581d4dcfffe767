"""What a report shows of runs with several interests, and of indexes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_small_dataset
from tests.report.fake_retrieval import write_retrieve_run
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import Report
from trec_semid.report.render import render_json, render_markdown, render_page


def add_interests(run: str, cosine: float, **evaluation: Any) -> None:
    """Put into a run's folder what one of two interests has there besides."""
    metrics = Path(run, "metrics.json")
    results = json.loads(metrics.read_text())
    results["metrics"] |= {"test/interest_cosine": cosine, "test/interest_overlap@10": 0.25}
    results["metrics"] |= {f"valid/index_recall@{cutoff}": 0.5 for cutoff in evaluation.get("index_at", ())}
    metrics.write_text(json.dumps(results))
    listed = [{"item_row": row, "x": 0.1 * row, "y": -0.1, "interest": row % 2} for row in (7, 3)]
    history = [{"item_row": 5, "x": -1.0, "y": 0.5, "interest": 1}]
    paths = [[[0.0, 0.1], [0.5, 0.2]], [None, [-0.5, 0.3]]]
    user = {"user_row": 9, "targets": [11], "explained": 0.625}
    user |= {"history": history, "listed": listed, "paths": paths}
    Path(run, "interests.json").write_text(
        json.dumps({"split": "valid", "num_interests": 2, "users": [user]})
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("interests")
    data = write_small_dataset(str(root / "data"), num_users=30)
    plain = write_retrieve_run(str(root / "plain"), data)
    several = write_retrieve_run(str(root / "several"), data, "comirec", skill=1.3)
    merged = write_retrieve_run(str(root / "merged"), data, "comirec", skill=1.2)
    add_interests(several, 0.125)
    add_interests(merged, 0.125, index_at=(5, 10))
    config = Path(merged, "config.toml")
    settings = '\n[evaluation.interests]\nmerge = "quota"\n[evaluation.index]\nkind = "hnsw"\n'
    config.write_text(config.read_text() + settings)
    return build_report(collect_runs([plain, several, merged]), num_replicates=100)


def test_arms_of_several_interests_say_how_far_apart_these_are(report: Report):
    several, merged = (arm.name for arm in report.arms[1:])
    assert [each.arm for each in report.separation] == [several, merged]
    assert report.separation[0].values == {"interest_cosine": 0.125, "interest_overlap@10": 0.25}
    page = render_page(report)
    for name in (
        "Recall@10 by cosine of interests, one mark per arm",
        "Recall@10 by overlap@10 of interests",
    ):
        assert name in page
    assert "0.1250" in render_markdown(report)


def test_users_stand_in_a_plane_with_titles_of_what_each_interest_lists(report: Report):
    first = report.interests[0]
    titles = [item.title for item in (*first.listed, *first.history)]
    assert [title.partition(" of ")[0] for title in titles] == ["Item 7", "Item 3", "Item 5"]
    page, markdown = render_page(report), render_markdown(report)
    assert "User 9: history, list and interests in a plane" in page
    assert "User 9: interests after each of the last 2 events" in page
    assert "The plane has 62% of the variance" in page
    assert f"{titles[2]} (2)" in page
    assert titles[0] in markdown
    assert Report.model_validate_json(render_json(report)) == report


def test_lists_of_an_index_and_merged_ones_are_told_as_such(report: Report):
    plain = report.arms[0]
    (merged,) = (arm for arm in report.arms if "quota" in arm.name)
    (of_merged,) = (reach for reach in report.reach if reach.arm == merged.name)
    assert plain.lists == "every item scored, history left out"
    assert merged.lists == "hnsw index, interests merged by quota, history left out"
    assert of_merged.index_recall == {5: 0.5, 10: 0.5}
    assert max(of_merged.lengths) == 10  # nothing is known of what lies beyond the lists
    assert max(report.reach[0].lengths) > 10
    assert "An index against exact scores" in render_page(report)


def test_without_several_interests_nothing_is_said_of_any(tmp_path: Path):
    data = write_small_dataset(str(tmp_path / "data"), num_users=30)
    run = write_retrieve_run(str(tmp_path / "plain"), data)
    report = build_report(collect_runs([run]), num_replicates=100)
    assert report.separation == report.interests == []
    assert 'id="interests"' not in render_page(report)
