"""`trec-semid prepare`: raw data to a dataset folder."""

import logging

from rich.table import Table

from trec_semid.core.config import dump_toml
from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, join, read_bytes
from trec_semid.core.text_columns import as_text
from trec_semid.data.folder import CONFIG
from trec_semid.data.prepare import PrepareConfig, prepare_dataset
from trec_semid.data.raw.inputs import have_changed
from trec_semid.data.schema import Dataset, DatasetFacts, RowCounts, SimilarIds, open_dataset
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import barrier, process_group

__all__ = ["PrepareConfig", "run", "summary"]

_log = logging.getLogger(__name__)


def run(config: PrepareConfig) -> DatasetFacts:
    """Make the dataset unless it is there already; under torchrun rank 0 works and the others wait.

    Raises:
        SemidError: input or a place that cannot be used.
    """
    with process_group(has_lone_work=True) as ranks:
        set_up_console(ranks)
        with own_folder(config.out, "prepare", ranks, inputs=_read_by(config)):
            if ranks.is_main:
                facts = _make(config)
                say(summary(facts))
            barrier()
    return Dataset(config.out).facts


def make(config: PrepareConfig) -> DatasetFacts:
    """Make the dataset as `run` does, by this process alone.

    Raises:
        SemidError: input or a place that cannot be used.
    """
    with own_folder(config.out, "prepare", inputs=_read_by(config)):
        return _make(config)


def _read_by(config: PrepareConfig) -> list[str]:
    return [*config.inputs(), *config.picture_folders()]


def _make(config: PrepareConfig) -> DatasetFacts:
    facts = finished(config)
    if facts is not None:
        _log.info("%s is already there", config.out)
        return facts
    facts = prepare_dataset(config)
    _log.info("wrote %s", config.out)
    return facts


def finished(config: PrepareConfig) -> DatasetFacts | None:
    """Return the facts of a dataset that this very config prepared, unless what it reads has changed since.

    Changed: a file came or went in a folder or pattern, or one has another content (files of the recorded
    size and time of writing are not read again); a picture came, went or was written anew. An input that
    was removed altogether is no reason to lose the dataset. A damaged dataset is prepared again.
    """
    if not exists(join(config.out, CONFIG)) or not exists(join(config.out, "dataset.json")):
        return None
    if read_bytes(join(config.out, CONFIG)) != dump_toml(config).encode():
        return None
    try:
        facts = open_dataset(config.out, alone=True).facts
    except DataError as error:  # written by another version, or damaged
        _log.warning("%s: %s. It is prepared again", error.file, error.problem)
        return None
    changed = have_changed(facts.source.get("files", []), config.inputs(), config.picture_folders())
    return None if changed else facts


def summary(facts: DatasetFacts) -> str:
    """Return the facts as a table to read."""
    negatives = f", {facts.sampled_negatives:,} of them sampled" if facts.sampled_negatives else ""
    unlabelled = f" ({facts.unlabelled_events:,} events without)" if facts.unlabelled_events else ""
    size = f"{facts.num_users:,} users, {facts.num_items:,} items, {facts.num_events:,} events{negatives}"
    lines = [
        f"{facts.name}: {size}",
        f"split: {facts.split_rule}",
        *([f"times: {facts.first_time} to {facts.last_time}"] if facts.has_timestamps else []),
        f"ties: {facts.tie_rule}" + (f" ({facts.tied_events:,} events)" if facts.tied_events else ""),
        f"label: {facts.label_rule}{unlabelled}",
        *([] if facts.filter_rule == "none" and facts.dropped else [f"filter: {facts.filter_rule}"]),
        *_doubts(facts),
    ]
    for name, modality in facts.modalities.items():
        share = modality.present / max(facts.num_items, 1)
        lines.append(f"content {name}: {modality.dim} numbers, {share:.1%} of items, from {modality.source}")
    dropped = [_dropped_table(facts)] if facts.dropped else []
    return "\n".join([*lines, *dropped, _split_table(facts), f"checksum {facts.checksum}"])


def _doubts(facts: DatasetFacts) -> list[str]:
    """Return what may be wrong in the source."""
    lines = [_similar(name, similar) for name, similar in facts.similar_ids.items()]
    if facts.duplicate_events:
        told = "left out" if "duplicates" in facts.dropped else "they stay: see filter.duplicates"
        lines.append(f"duplicates: {facts.duplicate_events:,} rows repeat an earlier event ({told})")
    return lines


def _similar(name: str, similar: SimilarIds) -> str:
    # ascii() shows what the eye cannot tell apart.
    examples = "; ".join(" and ".join(map(ascii, group)) for group in similar.examples)
    return f"ids: {similar.ids:,} {name} differ from another by blanks or Unicode form alone: {examples}"


def _dropped_table(facts: DatasetFacts) -> str:
    table = Table("", "events", "items", "users", caption="dropped: reasons in this order, each row once")
    left = RowCounts(
        events=facts.num_events - facts.sampled_negatives, items=facts.num_items, users=facts.num_users
    )
    rows = {
        "read": facts.read,
        **{f"- {reason}": each for reason, each in facts.dropped.items()},
        "left": left,
    }
    for name, each in rows.items():
        table.add_row(name, f"{each.events:,}", f"{each.items:,}", f"{each.users:,}")
    return as_text(table)


def _split_table(facts: DatasetFacts) -> str:
    names = ("", "events", "positives", "users", "items", "users unseen", "items unseen", "events on these")
    table = Table(*names, caption="unseen: without a training event")
    for name, split in facts.splits.items():
        numbers = (split.users, split.items, split.unseen_users, split.unseen_items, split.unseen_item_events)
        positives = "" if split.positives is None else f"{split.positives:,}"
        table.add_row(name, f"{split.events:,}", positives, *(f"{number:,}" for number in numbers))
    return as_text(table)
