"""What JSON values are, and what a column of them is: mixtures that mean two things are refused."""

import json
import math
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from trec_semid.core.errors import DataError

Name = Literal["null", "bool", "int", "big", "float", "text"]
_ARROW: dict[Name, pa.DataType] = {
    "null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(),
    "text": pa.string(), "big": pa.string(),
}  # fmt: skip
_WIDER: dict[frozenset[Name], Name] = {
    frozenset(("int", "big")): "big",
    frozenset(("int", "float")): "float", frozenset(("big", "float")): "float",
    # Ids are text either way.
    frozenset(("int", "text")): "text", frozenset(("big", "text")): "text",
}  # fmt: skip
_WORDS: dict[Name, str] = {
    "null": "null", "bool": "true or false", "int": "whole numbers", "big": "whole numbers",
    "float": "numbers", "text": "text",
}  # fmt: skip
_INT64 = 1 << 63
_SHOWN = 60


class Kind(NamedTuple):
    """What a column holds."""

    name: Name
    """'big' is a whole number beyond 64 bits, which is carried as text."""
    is_list: bool = False
    """Whether it holds lists of these."""

    @property
    def arrow(self) -> pa.DataType:
        """Return the type of such a column."""
        return pa.list_(_ARROW[self.name]) if self.is_list else _ARROW[self.name]

    def __str__(self) -> str:
        return f"lists of {_WORDS[self.name]}" if self.is_list else _WORDS[self.name]


NOTHING = Kind("null")


class MixedError(Exception):
    """A value that does not fit its column; says why."""


def kind_of(value: Any) -> Kind:
    """Return the kind of one value.

    Raises:
        MixedError: an object, a list of lists or objects, or text that is no Unicode.
    """
    if not isinstance(value, list):
        return Kind(_name_of(value))
    kind = Kind("null", is_list=True)
    for each in value:
        kind = wider(kind, Kind(_name_of(each), is_list=True))
    return kind


def _name_of(value: Any) -> Name:
    if isinstance(value, dict):
        raise MixedError("an object where a value is expected")
    if isinstance(value, list):
        raise MixedError("a list inside a list")
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_INT64 <= value < _INT64 else "big"
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise MixedError("text that is no Unicode: half of a surrogate pair")
        return "text"
    return "null" if value is None else "float"


def wider(first: Kind, second: Kind) -> Kind:
    """Return the kind of a column that holds both.

    Raises:
        MixedError: there is none.
    """
    if second in (first, NOTHING):
        return first
    if first == NOTHING:
        return second
    if first.is_list == second.is_list:
        if "null" in (first.name, second.name):
            return second if first.name == "null" else first
        name = _WIDER.get(frozenset((first.name, second.name)))
        if name:
            return Kind(name, first.is_list)
    raise MixedError(f"{second} where other lines hold {first}")


def as_kind(value: Any, kind: Kind) -> Any:
    """Return a value as a column of that kind holds it.

    Raises:
        MixedError: a whole number among numbers with fractions that no float says exactly.
    """
    if isinstance(value, list):
        return [as_kind(each, Kind(kind.name)) for each in value]
    if value is None:
        return None
    if kind.name in ("text", "big"):
        return str(value)
    if kind.name == "float":
        try:
            number = float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
        if number != value and isinstance(value, int):
            raise MixedError(
                "a whole number of more digits than a float holds, beside numbers with fractions"
            )
        return number
    return value


class JsonObject(dict[str, Any]):
    """An object, and the key that it has twice."""

    twice: str | None = None


def parse_line(line: bytes) -> JsonObject:
    """Return the object on a line.

    Raises:
        ValueError, RecursionError: not JSON, or nested too deeply.
        MixedError: JSON, but no object.
    """
    record = json.loads(line.decode(), object_pairs_hook=_object, parse_int=_integer)
    if not isinstance(record, JsonObject):
        raise MixedError("not a JSON object")
    return record


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    json_object = JsonObject(pairs)
    if len(json_object) < len(pairs):
        names = [name for name, _ in pairs]
        json_object.twice = next(name for name in names if names.count(name) > 1)
    return json_object


def _integer(text: str) -> int | float:
    # Python refuses to read numbers of thousands of digits.
    return int(text) if len(text) < 4000 else math.copysign(math.inf, -1 if text[0] == "-" else 1)


def misfit(problem: str, file: str, row: int, field: str | None, value: Any) -> DataError:
    """Return the error of a value that does not fit its column."""
    shown = None if field is None else json.dumps(value)[:_SHOWN]
    remedy = (
        "Write values of one type, none of them objects" if field else "Every line must be one JSON object"
    )
    return DataError(problem, file=file, row=row, field=field, value=shown, remedy=remedy)
