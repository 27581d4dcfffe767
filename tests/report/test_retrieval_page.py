"""Page, Markdown and JSON of a report on retrievers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import write_small_dataset
from tests.report.fake_retrieval import AGREED, COVERED, write_retrieve_run
from tests.report.fake_runs import write_tokenize_run
from tests.report.test_render import Page
from trec_semid.core.errors import DataError
from trec_semid.data.schema import Dataset
from trec_semid.metrics.retrieval import Absent, ReachFacts
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import Report
from trec_semid.report.render import plain, render_json, render_markdown, render_page
from trec_semid.report.words import interval
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.maps.record import write_record


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = str(tmp_path_factory.mktemp("retrieval_page"))
    data = write_small_dataset(f"{root}/data", num_users=60, num_items=60)
    codes = write_tokenize_run(f"{root}/mmq", data)
    runs = [
        write_retrieve_run(f"{root}/popular", data, "popularity", skill=0.2),
        write_retrieve_run(f"{root}/ids", data, skill=0.6),
        write_retrieve_run(f"{root}/codes", data, skill=1.0, semantic_ids=codes),
    ]
    return build_report(collect_runs(runs), num_replicates=100)


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(render_page(report))


def test_every_tag_is_closed_and_the_contents_lead_to_every_section(page: Page):
    assert page.open == []
    targets = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"][1:]
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert targets == sections
    assert sections == [
        "answer",
        "data",
        "metrics",
        "differences",
        "slices",
        "examples",
        "training",
        "codebooks",
        "plan",
        "made",
        "words",
    ]


def test_pictures_have_names_and_recall_is_drawn_over_powers_of_the_length(page: Page):
    pictures = [each["aria-label"] for tag, each in page.tags if tag == "svg" and "aria-hidden" not in each]
    assert all(pictures)
    assert any(name.startswith("Recall at N by N") for name in pictures)
    assert any(
        name.startswith("NDCG@10 of each arm minus") and "popularity, with" in name for name in pictures
    )
    assert any(name.startswith("valid/ndcg@10 by training step") for name in pictures)


def test_page_markdown_and_json_say_the_same(report: Report, page: Page):
    markdown, text = render_markdown(report), " ".join(page.words)
    assert Report.model_validate_json(render_json(report)) == report
    for each in report.comparisons:
        ends = interval(each.low, each.high, with_sign=True)
        assert ends in markdown
        assert ends in text
    for sentence in report.headline:
        assert sentence in text
        assert plain(sentence) in markdown
    for example in report.examples:
        for target in example.targets:
            assert target.title in text
            assert plain(target.title) in markdown
    for line in markdown.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_markdown_tables_have_equal_cells_in_every_row(report: Report):
    rows: list[str] = []
    for line in [*render_markdown(report).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
            rows = []


def test_only_words_of_retrieval_are_defined(page: Page):
    assert {"Recall@N", "NDCG@N", "Coverage@N", "Whole catalogue"} <= set(page.words)
    assert not {"AUC", "GAUC", "Frozen protocol", "Calibration and ROC"} & set(page.words)


def test_titles_are_shortened_and_escaped(report: Report):
    nasty = "<b>bold</b> | " + "long " * 40
    example = report.examples[0].model_copy(update={"history": [nasty]})
    changed = report.model_copy(update={"examples": [example]})
    text = render_page(changed)
    assert "<b>bold" not in text
    assert "long " * 14 not in text
    assert "\\<b\\>" in render_markdown(changed)


def test_codebooks_and_churn_of_a_retriever_that_tuned_them_are_shown(tmp_path: Path):
    data = write_small_dataset(str(tmp_path / "data"), num_users=30)
    codes = write_tokenize_run(str(tmp_path / "mmq"), data)
    run = write_retrieve_run(str(tmp_path / "run"), data, semantic_ids=codes)
    config = Path(run, "config.toml")
    config.write_text(config.read_text() + '\n[tuning]\nestimator = "straight_through"\n')
    log = RunLog(run)
    log.scalars({"codes/churn": 0.25, "codes/churn/shared_0": 0.125, "codes/dead": 3.0}, step=200)
    log.close()
    RunFolder(run, "retrieve").write_json(
        "quality.json", RunFolder(codes, "tokenize").read_json("quality.json")
    )
    write_record(run, dataset="small", dataset_checksum="c", seed=0)
    report = build_report(collect_runs([run]), num_replicates=100)
    assert report.codebooks[0].name == "mmq, tuned"
    assert report.codebooks[0].arms == [report.arms[0].name]
    text = render_page(report)
    assert all(f"<b>{title}</b>" in text for title in ("Churn", "Churn of shared_0", "Dead codes"))


def test_what_a_beam_finds_of_the_exact_lists_stands_beside_the_arms_that_have_one(tmp_path: Path):
    data = write_small_dataset(str(tmp_path / "data"), num_users=30)
    exact = write_retrieve_run(str(tmp_path / "exact"), data)
    assert "against exact scores" not in render_page(build_report(collect_runs([exact])))
    beam = write_retrieve_run(str(tmp_path / "beam"), data, evaluation={"cutoffs": (5, 10), "beam_width": 10})
    report = build_report(collect_runs([exact, beam]), num_replicates=100)
    assert [reach.beam_agreement for reach in report.reach] == [{}, {5: AGREED, 10: AGREED}]
    for text in (render_page(report), render_markdown(report)):
        said = text[text.index("against exact scores") :]
        assert f"{AGREED:.4f}" in said[:1500]


def test_what_lists_reach_and_lack_is_told_with_titles_of_some_items(tmp_path: Path):
    data = write_small_dataset(str(tmp_path / "data"), num_users=30)
    runs = [write_retrieve_run(str(tmp_path / name), data, name) for name in ("sasrec", "tiger")]
    assert "Reach into the catalogue" not in render_page(build_report(collect_runs(runs[:1])))
    ids, title = Dataset(data).item_ids.to_pylist(), Dataset(data).items(["title"])["title"][7].as_py()
    absent = [
        Absent(reason="duplicate", search="beam", counts={5: 1234, 10: 56}, examples=(ids[7], "gone")),
        Absent(reason="missed", search="beam", counts={5: 8, 10: 0}, examples=(ids[8],)),
    ]
    for run, own in zip(runs, ([], absent), strict=True):
        facts = ReachFacts(num_items=40, num_users=30, listed={5: 0.1234, 10: 0.5678}, absent=tuple(own))
        Path(run, "reach.json").write_text(facts.model_dump_json())
    report = build_report(collect_runs(runs), num_replicates=100)
    assert [len(each.facts.absent) for each in report.catalogue] == [0, 2]
    for text in (render_markdown(report), render_page(report)):
        said = text[text.rindex("Reach into the catalogue") :]
        assert all(word in said for word in ("0.1234", "0.5678", "1,234", "56", title, "gone"))
    Path(runs[1], "reach.json").write_text('{"num_items": -1}')
    with pytest.raises(DataError, match=r"reach\.json: not what a run writes"):
        build_report(collect_runs(runs), num_replicates=100)


def test_items_without_titles_have_no_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_small_dataset(str(tmp_path / "data"), num_users=30)
    collection = collect_runs([write_retrieve_run(str(tmp_path / "run"), data)])
    items = Dataset.items
    monkeypatch.setattr(
        Dataset, "items", lambda self, columns=None: items(self, columns or ["item_id", "row"])
    )
    report = build_report(replace(collection, dataset=Dataset(data)), num_replicates=100)
    assert report.examples == []
    assert "## Examples" not in render_markdown(report)


def test_coverage_has_no_interval_and_is_not_said_to_lack_users(report: Report):
    lines = render_markdown(report).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| **Coverage@N"))
    for line in lines[start + 1 : start + 4]:
        assert f"| {COVERED:.4f}; valid {COVERED:.4f} |" in line
        assert " to " not in line
