"""A trace of some steps: what host and device do at which microsecond."""

import logging
import os
import tempfile
from contextlib import suppress
from typing import Self, final

import torch
from pydantic import PositiveInt, model_validator
from torch.profiler import ProfilerActivity, profile

from trec_semid.core.config import Config
from trec_semid.core.paths import join, make_folder, read_bytes, write_bytes
from trec_semid.core.processes import scratch_prefix
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder

_FOLDER = "profile"
_log = logging.getLogger(__name__)


class ProfileConfig(Config):
    """Which steps are traced."""

    steps: tuple[PositiveInt, PositiveInt]
    """First and last step. A few are enough: a step is a thousand events or more."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        first, last = self.steps
        if last < first:
            raise ValueError(f"steps: the last step ({last}) comes before the first ({first})")
        return self


@final
class StepTrace:
    """Traces the steps that a config names, on every rank, with torch's profiler.

    Steps that a run does not come to are left out; training that ends among them writes what there is.
    """

    def __init__(self, config: ProfileConfig | None, folder: RunFolder, ranks: Ranks) -> None:
        self._steps, self._ranks = config and config.steps, ranks
        self._folder = folder.path(_FOLDER)
        self._running: profile | None = None

    def after(self, step: int) -> None:
        """Begin or end where it is time to; `step` is the last one done, evaluation and all."""
        if self._steps is None:
            return
        first, last = self._steps
        if self._running is not None and step >= last:
            self.close()
        elif self._running is None and first - 1 <= step < last:
            has_gpu = self._ranks.device.type == "cuda"
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
            self._running = profile(activities=activities, record_shapes=True)
            self._running.start()

    def close(self) -> None:
        """Write `profile/rank-N.json.gz`, for chrome://tracing or Perfetto, where a trace is running."""
        running, self._running = self._running, None
        if running is None:
            return
        if self._ranks.device.type == "cuda":
            with suppress(RuntimeError):  # after a fault of the device that fault is to be told
                torch.cuda.synchronize()  # what was asked for in the last step belongs to it
        running.stop()
        name = f"rank-{self._ranks.rank}.json.gz"
        with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
            made = os.path.join(scratch, name)
            running.export_chrome_trace(made)
            write_bytes(join(make_folder(self._folder), name), read_bytes(made))
        _log.info("traced steps: %s", join(self._folder, name))
