"""State of tables that were saved under one kind of placement and go on under another.

torchrec updates sharded tables inside backward, with an optimizer of its own, and leaves replicated ones
(data_parallel) to an ordinary one. Both keep the same sums of squared gradients, Adagrad one a number,
row-wise Adagrad one a row, under names and shapes of their own:

    optimizer/fused/<parameter>/<table>.momentum1      (rows,) or (rows, D)
    optimizer/replicated/<parameter>/sum               (rows, 1) or (rows, D)

A planner that has more ranks replicates small tables that fewer ranks held apart, so both meet whenever a run
goes on elsewhere.
"""

import re
from collections.abc import Collection, Mapping

FUSED, REPLICATED = "fused", "replicated"
"""Names of the optimizers of sharded and of replicated tables among those of a `Trainable`."""
_FUSED = re.compile(rf"optimizer/{FUSED}/(?P<parameter>.+)/[^/]+\.momentum1")
_REPLICATED = re.compile(rf"optimizer/{REPLICATED}/(?P<parameter>.+)/(?P<state>sum|step)")
Shapes = Mapping[str, tuple[int, ...]]


def sources_of_state(saved: Collection[str], now: Collection[str]) -> dict[str, str]:
    """Return what a checkpoint calls the state that a model has under another kind of placement.

    Args:
        saved: names of the checkpoint's tensors.
        now: those of the model's, on all ranks together.

    Returns:
        The model's name -> the checkpoint's. Empty where both place tables alike.
    """
    absent = (name for name in now if name not in saved)
    return {name: other for name in absent if (other := _under_other_placement(name)) in saved}


def counts_steps_alone(name: str) -> bool:
    """Return whether a tensor only counts the steps of a replicated table, which no Adagrad here reads."""
    named = _REPLICATED.fullmatch(name)
    return named is not None and named["state"] == "step"


def as_placed_now(saved: Shapes, now: Shapes) -> dict[str, tuple[int, ...]]:
    """Return a checkpoint's shapes by the model's names, as if it had been saved under the same placement.

    Args:
        saved: shapes of the checkpoint's tensors, by its names.
        now: shapes of the model's, on all ranks together.
    """
    sources = sources_of_state(saved, now)
    named = {name: shape for name, shape in saved.items() if name not in sources.values()}
    for name, source in sources.items():
        # A number a row is a column of its own in one optimizer, and none in the other.
        alike = _without_ones(saved[source]) == _without_ones(now[name])
        named[name] = (*saved[source][:1], *now[name][1:]) if alike else saved[source]
    moved = {_parameter(name) for name in sources}
    counts = {name for name in {*saved, *now} if counts_steps_alone(name) and _parameter(name) in moved}
    return {name: shape for name, shape in named.items() if name not in counts} | {
        name: now[name] for name in counts if name in now
    }


def _under_other_placement(name: str) -> str:
    if fused := _FUSED.fullmatch(name):
        return f"optimizer/{REPLICATED}/{fused['parameter']}/sum"
    if (replicated := _REPLICATED.fullmatch(name)) and replicated["state"] == "sum":
        parameter = replicated["parameter"]
        return f"optimizer/{FUSED}/{parameter}/{parameter.split('.')[-2]}.momentum1"
    return ""


def _parameter(name: str) -> str:
    return name.split("/")[2]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the lengths after the rows, but for those that are 1."""
    return tuple(length for length in shape[1:] if length != 1)
