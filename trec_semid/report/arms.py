"""Groups rank or retrieve runs into arms: one arm is one config, run with several seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.report.arm_names import (
    ITEM_IDS,
    has_other_codes,
    model_kind,
    name_arms,
    own_config,
    representation,
    tokenizer_kind,
)
from trec_semid.report.collect import Collection, FinishedRun, tokenizer_place
from trec_semid.report.content import Arm


@dataclass(frozen=True)
class ArmRuns:
    """An arm and its runs, by seed."""

    arm: Arm
    runs: list[FinishedRun]


def group_arms(collection: Collection, baseline: str | None = None) -> list[ArmRuns]:
    """Return the arms, baseline first and the others in the order of their names.

    Args:
        collection: the runs.
        baseline: name of the arm that others are compared with; None = of rankers the first whose
            representation is `item`, else the first by name; of retrievers that of the first run.

    Raises:
        DataError: two runs are the same arm and seed, or no arm has the baseline's name.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in collection.recommenders:
        groups.setdefault(_arm_key(run, collection), []).append(run)
    members = [sorted(runs, key=lambda run: run.seed) for runs in groups.values()]
    for runs in members:
        _check_seeds(runs)
    names = name_arms(members, collection)
    named = dict(sorted(zip(names, members, strict=True)))
    if baseline is not None:
        _check_baseline(baseline, named)
    chosen = baseline or _usual_baseline(names, named)
    order = sorted(named, key=lambda name: (name != chosen, name))
    return [
        ArmRuns(_arm(name, series, named[name], collection, is_baseline=name == chosen), named[name])
        for series, name in enumerate(order)
    ]


def _arm(
    name: str, series: int, runs: Sequence[FinishedRun], collection: Collection, *, is_baseline: bool
) -> Arm:
    made = collection.tokenizer_of(runs[0])
    return Arm(
        name=name,
        representation=representation(runs[0]),
        tokenizer=tokenizer_kind(made) if made else None,
        model=model_kind(runs[0]),
        lists=list_rule(runs[0]) if runs[0].job == "retrieve" else None,
        series=series,
        seeds=[run.seed for run in runs],
        runs=[run.name for run in runs],
        is_baseline=is_baseline,
        parameters=_parameters(runs[0]),
    )


def list_rule(run: FinishedRun) -> str:
    """Return how a retriever listed the catalogue, in words."""
    how = run.config.get("evaluation", {})
    width = how.get("beam_width")
    search = f"beam of {width} tuples" if width else "every item scored"
    penalty = how.get("unseen_penalty", 0.0)
    lowered = f", items without a training event {penalty:g} lower" if penalty else ""
    return f"{search}{lowered}, history {'left out' if how.get('masks_history', True) else 'kept'}"


def _parameters(run: FinishedRun) -> dict[str, int]:
    counts = run.result.get("counts", {})
    return {key.partition("/")[2]: int(size) for key, size in counts.items() if key.startswith("parameters/")}


def _arm_key(run: FinishedRun, collection: Collection) -> str:
    made = collection.tokenizer_of(run)
    codes = own_config(made) if made else tokenizer_place(run) if has_other_codes(run, collection) else None
    return json.dumps([own_config(run), codes, run.config.get("label")], sort_keys=True, default=str)


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


def _check_baseline(baseline: str, named: Mapping[str, Sequence[FinishedRun]]) -> None:
    if baseline not in named:
        have = ", ".join(named) or "none"
        raise DataError("no such arm for the baseline", value=baseline, remedy=f"The arms are: {have}")


def _usual_baseline(given: Sequence[str], named: Mapping[str, Sequence[FinishedRun]]) -> str | None:
    """Choose among names as they were given, and the same in order with their runs."""
    if any(runs[0].job == "retrieve" for runs in named.values()):
        return given[0]
    of_items = [name for name, runs in named.items() if representation(runs[0]) == ITEM_IDS]
    return next(iter([*of_items, *named]), None)
