from trec_semid.training.run import summary


def test_whole_splits_stand_side_by_side_and_strata_are_left_out():
    metrics = {"valid/auc": 0.75, "valid/auc/popularity_head": 0.8, "test/auc": 0.7, "test/gauc": 0.65123}
    lines = summary("runs/r", metrics).splitlines()
    cells = [[cell.strip() for cell in line.strip("┃│").replace("│", "┃").split("┃")] for line in lines]
    assert ["", "valid", "test"] in cells
    assert ["auc", "0.7500", "0.7000"] in cells
    assert ["gauc", "", "0.6512"] in cells
    assert not any("popularity" in line for line in lines)
    assert lines[-1] == "all metrics: runs/r/metrics.json"


def test_a_run_without_metrics_of_whole_splits_names_its_file():
    assert (
        summary("runs/r", {"test/auc/popularity_head": 0.5}).splitlines()[-1]
        == "all metrics: runs/r/metrics.json"
    )
