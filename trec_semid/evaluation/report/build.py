"""Builds the report's content from collected runs."""

from collections.abc import Sequence

from trec_semid.evaluation.predictions import read_predictions
from trec_semid.evaluation.report.arms import ArmRuns, group_arms, tokenizer_kind
from trec_semid.evaluation.report.collect import Collection, FinishedRun, is_tuned
from trec_semid.evaluation.report.compare import compare_scores, compare_strata, compare_with_baseline
from trec_semid.evaluation.report.content import (
    CHURN_OF_POSITION,
    Bootstrap,
    Codebooks,
    Counts,
    Learning,
    Plan,
    Report,
    RunFacts,
)
from trec_semid.evaluation.report.headline import write_headline, write_tokenizer_headline
from trec_semid.evaluation.report.measure import ArmMeasures, choose_replicates, measure_arms

SCALARS = (
    "train/loss",
    "valid/auc",
    "valid/gauc",
    "codes/entropy",
    "codes/utilisation",
    "codes/dead",
    "codes/churn",
    "codes/agreement",
    "codes/reconstruction",
)
MAX_POINTS = 200
"""Longer logs are thinned to about this many points."""


def build_report(
    collection: Collection,
    *,
    title: str | None = None,
    baseline: str | None = None,
    num_replicates: int = 1000,
    seed: int = 0,
) -> Report:
    """Measure the runs, compare the arms and word the answer.

    Args:
        collection: the runs.
        title: the report's title; None = made from the dataset's name.
        baseline: name of the arm that others are compared with; None = the item-ID arm.
        num_replicates: draws of users behind every interval; large test parts get fewer, and a note.
        seed: of the draws.

    Raises:
        DataError: runs that cannot be compared or whose files do not fit each other.
    """
    arms = group_arms(collection, baseline)
    dataset, books = collection.dataset, _codebooks(collection, arms)
    how = _bootstrap(arms, num_replicates, seed)
    measures = measure_arms(arms, dataset, how) if arms else []
    comparisons = compare_with_baseline(arms, measures) if arms else []
    counts = _counts(measures[0]) if measures else None
    if counts:
        headline = write_headline([each.arm for each in arms], comparisons, counts, dataset.facts.name)
    else:
        headline = write_tokenizer_headline(books, dataset.facts.name)
    return Report(
        title=title or f"Ranking report: {dataset.facts.name}",
        headline=headline,
        dataset=dataset.facts,
        dataset_place=dataset.uri,
        counts=counts,
        bootstrap=how,
        arms=[each.arm for each in arms],
        baseline=arms[0].arm.name if arms else None,
        scores=compare_scores(arms, measures) if arms else [],
        comparisons=comparisons,
        strata=compare_strata(arms, measures) if arms else [],
        curves=[each.curves for each in measures],
        learning=[_learning(run, arm.arm.name) for arm in arms for run in arm.runs],
        codebooks=books,
        plans=_plans(arms),
        runs=_runs(collection, arms),
        notes=[*collection.notes, *_draw_notes(how, num_replicates), *_seed_notes(arms)],
    )


def _bootstrap(arms: Sequence[ArmRuns], wanted: int, seed: int) -> Bootstrap:
    if not arms:
        return Bootstrap(replicates=wanted, seed=seed)
    num_rows = len(read_predictions(arms[0].runs[0].uri, "test").row)
    affordable = choose_replicates(wanted, num_rows, sum(len(arm.runs) for arm in arms))
    return Bootstrap(replicates=affordable, seed=seed)


def _counts(first: ArmMeasures) -> Counts:
    found = first.runs[0].counts
    return Counts(**{name: found[name] for name in Counts.model_fields})


def _draw_notes(how: Bootstrap, wanted: int) -> list[str]:
    if how.replicates == wanted:
        return []
    return [f"The test part is large: {how.replicates:,} draws of users instead of {wanted:,}."]


def _seed_notes(arms: Sequence[ArmRuns]) -> list[str]:
    few = [each.arm.name for each in arms if len(each.runs) < 3]
    if not few:
        return []
    return [
        f"Fewer than three seeds for {', '.join(few)}: how much another seed would change is not well known."
    ]


def _learning(run: FinishedRun, arm: str) -> Learning:
    """Return a run's logged scalars; after a restart a step is logged again, and the later line counts."""
    points: dict[str, dict[int, float]] = {name: {} for name in SCALARS}
    positions = (key for event in run.events() for key in event if key.startswith(CHURN_OF_POSITION))
    points |= {name: {} for name in dict.fromkeys(positions)}
    best: int | None = None
    for event in run.events():
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event.get("event") == "best":
            best = step
        for name in points:
            if isinstance(event.get(name), (int, float)):
                points[name][step] = float(event[name])
    scalars = {name: _thinned(sorted(steps.items()), best) for name, steps in points.items() if steps}
    return Learning(arm=arm, seed=run.seed, scalars=scalars, best_step=best)


def _thinned(points: Sequence[tuple[int, float]], best: int | None) -> list[tuple[int, float]]:
    stride = -(-len(points) // MAX_POINTS)
    kept = range(0, len(points), stride)
    last = len(points) - 1
    return [point for index, point in enumerate(points) if index in kept or index == last or point[0] == best]


def _codebooks(collection: Collection, arms: Sequence[ArmRuns]) -> list[Codebooks]:
    readers: dict[str, list[str]] = {}
    for arm in arms:
        for run in arm.runs:
            made = collection.tokenizer_of(run)
            if made and arm.arm.name not in readers.setdefault(made.uri, []):
                readers[made.uri].append(arm.arm.name)
    tuned = [
        Codebooks(
            name=f"{run.json('quality.json')['tokenizer']}, tuned",
            run=run.name,
            seed=run.seed,
            arms=[arm.arm.name],
            quality=run.json("quality.json"),
        )
        for arm in arms
        for run in arm.runs
        if is_tuned(run)
    ]
    return tuned + [
        Codebooks(
            name=tokenizer_kind(run),
            run=run.name,
            seed=run.seed,
            arms=readers.get(run.uri, []),
            quality=run.json("quality.json"),
        )
        for run in sorted(collection.tokenizers, key=lambda run: (tokenizer_kind(run), run.seed))
    ]


def _plans(arms: Sequence[ArmRuns]) -> list[Plan]:
    users: dict[str, list[tuple[str, str]]] = {}
    for arm in arms:
        for run in arm.runs:
            users.setdefault(run.text("plan.txt"), []).append((arm.arm.name, run.name))
    return [
        Plan(text=text, arms=list(dict.fromkeys(arm for arm, _ in by)), runs=[run for _, run in by])
        for text, by in users.items()
    ]


def _runs(collection: Collection, arms: Sequence[ArmRuns]) -> list[RunFacts]:
    ranks = [run.facts(arm.arm.name) for arm in arms for run in arm.runs]
    return ranks + [run.facts(tokenizer_kind(run)) for run in collection.tokenizers]
