"""The report in order, as one page that needs nothing outside itself, as Markdown and as JSON."""

import json
import re
from collections.abc import Iterable, Sequence

from trec_semid.data.schema import DatasetFacts
from trec_semid.evaluation.comparison import MIN_USERS
from trec_semid.report.build import KINDS
from trec_semid.report.content import Report
from trec_semid.report.learning import codebook_parts, training_parts
from trec_semid.report.page import results
from trec_semid.report.page.html import render_sections
from trec_semid.report.page.parts import (
    Block,
    Bullets,
    Cell,
    Column,
    Facts,
    Figures,
    Folded,
    Heading,
    Lead,
    Legend,
    Part,
    Section,
    Source,
    Table,
    Terms,
    Words,
    figures,
    grouped,
)
from trec_semid.report.words import (
    ARM_WORDS,
    CODE_TERMS,
    NONE,
    PROTOCOL_TITLES,
    PROTOCOLS,
    TEST_TERMS,
    count,
    duration,
    listing,
    metric,
    share,
    things,
)

SPECIAL = str.maketrans({each: f"\\{each}" for each in "\\`*_[]<>|#&"})
"""What Markdown would take for itself."""


def render_page(report: Report, sections: Sequence[Section] | None = None) -> str:
    """Return the report as one HTML page; every text from data is escaped.

    Args:
        report: what is told.
        sections: of `all_sections`, where they are made already: to draw their pictures takes long.
    """
    beside = "report.json and report.md"
    return render_sections(report.title, subtitle(report), sections or all_sections(report), beside)


def render_json(report: Report) -> str:
    """Return the report's numbers as JSON; there is no NaN in it."""
    return json.dumps(report.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def render_markdown(report: Report, sections: Sequence[Section] | None = None) -> str:
    """Return the report as Markdown: words and tables without the pictures; texts from data are escaped.

    Args:
        report: what is told.
        sections: of `all_sections`, where they are made already.
    """
    parts = [f"# {plain(report.title)}", plain(subtitle(report))]
    for section in sections or all_sections(report):
        parts += [f"## {plain(section.title)}", *_shown(section.parts)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return text on one line with everything escaped that Markdown would take for itself."""
    return " ".join(text.split()).translate(SPECIAL)


def markdown_table(table: Table) -> str:
    """Return a table; the lines of a cell follow each other on one line."""
    titles = [
        plain(f"{column.title} ({column.hint})" if column.hint else column.title) for column in table.columns
    ]
    rule = [":--" if index == 0 or column.is_text else "--:" for index, column in enumerate(table.columns)]
    lines = [plain(table.caption), "", _line(titles), _line(rule)]
    for block in table.blocks:
        if block.title:
            told = f"**{plain(block.title)}** {plain(block.words)}".rstrip()
            lines.append(_line([told, *[""] * (len(titles) - 1)]))
        lines += [_line([_cell(cell) for cell in row]) for row in block.rows]
    return "\n".join(lines)


def _shown(parts: Iterable[Part]) -> list[str]:
    return [text for part in parts for text in _texts(part)]


def _texts(part: Part) -> list[str]:  # noqa: C901, PLR0911 - one line for each kind of part
    match part:
        case Table():
            return [markdown_table(part)]
        case Lead(sentences):
            return [plain(sentence) for sentence in sentences]
        case Heading(title):
            return [f"### {plain(title)}"]
        case Words(text):
            return [plain(text)]
        case Bullets(lines):
            return ["\n".join(f"- {plain(line)}" for line in lines)]
        case Facts(pairs) | Terms(pairs):
            return ["\n".join(f"- **{plain(term)}**: {plain(text)}" for term, text in pairs)]
        case Source(text):
            return [_fence(text)]
        case Folded(summary, inside):
            return [f"### {plain(summary)}", *_shown(inside)]
        case Figures() | Legend():
            return []


def _cell(cell: Cell) -> str:
    main = plain(cell.main)
    shown = f"**{main}**" if cell.css == "best" else main
    return "; ".join([shown, *(plain(line) for line in cell.lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fence(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}\n{text.rstrip()}\n{marks}"


def all_sections(report: Report) -> list[Section]:
    """Return the sections this report has something to say in, in order."""
    own = KINDS[report.job].sections(report) if report.job else []
    sections = [
        Section("answer", "The answer", _answer(report)),
        Section("data", "Data", data_parts(report)),
        *own,
        Section("training", "Training", training_parts(report)),
        Section("codebooks", "Codebooks", codebook_parts(report.codebooks)),
        Section("plan", "Plan of the tables", _plans(report)),
        Section("made", "How it was made", _made(report)),
        Section("words", "What the words mean", [Terms(_terms(report))]),
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


def _terms(report: Report) -> list[tuple[str, str]]:
    """Return the terms of a report and what each means."""
    families = dict.fromkeys(key.partition("@")[0] for scores in report.scores for key in scores.metrics)
    shown = [metric(family) for family in families]
    terms = [(each.title, f"{each.words} {each.hint[0].upper()}{each.hint[1:]}.") for each in shown]
    terms += [(PROTOCOL_TITLES[each.protocol], PROTOCOLS[each.protocol]) for each in report.scores]
    if report.counts is None:
        return [*terms, *CODE_TERMS]
    drawn = (
        f"Users of the test part are drawn with replacement {report.bootstrap.replicates:,} times, each with "
        f"all of their {report.counts.unit}; every arm is measured on the same draws, its seeds averaged "
        "within a draw. "
        "Where an arm has several seeds, what another seed could have changed is added to every draw "
        "(Student's t with the standard deviation between seeds). The interval holds the middle 95 % of the "
        "draws. A difference is taken seed by seed where both arms have two or more seeds in common. "
        "With one seed "
        f"it speaks of other users alone. Below {MIN_USERS} users none is given."
    )
    codes = CODE_TERMS if report.codebooks else ()
    return [*terms, ARM_WORDS, ("95 % interval", drawn), *TEST_TERMS, *codes]
