"""What a run folder says of how its predictions came about, whether training wrote them or `evaluate` did.

`evaluate` writes a folder of its own, whose `config.toml` has settings of evaluation alone. Of which kind the
runs are that it asked, and what their config amounts to with these settings, is in its `evaluated.json`.
"""

import json
import tomllib
from typing import Any

from trec_semid.core.paths import exists, join, read_bytes
from trec_semid.evaluation.strata import StrataConfig

EVALUATED = "evaluated.json"
"""Which runs and steps were asked (`job`, `runs`, `splits`), and their `config` with the settings of then."""


def kind_of_run(folder: str, verb: str) -> str:
    """Return the verb that trained what a finished run speaks of: of an evaluation, that of its runs."""
    return str(_read_evaluated(folder)["job"]) if verb == "evaluate" else verb


def dataset_of(folder: str) -> str:
    """Return the dataset that a finished run read, as its config names it."""
    return str(_config_of_run(folder)["dataset"])


def tests_then_trains(folder: str) -> bool:
    """Return whether a finished run is of a day that was tested first, so that validation was training."""
    return bool(_config_of_run(folder).get("test_then_train", False))


def strata_config_of(folder: str) -> StrataConfig:
    """Return how the metrics of a finished run were cut in strata."""
    return StrataConfig.model_validate(_read_config(folder).get("strata", {}))


def _config_of_run(folder: str) -> dict[str, Any]:
    own = _read_config(folder)
    if "dataset" not in own and exists(join(folder, EVALUATED)):
        own = _read_evaluated(folder)["config"]
    return own


def _read_config(folder: str) -> dict[str, Any]:
    return tomllib.loads(read_bytes(join(folder, "config.toml")).decode())


def _read_evaluated(folder: str) -> dict[str, Any]:
    return json.loads(read_bytes(join(folder, EVALUATED)))
