"""Sections of a report on retrievers: metrics by length of the list, differences, slices, examples."""

from trec_semid.report import pictures, retrieval_tables, tables
from trec_semid.report.content import Report
from trec_semid.report.definitions import PROTOCOLS, metric
from trec_semid.report.examples import FOUND_WITHIN
from trec_semid.report.parts import Folded, Heading, Part, Section, Words, figures
from trec_semid.report.pictures import arm_legend
from trec_semid.report.ranking_sections import TEST_WORDS

SLICE_WORDS = (
    "Test items by how often they occur in training, and users by how many training events they have. In a "
    "slice of items only such test items count, on the places they have in lists of the whole catalogue. A "
    "slice with few users has wide intervals; read those before the order of the dots."
)
EXAMPLE_WORDS = (
    "Some users: what came before, oldest first, and the place of what came next in the list of each arm. "
    f"Users drawn at random are of those for whom some arm has it among its first {FOUND_WITHIN}; users of "
    "the largest gains and losses are extremes. They show what lists are made from, and prove nothing."
)


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
    beams = retrieval_tables.beam_table(report)
    return [
        tables.arm_table(report),
        Words(PROTOCOLS["catalogue"], is_note=True),
        retrieval_tables.metric_table(report),
        *([beams] if beams else []),
        arm_legend(report),
        *figures((pictures.reach_picture(report), "Recall@N", said)),
    ]


def _differences(report: Report) -> list[Part]:
    if not report.comparisons:
        return []
    main = _main_metrics(report)
    others = [key for key in pictures.compared_metrics(report) if key not in main]
    parts: list[Part] = [Words(TEST_WORDS), tables.comparison_table(report, "catalogue", main)]
    if others:
        folded = [tables.comparison_table(report, "catalogue", others)]
        parts.append(Folded("The same for lists of other lengths", folded))
    return parts


def _slices(report: Report) -> list[Part]:
    parts: list[Part] = [Words(SLICE_WORDS), arm_legend(report)]
    key = _main_metrics(report)[0]
    name = metric(key).title
    for dimension in pictures.sliced_dimensions(report):
        parts += [
            Heading(f"By {tables.DIMENSIONS[dimension]}"),
            *figures(
                (pictures.strata_picture(report, dimension, key), name, "With 95 % intervals."),
                (
                    pictures.strata_difference_picture(report, dimension, key),
                    f"{name} against the baseline",
                    "Paired, with 95 % intervals, each for itself; verdicts, corrected for the number of "
                    "slices and arms, are in the table.",
                ),
            ),
            tables.strata_table(report, dimension),
        ]
    return parts


def _examples(report: Report) -> list[Part]:
    return [Words(EXAMPLE_WORDS), retrieval_tables.example_table(report)] if report.examples else []


def _main_metrics(report: Report) -> list[str]:
    """Return the metrics at the length of which the answer speaks, its own first."""
    _, _, cutoff = (report.headline_metric or "").partition("@")
    return [f"ndcg@{cutoff}", f"recall@{cutoff}"]
