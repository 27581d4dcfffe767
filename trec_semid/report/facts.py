"""What the report says of the dataset and of how its runs were made."""

from trec_semid.data.schema import DatasetFacts
from trec_semid.report.content import Report, RowCounts
from trec_semid.report.definitions import metric
from trec_semid.report.tables import Block, Cell, Column, Table, grouped
from trec_semid.report.words import NONE, count, duration, figure, listing, share, things

VALID = "valid/"
"""What names of validation scalars begin with."""


def dataset_facts(report: Report) -> list[tuple[str, str]]:
    """Return the dataset's facts as (term, text)."""
    facts = report.dataset
    observed = facts.num_events - facts.sampled_negatives
    size = f"{count(observed)} events of {count(facts.num_users)} users"
    pairs = [("Dataset", facts.name), ("Size", f"{size} on {count(facts.num_items)} items")]
    if facts.num_users and facts.num_items:
        pairs.append(("Density", share(observed, facts.num_users * facts.num_items)))
    if facts.sampled_negatives:
        pairs.append(("Sampled negatives", f"{count(facts.sampled_negatives)}, beside these events"))
    if facts.first_time and facts.last_time:
        pairs.append(("Times", f"{facts.first_time} to {facts.last_time}"))
    tied = "" if facts.tied_events is None else f" ({things(facts.tied_events, 'event')} tied)"
    pairs += [
        ("Label rule", facts.label_rule),
        ("Split rule", facts.split_rule),
        ("Order of equal times", f"{facts.tie_rule}{tied}"),
        ("Filter", facts.filter_rule),
        *_doubts(facts),
        ("Side fields of items", listing(list(facts.item_fields)) or "none"),
        ("Side fields of users", listing(list(facts.user_fields)) or "none"),
    ]
    if isinstance(report.counts, RowCounts):
        text = (
            f"{count(report.counts.rows)} rows, {count(report.counts.positives)} positive, "
            f"{things(report.counts.users, 'user')}, of whom {count(report.counts.gauc_users)} have rows of "
            f"both labels"
        )
        pairs.append(("Scored test rows", text))
    elif report.counts:
        text = (
            f"{count(report.counts.targets)} of {things(report.counts.users, 'user')}, each item once a user"
        )
        pairs.append(("Test items", text))
    return [*pairs, ("Checksum", facts.checksum)]


def _doubts(facts: DatasetFacts) -> list[tuple[str, str]]:
    """Return what was left out and what may be wrong in the source."""
    pairs: list[tuple[str, str]] = []
    dropped = {reason.replace("_", " "): each.events for reason, each in facts.dropped.items() if each.events}
    if dropped:
        told = ", ".join(f"{reason} {count(num)}" for reason, num in dropped.items())
        pairs.append(("Events left out", f"{told}, of {count(facts.read.events)} read"))
    if facts.duplicate_events:
        pairs.append(("Rows that repeat an event", count(facts.duplicate_events)))
    for name, similar in facts.similar_ids.items():
        told = f"{count(similar.ids)} of {name} differ from another by blanks or Unicode form alone"
        pairs.append(("Similar ids", told))
    return pairs


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


def split_table(report: Report) -> Table:
    """Return the sizes of train, valid and test and what training never saw."""
    titles = (
        "Part",
        "Events",
        "Positive",
        "Users",
        "Unseen users",
        "Items",
        "Unseen items",
        "Events on unseen",
    )
    rows: list[list[Cell]] = []
    for name, part in report.dataset.splits.items():
        positives = NONE if part.positives is None else f"{count(part.positives)}"
        of_positives = () if part.positives is None else (share(part.positives, part.events),)
        rows.append(
            [
                Cell(name),
                Cell(count(part.events)),
                Cell(positives, of_positives),
                Cell(count(part.users)),
                Cell(count(part.unseen_users), (share(part.unseen_users, part.users),)),
                Cell(count(part.items)),
                Cell(count(part.unseen_items), (share(part.unseen_items, part.items),)),
                Cell(
                    count(part.unseen_item_events),
                    (share(part.unseen_item_events, part.events - part.negatives),),
                ),
            ]
        )
    caption = "Sizes of the parts. Unseen: without a single training event."
    return Table(caption, [Column(title) for title in titles], [Block("", rows)])


def modality_table(report: Report) -> Table:
    """Return the content vectors of the dataset and how many items have them."""
    columns = [Column("Modality"), Column("Width"), Column("Items with it"), Column("Source", is_text=True)]
    rows = [
        [
            Cell(name),
            Cell(str(facts.dim), (facts.dtype,)),
            Cell(count(facts.present), (share(facts.present, report.dataset.num_items),)),
            Cell(facts.source, (), "text"),
        ]
        for name, facts in report.dataset.modalities.items()
    ]
    return Table("Content of items.", columns, [Block("", rows)])


def validated(report: Report) -> list[str]:
    """Return the validation scalars that were logged, that of the answer first."""
    logged = dict.fromkeys(
        name for each in report.learning for name in each.scalars if name.startswith(VALID)
    )
    return sorted(logged, key=lambda name: name != f"{VALID}{report.headline_metric}")


def scalar_title(scalar: str) -> str:
    """Return what a validation scalar is called."""
    return metric(scalar.removeprefix(VALID)).title


def training_table(report: Report) -> Table:
    """Return where every run ended and which step it kept."""
    shown = validated(report)
    titles = (
        "Run",
        "Steps",
        "Last loss",
        "Best step",
        *(f"Valid {scalar_title(name)} there" for name in shown),
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


def run_table(report: Report) -> Table:
    """Return how every run was made."""
    columns = [
        Column("Run"),
        Column("Arm", is_text=True),
        Column("Seed"),
        Column("Wall time"),
        Column("Commit"),
        Column("Config checksum"),
    ]
    blocks = [
        Block(
            f"{job} runs",
            [
                [
                    Cell(run.run),
                    Cell(run.arm, (), "text"),
                    Cell(str(run.seed)),
                    Cell(duration(run.wall_s)),
                    Cell(run.commit),
                    Cell(run.config_checksum[:12]),
                ]
                for run in runs
            ],
        )
        for job, runs in grouped((run.job, run) for run in report.runs)
    ]
    return Table("Runs of this report.", columns, blocks)
