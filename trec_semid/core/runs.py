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

from trec_semid.core.config import Config, config_checksum, dump_toml, load_saved
from trec_semid.core.errors import ConfigError, DataError
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


@dataclass
class RunFolder:
    """One job's folder: `config.toml`, `run.json`, `log.jsonl`, `metrics.json`, and what the job adds.

    Only rank 0 writes these; other ranks write files that carry their rank in the name.
    """

    uri: str
    job: str
    started: float = field(default_factory=time.monotonic)

    def path(self, *parts: str) -> str:
        """Return a path inside the folder."""
        return join(self.uri, *parts)

    def start(self, config: Config, inputs: Mapping[str, str] | None = None) -> None:
        """Make the folder, save the resolved config and the command that runs it.

        Args:
            config: the job's config.
            inputs: checksums of what the job reads, by name: paths alone do not tell what lay there.
        """
        make_folder(self.uri)
        remove(self.path("metrics.json"))  # of another config: it would make this run look finished
        write_bytes(self.path("config.toml"), dump_toml(config).encode())
        self.write_json(
            "run.json",
            {
                "job": self.job,
                "command": command_line(),
                "config_checksum": config_checksum(config),
                "inputs": dict(inputs or {}),
                "commit": code_commit(),
                "versions": package_versions(),
            },
        )

    def is_finished(self, config: Config, inputs: Mapping[str, str] | None = None) -> bool:
        """Return whether this very config already ran here to its end, on these inputs where given."""
        if not exists(self.path("metrics.json")) or not exists(self.path("run.json")):
            return False
        same_inputs = inputs is None or self.read_json("run.json").get("inputs") == dict(inputs)
        return same_inputs and self.is_of(config)

    def is_of(self, config: Config) -> bool:
        """Return whether the run that began here is of this very config.

        A key that the code did not have then counts with its default, or with what `Config.from_before` says
        was done; otherwise every new key would make all earlier runs others.

        Raises:
            DataError: `run.json` is missing or not JSON.
        """
        now = config_checksum(config)
        if self.read_json("run.json").get("config_checksum") == now:
            return True
        try:
            return config_checksum(load_saved(type(config), self.path("config.toml"))) == now
        except ConfigError:
            return False

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

        Args:
            metrics: `<split>/<metric>[@K][/<stratum>]` to a plain number; values that are not finite
                are left out, since a reader cannot tell what they mean.
            seed: the run's seed.
            dataset: the dataset's name.
            dataset_checksum: checksum from `dataset.json`.
            counts: sizes behind the metrics, same key form.
        """
        self.write_json(
            "metrics.json",
            {
                "job": self.job,
                "dataset": dataset,
                "dataset_checksum": dataset_checksum,
                "seed": seed,
                "commit": code_commit(),
                "versions": package_versions(),
                "wall_s": round(time.monotonic() - self.started, 3),
                "metrics": {key: float(value) for key, value in metrics.items() if math.isfinite(value)},
                "counts": {key: int(value) for key, value in counts.items()},
            },
        )
