"""Frozen configuration: pydantic models beside their classes, TOML files, `--set a.b=c`."""

import ast
import hashlib
import inspect
import json
import logging
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
)

from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import Provenance, explain
from trec_semid.core.toml_text import Key, printable, read_override, read_toml, shown, unusable

_log = logging.getLogger(__name__)
_SAVED = {"is_saved": True}
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand_place(place: str) -> str:
    """Return a path or URI with `~`, `$NAME` and `${NAME}` replaced as a shell does.

    Raises:
        ValueError: there is no such variable, and no file of that very name; or no such user.
    """
    absent = [name for pair in _VARIABLE.findall(place) if (name := pair[0] or pair[1]) not in os.environ]
    if absent and not os.path.lexists(place):
        raise ValueError(f"'{place}': no environment variable {absent[0]} is set; set it, or write it out")
    at = place if absent else _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], place)
    at = os.path.expanduser(at)
    if at.startswith("~"):
        user = at.partition("/")[0]
        raise ValueError(f"'{place}': no home folder of '{user}' on this machine; write it out")
    return at


Place = Annotated[str, AfterValidator(expand_place)]
"""A path or URI in a config; `~` and environment variables are replaced."""


class Config(BaseModel):
    """Base of every config class: frozen, unknown keys refused, attribute docstrings stay readable."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe each key by the docstring below it.

        Read here, where a schema is asked for: pydantic's `use_attribute_docstrings` parses the source of
        every class when it is imported, which costs every start of a verb 0.7 s.
        """
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for key, words in docstrings_of_keys(cls).items():
            properties[key].setdefault("description", words)
        return schema

    def fixed_keys(self) -> dict[str, str]:
        """Return keys that may not change on a run that has begun though their field says so, and why.

        A class overrides this where it depends on other keys; see `core.identity.MayChange`.
        """
        return {}

    def faults_together(self) -> list[str]:
        """Return which keys make no sense together, each with what to do; none where a class names none.

        A class that does refuses them in a validator, unless `is_saved` says that a run has them already.
        """
        return []


def docstrings_of_keys(kind: type[Config]) -> dict[str, str]:
    """Return what stands below the keys of a config class and of those that it extends."""
    words: dict[str, str] = {}
    for each in [each for each in reversed(kind.__mro__) if issubclass(each, Config)]:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(parsed, ast.ClassDef)
        for key, below in pairwise(parsed.body):
            match key, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    words[name] = inspect.cleandoc(text)
                case _:
                    pass
    return words


def keys_given(config: Config, at: str, keys: Sequence[str]) -> list[str]:
    """Return those of the keys, with `at` before them, whose values are not the defaults.

    They are told by their values and not by `model_fields_set`: a config that was written out in full and is
    read again names every key.
    """
    fields = type(config).model_fields
    defaults = {key: fields[key].get_default(call_default_factory=True) for key in keys}
    return [f"{at}.{key}" for key in keys if getattr(config, key) != defaults[key]]


def faults_of_unread(
    config: Config, at: str, keys: Sequence[str], because: str, otherwise: str | None = None
) -> list[str]:
    """Return a fault with what to do where keys that nothing reads are given; else nothing.

    Args:
        config: that has the keys.
        at: where it stands, such as `model`.
        keys: that nothing reads.
        because: why not.
        otherwise: what would make them count.
    """
    named = ", ".join(keys_given(config, at, keys))
    if not named:
        return []
    return [f"{named}: {because}: leave out {named}" + (f", or {otherwise}" if otherwise else "")]


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    kind: type[ConfigT], files: Sequence[str], sets: Sequence[str] = (), *, of_run: bool = False
) -> ConfigT:
    """Merge TOML files left to right, apply `a.b=c` overrides, validate; of a run as `validate_saved` does.

    Raises:
        ConfigError: a file cannot be read or parsed, an override has no `=`, or values do not fit;
            all faults are listed at once with the file and key each came from.
    """
    merged: dict[str, Any] = {}
    provenance: Provenance = {}
    unread: list[str] = []
    named = list(files)
    sources = [(file, file, read_toml) for file in files]
    sources += [(text, f"--set {printable(text)}", read_override) for text in sets]
    for number, (text, source, parse) in enumerate(sources):
        try:
            values = parse(text)
            _merge(merged, values, provenance, source, ())
        except ConfigError as error:
            unread.append(str(error))
        except RecursionError:
            unread.append(f"{source}: nested too deeply.")
        else:
            if not values:
                named[number] += " (it has no keys)"
    if unread:
        raise ConfigError("\n".join(unread))
    return _validated(kind, merged, provenance, named, _SAVED if of_run else None)


def load_saved(kind: type[ConfigT], file: str) -> ConfigT:
    """Read the config that a run wrote, perhaps by an older version: what is refused today is told and read.

    Keys that there are no more are left out; keys that make no sense together stay as they are. The run has
    been, and what it did is asked of its files.

    Raises:
        ConfigError: the file cannot be read, or a value is none of its key.
    """
    values, unknown = read_toml(file), list[str]()
    try:
        config = _validated_saved(kind, values, unknown)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), kind, {}, [file], values)) from None
    told = [f"{key}: there is no such key any more" for key in unknown]
    for problem in [*told, *config.faults_together()]:
        _log.warning("%s: %s (read all the same: the run has it)", file, problem)
    return config


def validate_saved(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Return a config of values of which a run has some already: `faults_together` are not refused.

    Raises:
        ValidationError: a key or value that is refused by itself.
    """
    return kind.model_validate(values, context=_SAVED)


def is_saved(info: ValidationInfo) -> bool:
    """Return whether values under validation are those of a run that has been."""
    return info.context == _SAVED


def _validated_saved(kind: type[ConfigT], values: dict[str, Any], unknown: list[str]) -> ConfigT:
    """Return a config without the keys that there are not, whose names are added to `unknown`."""
    try:
        return validate_saved(kind, values)
    except ValidationError as error:
        strange = [fault["loc"] for fault in error.errors() if fault["type"] == "extra_forbidden"]
        if not strange:
            raise
        for location in strange:
            unknown.append(_remove(values, location))
    # Sections of a union are looked at one after another, so others may come to light.
    return _validated_saved(kind, values, unknown)


def _remove(values: Any, location: tuple[int | str, ...]) -> str:
    """Take a key out of nested values and return its name.

    Tags of unions in its location are passed over, which a key may have the name of: the longest way that
    leads to it counts.
    """
    *above, last = location
    ways = (way for length in range(len(above), -1, -1) for way in combinations(above, length))
    way, holder = next((way, at) for way in ways if last in (at := _inside(values, way)))
    del holder[last]
    return ".".join([*(str(part) for part in way), str(last)])


def _inside(values: Any, way: tuple[int | str, ...]) -> dict[int | str, Any]:
    """Return the section that parts of a location lead to; an empty one where they lead to none."""
    for part in way:
        if isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _validated(
    kind: type[ConfigT],
    values: dict[str, Any],
    provenance: Provenance,
    files: Sequence[str],
    context: dict[str, bool] | None,
) -> ConfigT:
    faults: list[Any] = [_fault(*place) for place in unusable(values)]
    try:
        config = kind.model_validate(values, context=context)
    except ValidationError as error:
        raise ConfigError(explain([*faults, *error.errors()], kind, provenance, files, values)) from None
    faults += [_fault(*place) for place in _truth_values_as_numbers(values, config.model_dump())]
    if faults:
        raise ConfigError(explain(faults, kind, provenance, files, values))
    return config


def _fault(at: Key, problem: str) -> dict[str, Any]:
    """Return a fault of ours in the form of pydantic's."""
    return {"type": "value_error", "loc": at, "msg": problem}


def _truth_values_as_numbers(given: Any, taken: Any, at: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield key and problem of every `true` and `false` that was taken for 1 or 0."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            yield from _truth_values_as_numbers(value, taken.get(key), (*at, key))
    elif isinstance(given, (list, tuple)) and isinstance(taken, (list, tuple)):
        for index, pair in enumerate(zip(given, taken, strict=False)):
            yield from _truth_values_as_numbers(*pair, (*at, index))
    elif isinstance(given, bool) and not isinstance(taken, bool) and isinstance(taken, (int, float)):
        yield at, f"expected a number (got {shown(given)})"


def dump_toml(config: Config) -> str:
    """Return the resolved config as TOML; keys that are None are left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def toml_value(value: object) -> str:
    """Return text, a number, a truth value or a list of these as TOML, on one line, as after `--set key=`."""
    # JSON is TOML here, but for halved characters beyond U+FFFF and a bare U+007F.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def config_checksum(config: Config) -> str:
    """Return a sha256 of the resolved values, equal exactly when the configs are equal."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _merge(
    into: dict[str, Any],
    new: dict[str, Any],
    provenance: Provenance,
    source: str,
    at: tuple[str, ...],
) -> None:
    for key, value in new.items():
        here = (*at, key)
        provenance[here] = source
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, provenance, source, here)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value, provenance, source, here)
        else:
            into[key] = value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
