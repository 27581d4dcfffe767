"""When two configs are of one run: every value counts, but for those whose field says that it may change."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from trec_semid.core.config import Config, toml_value
from trec_semid.core.paths import filesystem, is_local

_LONGEST = 60
"""Letters of a value in a message."""


@dataclass(frozen=True)
class MayChange:
    """Marks a field, as `Annotated[int, MayChange()]`, that does not change what a run computed so far.

    Such are places (what lies there counts by its checksum), what is only said, placement, and how far to
    go. A run that was interrupted goes on under another value; a finished one is done all the same.
    """

    only_up: bool = False
    """Whether the value may grow but not shrink."""
    reopens: Literal["other", "larger"] | None = None
    """Under which values a finished run may have more to do."""


@dataclass(frozen=True)
class SamePlace:
    """Marks a path, or a list of paths, that counts by the place it names, however it is spelled."""


class Difference(NamedTuple):
    """A key that makes two configs two runs."""

    key: str
    """In full, as after `--set`."""
    there: Any
    """Value of the run that is there."""
    now: Any
    """Value that is asked for."""
    why: str = ""
    """Why it may not change where its field says that it may."""

    def __str__(self) -> str:
        """Return it as a message says it."""
        reason = f" ({self.why})" if self.why else ""
        return f"{self.key}: {_shown(self.there)} there, {_shown(self.now)} now{reason}"


class Comparison(NamedTuple):
    """Two configs side by side."""

    differences: list[Difference]
    """Empty where both are of one run."""
    is_reopened: bool
    """Whether a finished run has more to do, if there are no differences."""


def compare(there: Config, now: Config) -> Comparison:
    """Compare the config of a run that is there with one that is asked for, both of one class."""
    differences: list[Difference] = []
    is_reopened = False
    fixed = {**there.fixed_keys(), **now.fixed_keys()}
    for difference, mark in _walk(there, now, ""):
        if mark is None:
            differences.append(difference)
        elif difference.key in fixed:
            differences.append(difference._replace(why=fixed[difference.key]))
        elif mark.only_up and not difference.now > difference.there:
            differences.append(difference._replace(why="it may grow, not shrink"))
        else:
            is_reopened |= _reopens(mark, difference)
    return Comparison(differences, is_reopened)


def _reopens(mark: MayChange, difference: Difference) -> bool:
    if mark.reopens == "larger":
        return difference.now > difference.there
    return mark.reopens == "other" and difference.now is not None


def _walk(there: BaseModel, now: BaseModel, at: str) -> Iterator[tuple[Difference, MayChange | None]]:
    for name, field in type(now).model_fields.items():
        old, new = getattr(there, name), getattr(now, name)
        if old == new or (SamePlace() in field.metadata and _places(old) == _places(new)):
            continue
        mark = next((one for one in field.metadata if isinstance(one, MayChange)), None)
        # A section with a mark may change as a whole; without one its keys are looked at one by one.
        if mark is None and isinstance(old, BaseModel) and type(old) is type(new):
            yield from _walk(old, new, f"{at}{name}.")
        # Sections of two kinds have different keys, so that the kinds alone say it.
        elif mark is None and getattr(old, "kind", None) != getattr(new, "kind", None):
            there_kind, now_kind = (getattr(one, "kind", one) for one in (old, new))
            yield Difference(f"{at}{name}.kind", there_kind, now_kind), None
        else:
            yield Difference(f"{at}{name}", old, new), mark


def _places(value: str | list[str] | None) -> list[str]:
    paths = [value] if isinstance(value, str) else value or []
    return [os.path.abspath(filesystem(path)[1]) if is_local(path) else path.rstrip("/") for path in paths]


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    plain = to_jsonable_python(value)
    text = json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict) else toml_value(plain)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
