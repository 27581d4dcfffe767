"""What runs learnt: logged curves by step, and the codebooks of tokenizers."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from trec_semid.report.arms import ArmRuns, tokenizer_kind
from trec_semid.report.collect import Collection, FinishedRun, is_finetuned
from trec_semid.report.content import CHURN_OF_POSITION, Codebooks, Learning, Report
from trec_semid.report.page.drawing import Curve, draw_curves, draw_usage
from trec_semid.report.page.parts import Block, Cell, Column, Heading, Legend, Part, Table, Words, figures
from trec_semid.report.page.results import arm_legend
from trec_semid.report.words import NONE, count, figure, metric, share

LOG = "log.jsonl"
SCALARS = ("train/loss", "valid/", "codes/")
"""What is shown of a log: scalars whose names begin so."""
MAX_POINTS = 200
"""Longer logs are thinned to about this many points."""
VALID = "valid/"
"""What names of validation scalars begin with."""
CODE_SCALARS = (
    ("codes/entropy", "Entropy of codes", "Nats, mean over positions, of runs that tuned their tokenizer."),
    ("codes/utilisation", "Codes in use", "Share of all codes."),
    ("codes/dead", "Dead codes", "Codes of all positions that no item has."),
    ("codes/churn", "Churn", "Share of items whose semantic ID is not the one they started with."),
)
LATER_CODE_SCALARS = (
    ("codes/agreement", "Agreement", "Share of codes chosen in training that are those of the map."),
    ("codes/reconstruction", "Reconstruction", "Squared error of content rebuilt from the codes."),
)


def learning_of(run: FinishedRun, arm: str) -> Learning:
    """Return a run's logged scalars; after a restart a step is logged again, and the later line counts."""
    points: dict[str, dict[int, float]] = {}
    best: int | None = None
    for event in run.events():
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event.get("event") == "best":
            best = step
        for name, value in event.items():
            if name.startswith(SCALARS) and isinstance(value, (int, float)):
                points.setdefault(name, {})[step] = float(value)
    scalars = {name: _thinned(sorted(steps.items()), best) for name, steps in points.items()}
    return Learning(arm=arm, seed=run.seed, scalars=scalars, best_step=best)


def _thinned(points: Sequence[tuple[int, float]], best: int | None) -> list[tuple[int, float]]:
    stride = -(-len(points) // MAX_POINTS)
    shown = range(0, len(points), stride)
    last = len(points) - 1
    return [
        point for index, point in enumerate(points) if index in shown or index == last or point[0] == best
    ]


def training_parts(report: Report) -> list[Part]:
    """Return the section on training: what was logged by step, and where every run ended."""
    if not report.learning:
        return []
    shown = [("train/loss", "Training loss", "By step.")]
    shown += [(name, f"Validation {_scalar_title(name)}", "By step.") for name in _validated(report)]
    of_positions = [
        (
            name,
            f"Churn of {name.rpartition('/')[2]}",
            "Share of items whose code at this position is another now.",
        )
        for name in _churn_positions(report)
    ]
    shown += [*CODE_SCALARS, *of_positions, *LATER_CODE_SCALARS]
    drawn = ((_learning_picture(report, name), title, text) for name, title, text in shown)
    said = (
        "One line per run; a mark shows the step whose weights were kept because they were best on the "
        "validation part."
    )
    legend = arm_legend(report, {each.arm for each in report.learning})
    return [Words(said), legend, *figures(*drawn), _training_table(report)]


def _validated(report: Report) -> list[str]:
    """Return the validation scalars that were logged, that of the answer first."""
    logged = dict.fromkeys(
        name for each in report.learning for name in each.scalars if name.startswith(VALID)
    )
    return sorted(logged, key=lambda name: name != f"{VALID}{report.headline_metric}")


def _scalar_title(scalar: str) -> str:
    """Return what a validation scalar is called."""
    return metric(scalar.removeprefix(VALID)).title


def _training_table(report: Report) -> Table:
    """Return where every run ended and which step's weights it selected."""
    shown = _validated(report)
    titles = (
        "Run",
        "Steps",
        "Last loss",
        "Best step",
        *(f"Valid {_scalar_title(name)} there" for name in shown),
    )
    rows: list[list[Cell]] = []
    for each in report.learning:
        loss = each.scalars.get("train/loss", [])
        at_best = {name: dict(points).get(each.best_step or 0) for name, points in each.scalars.items()}
        rows.append(
            [
                Cell(each.arm, (f"seed {each.seed}",)),
                Cell(count(max((step for points in each.scalars.values() for step, _ in points), default=0))),
                Cell(figure(loss[-1][1] if loss else None)),
                Cell(NONE if each.best_step is None else count(each.best_step)),
                *(Cell(figure(at_best.get(name))) for name in shown),
            ]
        )
    caption = "Training of every run; metrics are those logged at the step that was kept."
    return Table(caption, [Column(title) for title in titles], [Block("", rows)])


def _churn_positions(report: Report) -> list[str]:
    """Return the scalars that tell of single positions' churn, in the order they were logged."""
    names = dict.fromkeys(name for each in report.learning for name in each.scalars)
    return [name for name in names if name.startswith(CHURN_OF_POSITION)]


def _learning_picture(report: Report, scalar: str) -> Markup | None:
    """Return a logged scalar by step, one line per run, best steps marked; None where nobody logged it."""
    series = {arm.name: arm.series for arm in report.arms}
    curves: list[Curve] = []
    for each in report.learning:
        points = each.scalars.get(scalar, [])
        if points:
            xs, ys = [float(step) for step, _ in points], [value for _, value in points]
            marks = [point for point in zip(xs, ys, strict=True) if point[0] == each.best_step]
            curves.append(Curve(series[each.arm], xs, ys, f"{each.arm}, seed {each.seed}", marks))
    return draw_curves(curves, f"{scalar} by training step, one line per run", "step") if curves else None


def collect_codebooks(collection: Collection, arms: Sequence[ArmRuns]) -> list[Codebooks]:
    """Return what tokenizers did to the catalogue: first those that a recommender tuned."""
    readers: dict[str, list[str]] = {}
    for arm in arms:
        for run in arm.runs:
            tokenizer = collection.tokenizer_of(run)
            if tokenizer and arm.arm.name not in readers.setdefault(tokenizer.uri, []):
                readers[tokenizer.uri].append(arm.arm.name)
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
        if is_finetuned(run)
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


def codebook_parts(shown: Sequence[Codebooks]) -> list[Part]:
    """Return the section on tokenizers: quality, use of codes, and whether near items share them."""
    if not shown:
        return []
    parts: list[Part] = [_quality_table(shown)]
    first_runs = _first_runs(shown)
    for each in first_runs:
        readers = f", read by {', '.join(each.arms)}" if each.arms else ""
        said = (
            "Items per code at each position, most used code first; the dashed line is an even share. "
            f"Run {each.run}{readers}."
        )
        usage = [(picture, name, numbers) for name, numbers, picture in _usage_pictures(each)]
        parts += [Heading(f"Tokenizer {each.name}"), *_remarks(each), Words(said, is_note=True)]
        parts += [*figures(*usage, are_tiny=True), _position_table(each)]
    agreement = _agreement_picture(first_runs)
    if agreement is not None:
        marks = [(series, each.name) for series, each in enumerate(first_runs, start=1)]
        said = "Mean cosine of the content of item pairs (upright). A good tokenizer rises."
        parts += [Heading("Do near items share codes?"), Legend("Tokenizers", marks)]
        parts += figures((agreement, "Likeness of content by codes in common", said))
    return parts


def _quality_table(codebooks: Sequence[Codebooks]) -> Table:
    """Return one row per tokenize run."""
    columns = [
        Column("Tokenizer"),
        Column("Reconstruction", "lower is better"),
        Column("Utilisation", "mean over positions"),
        Column("Entropy", "nats, mean"),
        Column("Unique", "distinct tuples"),
        Column("Alone", "in their tuple"),
        Column("In common", "two positions"),
        Column("Together", "nats, two positions"),
        Column("Read out", "of codes, linear"),
        Column("In collisions", "items"),
        Column("Largest group", "items"),
        Column("Neighbours", "codes in common"),
        Column("Random pairs", "codes in common"),
    ]
    rows = [[Cell(each.name, (each.run, f"seed {each.seed}")), *_quality(each.quality)] for each in codebooks]
    convention = codebooks[0].quality.get("reconstruction_convention", "") if codebooks else ""
    caption = (
        "Neighbours: mean share of positions in which an item and "
        "its nearest neighbours by content have the same code. In common: what part of the one position "
        "follows from the other, beyond chance. Read out: share of the content that a linear model of the "
        f"codes tells of items it was not fitted on. Reconstruction: {convention}."
    )
    return Table(caption, columns, [Block("", rows)])


def _quality(quality: dict[str, Any]) -> list[Cell]:
    agreement = quality.get("neighbour_agreement") or {}
    num_items = quality["num_items"]
    tuples = f"{count(quality['unique_tuples'])} of {count(num_items)}"
    colliding = quality["items_in_collisions"]
    return [
        Cell(figure(quality["reconstruction"]), _by_modality(quality)),
        Cell(share(quality["utilisation"], 1)),
        Cell(figure(quality["entropy"], 2)),
        Cell(share(quality["unique_share"], 1), (tuples,)),
        Cell(_share_or_none(quality.get("alone_share"))),
        Cell(_figure_or_none(quality.get("shared_information"))),
        Cell(_figure_or_none(quality.get("joint_entropy"))),
        Cell(_share_or_none(quality.get("readout"))),
        Cell(
            count(colliding), (f"{share(colliding, num_items)}, {count(quality['collision_groups'])} groups",)
        ),
        Cell(count(quality["largest_group"])),
        Cell(_share_or_none(agreement.get("mean_code_overlap_of_neighbours"))),
        Cell(_share_or_none(agreement.get("mean_code_overlap_of_random_pairs"))),
    ]


def _by_modality(quality: dict[str, Any]) -> tuple[str, ...]:
    modalities = quality.get("modalities") or {}
    return tuple(f"{name} {figure(each['reconstruction'])}" for name, each in modalities.items())


def _share_or_none(value: float | None) -> str:
    return NONE if value is None else share(value, 1)


def _figure_or_none(value: float | None) -> str:
    return NONE if value is None else figure(value, 2)


def _remarks(codebooks: Codebooks) -> list[Part]:
    """Return what is wrong with the codes, in a sentence; nothing where nothing stands out."""
    told = "; ".join(codebooks.quality.get("remarks") or [])
    return [Words(f"What stands out: {told}.")] if told else []


def _position_table(codebooks: Codebooks) -> Table:
    """Return one row per position of a tokenizer."""
    columns = [
        Column("Position"),
        Column("Codes"),
        Column("Used"),
        Column("Entropy", "nats"),
        Column("Highest possible", "nats"),
        Column("Perplexity", "codes in effect"),
        Column("Missing", "items without it"),
    ]
    rows = [
        [
            Cell(position["name"]),
            Cell(count(position["size"])),
            Cell(count(position["used"]), (share(position["utilisation"], 1),)),
            Cell(figure(position["entropy"], 2)),
            Cell(figure(math.log(position["size"]), 2)),
            Cell(figure(position["perplexity"], 1)),
            Cell(count(position["missing"])),
        ]
        for position in codebooks.quality["positions"]
    ]
    return Table(f"Positions of {codebooks.name}, run {codebooks.run}.", columns, [Block("", rows)])


def _usage_pictures(codebooks: Codebooks) -> list[tuple[str, str, Markup]]:
    """Return (name, numbers, picture) of every position."""
    pictures: list[tuple[str, str, Markup]] = []
    for position in codebooks.quality["positions"]:
        numbers = f"{share(position['utilisation'], 1)} used, perplexity {figure(position['perplexity'], 0)}"
        title = f"Items per code at position {position['name']}, most used first: {numbers}"
        pictures.append((position["name"], numbers, draw_usage(position["counts"], title)))
    return pictures


def _first_runs(codebooks: Sequence[Codebooks]) -> list[Codebooks]:
    """Return the first run of each tokenizer: more seeds of it would look alike and fill the page."""
    return list({each.name: each for each in reversed(codebooks)}.values())[::-1]


def _agreement_picture(codebooks: Sequence[Codebooks]) -> Markup | None:
    """Return content likeness of item pairs by how many codes they share; None where nobody measured it."""
    curves: list[Curve] = []
    for series, each in enumerate(codebooks):
        agreement = each.quality.get("neighbour_agreement") or {}
        steps = [step for step in agreement.get("by_shared_codes", []) if step.get("pairs")]
        if steps:
            xs = [float(step["shared_codes"]) for step in steps]
            ys = [float(step["mean_cosine"]) for step in steps]
            curves.append(Curve(series + 1, xs, ys, each.name))
    if not curves:
        return None
    title = "Mean cosine of the content of item pairs by number of codes in common"
    return draw_curves(curves, title, "codes in common", dots=True)
