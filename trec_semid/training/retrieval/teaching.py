"""A teacher's lists: finished runs list the catalogue after every training event, once, before training.

Legend: n events that some place of a training row reads last, B of a batch, T items of a list.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.paths import exists, join
from trec_semid.data.ragged import Ragged, positions
from trec_semid.data.retrieval.batches import Window
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.retrieval.sequences import Sequences
from trec_semid.data.retrieval.soft_targets import SoftTargets
from trec_semid.metrics.target_positions import TopItems, UserItems
from trec_semid.runtime.logs import working
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.inputs.shards import sum_over_ranks
from trec_semid.training.finished import TEACHER, checksum_of_results
from trec_semid.training.retrieval.evaluation.asked import batches_of_ranks
from trec_semid.training.retrieval.evaluation.listing import ExactLister
from trec_semid.training.retrieval.finished import ensemble_lister, expect_members, members_named
from trec_semid.training.retrieval.inputs import RetrieveInputs
from trec_semid.training.retrieval.setup import RetrieveConfig

_ROWS_AT_ONCE = 65_536
"""Lists that ranks bring together at once."""
_KEY = "loss.teacher.runs"


class Read(NamedTuple):
    """Histories that places of training rows read, by their last event."""

    events: Ints
    """(n,) positions among the events of all sequences, ascending."""
    histories: Ragged
    """Items up to each of these, oldest first, at most L."""
    earlier: Ragged
    """The same from the user's first event on."""


def with_teacher(inputs: RetrieveInputs, config: RetrieveConfig) -> RetrieveInputs:
    """Return what a run is trained on with its teacher, whose runs are checked before anything is written.

    Raises:
        ConfigError: one of them is not finished, was trained on other data, or does not score every item.
    """
    if config.loss.teacher is None:
        return inputs
    runs = config.loss.teacher.runs
    has_learnt, *are_there = (exists(join(run, "metrics.json")) for run in (config.run, *runs))
    if has_learnt and not all(are_there):  # a student stands without its teacher
        recorded = RunFolder(config.run, "retrieve").read_json("run.json").get("inputs", {})
        return inputs._replace(teacher=recorded.get(TEACHER))
    expect_members(members_named(runs, {}, key=_KEY), config, key=_KEY)
    return inputs._replace(teacher=checksum_of_results(runs, key=_KEY))


def soft_targets(
    config: RetrieveConfig, data: RetrievalData, folder: RunFolder, ranks: Ranks
) -> SoftTargets | None:
    """Return what the teacher lists after every event that training reads last; None without a teacher.

    Items that may not be listed are those of the history, where evaluation leaves them out, and what the loss
    takes for no wrong answer (`loss.negatives`). Every rank asks for its share, and has all lists in the end.

    Args:
        config: of the student.
        data: that it is trained on.
        folder: where plans of the teacher's runs are written, as `teacher/<n>`.
        ranks: all of them call it together.

    Raises:
        ConfigError: see `with_teacher`.
        CheckpointError: a checkpoint of a run is gone or damaged.
    """
    teacher = config.loss.teacher
    if teacher is None:
        return None
    members = members_named(teacher.runs, {}, key=_KEY)
    plans = RunFolder(folder.path("teacher"), "retrieve")
    never = np.ones(data.num_items, bool)
    never[data.negatives(config.loss.negatives)] = False
    barred = torch.where(torch.from_numpy(never), torch.inf, 0.0).to(ranks.device)
    lister, models = ensemble_lister(members, plans, ranks, barred)
    models.eval()
    read = events_read(data.sequences, config)
    items = np.zeros((len(read.events), teacher.top), np.int32)
    shares = np.zeros(items.shape, np.float16)
    with working("the teacher's lists", len(read.events), shown=ranks.is_main) as work:
        for chosen, top in _lists(lister, read, config, teacher.top, ranks):
            listed, worth = _worth(top, teacher.temperature)
            items[chosen, : listed.shape[1]] = (listed + 1).cpu().numpy()
            shares[chosen, : listed.shape[1]] = worth.cpu().numpy()
            work.advance(len(chosen) * ranks.world_size)
    if ranks.world_size > 1:
        # What other ranks have listed is 0 here. A stretch at a time, as it goes over the device.
        for start in range(0, len(items), _ROWS_AT_ONCE):
            for part in (items[start : start + _ROWS_AT_ONCE], shares[start : start + _ROWS_AT_ONCE]):
                wide = torch.from_numpy(part.astype(np.float64)).to(ranks.device)
                part[:] = sum_over_ranks(wide).cpu().numpy()
    items -= 1
    rows = np.full(len(data.sequences.items), -1, np.int32)
    rows[read.events] = np.arange(len(read.events))
    return SoftTargets(rows, items, shares)


def events_read(sequences: Sequences, config: RetrieveConfig) -> Read:
    """Return the histories that some place of a training row can read, in any epoch.

    Args:
        sequences: of all users.
        config: which rows there are, and which of their places predict; any of them in a row that is cropped.
    """
    rows = sequences.training_rows(config.sequences, config.window)
    is_end_alone = config.sequences.rows == "sliding" and config.sequences.augment is None
    # A row that is cropped can end anywhere, and the shortest crop reads all but its last item.
    ends = Window(config.window, is_end_alone).num_read(rows.lengths, rows.lengths - 1)
    firsts = ends - 1 if is_end_alone else np.zeros_like(ends)
    events = np.unique(positions(rows.starts + firsts, ends - firsts))
    begins = sequences.starts[np.searchsorted(sequences.starts, events, side="right") - 1]
    oldest = np.maximum(begins, events + 1 - config.sequences.max_len)
    return Read(
        events,
        Ragged(oldest, events + 1 - oldest, sequences.items),
        Ragged(begins, events + 1 - begins, sequences.items),
    )


@torch.no_grad()
def _lists(
    lister: ExactLister, read: Read, config: RetrieveConfig, length: int, ranks: Ranks
) -> Iterator[tuple[Array, TopItems]]:
    """Yield (B,) of this rank's share of the histories with their lists, in as many batches on every rank."""
    lister.begin()
    batch_size = config.train.evaluation_batch_size
    for chosen in batches_of_ranks(len(read.events), batch_size, lister.users_at_once, ranks):
        earlier = read.earlier.take(chosen)
        if not config.evaluation.masks_history:
            earlier = np.zeros(0, np.int64), np.zeros_like(chosen)
        masked, num_masked = (torch.from_numpy(part).to(ranks.device) for part in earlier)
        nothing = masked.new_zeros(0), torch.zeros_like(num_masked)
        yield (
            chosen,
            lister.top_items(read.histories, chosen, UserItems(*nothing, masked, num_masked), length),
        )


def _worth(top: TopItems, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (B, T) items, -1 for none, and what each is worth: softmax(scores / temperature), 1 in sum."""
    exists = (top.items >= 0) & top.scores.isfinite()
    scores = (top.scores.float() / temperature).masked_fill(~exists, -torch.inf)
    worth = scores.softmax(1).nan_to_num(0.0)  # nothing may be listed: all are -inf
    return top.items.masked_fill(~exists, -1), worth
