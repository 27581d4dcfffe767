from tests.report.conftest import Study
from trec_semid.data.schema import RowCounts, SimilarIds
from trec_semid.report.page.parts import Facts, Table
from trec_semid.report.sections import data_parts


def test_sampled_negatives_are_no_events_and_doubts_are_said(study: Study):
    given = study.report.dataset
    test = given.splits["test"].model_copy(update={"events": 200, "negatives": 100, "unseen_item_events": 25})
    report = study.report.model_copy(
        update={
            "dataset": given.model_copy(
                update={
                    "num_events": 1100,
                    "num_users": 10,
                    "num_items": 200,
                    "sampled_negatives": 100,
                    "splits": {**given.splits, "test": test},
                    "first_time": "1997-09-20T03:05:10Z",
                    "last_time": "1998-04-22T23:10:38Z",
                    "read": RowCounts(events=1500),
                    "dropped": {"unknown_items": RowCounts(events=500, items=3)},
                    "duplicate_events": 4,
                    "similar_ids": {"items": SimilarIds(ids=2, examples=[["a", "a "]])},
                }
            )
        }
    )
    facts, splits, _ = data_parts(report)
    assert isinstance(facts, Facts)
    assert isinstance(splits, Table)
    said = dict(facts.pairs)
    assert said["Size"].startswith("1,000 events of 10 users on 200 items")
    assert said["Density"].startswith("50")
    assert said["Times"] == "1997-09-20T03:05:10Z to 1998-04-22T23:10:38Z"
    assert said["Events left out"] == "unknown items 500, of 1,500 read"
    assert said["Rows that repeat an event"] == "4"
    assert said["Similar ids"] == "2 of items differ from another by blanks or Unicode form alone"
    row = next(row for block in splits.blocks for row in block.rows if row[0].main == "test")
    assert row[-1].main == "25"
    assert row[-1].lines[0].startswith("25")  # of 100 observed ones
