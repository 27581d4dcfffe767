"""What a study consists of: its config, and the planned runs that its steps and seeds expand to."""

import re
import tomllib
from collections.abc import Iterable
from itertools import product
from typing import Any, Literal, NamedTuple

from pydantic import Field, PositiveInt, field_validator, model_validator

from trec_semid.core.config import Config, Place, toml_value
from trec_semid.core.explain import did_you_mean
from trec_semid.core.paths import join
from trec_semid.data.schema import VerifyConfig

Value = str | int | float | bool
FOLDER_KEY = {
    "prepare": "out",
    "tokenize": "run",
    "rank": "run",
    "retrieve": "run",
    "evaluate": "run",
    "report": "out",
}
"""Verb -> key of its config that says where it writes; the study fills it in."""
_PLACE = re.compile(r"(?<!\$)\{([^{}]*)\}")  # ${NAME} is an environment variable


class StepConfig(Config):
    """One verb with its config files, run once or once a seed."""

    verb: Literal["prepare", "tokenize", "rank", "retrieve", "evaluate", "report"]
    name: str = Field("", pattern=r"^[A-Za-z0-9_.{}-]*$")
    """What the table and the run folders call it; the verb where nothing is said."""
    grid: dict[str, list[Value] | dict[str, dict[str, Any]]] = {}
    """Makes a step for every combination. Each axis is a list of values, or a table of named variants with
    what each sets; `{<axis>}` stands for the value or the name in `name`, `pool`, `files`, `set` and
    `after`."""
    files: list[Place] = []
    """Config files of the verb, merged left to right."""
    set: dict[str, Any] = {}
    """What differs from the files. `{out}`, `{seed}` and `{<name of an earlier step>}`, which stands
    for that step's folder, are filled in; naming a step also means waiting for it."""
    seeds: bool = False
    """Whether it runs once for each seed of the study, with its `seed` set (`evaluate`: of its runs)."""
    after: list[str] = []
    """Earlier steps to wait for besides those that `set` names."""
    pool: str = Field("", pattern=r"^[A-Za-z0-9_.{}-]*$")
    """Rank steps of one `pool` make one row of the table, which it names: their test rows are laid end to
    end before a metric is taken. For the folds of an item holdout."""

    @property
    def label(self) -> str:
        """The step's name."""
        return self.name or self.verb


def expand(step: StepConfig) -> list[StepConfig]:
    """Return the steps of a grid, the last axis changing fastest; a step without one is returned as it is.

    Raises:
        ValueError: an axis has no values, or a name does not tell the combinations apart.
    """
    if not step.grid:
        return [step]
    empty = [axis for axis, values in step.grid.items() if not values]
    if empty:
        raise ValueError(f"step '{step.label}': grid.{empty[0]} has no values")
    taken = [axis for axis in step.grid if axis in ("out", "seed")]
    if taken:
        raise ValueError(
            f"step '{step.label}': '{taken[0]}' is reserved for the study; call the axis otherwise"
        )
    unnamed = [axis for axis in step.grid if axis not in names_in(step.name)]
    if unnamed:
        raise ValueError(
            f"step '{step.label}': put '{{{unnamed[0]}}}' into its name, to tell its steps apart"
        )
    return [_at(step, dict(zip(step.grid, chosen, strict=True))) for chosen in product(*step.grid.values())]


def _at(step: StepConfig, chosen: dict[str, Value]) -> StepConfig:
    """Return one step of a grid."""
    values: dict[str, Any] = _placed(step.set, chosen)
    for axis, name in chosen.items():
        variants = step.grid[axis]
        if isinstance(variants, dict):
            values = _merged(values, _placed(variants[str(name)], chosen))
    shown: dict[str, Any] = _placed(
        {"name": step.name, "files": step.files, "after": step.after, "pool": step.pool},
        {k: _as_name(v) for k, v in chosen.items()},
    )
    return step.model_copy(update={**shown, "set": values, "grid": {}})


def _as_name(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _placed(value: Any, chosen: dict[str, Any]) -> Any:
    """Fill in axes; a text that is nothing but one axis becomes its value, number or not."""
    if isinstance(value, dict):
        return {key: _placed(part, chosen) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, chosen) for part in value]
    if not isinstance(value, str):
        return value
    whole = _PLACE.fullmatch(value)
    if whole and whole[1] in chosen:
        return chosen[whole[1]]
    return _PLACE.sub(lambda place: _as_name(chosen[place[1]]) if place[1] in chosen else place[0], value)


def _merged(into: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(into)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


class StudyConfig(VerifyConfig):
    """A grid of runs and its table; with `verify = "always"` its runs have that too."""

    out: Place
    """Folder of the study: run folders, logs and table go below it."""
    seeds: list[int] = Field([0], min_length=1)
    workers: PositiveInt = 1
    """Processes that work through the runs side by side."""
    threads: PositiveInt = 1
    """Threads of each worker."""
    metrics: list[str] = ["test/auc", "test/gauc", "test/log_loss"]
    """Columns of the table: keys of the runs' `metrics.json`."""
    baseline: str | None = None
    """Step that every other is compared with, seed by seed and user by user; None compares nothing."""
    replicates: int = Field(1000, ge=100)
    """Draws of users behind every comparison of rankers."""
    step: list[StepConfig] = Field(min_length=1)
    """In order: a step may name earlier ones only."""

    @field_validator("step")
    @classmethod
    def _without_grids(cls, steps: list[StepConfig]) -> list[StepConfig]:
        return [one for step in steps for one in expand(step)]

    @model_validator(mode="after")
    def _steps_fit(self) -> "StudyConfig":
        faults: list[str] = []
        earlier: dict[str, StepConfig] = {}
        for step in self.step:
            if _PLACE.search(step.label):
                faults.append(f"step '{step.label}': its grid has no such axis")
            if step.label in earlier or step.label in ("out", "seed", "logs"):
                faults.append(f"two steps, or a step and a reserved word, are called '{step.label}'")
            faults += _faults_of(step, earlier)
            earlier[step.label] = step
        rows = [step.pool or step.label for step in self.step]
        faults += [f"pool '{row}' is a step's name as well" for row in self.pools.values() if row in earlier]
        if self.baseline is not None and self.baseline not in rows:
            faults.append(f"baseline '{self.baseline}' is no step{did_you_mean(self.baseline, rows)}")
        if faults:
            raise ValueError("; ".join(dict.fromkeys(faults)))
        return self

    @property
    def pools(self) -> dict[str, str]:
        """Step to pool, of the steps that have one."""
        return {step.label: step.pool for step in self.step if step.pool}


class PlannedRun(NamedTuple):
    """One job of the grid: a step, at one seed where it has seeds."""

    step: str
    seed: int | None
    verb: str
    files: tuple[str, ...]
    sets: tuple[str, ...]
    folder: str
    needs: tuple[str, ...]
    """Labels of the planned runs whose results it reads."""

    @property
    def label(self) -> str:
        """What logs and messages call it."""
        return self.step if self.seed is None else f"{self.step}-seed-{self.seed}"


def plan_runs(config: StudyConfig) -> list[PlannedRun]:
    """Expand steps and seeds, each run after everything it needs."""
    planned: list[PlannedRun] = []
    for step in config.step:
        seeds: list[int | None] = [*config.seeds] if step.seeds else [None]
        planned += [_plan_run(config, step, seed, planned) for seed in seeds]
    return planned


def names_in(value: object) -> set[str]:
    """Return what stands in braces anywhere inside a value."""
    if isinstance(value, dict):
        return names_in(list(value.values()))
    if isinstance(value, list):
        return {name for part in value for name in names_in(part)}
    return set(_PLACE.findall(value)) if isinstance(value, str) else set()


def as_sets(values: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield `a.b=c` for every leaf, the value written as TOML."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from as_sets(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_as_word(value)}"


def _as_word(value: object) -> str:
    """Write a value as a person would after `--set key=`: text without quotes unless TOML would read it."""
    if isinstance(value, str) and value == value.strip() and "\n" not in value:
        try:
            tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            return value
    return toml_value(value)


def _plan_run(
    config: StudyConfig, step: StepConfig, seed: int | None, planned: list[PlannedRun]
) -> PlannedRun:
    parts = [step.label] if seed is None else [step.label, f"seed-{seed}"]
    known = {"out": config.out, "seed": str(seed)}
    # A step with seeds reads the same seed's run of an earlier step with seeds.
    known |= {run.step: run.folder for run in planned if run.seed in (None, seed)}
    values: dict[str, Any] = {FOLDER_KEY[step.verb]: join(config.out, *parts)}
    values |= {} if seed is None or step.verb == "evaluate" else {"seed": seed}
    if config.verify != "once" and step.verb != "prepare":
        values["verify"] = config.verify
    values |= _filled(step.set, known)
    named = names_in(step.set) | set(step.after)
    needs = [run.label for run in planned if run.step in named and (run.seed in (None, seed) or seed is None)]
    if step.verb == "report":
        shown = [run for run in planned if run.verb in ("tokenize", "rank", "retrieve", "evaluate")]
        values.setdefault("runs", [run.folder for run in shown])
        needs = [run.label for run in shown]
    folder = str(values[FOLDER_KEY[step.verb]])
    return PlannedRun(
        step.label, seed, step.verb, tuple(step.files), tuple(as_sets(values)), folder, tuple(needs)
    )


def _filled(value: Any, known: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(part, known) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, known) for part in value]
    if isinstance(value, str):
        return _PLACE.sub(lambda place: known[place[1]], value)
    return value


def _faults_of(step: StepConfig, earlier: dict[str, StepConfig]) -> list[str]:
    reserved = ["out", "seed"] if step.seeds else ["out"]
    faults: list[str] = []
    if step.pool and step.verb != "rank":
        faults.append(f"step '{step.label}': only rank steps have predictions to pool")
    for name in sorted(names_in(step.set) - set(reserved)):
        if name not in earlier:
            hint = did_you_mean(name, [*earlier, *reserved])
            faults.append(f"step '{step.label}': '{{{name}}}' is no earlier step{hint}")
        elif earlier[name].seeds and not step.seeds:
            faults.append(
                f"step '{step.label}': '{{{name}}}' is one folder a seed; say seeds = true here too"
            )
    for name in step.after:
        if name not in earlier:
            faults.append(
                f"step '{step.label}': after '{name}' is no earlier step{did_you_mean(name, earlier)}"
            )
    return faults
