"""Frozen configuration: pydantic models beside their classes, TOML files, `--set a.b=c`."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import Provenance, explain
from trec_semid.core.paths import read_bytes


class Config(BaseModel):
    """Base of every config class: frozen, unknown keys refused, attribute docstrings kept."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


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
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, provenance, files)) from None


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
