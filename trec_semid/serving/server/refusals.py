"""What a request that is not answered is told: one shape of JSON for all, with path, value and remedy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

from pydantic import BaseModel

from trec_semid.core.errors import DataError
from trec_semid.core.explain import did_you_mean
from trec_semid.core.toml_text import shown
from trec_semid.serving.engine import NotServedError

_MOST_FAULTS = 20
_MOST_TOLD = 3
_REMEDIES = {
    "missing": "Add it",
    "string_type": "Send text, in quotes",
    "string_too_short": "Send at least one character",
    "string_too_long": "Send at most {max_length} characters",
    "json_invalid": "Send one JSON object, in UTF-8",
    "model_type": "Send one JSON object",
    "dict_type": "Send a JSON object",
    "tuple_type": "Send a JSON array",
    "int_type": "Send a whole number",
    "float_type": "Send a number",
    "too_short": "Send at least {min_length}",
    "too_long": "Send at most {max_length}, in several requests",
    "less_than_equal": "Send at most {le}",
    "greater_than_equal": "Send at least {ge}",
    "literal_error": "Send one of {expected}",
    "finite_number": "Send a finite number",
}
_OTHER_REMEDY = "See /openapi.json"


class Fault(NamedTuple):
    """What is wrong at one place of a request."""

    path: str
    """As `candidates.3`, places counted from 0; `(body)` of the whole."""
    problem: str
    value: str | None
    remedy: str


@final
class Refusal(Exception):  # noqa: N818
    """An answer that is none: HTTP status, kind in one word, message, and faults by field."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.faults, self.headers = tuple(faults), dict(headers or {})

    def content(self, version: str | None, request_id: str) -> dict[str, Any]:
        """Return what its JSON holds."""
        return {
            "version": version,
            "error": self.kind,
            "message": self.message,
            "faults": [fault._asdict() for fault in self.faults],
            "request_id": request_id,
        }


def not_ready(why: str) -> Refusal:
    """Return what is told while there is no bundle."""
    return Refusal(503, "not_ready", why, headers={"Retry-After": "1"})


def body_too_large(limit: int) -> Refusal:
    """Return what a body of too many bytes is told; its connection ends, as the rest of it is not read."""
    fault = Fault("(body)", f"more than {limit:,} bytes", None, "Send several requests")
    return Refusal(
        413, "too_large", f"the body has more than {limit:,} bytes", [fault], {"Connection": "close"}
    )


def of_invalid(found: Sequence[Any], kind: type[BaseModel] = BaseModel) -> Refusal:
    """Return what a request that pydantic refuses is told: 413 where a list is too long, else 422.

    Args:
        found: pydantic's errors.
        kind: class of the body.
    """
    by_path: dict[str, Fault] = {}
    for fault in (_fault(each, kind) for each in found[:_MOST_FAULTS]):
        by_path.setdefault(fault.path, fault)  # of the types that a value may have, the first is told
    faults = list(by_path.values())
    message = "; ".join(f"{fault.path}: {fault.problem}" for fault in faults[:_MOST_TOLD])
    message += "; and more" if len(faults) > _MOST_TOLD else ""
    if any(each["type"] == "too_long" for each in found):
        return Refusal(413, "too_large", message, faults)
    return Refusal(422, "invalid", message, faults)


def of_error(error: BaseException) -> Refusal:
    """Return what a request is told whose pass through the engine raised."""
    match error:
        case Refusal():
            return error
        case NotServedError():
            return Refusal(404, "not_served", str(error))
        case DataError() if error.file is None:  # a file is the bundle's, whose faults are not the request's
            value = None if error.value is None else shown(error.value)
            remedy = error.remedy or _OTHER_REMEDY
            fault = Fault(error.field or "(body)", error.problem, value, remedy)
            return Refusal(422, "invalid", f"{fault.path}: {error.problem}", [fault])
        case _:
            return Refusal(500, "failed", "the server failed; its log has the request by its id")


def _fault(found: Any, kind: type[BaseModel]) -> Fault:
    location = _without_branch(found["loc"])
    sort, context = found["type"], found.get("ctx") or {}
    path = ".".join(str(part) for part in location) or "(body)"
    problem, value = str(found["msg"]), None
    if sort == "extra_forbidden":
        problem = "unknown key"
        near = did_you_mean(str(location[-1]), _keys_at(kind, location[:-1])).removeprefix("; ")
        return Fault(path, problem, None, f"Leave it out; {near}" if near else "Leave it out")
    if sort not in ("missing", "json_invalid"):
        value = shown(found.get("input"))
    remedy = _REMEDIES.get(sort, _OTHER_REMEDY).format(**context)
    return Fault(path, problem, value, remedy)


def _without_branch(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Leave out which kind of a value was tried, as in `context.age.float`."""
    is_tried = len(location) == 3 and location[0] == "context" and location[2] in ("str", "float")
    return location[:2] if is_tried else location


def _keys_at(kind: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        kind = inner
    return list(kind.model_fields)
