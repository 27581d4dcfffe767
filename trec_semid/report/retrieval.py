"""A report on retrievers: what is measured on positions of targets, and their own arms, tables and pictures.

Coverage cannot be taken from the positions of targets: it is as the run stated it, without draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from trec_semid.core.arrays import Array, Floats, Ints
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.evaluated import tests_then_trains
from trec_semid.evaluation.retrieval import retrieval_metrics
from trec_semid.evaluation.strata import POPULARITY, Strata, training_strata
from trec_semid.evaluation.target_positions import (
    TargetPositions,
    bootstrap_target_positions,
    read_target_positions,
)
from trec_semid.report.arms import ArmRuns
from trec_semid.report.collect import FinishedRun
from trec_semid.report.compare import Asked, Key, Measured, RunMeasures, expect_own_metrics, expect_same_rows
from trec_semid.report.content import Bootstrap, Reach, Report, TargetCounts
from trec_semid.report.examples import choose_examples, example_parts, item_titles
from trec_semid.report.interests import interest_parts, read_shown_interests, separation_of
from trec_semid.report.page import results
from trec_semid.report.page.drawing import Curve, draw_curves
from trec_semid.report.page.parts import (
    Block,
    Cell,
    Column,
    Folded,
    Heading,
    Part,
    Section,
    Table,
    Words,
    figures,
)
from trec_semid.report.page.results import METRIC_CAPTION, TEST_WORDS, arm_legend, estimate_cell
from trec_semid.report.reach import reach_parts, read_reach
from trec_semid.report.words import PROTOCOLS, RETRIEVAL_METRICS, figure, metric
from trec_semid.runtime.logs import track

USUAL_CUTOFF = 10
"""The answer speaks of it where every run was evaluated there."""
LONGEST_LIST = 1000
"""How far recall by length of the list is shown."""
NUM_LENGTHS = 60
CODE_AGREEMENTS = ("valid/beam_agreement", "valid/candidates_agreement", "valid/graph_agreement")
INDEX_RECALL = ("valid/index_recall",)
"""What the job calls them; a run has one at most."""
SAME_TARGETS = "Run both again on the same dataset, with the same sequences.events"


SLICE_WORDS = (
    "Test items by how often they occur in training, and users by how many training events they have. In a "
    "slice of items only such test items count, on the places they have in lists of the whole catalogue. A "
    "slice with few users has wide intervals; read those before the order of the dots."
)
BEAM_CAPTION = (
    "Beam search, candidates or a graph against exact scores: share of the first N items by exact scores "
    "that are among the first N so listed, for the first users of the validation part."
)


INDEX_CAPTION = (
    "An index against exact scores: share of the first N items by exact scores that are among the index's "
    "first N, for the first users of the validation part."
)


def measure_retrieval(arms: Sequence[ArmRuns], dataset: Dataset, how: Bootstrap) -> Measured:
    """Measure every run of every arm.

    Raises:
        DataError: ranks are absent or damaged, are of other targets than those of the first run, disagree
            with the run's `metrics.json`, or no list length was evaluated by all runs.
    """
    asked = _ask(arms)
    strata = training_strata(dataset, test_then_train=tests_then_trains(arms[0].runs[0].uri))
    total = sum(len(arm.runs) for arm in arms)
    steps = iter(track(range(total), "measuring runs", total))
    first: tuple[FinishedRun, TargetPositions] | None = None
    measured: list[list[RunMeasures]] = []
    reach: list[Reach] = []
    firsts: dict[str, TargetPositions] = {}
    for arm in arms:
        runs: list[RunMeasures] = []
        tests: list[TargetPositions] = []
        for run in arm.runs:
            test, valid = read_target_positions(run.uri, "test"), read_target_positions(run.uri, "valid")
            first = first or (run, test)
            expect_same_rows(run, _rows(test), first[0], _rows(first[1]), SAME_TARGETS)
            expect_own_metrics(run, _own_metrics(run, test))
            runs.append(_measure_run(run, test, valid, strata, how, asked))
            tests.append(test)
            next(steps)
        measured.append(runs)
        reach.append(_reach(arm, tests, dataset.facts.num_items))
        firsts[arm.arm.name] = tests[0]
    titles = item_titles(dataset)
    examples = choose_examples(firsts, dataset, arms[0].runs[0].config, seed=how.seed)
    return Measured(
        asked,
        measured,
        reach=reach,
        catalogue=read_reach(arms, dataset, titles),
        examples=examples,
        separation=separation_of(arms),
        interests=read_shown_interests(arms, titles),
        notes=_notes(arms),
    )


def _ask(arms: Sequence[ArmRuns]) -> Asked:
    """Ask for the list lengths at which every run was evaluated."""
    runs = [run for arm in arms for run in arm.runs]
    common = sorted(set.intersection(*(set(_cutoffs(run)) for run in runs)))
    if not common:
        raise DataError(
            f"no list length at which all runs were evaluated: run '{runs[0].name}' has {_cutoffs(runs[0])}",
            file=join(runs[-1].uri, "config.toml"),
            field="evaluation.cutoffs",
            value=_cutoffs(runs[-1]),
            remedy="Report them apart, or evaluate them at the same lengths",
        )
    main = USUAL_CUTOFF if USUAL_CUTOFF in common else common[0]
    others = [cutoff for cutoff in common if cutoff != main]
    drawn = [f"{name}@{cutoff}" for cutoff in [main, *others] for name in ("ndcg", "recall")]
    families = [f"{name}@{cutoff}" for name in ("recall", "ndcg", "coverage") for cutoff in common]
    sliced = (f"ndcg@{main}", f"recall@{main}", f"coverage@{main}")
    return Asked(("catalogue",), families, drawn, sliced, f"ndcg@{main}", "targets", TargetCounts)


def _cutoffs(run: FinishedRun) -> list[int]:
    return sorted(run.config.get("evaluation", {}).get("cutoffs", ()))


def _rows(test: TargetPositions) -> dict[str, Array]:
    return {"user_row": test.user_row, "item_row": test.item_row}


def _own_metrics(run: FinishedRun, test: TargetPositions) -> dict[str, float]:
    metrics, _ = retrieval_metrics(test, cutoffs=_cutoffs(run))
    return {f"test/{name}": value for name, value in metrics.items()}


def _measure_run(
    run: FinishedRun,
    test: TargetPositions,
    valid: TargetPositions,
    strata: Strata,
    how: Bootstrap,
    asked: Asked,
) -> RunMeasures:
    cutoffs = sorted({int(name.partition("@")[2]) for name in asked.metrics})
    drawn = bootstrap_target_positions(
        test, strata, cutoffs=cutoffs, num_replicates=how.replicates, seed=how.seed
    )
    on_valid, _ = retrieval_metrics(valid, cutoffs=cutoffs)
    _, counts = retrieval_metrics(test, strata, cutoffs=cutoffs)
    stated = run.result["metrics"]
    on_valid |= {name: stated[f"valid/{name}"] for name in asked.metrics if f"valid/{name}" in stated}
    covered = [
        f"coverage@{cutoff}{part}" for cutoff in cutoffs for part in ("", *map("/{}".format, POPULARITY))
    ]
    return RunMeasures(
        {f"test/{name}": value for name, value in drawn.items()},
        {_key(name): value for name, value in on_valid.items()},
        counts,
        {_key(name): stated[f"test/{name}"] for name in covered if f"test/{name}" in stated},
    )


def _key(name: str) -> Key:
    metric, _, stratum = name.partition("/")
    return Key("catalogue", stratum or None, metric)


def _reach(arm: ArmRuns, tests: Sequence[TargetPositions], num_items: int) -> Reach:
    """Return recall by length of the list, as far as the arm's lists go."""
    how = arm.runs[0].config.get("evaluation", {})
    # Places behind the list are not known where not every item is scored.
    longest = max(_cutoffs(arm.runs[0])) if _ends_early(how) else num_items
    longest = min(how.get("candidates") or longest, num_items)
    spaced = np.geomspace(1, min(longest, LONGEST_LIST), NUM_LENGTHS).round().astype(np.int64)
    lengths = np.union1d(spaced, [cutoff for cutoff in _cutoffs(arm.runs[0]) if cutoff <= spaced[-1]])
    recall = np.mean([_recall_by_length(test, lengths) for test in tests], axis=0)
    return Reach(
        arm=arm.arm.name,
        lengths=[int(length) for length in lengths],
        recall=[round(float(value), 6) for value in recall],
        beam_agreement=_agreement(arm, CODE_AGREEMENTS),
        index_recall=_agreement(arm, INDEX_RECALL),
    )


def _ends_early(how: Mapping[str, Any]) -> bool:
    """Tell whether nothing is known of places beyond the lists: of a beam's, an index's, or merged ones."""
    merge, index = how.get("interests", {}).get("merge"), how.get("index", {}).get("kind", "none")
    has_graph = how.get("graph", {}).get("kind", "none") != "none"
    return bool(how.get("beam_width")) or has_graph or index != "none" or merge in ("quota", "diversity")


def _agreement(arm: ArmRuns, metrics_of_lists: Sequence[str]) -> dict[int, float]:
    """Return the means over seeds, at the lengths that every run states."""
    stated = [run.result["metrics"] for run in arm.runs]
    names = [(cutoff, f"{name}@{cutoff}") for name in metrics_of_lists for cutoff in _cutoffs(arm.runs[0])]
    return {
        cutoff: sum(metrics[name] for metrics in stated) / len(stated)
        for cutoff, name in names
        if all(name in metrics for metrics in stated)
    }


def _recall_by_length(test: TargetPositions, lengths: Ints) -> Floats:
    """Return the mean over users of the share of their targets that a list of each length holds."""
    _, owner, of_user = np.unique(test.user_row, return_inverse=True, return_counts=True)
    weight = 1 / (of_user[owner] * len(of_user))
    order = np.argsort(test.position, kind="stable")
    held = np.concatenate(([0.0], np.cumsum(weight[order])))
    return held[np.searchsorted(test.position[order], lengths, side="right")]


def _notes(arms: Sequence[ArmRuns]) -> list[str]:
    masks = {
        arm.arm.name: arm.runs[0].config.get("evaluation", {}).get("masks_history", True) for arm in arms
    }
    if len(set(masks.values())) < 2:
        return []
    keeping = ", ".join(name for name, is_masked in masks.items() if not is_masked)
    return [
        f"The lists of {keeping} hold items of the user's history, those of the other arms do not: "
        "they are not lists of the same items, and differences tell of that too."
    ]


def retrieval_sections(report: Report) -> list[Section]:
    """Return what a report on retrievers has of its own."""
    return [
        Section("metrics", "Metrics", _metrics(report)),
        Section("differences", "Differences", _differences(report)),
        Section("slices", "By popularity and activity", _slices(report)),
        Section("reach", "Reach into the catalogue", reach_parts(report)),
        Section("interests", "Interests", interest_parts(report)),
        Section("examples", "Examples", example_parts(report)),
    ]


def _metrics(report: Report) -> list[Part]:
    said = (
        "By length of the list (a scale of powers), mean over seeds; marks stand where the run was evaluated."
    )
    agreements = [
        _agreement_table(BEAM_CAPTION, {each.arm: each.beam_agreement for each in report.reach}),
        _agreement_table(INDEX_CAPTION, {each.arm: each.index_recall for each in report.reach}),
    ]
    return [
        results.arm_table(report),
        Words(PROTOCOLS["catalogue"], is_note=True),
        _metric_table(report),
        *(table for table in agreements if table is not None),
        arm_legend(report),
        *figures((_reach_picture(report), "Recall@N", said)),
    ]


def _differences(report: Report) -> list[Part]:
    if not report.comparisons:
        return []
    main = _main_metrics(report)
    others = [key for key in results.compared_metrics(report) if key not in main]
    parts: list[Part] = [Words(TEST_WORDS), results.comparison_table(report, "catalogue", main)]
    if others:
        folded = [results.comparison_table(report, "catalogue", others)]
        parts.append(Folded("The same for lists of other lengths", folded))
    return parts


def _slices(report: Report) -> list[Part]:
    parts: list[Part] = [Words(SLICE_WORDS), arm_legend(report)]
    key = _main_metrics(report)[0]
    name = metric(key).title
    for dimension in results.sliced_dimensions(report):
        parts += [
            Heading(f"By {results.DIMENSIONS[dimension]}"),
            *figures(
                (results.strata_picture(report, dimension, key), name, "With 95 % intervals."),
                (
                    results.strata_difference_picture(report, dimension, key),
                    f"{name} against the baseline",
                    "Paired, with 95 % intervals, each for itself; verdicts, corrected for the number of "
                    "slices and arms, are in the table.",
                ),
            ),
            results.strata_table(report, dimension),
        ]
    return parts


def _main_metrics(report: Report) -> list[str]:
    """Return the metrics at the length of which the answer speaks, its own first."""
    _, _, cutoff = (report.headline_metric or "").partition("@")
    return [f"ndcg@{cutoff}", f"recall@{cutoff}"]


def _metric_table(report: Report) -> Table:
    """Return recall, NDCG and coverage of every arm, one column per length of the list."""
    metrics = report.scores[0].metrics
    cutoffs = [key.partition("@")[2] for key in metrics if key.startswith("recall@")]
    blocks = [
        Block(
            f"{family.title}, {family.hint}",
            [
                [
                    Cell(arm.name, ("baseline",) if arm.is_baseline else ()),
                    *(
                        estimate_cell(key, metrics[key][arm.name])
                        for key in metrics
                        if key.startswith(family.key)
                    ),
                ]
                for arm in report.arms
            ],
        )
        for family in RETRIEVAL_METRICS
    ]
    return Table(METRIC_CAPTION, [Column("Arm"), *(Column(f"N = {cutoff}") for cutoff in cutoffs)], blocks)


def _agreement_table(caption: str, shares: Mapping[str, Mapping[int, float]]) -> Table | None:
    """Return how much of the exact lists others hold, by arm and length; None where no arm says so."""
    arms = {arm: by_length for arm, by_length in shares.items() if by_length}
    if not arms:
        return None
    cutoffs = sorted({cutoff for by_length in arms.values() for cutoff in by_length})
    rows = [
        [Cell(arm), *(Cell(figure(by_length.get(cutoff))) for cutoff in cutoffs)]
        for arm, by_length in arms.items()
    ]
    columns = [Column("Arm"), *(Column(f"N = {cutoff}") for cutoff in cutoffs)]
    return Table(caption, columns, [Block("", rows)])


def _reach_picture(report: Report) -> Markup:
    """Return recall by length of the list, on a scale of powers."""
    series = {arm.name: arm.series for arm in report.arms}
    cutoffs = {float(key.partition("@")[2]) for key in report.scores[0].metrics}
    curves: list[Curve] = []
    for each in report.reach:
        xs = [float(length) for length in each.lengths]
        marks = [point for point in zip(xs, each.recall, strict=True) if point[0] in cutoffs]
        curves.append(Curve(series[each.arm], xs, each.recall, each.arm, marks))
    title = "Recall at N by N, the length of the list, one line per arm"
    return draw_curves(curves, title, "N, length of the list", powers=True)
