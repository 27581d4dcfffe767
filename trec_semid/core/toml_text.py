"""Reads TOML, of files and of `--set`, and says in plain words what is wrong with it."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import is_folder, read_bytes

_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")
_KEY = re.compile(r"\s*\[{0,2}\s*([^=\]]+?)\s*(?:=|\]|$)")
_INT64 = 1 << 63
_GIVEN_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate")
"""How tomllib begins what it says of keys that are there already."""
Key = tuple[str | int, ...]


def read_toml(file: str) -> dict[str, Any]:
    """Return the tables of a file; a byte order mark of UTF-8 is passed over.

    Raises:
        ConfigError: it cannot be read, is no text in UTF-8, or no TOML; names the line and the remedy.
    """
    try:
        content = read_bytes(file)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file.") from None
    except OSError as error:
        if is_folder(file):
            raise ConfigError(f"{file}: cannot be read: it is a folder. Name a file in it.") from None
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}.") from None
    text = _decoded(content, file)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: nested too deeply.") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not valid TOML: {_problem(text, str(error))}") from None


def read_override(text: str) -> dict[str, Any]:
    """Return the tables that `a.b=c` names; the value is TOML or a bare word.

    Raises:
        ConfigError: it is no assignment.
    """
    key, separator, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"--set {printable(text)}: expected key=value, e.g. --set train.batch_size=512.")
    try:
        table = tomllib.loads(f"value = {value}")
        parsed: Any = table["value"] if len(table) == 1 else value
    except (ValueError, RecursionError):
        parsed = value  # a bare word is a string
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def unusable(value: Any, at: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield key and problem of every value that TOML can hold, or a shell can pass, and no config can use."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from unusable(part, (*at, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from unusable(part, (*at, index))
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        yield at, "a whole number of more than 64 bits. Take a smaller one."
    elif isinstance(value, str) and "\0" in value:
        yield at, f"a NUL character in a text (got {shown(value)}). Take it out."
    elif isinstance(value, str) and not _is_unicode(value):
        yield at, f"bytes that are not UTF-8 (got {shown(value)}). Write the text in UTF-8."


def shown(value: Any) -> str:
    """Return a value as a message tells it: short, and in the words of TOML."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    return text if len(text) <= 80 else f"{text[:60]}… of {len(text)} characters"


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal or a log cannot show."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _decoded(content: bytes, file: str) -> str:
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            raise ConfigError(f"{file}: not valid TOML: text in {name}. Save it as UTF-8.")
    body = content.removeprefix(_UTF8_MARK)
    if b"\0" in body:
        line = body[: body.index(b"\0")].count(b"\n") + 1
        raise ConfigError(
            f"{file}: not valid TOML: line {line} holds a zero byte, as binary files and text in UTF-16 do. "
            "Name a text file in UTF-8."
        )
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{file}: not valid TOML: line {line} holds the byte 0x{body[error.start]:02x}, which is not "
            "UTF-8. Save the file as UTF-8."
        ) from None


def _problem(text: str, said: str) -> str:
    """Return what tomllib said with the line it spoke of, and a remedy where the mistake is a usual one."""
    if _is_json(text):
        return "this is JSON. Write each key as `key = value`, and tables as [table]."
    lines = text.splitlines()
    at_line = _AT_LINE.search(said)
    number = min(int(at_line[1]), len(lines)) if at_line else len(lines)
    if not at_line:
        number = next((at for at in range(len(lines), 0, -1) if lines[at - 1].strip()), 0)
    line = lines[number - 1].strip() if number else ""
    if not line:
        return f"{said}."
    return f"{said.partition(' (at ')[0]}, line {number}: {shown(line)}.{_remedy(said, line)}"


def _remedy(said: str, line: str) -> str:
    if said.startswith(
        ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Cannot namespace", "Duplicate")
    ):
        key = _KEY.match(line)
        named = f"'{key[1]}'" if key else "A key"
        return f" {named} is given twice, or once as a value and once as a table. Take one of them out."
    if said.startswith("Invalid value (at line"):
        return ' Text stands in quotes, as in name = "value".'
    if said.startswith(("Expected '=' after a key", "Invalid statement")):
        return " Expected key = value, or [table]."
    if "'\\' in a string" in said or said.startswith("Invalid hex value"):
        return " Text with backslashes stands in single quotes."
    return ""


def _is_json(text: str) -> bool:
    try:
        return text.lstrip()[:1] in ("{", "[") and isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
