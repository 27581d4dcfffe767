"""The run folder: everything one job wrote, in the files that other programs read."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trec_semid.core.config import Config, config_checksum, dump_toml, load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.identity import Comparison, compare
from trec_semid.core.paths import exists, join, make_folder, read_bytes, remove, write_bytes
from trec_semid.core.versions import code_commit, package_versions


def command_line() -> str:
    """Return the command that started this process, as a person would type it in any checkout."""
    program, *words = sys.argv
    if os.path.basename(program) not in ("trec-semid", "main.py"):
        return shlex.join(sys.argv)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return shlex.join(["trec-semid", *words])
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    each = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    launch = ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else []), "--nproc-per-node", each]
    return shlex.join([*launch, "-m", "trec_semid.cli.main", *words])


_PROCESSES = "processes.json"


@dataclass
class RunFolder:
    """One job's folder: `config.toml`, `run.json`, `processes.json`, `log.jsonl`, `metrics.json`, and more.

    `processes.json` says which processes took part, and their times. Only rank 0 writes these; other ranks
    write files that carry their rank in the name.
    """

    uri: str
    job: str
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._processes: list[dict[str, Any]] = []
        self._noted = -math.inf

    def path(self, *parts: str) -> str:
        """Return a path inside the folder."""
        return join(self.uri, *parts)

    def start(
        self,
        config: Config,
        inputs: Mapping[str, str] | None = None,
        *,
        goes_on: bool = False,
        more: Mapping[str, object] | None = None,
    ) -> None:
        """Make the folder, save the resolved config and the command that runs it.

        Args:
            config: the job's config.
            inputs: checksums of what the job reads, by name: paths alone do not tell what lay there.
            goes_on: whether processes before this one took part in what the run comes to.
            more: further keys of `run.json`.
        """
        make_folder(self.uri)
        remove(self.path("metrics.json"))  # of another config: it would make this run look finished
        self.restate(config, inputs, more)
        self._processes = self._read_processes() if goes_on else []
        self._processes.append({"command": command_line(), "commit": code_commit(), "wall_s": 0.0})
        self.note_time()

    def restate(
        self,
        config: Config,
        inputs: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        """Write the command, versions and machine of the run now, and leave everything else as it is."""
        # First what says whose folder it is: without it, a killed run could never be started again.
        self.write_json(
            "run.json",
            {
                "job": self.job,
                "command": command_line(),
                "config_checksum": config_checksum(config),
                "inputs": dict(inputs or {}),
                "commit": code_commit(),
                "versions": package_versions(),
                **(more or {}),
            },
        )
        write_bytes(self.path("config.toml"), dump_toml(config).encode())

    def note_time(self, *, every_s: float = 0.0) -> None:
        """Write how long the processes of the run have taken: what a killed one took is known up to here.

        Args:
            every_s: write only if the last time was so long ago [s].
        """
        now = time.monotonic()
        if self._processes and now - self._noted >= every_s:
            self._noted = now
            self._processes[-1]["wall_s"] = round(now - self.started, 3)
            self.write_json(_PROCESSES, self._processes)

    def _read_processes(self) -> list[dict[str, Any]]:
        try:
            known: Any = self.read_json(_PROCESSES)
        except DataError:  # a run that has not begun; or a file that says nothing, which stops no training
            return []
        is_whole = isinstance(known, list) and all(
            isinstance(one, dict) and {"command", "commit", "wall_s"} <= one.keys() for one in known
        )
        return known if is_whole else []

    def is_finished(self, config: Config, inputs: Mapping[str, str] | None = None) -> bool:
        """Return whether this config already ran here to its end, on these inputs where given.

        Keys that do not change what was computed may differ, unless they ask for more (`MayChange`).
        """
        return self.has_ended(config, inputs) and not self._compare(config).is_reopened

    def has_ended(self, config: Config, inputs: Mapping[str, str] | None = None) -> bool:
        """Return whether the run of this config ended here, though it may be asked for more now."""
        if not exists(self.path("metrics.json")) or not exists(self.path("run.json")):
            return False
        same_inputs = inputs is None or self.read_json("run.json").get("inputs") == dict(inputs)
        return same_inputs and self.is_of(config)

    def is_of(self, config: Config) -> bool:
        """Return whether the run that began here is of this config, as `other_config` has it.

        Raises:
            DataError: `run.json` is missing or not JSON.
        """
        return self.other_config(config) is None

    def other_config(self, config: Config) -> str | None:
        """Return which keys make the run that began here another one, with both values; None if none does.

        Keys that do not change what was computed so far are left out (`core.identity.MayChange`). A key
        that the code did not have then counts with its default; otherwise every new key would make all
        earlier runs others.

        Raises:
            DataError: `run.json` is missing or not JSON.
        """
        try:
            differences = self._compare(config).differences
        except ConfigError as error:
            return f"its config cannot be compared: {error}"
        return "; ".join(map(str, differences)) or None

    def _compare(self, config: Config) -> Comparison:
        # Equal checksums need no look at the saved config, which today's code might refuse to load.
        if self.read_json("run.json").get("config_checksum") == config_checksum(config):
            return Comparison([], False)
        return compare(load_config(type(config), [self.path("config.toml")], of_run=True), config)

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file at once, or not at all."""
        write_bytes(self.path(name), (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder.

        Raises:
            DataError: the file is missing or not JSON.
        """
        try:
            return json.loads(read_bytes(self.path(name)))
        except FileNotFoundError:
            raise DataError("no such file", file=self.path(name), remedy="Is this a finished run?") from None
        except ValueError as error:
            raise DataError(f"not JSON: {error}", file=self.path(name)) from None

    def write_metrics(
        self,
        metrics: dict[str, float],
        *,
        seed: int,
        dataset: str,
        dataset_checksum: str,
        counts: dict[str, int],
    ) -> None:
        """Write `metrics.json`, which also marks the run as finished.

        `wall_s` is the time of all processes that took part, `wall_s_last` of this one [s]; `commits` and
        `commands` are those of all of them, in order.

        Args:
            metrics: `<split>/<metric>[@K][/<stratum>]` to a plain number; values that are not finite
                are left out, since a reader cannot tell what they mean.
            seed: the run's seed.
            dataset: the dataset's name.
            dataset_checksum: checksum from `dataset.json`.
            counts: sizes behind the metrics, same key form.
        """
        self.note_time()
        last_s = round(time.monotonic() - self.started, 3)
        # The last one is this process itself, which `last_s` counts.
        before = self._processes[:-1]
        self.write_json(
            "metrics.json",
            {
                "job": self.job,
                "dataset": dataset,
                "dataset_checksum": dataset_checksum,
                "seed": seed,
                "commit": code_commit(),
                "versions": package_versions(),
                "wall_s": round(sum(float(one["wall_s"]) for one in before) + last_s, 3),
                "wall_s_last": last_s,
                "commits": _each_once([*(one["commit"] for one in before), code_commit()]),
                "commands": _each_once([*(one["command"] for one in before), command_line()]),
                "metrics": {key: float(value) for key, value in metrics.items() if math.isfinite(value)},
                "counts": {key: int(value) for key, value in counts.items()},
            },
        )


def _each_once(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))
