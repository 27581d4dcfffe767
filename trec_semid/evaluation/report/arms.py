"""Groups rank runs into arms: one arm is one config, run with several seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.evaluation.report.collect import Collection, FinishedRun, tokenizer_place
from trec_semid.evaluation.report.content import Arm

PLACE_KEYS = ("seed", "run", "dataset", "semantic_ids", "label")
"""Keys that may differ within an arm: the checksum stands for the dataset and the tokenizer's own
config for its codes."""
BASELINE = "item"


@dataclass(frozen=True)
class ArmRuns:
    """An arm and its runs, by seed."""

    arm: Arm
    runs: list[FinishedRun]


def group_arms(collection: Collection, baseline: str | None = None) -> list[ArmRuns]:
    """Return the arms, baseline first and the others in the order of their names.

    Args:
        collection: the runs.
        baseline: name of the arm that others are compared with; None = the first whose representation
            is `item`, else the first by name.

    Raises:
        DataError: two runs are the same arm and seed, or no arm has the baseline's name.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in collection.ranks:
        groups.setdefault(_arm_key(run, collection), []).append(run)
    members = [sorted(runs, key=lambda run: run.seed) for runs in groups.values()]
    for runs in members:
        _check_seeds(runs)
    named = dict(sorted(zip(_names(members, collection), members, strict=True)))
    chosen = _choose_baseline(named, baseline)
    order = sorted(named, key=lambda name: (name != chosen, name))
    return [
        ArmRuns(_arm(name, series, named[name], collection, is_baseline=name == chosen), named[name])
        for series, name in enumerate(order)
    ]


def tokenizer_kind(run: FinishedRun) -> str:
    """Return the kind of tokenizer that a tokenize run fitted."""
    section = run.config.get("tokenizer")
    kind = section.get("kind") if isinstance(section, dict) else None
    return str(kind or run.json("quality.json").get("tokenizer", "tokenizer"))


def _arm(
    name: str, series: int, runs: Sequence[FinishedRun], collection: Collection, *, is_baseline: bool
) -> Arm:
    made = collection.tokenizer_of(runs[0])
    return Arm(
        name=name,
        representation=_representation(runs[0]),
        tokenizer=tokenizer_kind(made) if made else None,
        series=series,
        seeds=[run.seed for run in runs],
        runs=[run.name for run in runs],
        is_baseline=is_baseline,
        parameters=_parameters(runs[0]),
    )


def _parameters(run: FinishedRun) -> dict[str, int]:
    counts = run.result.get("counts", {})
    return {key.partition("/")[2]: int(size) for key, size in counts.items() if key.startswith("parameters/")}


def _representation(run: FinishedRun) -> str:
    return str(run.config.get("representation", BASELINE))


def _own_config(run: FinishedRun) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in PLACE_KEYS}


def _arm_key(run: FinishedRun, collection: Collection) -> str:
    made = collection.tokenizer_of(run)
    codes = _own_config(made) if made else tokenizer_place(run) if _has_other_codes(run, collection) else None
    return json.dumps([_own_config(run), codes, run.config.get("label")], sort_keys=True, default=str)


def _check_seeds(runs: Sequence[FinishedRun]) -> None:
    for before, run in pairwise(runs):
        if before.seed == run.seed:
            raise DataError(
                f"the same config and seed as run '{before.name}'",
                file=join(run.uri, "config.toml"),
                field="seed",
                value=run.seed,
                remedy="Leave one of the two out, or set a `label` to keep them apart",
            )


def _names(members: Sequence[Sequence[FinishedRun]], collection: Collection) -> list[str]:
    """Return a name per arm; arms that would share one are told apart by the keys in which they differ."""
    plain = [_plain_name(runs[0], collection) for runs in members]
    names: list[str] = []
    for index, name in enumerate(plain):
        rivals = [other for other, its_name in enumerate(plain) if its_name == name and other != index]
        if rivals:
            differing = _differences(members[index][0], [members[other][0] for other in rivals], collection)
            name = f"{name} ({', '.join(differing[:3]) or f'arm {index + 1}'})"  # noqa: PLW2901
        names.append(name)
    return [f"{name} #{index + 1}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _plain_name(run: FinishedRun, collection: Collection) -> str:
    made = collection.tokenizer_of(run)
    parts = [_representation(run)]
    if made and parts[0] != BASELINE:
        parts.append(tokenizer_kind(made))
    elif _has_other_codes(run, collection):
        parts.append("codes since replaced")
    label = run.config.get("label")
    return " · ".join([*parts, str(label)] if label else parts)


def _has_other_codes(run: FinishedRun, collection: Collection) -> bool:
    return run.uri in collection.on_other_codes


def _differences(run: FinishedRun, rivals: Sequence[FinishedRun], collection: Collection) -> list[str]:
    mine, others = _flat(run, collection), [_flat(rival, collection) for rival in rivals]
    keys = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
    return [f"{key} = {mine[key]}" for key in keys]


def _flat(run: FinishedRun, collection: Collection) -> dict[str, object]:
    made = collection.tokenizer_of(run)
    codes = _flatten(_own_config(made), "tokenize.") if made else {}
    return _flatten(_own_config(run)) | codes


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _choose_baseline(named: Mapping[str, Sequence[FinishedRun]], baseline: str | None) -> str | None:
    if baseline is not None:
        if baseline not in named:
            have = ", ".join(named) or "none"
            raise DataError("no such arm for the baseline", value=baseline, remedy=f"The arms are: {have}")
        return baseline
    of_items = [name for name, runs in named.items() if _representation(runs[0]) == BASELINE]
    return next(iter([*of_items, *named]), None)
