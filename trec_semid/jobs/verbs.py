"""The jobs a config file can run: one row a verb, imported only when asked for (torch takes seconds)."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import did_you_mean

JOBS = {
    "prepare": "PrepareConfig",  # raw logs and content -> dataset folder
    "tokenize": "TokenizeConfig",  # dataset -> tokenizer and semantic IDs
    "assign": "AssignConfig",  # new items, frozen tokenizer -> their semantic IDs, and how they drift
    "rank": "RankConfig",  # dataset, semantic IDs -> ranker and its predictions
    "retrieve": "RetrieveConfig",  # dataset, semantic IDs -> retriever and where it ranks what came next
    "daily": "DailyConfig",  # a range of days -> a ranker or a retriever that is tested on each, then trained
    "evaluate": "EvaluateConfig",  # finished runs, other settings -> their metrics and predictions
    "export": "ExportConfig",  # finished run -> checked bundle for serving
    "predict": "PredictConfig",  # bundle, Parquet of users or pairs -> their lists or probabilities
    "serve": "ServeConfig",  # bundle -> answers over HTTP, until it is told to stop
    "report": "ReportConfig",  # finished runs -> one page
    "plan": "PlanConfig",  # model config -> where its tables go on a cluster
    "study": "StudyConfig",  # a grid of the others
}
"""Verb -> name of its config class; both it and `run` live in `trec_semid/jobs/<verb>.py`."""
ALONE = ("assign", "report", "plan")
"""Verbs of one process: under torchrun the first rank works, and the others leave at once."""
WITHOUT_CONFIG = (
    "doctor",  # this machine -> does its stack work?
    "bundle",  # bundles -> what they hold, what changed between two, and one made of the other by that
    "generations",  # a store of semantic IDs -> what it has, or its next generation
)
"""Verbs that read no config file; their functions live there too."""


def is_left_to_the_first(verb: str) -> bool:
    """Return whether another rank does this verb. If it needs no ranks, the first is none from then on."""
    if verb not in ALONE:
        return False
    is_first = os.environ.get("RANK", "0") == "0"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return not is_first


@dataclass(frozen=True)
class Job:
    """What a verb needs and does."""

    config: type[Config]
    run: Callable[[Any], Any]
    finished: Callable[[Any], object] | None = None
    """Says truly of a config that its result is there already; None where only the run folder tells."""


def job_named(verb: str) -> Job:
    """Import a verb's module and return its config class and `run`.

    Raises:
        ConfigError: there is no such verb.
    """
    if verb not in JOBS:
        raise ConfigError(f"no verb '{verb}'{did_you_mean(verb, JOBS)}. There are: {', '.join(JOBS)}.")
    with no_search_for_garbage():
        module = import_module(f"trec_semid.jobs.{verb}")
    return Job(getattr(module, JOBS[verb]), module.run, getattr(module, "finished", None))


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """Import in here: what modules make stays, and looking through it for garbage takes 1 s of 7."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
