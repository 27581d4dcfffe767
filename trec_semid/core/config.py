"""Frozen configuration: pydantic models beside their classes, TOML files, `--set a.b=c`."""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import Provenance, explain
from trec_semid.core.paths import read_bytes

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
    """Base of every config class: frozen, unknown keys refused, attribute docstrings kept."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @classmethod
    def from_before(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """Return values that a run saved, with those of keys that there were not yet.

        A class overrides this where what was done then is not its key's default now.
        """
        return saved


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(kind: type[ConfigT], files: Sequence[str], sets: Sequence[str] = ()) -> ConfigT:
    """Merge TOML files left to right, apply `a.b=c` overrides, validate.

    Raises:
        ConfigError: a file cannot be read or parsed, an override has no `=`, or values do not fit;
            all faults are listed at once with the file and key each came from.
    """
    merged: dict[str, Any] = {}
    provenance: Provenance = {}
    faults: list[str] = []
    sources = [(file, file, _parse_file) for file in files]
    sources += [(text, f"--set {text}", _parse_override) for text in sets]
    for text, source, parse in sources:
        try:
            _merge(merged, parse(text), provenance, source, ())
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return _validated(kind, merged, provenance, files)


def load_saved(kind: type[ConfigT], file: str) -> ConfigT:
    """Load what a run saved, as it was meant then: `Config.from_before` says how, section by section.

    Raises:
        ConfigError: as `load_config`.
    """
    values, provenance = _parse_file(file), Provenance()
    _merge({}, values, provenance, file, ())
    return _validated(kind, _from_before(kind, values), provenance, [file])


def _validated(
    kind: type[ConfigT], values: dict[str, Any], provenance: Provenance, files: Sequence[str]
) -> ConfigT:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, provenance, files)) from None


def _from_before(kind: type[Config], saved: dict[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None and isinstance(saved.get(name), dict):
            sections[name] = _from_before(section, saved[name])
    return kind.from_before({**saved, **sections})


def _section_of(annotation: Any) -> type[Config] | None:
    """Return the class of a section that may be left out or not; None where it is one of several."""
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = [kind for kind in union if kind is not NoneType]
    is_one = len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], Config)
    return kinds[0] if is_one else None


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


def _parse_file(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bytes(file).decode())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file.") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from None


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"--set {text}: expected key=value, e.g. --set train.batch_size=512.")
    try:
        table = tomllib.loads(f"value = {value}")
        parsed: Any = table["value"] if len(table) == 1 else value
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


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
