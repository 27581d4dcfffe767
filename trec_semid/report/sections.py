"""The report in order: what every kind of runs has, around what each kind has of its own."""

from markupsafe import Markup

from trec_semid.data.schema import DatasetFacts
from trec_semid.report.build import KINDS
from trec_semid.report.codebooks import codebook_parts
from trec_semid.report.content import CHURN_OF_POSITION, Report
from trec_semid.report.definitions import metric, words
from trec_semid.report.page import results
from trec_semid.report.page.drawing import Curve, draw_curves
from trec_semid.report.page.parts import (
    Block,
    Bullets,
    Cell,
    Column,
    Facts,
    Folded,
    Heading,
    Lead,
    Part,
    Section,
    Source,
    Table,
    Terms,
    Words,
    figures,
    grouped,
)
from trec_semid.report.page.results import arm_legend
from trec_semid.report.words import NONE, count, duration, figure, listing, share, things

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


def all_sections(report: Report) -> list[Section]:
    """Return the sections this report has something to say in, in order."""
    own = KINDS[report.job].sections(report) if report.job else []
    sections = [
        Section("answer", "The answer", _answer(report)),
        Section("data", "Data", data_parts(report)),
        *own,
        Section("training", "Training", _training(report)),
        Section("codebooks", "Codebooks", codebook_parts(report.codebooks)),
        Section("plan", "Plan of the tables", _plans(report)),
        Section("made", "How it was made", _made(report)),
        Section("words", "What the words mean", [Terms(words(report))]),
    ]
    return [section for section in sections if section.parts]


def subtitle(report: Report) -> str:
    """Return the line under the title."""
    parts = [report.dataset.name]
    if report.arms:
        num_runs = sum(len(arm.runs) for arm in report.arms)
        parts += [things(len(report.arms), "arm"), things(num_runs, f"{report.job} run")]
    if report.codebooks:
        parts.append(things(len(report.codebooks), "tokenize run"))
    return " · ".join(parts)


def _answer(report: Report) -> list[Part]:
    parts: list[Part] = [Lead(report.headline)]
    if report.headline_metric:
        title = metric(report.headline_metric).title
        parts += figures(
            (
                results.metric_picture(report, report.headline_metric),
                title,
                "Test part, with 95 % intervals.",
            ),
            (
                results.difference_picture(report),
                f"{title} against the baseline",
                "Left of the dashed line: worse; right of it: better. A bar that crosses it could be chance; "
                "the verdict beside it takes into account how many arms there are.",
            ),
        )
    return [*parts, Heading("To bear in mind"), Bullets(report.notes)] if report.notes else parts


def data_parts(report: Report) -> list[Part]:
    """Return the section on the dataset: its facts, the sizes of its parts, and the content of its items."""
    parts: list[Part] = [Facts(_dataset_facts(report)), _split_table(report)]
    return [*parts, _modality_table(report)] if report.dataset.modalities else parts


def _training(report: Report) -> list[Part]:
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


def _plans(report: Report) -> list[Part]:
    parts: list[Part] = []
    for number, plan in enumerate(report.plans, start=1):
        parts += [Words(f"Used by {listing(plan.arms)}."), Source(plan.text, f"Plan {number}")]
    return parts


def _made(report: Report) -> list[Part]:
    commands = "\n".join(f"# {run.run}\n{run.command}" for run in report.runs)
    shown = Source(commands, "Commands", wraps=True)
    folded = Folded("Exact command of every run", [shown])
    return [Facts(_origin_facts(report)), _run_table(report), folded]


def _dataset_facts(report: Report) -> list[tuple[str, str]]:
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
    if report.counts:
        pairs.append(report.counts.fact)
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


def _origin_facts(report: Report) -> list[tuple[str, str]]:
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


def _split_table(report: Report) -> Table:
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


def _modality_table(report: Report) -> Table:
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


def _run_table(report: Report) -> Table:
    """Return command, versions and machine of every run."""
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
