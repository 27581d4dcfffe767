"""The report in order: what every kind of runs has, around what each kind has of its own."""

from collections.abc import Sequence

from trec_semid.report import codebooks, facts, pictures
from trec_semid.report.content import Codebooks, Report
from trec_semid.report.definitions import metric, words
from trec_semid.report.kinds import KINDS
from trec_semid.report.parts import (
    Bullets,
    Facts,
    Folded,
    Heading,
    Lead,
    Legend,
    Part,
    Section,
    Source,
    Terms,
    Words,
    figures,
)
from trec_semid.report.pictures import arm_legend
from trec_semid.report.words import listing, things

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
    found = [
        Section("answer", "The answer", _answer(report)),
        Section("data", "Data", _data(report)),
        *own,
        Section("training", "Training", _training(report)),
        Section("codebooks", "Codebooks", _codebooks(report.codebooks)),
        Section("plan", "Plan of the tables", _plans(report)),
        Section("made", "How it was made", _made(report)),
        Section("words", "What the words mean", [Terms(words(report))]),
    ]
    return [section for section in found if section.parts]


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
                pictures.metric_picture(report, report.headline_metric),
                title,
                "Test part, with 95 % intervals.",
            ),
            (
                pictures.difference_picture(report),
                f"{title} against the baseline",
                "Left of the dashed line: worse; right of it: better. A bar that crosses it could be chance; "
                "the verdict beside it takes into account how many arms there are.",
            ),
        )
    return [*parts, Heading("To bear in mind"), Bullets(report.notes)] if report.notes else parts


def _data(report: Report) -> list[Part]:
    parts: list[Part] = [Facts(facts.dataset_facts(report)), facts.split_table(report)]
    return [*parts, facts.modality_table(report)] if report.dataset.modalities else parts


def _training(report: Report) -> list[Part]:
    if not report.learning:
        return []
    shown = [("train/loss", "Training loss", "By step.")]
    shown += [
        (name, f"Validation {facts.scalar_title(name)}", "By step.") for name in facts.validated(report)
    ]
    of_positions = [
        (
            name,
            f"Churn of {name.rpartition('/')[2]}",
            "Share of items whose code at this position is another now.",
        )
        for name in pictures.churn_positions(report)
    ]
    shown += [*CODE_SCALARS, *of_positions, *LATER_CODE_SCALARS]
    drawn = ((pictures.learning_picture(report, name), title, text) for name, title, text in shown)
    said = (
        "One line per run; a mark shows the step whose weights were kept because they were best on the "
        "validation part."
    )
    legend = arm_legend(report, {each.arm for each in report.learning})
    return [Words(said), legend, *figures(*drawn), facts.training_table(report)]


def _codebooks(shown: Sequence[Codebooks]) -> list[Part]:
    if not shown:
        return []
    parts: list[Part] = [codebooks.quality_table(shown)]
    pictured = codebooks.pictured(shown)
    for each in pictured:
        readers = f", read by {', '.join(each.arms)}" if each.arms else ""
        said = (
            "Items per code at each position, most used code first; the dashed line is an even share. "
            f"Run {each.run}{readers}."
        )
        usage = [(picture, name, numbers) for name, numbers, picture in codebooks.usage_pictures(each)]
        parts += [Heading(f"Tokenizer {each.name}"), Words(said, is_note=True)]
        parts += [*figures(*usage, are_tiny=True), codebooks.position_table(each)]
    agreement = codebooks.agreement_picture(pictured)
    if agreement is not None:
        marks = [(series, each.name) for series, each in enumerate(pictured, start=1)]
        said = "Mean cosine of the content of item pairs (upright). A good tokenizer rises."
        parts += [Heading("Do near items share codes?"), Legend("Tokenizers", marks)]
        parts += figures((agreement, "Likeness of content by codes in common", said))
    return parts


def _plans(report: Report) -> list[Part]:
    parts: list[Part] = []
    for number, plan in enumerate(report.plans, start=1):
        parts += [Words(f"Used by {listing(plan.arms)}."), Source(plan.text, f"Plan {number}")]
    return parts


def _made(report: Report) -> list[Part]:
    commands = "\n".join(f"# {run.run}\n{run.command}" for run in report.runs)
    shown = Source(commands, "Commands", wraps=True)
    folded = Folded("Exact command of every run", [shown])
    return [Facts(facts.origin_facts(report)), facts.run_table(report), folded]
