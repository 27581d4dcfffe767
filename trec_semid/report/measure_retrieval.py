"""Measures every retrieve run on the ranks of its targets: metrics, their draws under resampled users, reach.

Coverage cannot be taken from the ranks of targets: it is as the run stated it, without draws.
"""

from collections.abc import Sequence

import numpy as np

from trec_semid.core.arrays import Array, Floats, Ints
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.retrieval import retrieval_metrics
from trec_semid.evaluation.strata import POPULARITY, Strata, training_strata
from trec_semid.evaluation.target_positions import (
    TargetPositions,
    bootstrap_target_positions,
    read_target_positions,
)
from trec_semid.report.arms import ArmRuns
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import Bootstrap, Reach
from trec_semid.report.examples import choose_examples
from trec_semid.report.measure import (
    Asked,
    Key,
    Measured,
    RunMeasures,
    expect_own_metrics,
    expect_same_rows,
)
from trec_semid.runtime.logs import track

USUAL_CUTOFF = 10
"""The answer speaks of it where every run was evaluated there."""
LONGEST_LIST = 1000
"""How far recall by length of the list is shown."""
NUM_LENGTHS = 60
BEAM_AGREEMENT = "valid/beam_agreement"
"""What the job calls it."""
SAME_TARGETS = "Run both again on the same dataset, with the same sequences.events"


def measure_retrieval(arms: Sequence[ArmRuns], dataset: Dataset, how: Bootstrap) -> Measured:
    """Measure every run of every arm.

    Raises:
        DataError: ranks are absent or damaged, are of other targets than those of the first run, disagree
            with the run's `metrics.json`, or no list length was evaluated by all runs.
    """
    asked, strata = _ask(arms), training_strata(dataset)
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
    examples = choose_examples(firsts, dataset, arms[0].runs[0].config, seed=how.seed)
    return Measured(asked, measured, reach=reach, examples=examples, notes=_notes(arms))


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
    return Asked(("catalogue",), families, drawn, sliced, f"ndcg@{main}", "targets")


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
    longest = max(_cutoffs(arm.runs[0])) if how.get("beam_width") else num_items
    spaced = np.geomspace(1, min(longest, LONGEST_LIST), NUM_LENGTHS).round().astype(np.int64)
    lengths = np.union1d(spaced, [cutoff for cutoff in _cutoffs(arm.runs[0]) if cutoff <= spaced[-1]])
    recall = np.mean([_recall_by_length(test, lengths) for test in tests], axis=0)
    return Reach(
        arm=arm.arm.name,
        lengths=[int(length) for length in lengths],
        recall=[round(float(value), 6) for value in recall],
        beam_agreement=_beam_agreement(arm),
    )


def _beam_agreement(arm: ArmRuns) -> dict[int, float]:
    """Return the means over seeds, at the lengths that every run states."""
    stated = [run.result["metrics"] for run in arm.runs]
    names = {cutoff: f"{BEAM_AGREEMENT}@{cutoff}" for cutoff in _cutoffs(arm.runs[0])}
    return {
        cutoff: sum(metrics[name] for metrics in stated) / len(stated)
        for cutoff, name in names.items()
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
