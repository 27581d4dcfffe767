"""Verdicts of a report against Holm's procedure written out, and what follows them."""

from collections import defaultdict

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.report.conftest import Study
from tests.report.fake_runs import write_rank_run
from trec_semid.evaluation.resampling import choose_draws
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import NOT_DISTINGUISHABLE, Comparison, Report


def textbook_holm(p_values: list[float]) -> list[float]:
    """Oracle: written out as in the paper, by ranks."""
    order = np.argsort(p_values, kind="stable")
    steps = [min(1.0, (len(order) - rank) * p_values[index]) for rank, index in enumerate(order)]
    corrected = [0.0] * len(order)
    for rank, index in enumerate(order):
        corrected[index] = max(steps[: rank + 1])
    return corrected


def shown_together(report: Report) -> list[list[Comparison]]:
    """One metric under one protocol: the whole test part, or all slices of one dimension."""
    dimension = {each.key: each.dimension for each in report.strata}
    groups: dict[tuple, list[Comparison]] = defaultdict(list)
    for each in report.comparisons:
        groups[each.protocol, each.metric, dimension.get(each.stratum or "")].append(each)
    return list(groups.values())


def test_verdicts_are_corrected_for_all_comparisons_that_are_shown_together(study: Study):
    groups = shown_together(study.report)
    assert {len(group) for group in groups} >= {4, 8}
    for group in groups:
        corrected = textbook_holm([each.p for each in group])
        assert [each.p_holm for each in group] == pytest.approx(corrected)
        assert all(each.p_holm < 0.05 for each in group if each.verdict != NOT_DISTINGUISHABLE)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Many arms, of which one is a little better: enough alone, too little beside the others."""
    folder = tmp_path_factory.mktemp("crowd")
    dataset = write_small_dataset(str(folder / "data"), num_users=80)
    skills = {"item": 0.6, "better": 0.88} | {f"same-{index}": 0.6 + index / 1000 for index in range(8)}
    runs = [
        write_rank_run(str(folder / name), dataset, skill=skill, label=name, seed=0 if name == "item" else 1)
        for name, skill in skills.items()
    ]
    return build_report(collect_runs(runs), baseline="item · item", num_replicates=100)


def test_what_is_told_apart_alone_may_not_be_beside_many_others(crowd: Report):
    alone = [
        each
        for each in crowd.comparisons
        if (each.low > 0 or each.high < 0) and abs(each.difference) >= each.smallest_detectable
    ]
    lost = [each for each in alone if each.verdict == NOT_DISTINGUISHABLE]
    assert lost
    assert all(each.p_holm >= 0.05 > each.p for each in lost)


def test_words_marks_and_tables_follow_the_corrected_verdict(crowd: Report):
    told = {(each.protocol, each.stratum, each.metric, each.arm): each for each in crowd.comparisons}
    named = 0
    for (_, stratum, metric, arm), each in told.items():
        if stratum is None and metric == crowd.headline_metric and each.protocol == crowd.scores[0].protocol:
            clauses = [clause for clause in crowd.headline[0].split("; ") if f"{arm} (" in clause]
            assert all(each.verdict in clause for clause in clauses)
            named += len(clauses)
    assert named >= 3
    numbers = [(scores.protocol, None, scores.metrics) for scores in crowd.scores]
    numbers += [(crowd.scores[0].protocol, stratum.key, stratum.metrics) for stratum in crowd.strata]
    for protocol, stratum, metrics in numbers:
        for metric, values in metrics.items():
            (best, *more) = [arm for arm, value in values.items() if value.is_best] or [None]
            assert not more
            compared = {arm: told.get((protocol, stratum, metric, arm)) for arm in values}
            verdicts = {arm: each.verdict for arm, each in compared.items() if each}
            if best == "item · item":
                assert set(verdicts.values()) <= {"worse"}
            elif best and verdicts:
                assert verdicts[best] == "better"


def test_there_are_draws_enough_to_tell_one_of_many_arms_apart(crowd: Report):
    assert crowd.bootstrap.replicates == 360  # 9 comparisons: 9 · 2 / 361 is below 0.05
    assert any("So many arms are compared" in note for note in crowd.notes)
    assert choose_draws(1000, 50_000_000, 15, 14) == 560
    assert choose_draws(1000, 10_000, 15, 14) == 1000
