"""Asks a bundle alone, in a process of its own: `python -m trec_semid.serving.check BUNDLE ASKED ANSWERED`.

ASKED and ANSWERED are safetensors files. Prints JSON: whether torchrec was needed.

Legend: R rows, B users, N length of the lists.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from trec_semid.core.arrays import Array
from trec_semid.core.errors import CheckpointError, SemidError
from trec_semid.core.paths import join, read_bytes, shared_copy, write_bytes
from trec_semid.core.processes import scratch_folder
from trec_semid.serving.opened import OpenBundle
from trec_semid.serving.ranking import RankEngine, RankRows
from trec_semid.serving.retrieving import ListRows, RetrieveEngine

_ROWS_AT_ONCE = 1024
_USERS_AT_ONCE = 256


def asked_of_ranker(users: Array, items: Array, histories: tuple[Array, Array] | None) -> dict[str, Array]:
    """Return what asks for (R,) rows of users and items with their histories, item rows and (R,) lengths."""
    nothing = np.zeros(0, np.int64), np.zeros(len(users), np.int64)
    values, lengths = histories or nothing
    return {"users": users, "items": items, "history": values, "history_lengths": lengths}


def scores_of(bundle: OpenBundle, asked: dict[str, Array]) -> Array:
    """Return (R,) probabilities of what `asked_of_ranker` asks for."""
    engine, parts = RankEngine(bundle), list[Array]()
    ends = np.concatenate([[0], np.cumsum(asked["history_lengths"])])
    for first in range(0, len(asked["users"]), _ROWS_AT_ONCE):
        users = asked["users"][first : first + _ROWS_AT_ONCE]
        last = first + len(users)
        rows = RankRows(
            (users, np.ones(len(users), np.int64)),
            (asked["history"][ends[first] : ends[last]], asked["history_lengths"][first:last]),
            asked["items"][first:last],
            np.arange(len(users)),
        )
        parts.append(engine.score(rows))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def asked_of_retriever(
    histories: tuple[Array, Array], masked: tuple[Array, Array], length: int
) -> dict[str, Array]:
    """Return what asks for lists of B users.

    Args:
        histories: item rows, one user's after another, and (B,) lengths.
        masked: likewise, what may not be listed.
        length: of the lists.
    """
    parts = {"values": histories[0], "lengths": histories[1], "masked": masked[0], "num_masked": masked[1]}
    return {**parts, "list_length": np.array([length])}


def lists_of(bundle: OpenBundle, asked: dict[str, Array]) -> dict[str, Array]:
    """Return (B, N) items and scores of what `asked_of_retriever` asks for."""
    engine, length = RetrieveEngine(bundle), int(asked["list_length"][0])
    ends, masks = (np.concatenate([[0], np.cumsum(asked[name])]) for name in ("lengths", "num_masked"))
    items, scores = list[Array](), list[Array]()
    for first in range(0, len(asked["lengths"]), _USERS_AT_ONCE):
        own = slice(first, first + _USERS_AT_ONCE)
        last = min(own.stop, len(asked["lengths"]))
        rows = ListRows(
            asked["values"][ends[first] : ends[last]],
            asked["lengths"][own],
            asked["masked"][masks[first] : masks[last]],
            asked["num_masked"][own],
        )
        found = engine.lists(rows, length, widens=False)
        items.append(found.items.numpy())
        scores.append(found.scores.numpy())
    return {"items": np.concatenate(items), "scores": np.concatenate(scores)}


def ask_alone(out: str, folder: str, asked: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the bundle alone answers, in a process of its own that must not need torchrec.

    Args:
        out: of the bundle, for errors.
        folder: where it is written.
        asked: (...) arrays of `asked_of_ranker` or `asked_of_retriever`.

    Raises:
        CheckpointError: it cannot be read back, or not without torchrec.
    """
    with shared_copy(folder) as bundle, scratch_folder() as scratch:
        place, answered = join(scratch, "asked.safetensors"), join(scratch, "answered.safetensors")
        kept = {name: np.ascontiguousarray(values) for name, values in asked.items()}
        write_bytes(place, safetensors.numpy.save(kept))
        words = ["-m", "trec_semid.serving.check", bundle, place, answered]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise CheckpointError(f"{out}: the bundle cannot be read back: {done.stderr.strip()[-500:]}")
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if said["torchrec"]:
            raise CheckpointError(f"{out}: reading the bundle needed torchrec.")
        return safetensors.numpy.load(read_bytes(answered))


def main() -> None:
    """Answer ASKED from BUNDLE."""
    uri, asked_uri, answered_uri = sys.argv[1:4]
    try:
        asked = safetensors.numpy.load(read_bytes(asked_uri))
        bundle = OpenBundle(uri, verify=True)
        answers = {"scores": scores_of(bundle, asked)} if "users" in asked else lists_of(bundle, asked)
    except SemidError as error:
        sys.exit(str(error))
    write_bytes(answered_uri, safetensors.numpy.save(answers))
    sys.stdout.write(json.dumps({"torchrec": "torchrec" in sys.modules}) + "\n")


if __name__ == "__main__":
    main()
