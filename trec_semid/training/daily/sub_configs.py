"""Configs of the verbs behind a day: those that a run began with are those of all its days."""

from collections.abc import Mapping

from trec_semid.core.config import Config, dump_toml, load_config
from trec_semid.core.errors import ConfigError
from trec_semid.core.identity import Difference, compare
from trec_semid.core.paths import exists, write_bytes
from trec_semid.runtime.runs import RunFolder

_FOLDER = "configs"
_OF_DAYS = (
    "dataset", "out", "run", "split",
    "semantic_ids", "start_codes", "start_from", "start_optimizers", "test_then_train",
)  # fmt: skip
"""Keys that are filled in for each day."""


def refuse_other_configs(folder: RunFolder, configs: Mapping[str, Config]) -> None:
    """Compare configs by name, with all files merged, with those that the run began with.

    Raises:
        ConfigError: names each key that differs, with both values.
    """
    faults: list[str] = []
    for name, now in configs.items():
        if not exists(file := _file(folder, name)):
            continue
        differences = _differences(load_config(type(now), [file], of_run=True), now)
        faults += [f"{name}: {each}" for each in differences if each.key.partition(".")[0] not in _OF_DAYS]
    if faults:
        told = "; ".join(faults)
        raise ConfigError(
            f"{folder.uri}: its days are of another config: {told}. Set these back, or set another `run`: "
            "its first day may start from a checkpoint of this one by start_from."
        )


def save_configs(folder: RunFolder, configs: Mapping[str, Config]) -> None:
    """Write the configs that are not there yet."""
    for name, config in configs.items():
        if not exists(file := _file(folder, name)):
            write_bytes(file, dump_toml(config).encode())


def _differences(there: Config, now: Config) -> list[Difference]:
    # An ordinary run may go on to more epochs; here the days to come would have others than those before.
    # Asked the other way round, a number that may only grow is a difference where it has grown.
    grown = [each for each in compare(now, there).differences if each.key == "train.max_epochs"]
    return compare(there, now).differences + [
        Difference(each.key, there=each.now, now=each.there) for each in grown
    ]


def _file(folder: RunFolder, name: str) -> str:
    return folder.path(_FOLDER, f"{name}.toml")
