"""The report's order and the words around its tables, shared by the page and the Markdown."""

from trec_semid.evaluation.report.content import Report
from trec_semid.evaluation.report.words import count, duration, listing, share, things

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


def dataset_facts(report: Report) -> list[tuple[str, str]]:
    """Return the dataset's facts as (term, text)."""
    facts = report.dataset
    size = f"{count(facts.num_events)} events of {count(facts.num_users)} users"
    pairs = [("Dataset", facts.name), ("Size", f"{size} on {count(facts.num_items)} items")]
    if facts.num_users and facts.num_items:
        pairs.append(("Density", share(facts.num_events, facts.num_users * facts.num_items)))
    tied = "" if facts.tied_events is None else f" ({things(facts.tied_events, 'event')} tied)"
    pairs += [
        ("Label rule", facts.label_rule),
        ("Split rule", facts.split_rule),
        ("Order of equal times", f"{facts.tie_rule}{tied}"),
        ("Filter", facts.filter_rule),
        ("Side fields of items", listing(list(facts.item_fields)) or "none"),
        ("Side fields of users", listing(list(facts.user_fields)) or "none"),
    ]
    if report.counts:
        text = (
            f"{count(report.counts.rows)} rows, {count(report.counts.positives)} positive, "
            f"{things(report.counts.users, 'user')}, of whom {count(report.counts.gauc_users)} have rows of "
            f"both labels"
        )
        pairs.append(("Scored test rows", text))
    return [*pairs, ("Checksum", facts.checksum)]


def origin_facts(report: Report) -> list[tuple[str, str]]:
    """Return commits, versions, seeds and times as (term, text)."""
    runs = report.runs
    pairs = [
        ("Commit", ", ".join(sorted({run.commit for run in runs}))),
        ("Seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))),
        ("Wall time", f"{duration(sum(run.wall_s for run in runs))} over {things(len(runs), 'run')}"),
        ("Dataset folder", report.dataset_place),
        ("Dataset checksum", report.dataset.checksum),
    ]
    if report.arms:
        text = f"{count(report.bootstrap.replicates)} draws of users, seed {report.bootstrap.seed}"
        pairs.append(("Bootstrap", text))
    return [*pairs, *_versions(report)]


def _versions(report: Report) -> list[tuple[str, str]]:
    sets: dict[str, list[str]] = {}
    for run in report.runs:
        text = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        sets.setdefault(text, []).append(run.run)
    if len(sets) < 2:
        return [("Versions", text) for text in sets]
    return [(f"Versions of {listing(names)}", text) for text, names in sets.items()]
