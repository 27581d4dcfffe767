"""The report's order and the words around its tables, shared by the page and the Markdown."""

from trec_semid.evaluation.report.content import Report
from trec_semid.evaluation.report.words import things

TEST_WORDS = (
    "Each arm against the baseline on the same users: users are drawn again and again, and both arms are "
    "measured on the same draw. Where the difference is smaller than the smallest detectable one, the "
    "verdict is 'not distinguishable': this data cannot tell such arms apart, which does not say that they "
    "are equal. p values are two-sided and not corrected for the number of comparisons."
)
SLICE_WORDS = (
    "Test rows by how often their item occurs in training, and by how many training events their user has. "
    "A slice with few users has wide intervals; read those before the order of the dots."
)


def subtitle(report: Report) -> str:
    """Return the line under the title."""
    parts = [report.dataset.name]
    if report.arms:
        num_runs = sum(len(arm.runs) for arm in report.arms)
        parts += [things(len(report.arms), "arm"), things(num_runs, "rank run")]
    if report.codebooks:
        parts.append(things(len(report.codebooks), "tokenize run"))
    return " · ".join(parts)


def section_titles(report: Report) -> list[tuple[str, str]]:
    """Return the anchors and titles of the sections this report has."""
    titles = {
        "answer": ("The answer", True),
        "data": ("Data", True),
        "metrics": ("Metrics", bool(report.arms)),
        "differences": ("Differences", bool(report.comparisons)),
        "slices": ("By popularity and activity", bool(report.arms)),
        "curves": ("Calibration and ROC", bool(report.arms)),
        "training": ("Training", bool(report.arms)),
        "codebooks": ("Codebooks", bool(report.codebooks)),
        "plan": ("Plan of the tables", bool(report.plans)),
        "made": ("How it was made", True),
        "words": ("What the words mean", True),
    }
    return [(key, title) for key, (title, is_there) in titles.items() if is_there]
