"""Turns pydantic's validation errors into `file: key: problem; did you mean` lines."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Provenance = dict[tuple[str, ...], str]
"""Which file or override a key came from."""


def explain(
    error: ValidationError, kind: type[BaseModel], provenance: Provenance, files: Sequence[str]
) -> str:
    """Return one line per fault under one heading, each naming its source and full key."""
    lines: list[str] = []
    for fault in error.errors():
        location = fault["loc"]
        key = ".".join(str(part) for part in location) or "(whole config)"
        source = _source(tuple(str(part) for part in location), provenance)
        prefix = f"{source}: " if source else ""
        lines.append(f"  {prefix}{key}: {_problem(fault, kind)}")
    where = " + ".join(files) if files else "config"
    return f"{where}: {len(lines)} problem{'s' if len(lines) > 1 else ''}\n" + "\n".join(lines)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the choice nearest to `name`, or nothing when none is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _source(location: tuple[str, ...], provenance: Provenance) -> str | None:
    # Tags of unions appear in pydantic's location but not in the file: drop parts that lead nowhere.
    at: tuple[str, ...] = ()
    found: str | None = None
    for part in location:
        if (*at, part) in provenance:
            at = (*at, part)
            found = provenance[at]
    return found


def _problem(fault: Any, kind: type[BaseModel]) -> str:
    got = fault.get("input")
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        return "unknown key" + did_you_mean(name, _fields_at(kind, fault["loc"][:-1]))
    if fault["type"] == "missing":
        return "missing, and it has no default"
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = repr(got)
    if isinstance(got, (dict, list)) or len(shown) > 80:
        return message
    return f"{message} (got {shown})"


def _fields_at(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the field names that may stand at `location`, over every model that can be there."""
    models: list[type[BaseModel]] = [kind]
    for part in location:
        below: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                below += _models_in(model.model_fields[str(part)].annotation)
        below = below or [model for model in models if _has_tag(model, part)]
        models = below or models  # list index or mapping key: stay
    return [name for model in models for name in model.model_fields]


def _has_tag(model: type[BaseModel], part: Any) -> bool:
    """Tell whether a union takes this class where its `kind` is `part`."""
    return "kind" in model.model_fields and model.model_fields["kind"].default == part


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
