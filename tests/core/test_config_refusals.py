"""What is refused in a config, in which words, and that nothing ends in a traceback."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt

from trec_semid.core.config import Config, load_config
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import write_bytes


class Text(Config):
    kind: Literal["text"] = "text"
    width: PositiveInt = 2


class Image(Config):
    kind: Literal["image"] = "image"
    size: int = Field(3, ge=1, le=8)
    weights: tuple[float, ...] = (1.0,)


Content = Annotated[Text | Image, Field(discriminator="kind")]


class Part(Config):
    steps: PositiveInt = 100
    rate: float = 0.1
    background: bool = False
    mode: Literal["fast", "exact"] = "fast"


class Job(Config):
    name: str = "job"
    part: Part = Part()
    main: Content = Text()
    content: dict[str, Content] = {}
    steps: list[Part] = []
    most: int | Literal["all"] = "all"
    sizes: list[list[int]] = []


def refused(content: str | bytes, *sets: str) -> str:
    write_bytes("memory://refusals/a.toml", content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_config(Job, ["memory://refusals/a.toml"], sets)
    assert caught.value.exit_code == 2
    return str(caught.value).replace("memory://refusals/", "")


def test_byte_order_mark_of_utf8_is_passed_over():
    write_bytes("memory://refusals/mark.toml", b"\xef\xbb\xbfname = 'marked'\n")
    assert load_config(Job, ["memory://refusals/mark.toml"]).name == "marked"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name = 'a'".encode("utf-16"), ["text in UTF-16", "Save it as UTF-8"]),
        ("name = 'a'".encode("utf-32"), ["text in UTF-32"]),
        ("\n\nname = 'a'".encode("utf-16-le"), ["holds a zero byte"]),
        (b"name = 'a'\n\x00", ["line 2 holds a zero byte"]),
        (b"PK\x03\x04\x14\x00\x00", ["zero byte, as binary files"]),
        ("a = 1\nname = 'café'".encode("latin-1"), ["line 2 holds the byte 0xe9", "Save the file as UTF-8"]),
        (json.dumps({"name": "a"}), ["this is JSON", "key = value"]),
        ("name: a", ["line 1: 'name: a'", "Expected key = value"]),
        ("part:\n  steps: 5", ["line 1", "Expected key = value"]),
        ("name = job", ["line 1: 'name = job'", "Text stands in quotes"]),
        ('name = "C:\\users"', ["single quotes"]),
        ("name = 'a'\n\nname = 'b'\n", ["line 3", "'name' is given twice"]),
        ("[part]\nsteps = 1\n[part]\nrate = 1.0\n", ["line 3", "'part' is given twice"]),
        ("name = 'a'\n[name]\nx = 1\n", ["line 2", "'name' is given twice", "as a table"]),
        ("main = {kind = 'text', kind = 'image'}", ["given twice"]),
        ("part.steps = 1\npart.steps.x = 2", ["line 2", "given twice"]),
        ("sizes = [1,\n", ["Invalid value, line 1"]),
        ("a = " + "[" * 5000, ["nested too deeply"]),
        (".".join("a" * 5000) + " = 1", ["nested too deeply"]),
        ("a = " + "9" * 5000, ["not valid TOML"]),
    ],
)
def test_what_is_no_toml_is_named_with_line_and_remedy(content: str | bytes, words: list[str]):
    message = refused(content)
    assert message.startswith("a.toml: ")
    for word in words:
        assert word in message


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path):
    with pytest.raises(ConfigError, match="it is a folder"):
        load_config(Job, [str(tmp_path)])
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Job, [str(tmp_path / "none.toml")])


def test_file_without_keys_is_said_to_be_so():
    class Needs(Config):
        name: str

    write_bytes("memory://refusals/empty.toml", b"# nothing\n")
    with pytest.raises(ConfigError, match=r"empty.toml \(it has no keys\): 1 problem\n  name: missing"):
        load_config(Needs, ["memory://refusals/empty.toml"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[main]\nkind = 'txet'",
            "main.kind: no such kind (got 'txet'); did you mean 'text'? There are: 'text', 'image'.",
        ),
        (
            "[content.cover]\nkind = 'imgae'",
            "content.cover.kind: no such kind (got 'imgae'); did you mean 'image'? There are: 'text', ",
        ),
        ("[content.text]\nkind = 'zzz'", "content.text.kind: no such kind (got 'zzz'). There are: 'text',"),
        ("[main]\nkind = 3", "main.kind: no such kind (got 3). There are: 'text', 'image'."),
        ("[main]\nkind = ['text']", "main.kind: no such kind (got a list). There are: 'text', 'image'."),
        (
            "[main]\nknid = 'text'",
            "main.kind: missing, and it has no default; did you mean 'kind' by 'knid'? "
            "There are: 'text', 'image'.",
        ),
        ("[main]\nwidth = 3", "main.kind: missing, and it has no default. There are: 'text', 'image'."),
        (
            "main = 'image'",
            "main: expected a table, as [main] or --set main.<name>=... (got 'image'); "
            "did you mean main.kind = 'image'?",
        ),
        ("main = 5", "main: expected a table, as [main] or --set main.<name>=... (got 5)"),
        ("[[main]]\nwidth = 3", "main: expected a table, as [main] or --set main.<name>=... (got a list)"),
        ("part = true", "part: expected a table, as [part] or --set part.<name>=... (got true)"),
        ("[part.steps]\nx = 1", "part.steps: Input should be a valid integer (got a table)"),
        ("[name]\nx = 1", "name: Input should be a valid string (got a table)"),
        ("name = ['a']", "name: Input should be a valid string (got a list)"),
        ("sizes = [[1, 'x'], [2]]", "sizes.0.1: Input should be a valid integer, unable to parse"),
        ("sizes = [1]", "sizes.0: Input should be a valid list (got 1)"),
        ("part.mode = 'exat'", "part.mode: Input should be 'fast' or 'exact' (got 'exat'); did you mean"),
        ("most = {}", "most: Input should be a valid integer (got a table), or Input should be"),
        ("[part]\nsteps = true", "part.steps: expected a number (got true)"),
        ("[[steps]]\nrate = false", "steps.0.rate: expected a number (got false)"),
        ("sizes = [[true]]", "sizes.0.0: expected a number (got true)"),
        ("[main]\nkind = 'image'\nweights = [true]", "main.weights.0: expected a number (got true)"),
        ("[part]\nsteps = 1979-05-27", "part.steps: Input should be a valid integer (got 1979-05-27)"),
        ("[part]\nrate = nan", "part.rate: Input should be a finite number (got nan)"),
        ("[part]\nsteps = 99999999999999999999", "part.steps: a whole number of more than 64 bits."),
        ('name = "a\\u0000b"', r"name: a NUL character in a text (got 'a\x00b'). Take it out."),
        ("1 = 2", "1: unknown key"),
        ('"part.steps" = 2', "part.steps: unknown key"),
        ("[main]\nkind = 'image'\nwidth = 3", "main.width: unknown key"),
        ("content.a = {kind = 'text', widht = 3}", "content.a.widht: unknown key; did you mean 'width'?"),
        ("[[steps]]\nstep = 3", "steps.0.step: unknown key; did you mean 'steps'?"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_told_as_they_stand_in_the_file(text: str, line: str):
    heading, *lines = refused(text).splitlines()
    assert heading.startswith("a.toml: ")
    assert len(lines) == 1
    assert lines[0].startswith(f"  a.toml: {line}")


@pytest.mark.parametrize(("text", "value"), [("'256'", 256), ("256.0", 256), ("256", 256)])
def test_number_in_quotes_is_the_number(text: str, value: int):
    write_bytes("memory://refusals/b.toml", f"part.steps = {text}".encode())
    assert load_config(Job, ["memory://refusals/b.toml"]).part.steps == value


@pytest.mark.parametrize(
    ("sets", "lines"),
    [
        (["main=image"], ["--set main=image: main: expected a table"]),
        (["main.kind=imag"], ["--set main.kind=imag: main.kind: no such kind (got 'imag'); did you mean"]),
        (["main.kind.x=5"], ["--set main.kind.x=5: main.kind: no such kind (got a table)."]),
        (["main.kind=image", "main.width=3"], ["--set main.width=3: main.width: unknown key"]),
        (["part.steps=-1", "main.size=2"], ["--set part.steps=-1: part.", "--set main.size=2: main.size: "]),
        (["sizes=[[1,2"], ["--set sizes=[[1,2: sizes: Input should be a valid list (got '[[1,2')"]),
        (["part={steps=0}"], ["--set part={steps=0}: part.steps: "]),
        (["name=a\0b"], [r"--set name=a\x00b: name: a NUL character in a text"]),
        (["name=\udcff"], [r"--set name=\udcff: name: bytes that are not UTF-8"]),
        (["a.b.c=1", "a.b=2"], ["--set a.b=2: a: unknown key", "--set a.b.c=1: a: unknown key"]),
    ],
)  # fmt: skip
def test_overrides_that_do_not_fit_are_named(sets: list[str], lines: list[str]):
    message = refused("[main]\nkind = 'text'", *sets)
    message.encode()
    assert any(line in message for line in lines), message


def test_faults_of_every_kind_are_told_at_once():
    text = "nmae = 1\n[main]\nkind = 'txt'\n[part]\nsteps = 99999999999999999999\nrate = 'x'\n[steps]\na = 1"
    message = refused(text, "most=x", "content=5")
    keys = ["nmae", "main.kind", "part.steps", "part.rate", "steps", "most", "content"]
    assert message.startswith("a.toml: 7 problems")
    for key in keys:
        assert f": {key}: " in message


known = [*Job.model_fields, *Part.model_fields, "kind", "width", ""]
names = st.one_of(st.sampled_from(known), st.text(max_size=5))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.datetimes(),
    st.sampled_from(["text", "image", "all", "fast"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def loads_or_says_why(content: bytes, sets: list[str]) -> None:
    write_bytes("memory://refusals/fuzz.toml", content)
    said = "loaded"
    try:
        load_config(Job, ["memory://refusals/fuzz.toml"], sets)
    except ConfigError as error:
        said = str(error)
    assert said.isascii() or said.encode()
    assert all(line.strip() for line in said.split("\n"))


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(part) for key, part in value.items() if part is not None}
    return [without_none(part) for part in value if part is not None] if isinstance(value, list) else value


@given(st.dictionaries(names, values, max_size=5), st.lists(st.tuples(names, values), max_size=3))
def test_any_toml_loads_or_is_refused(tables: dict[str, Any], overrides: list[tuple[str, Any]]):
    sets = [f"{key}={value}" for key, value in overrides]
    with contextlib.suppress(UnicodeEncodeError):
        loads_or_says_why(tomli_w.dumps(without_none(tables)).encode(), sets)


@given(st.binary(max_size=60), st.lists(st.text(max_size=12), max_size=2))
def test_any_bytes_load_or_are_refused(content: bytes, sets: list[str]):
    loads_or_says_why(content, sets)


@given(st.integers(0, 200), st.sampled_from(["", "=", "[", "]", '"', "'", "\0", "\\", "{", ".", "#", "\n"]))
def test_any_change_of_a_character_loads_or_is_refused(place: int, character: str):
    text = "name = 'a'\nsizes = [[1, 2], [3]]\n[part]\nsteps = 5\n[main]\nkind = 'image'\nweights = [0.5]\n"
    at = place % len(text)
    loads_or_says_why((text[:at] + character + text[at + 1 :]).encode(), [])
