"""What a report on retrievers has of its own: its arms, metrics by length of list, example users."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from markupsafe import Markup

from trec_semid.report import results
from trec_semid.report.arms import ArmRuns, Description, own_config
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import Example, Report
from trec_semid.report.definitions import PROTOCOLS, RETRIEVAL_METRICS, metric
from trec_semid.report.drawing import Curve, draw_curves
from trec_semid.report.examples import FOUND_WITHIN
from trec_semid.report.parts import Block, Cell, Column, Folded, Heading, Part, Section, Table, Words, figures
from trec_semid.report.results import METRIC_CAPTION, TEST_WORDS, arm_legend, estimate_cell
from trec_semid.report.words import NONE, count, figure, shortened, things

SLICE_WORDS = (
    "Test items by how often they occur in training, and users by how many training events they have. In a "
    "slice of items only such test items count, on the places they have in lists of the whole catalogue. A "
    "slice with few users has wide intervals; read those before the order of the dots."
)
BEAM_CAPTION = (
    "Beam search against exact scores: share of the first N items by exact scores that are among the beam's "
    "first N, for the first users of the validation part."
)
MIN_SHARED = 3
"""Tokens that all arms must begin with for their names to leave them out."""
_SEED = re.compile(r"seed-\d+")
EXAMPLE_WORDS = (
    "Some users: what came before, oldest first, and the place of what came next in the list of each arm. "
    f"Users drawn at random are of those for whom some arm has it among its first {FOUND_WITHIN}; users of "
    "the largest gains and losses are extremes. They show what lists are made from, and prove nothing."
)


def describe_retrievers(runs: Sequence[FinishedRun], tokenizers: Sequence[str | None]) -> list[Description]:
    """Return what each arm is, such as `sasrec · ID + text + mmq`: the model, and what an item is to it.

    A word that is a side field of one arm and a content vector of one, the same or another, is told apart
    in all of them. What all arms begin with is left out of the names where it is long, such as in
    `sasrec · … + mmq`; the representation has it.

    Args:
        runs: one run of every arm.
        tokenizers: kinds of the tokenizers that they read.
    """
    items = [run.config.get("item", {}) for run in runs]
    fields = {name for item in items for name in item.get("fields", [])}
    contents = {name for item in items for name in item.get("content", [])}
    tokens = [_item_tokens(run, fields & contents) for run in runs]
    shared = _shared_beginning([own for run, own in zip(runs, tokens, strict=True) if _asks_of_items(run)])
    return [
        _describe(run, tokenizer, own, shared)
        for run, tokenizer, own in zip(runs, tokenizers, tokens, strict=True)
    ]


def _shared_beginning(tokens: Sequence[Sequence[str]]) -> int:
    """Return how many tokens the names leave out: those that all of several arms begin with, if many."""
    if len(tokens) < 2:
        return 0
    same = takewhile(lambda each: len(set(each)) == 1, zip(*tokens, strict=False))
    num_shared = sum(1 for _ in same)
    return num_shared if num_shared >= MIN_SHARED else 0


def _asks_of_items(run: FinishedRun) -> bool:
    """Tell whether a run has items of its own: neither made of other runs nor without anything to learn."""
    return not _rows_of_members(run) and _learns(run)


def _learns(run: FinishedRun) -> bool:
    return any(name.startswith("parameters/") for name in run.result.get("counts", {}))


def _describe(run: FinishedRun, tokenizer: str | None, tokens: Sequence[str], num_shared: int) -> Description:
    model, members = str(run.config.get("model", {}).get("kind", "")), _rows_of_members(run)
    if members:
        representation = members[0] if len(members) == 1 else f"{len(members)} runs"
        named = representation
    elif not _learns(run):  # it asks nothing of items, and every seed of it is the same
        representation = named = ""
    else:
        reads_codes = bool(run.config.get("semantic_ids"))
        short = ["…", *tokens[num_shared:]] if num_shared else tokens
        representation = " + ".join([*tokens, "codes"] if reads_codes else tokens)
        named = " + ".join([*short, tokenizer or "codes"] if reads_codes else short)
    return Description(
        parts=[part for part in (model, named) if part],
        representation=representation,
        model=model,
        lists=list_rule(run),
        has_seed=_learns(run) or bool(members),
    )


def _item_tokens(run: FinishedRun, ambiguous: set[str]) -> list[str]:
    item = run.config.get("item", {})
    fields = [f"{name} (field)" if name in ambiguous else name for name in item.get("fields", [])]
    content = [f"{name} (content)" if name in ambiguous else name for name in item.get("content", [])]
    return [*(["ID"] if item.get("id", True) else []), *fields, *content]


def retriever_config(run: FinishedRun) -> dict[str, Any]:
    """Return what of a run's config makes its arm.

    Runs that an ensemble is made of are named by their rows: seeds of it may be of other seeds of them.
    """
    own, members = own_config(run), _rows_of_members(run)
    return {**own, "model": {**own["model"], "runs": members}} if members else own


def _rows_of_members(run: FinishedRun) -> list[str]:
    """Return the last part of each run's folder, or the one before it where that is a study's `seed-<n>`."""
    folders = [PurePosixPath(folder) for folder in run.config.get("model", {}).get("runs", [])]
    return [folder.parent.name if _SEED.fullmatch(folder.name) else folder.name for folder in folders]


def first_retriever(arms: Sequence[ArmRuns]) -> ArmRuns:
    """Return the arm of the run that was given first."""
    return arms[0]


def list_rule(run: FinishedRun) -> str:
    """Return how a retriever listed the catalogue, in words."""
    how = run.config.get("evaluation", {})
    width = how.get("beam_width")
    search = f"beam of {width} tuples" if width else "every item scored"
    penalty = how.get("unseen_penalty", 0.0)
    lowered = f", items without a training event {penalty:g} lower" if penalty else ""
    return f"{search}{lowered}, history {'left out' if how.get('masks_history', True) else 'kept'}"


def retrieval_sections(report: Report) -> list[Section]:
    """Return what a report on retrievers has of its own."""
    return [
        Section("metrics", "Metrics", _metrics(report)),
        Section("differences", "Differences", _differences(report)),
        Section("slices", "By popularity and activity", _slices(report)),
        Section("examples", "Examples", _examples(report)),
    ]


def _metrics(report: Report) -> list[Part]:
    said = (
        "By length of the list (a scale of powers), mean over seeds; marks stand where the run was evaluated."
    )
    beams = _beam_table(report)
    return [
        results.arm_table(report),
        Words(PROTOCOLS["catalogue"], is_note=True),
        _metric_table(report),
        *([beams] if beams else []),
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


def _examples(report: Report) -> list[Part]:
    return [Words(EXAMPLE_WORDS), _example_table(report)] if report.examples else []


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


def _beam_table(report: Report) -> Table | None:
    """Return how much of the exact lists the beams find; None where no arm says so."""
    arms = [reach for reach in report.reach if reach.beam_agreement]
    if not arms:
        return None
    cutoffs = sorted({cutoff for reach in arms for cutoff in reach.beam_agreement})
    rows = [
        [Cell(reach.arm), *(Cell(figure(reach.beam_agreement.get(cutoff))) for cutoff in cutoffs)]
        for reach in arms
    ]
    columns = [Column("Arm"), *(Column(f"N = {cutoff}") for cutoff in cutoffs)]
    return Table(BEAM_CAPTION, columns, [Block("", rows)])


def _example_table(report: Report) -> Table:
    """Return a block per user: how chosen, what came before, and the place of what came next by arm."""
    columns = [Column("What came next"), *(Column(arm.name, "place") for arm in report.arms)]
    blocks = [Block(each.why, _target_rows(each, report), _before(each)) for each in report.examples]
    return Table("Places in the lists of each arm's first seed; 1 is the first.", columns, blocks)


def _before(each: Example) -> str:
    earlier = [things(each.num_earlier, "earlier item")] if each.num_earlier > 0 else []
    return " → ".join([*earlier, *map(shortened, each.history)]) or "nothing before"


def _target_rows(each: Example, report: Report) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for target in each.targets:
        places = [target.ranks[arm.name] for arm in report.arms]
        cells = [Cell("not listed" if place is None else count(place)) for place in places]
        rows.append([Cell(shortened(target.title)), *cells])
    if each.num_further:
        further = f"and {things(each.num_further, 'further item')}"
        rows.append([Cell(further), *(Cell(NONE) for _ in report.arms)])
    return rows


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
