"""What a verb's folder says to readers, without what differs from process to process, such as wall times."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trec_semid.checkpoints.bundle_files import read_checked, read_manifest
from trec_semid.core.paths import read_bytes
from trec_semid.data.schema import Dataset
from trec_semid.report.collect import collect_runs
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file

OF_ONE_PROCESS = (
    "run.json",
    "processes.json",
    "config.toml",
    "study.html",
    "report.html",
    "report.md",
    "days.html",
)
"""Files that tell how and when, and pages that tell it again; `report.json` and `study.json` say the same."""
NOT_RESULTS = ("checkpoints", "log.", "logs", "events.", ".")
"""What files and folders begin with that no reader of results opens."""
HALF_WRITTEN = "partial"
"""In the name of what is not whole yet."""
VOLATILE = frozenset(
    {
        *("wall_s", "wall_s_last", "command", "commands", "commit", "commits", "config_checksum"),
        *("was_kept", "processes", "learning", "config.toml", "run.json", "seconds", "waited_s"),
    }
)
"""Keys of what differs between processes, or with the folder's name."""
PROGRAM = "program.pt2"
"""A zip file, whose entries have times: the export itself checks what it computes."""


def results(folder: str, root: str) -> dict[str, Any]:
    """Return the content of every file that readers take results from, `root` written as ROOT."""
    found: dict[str, Any] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(NOT_RESULTS) and HALF_WRITTEN not in name
        ]
        for name in names:
            is_result = not name.startswith(NOT_RESULTS) and HALF_WRITTEN not in name
            if is_result and name not in (*OF_ONE_PROCESS, PROGRAM):
                path = Path(place, name)
                found[str(path.relative_to(folder))] = _content(path, root)
    return found


def differences(expected: Any, found: Any, at: str = "") -> list[str]:
    """Return where two contents differ, and how."""
    pairs: list[tuple[Any, Any, Any]]
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        pairs = [(key, expected.get(key, "absent"), found.get(key, "absent")) for key in keys]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(index, one, other) for index, (one, other) in enumerate(zip(expected, found, strict=True))]
    else:
        return [] if expected == found else [f"{at}: {str(expected)[:200]} before, {str(found)[:200]} now"]
    return [line for key, one, other in pairs for line in differences(one, other, f"{at}/{key}")]


def leftovers(folder: str) -> list[str]:
    """Return what a killed run left half-written, in the folder or beside it."""
    place = Path(folder)
    beside = [path for path in place.parent.iterdir() if path.name.startswith(f"{place.name}.")]
    return [str(path) for path in (*beside, *place.rglob("*")) if HALF_WRITTEN in path.name]


def _content(path: Path, root: str) -> Any:
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text().replace(root, "ROOT")))
    if path.suffix in (".toml", ".md", ".txt"):
        return path.read_text().replace(root, "ROOT")
    return path.read_bytes()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        is_program = str(value.get("file", "")).endswith(PROGRAM)
        is_signed = "schema_version" in value  # by a sha256 of all that the file says
        left_out = VOLATILE | {"sha256", "num_bytes"} if is_program or is_signed else VOLATILE
        return {key: _steady(part) for key, part in value.items() if key not in left_out}
    return [_steady(part) for part in value] if isinstance(value, list) else value


def _read_bundle(folder: str) -> None:
    for facts in read_manifest(folder).files():
        read_checked(folder, facts)


def _read_days(folder: str) -> None:
    """Read what is said of all three days; of fewer, a daily training is not over."""
    done = json.loads(read_bytes(f"{folder}/days.json"))["days"]
    if len(done) < 3:
        raise FileNotFoundError("not all days are done")


READERS: Mapping[str, Callable[[str], object]] = {
    "prepare": lambda folder: Dataset(folder).events(),
    "tokenize": lambda folder: SemanticIds.load(semantic_ids_file(folder)),
    "assign": lambda folder: SemanticIds.load(semantic_ids_file(folder)),
    "rank": lambda folder: collect_runs([folder]),
    "retrieve": lambda folder: collect_runs([folder]),
    "daily": _read_days,
    "export": _read_bundle,
    "report": lambda folder: json.loads(read_bytes(f"{folder}/report.json")),
    "study": lambda folder: json.loads(read_bytes(f"{folder}/study.json")),
}
"""Verb -> how the next verb, or a person's program, reads its folder."""
