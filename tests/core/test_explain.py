from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from trec_semid.core.config import Config
from trec_semid.core.explain import did_you_mean, explain


class Inner(Config):
    width: int
    depth: int = 1


class Wide(Config):
    kind: Literal["wide"] = "wide"
    radius: int = 1


class Deep(Config):
    kind: Literal["deep"] = "deep"
    depth: int = 1


class Outer(Config):
    shape: Annotated[Wide | Deep, Field(discriminator="kind")] = Wide()
    inner: Inner
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    mode: Literal["a", "b"] = "a"

    @model_validator(mode="after")
    def _holds(self) -> "Outer":
        if self.inner.width == 13:
            raise ValueError("a width of 13 brings bad luck. Take 12.")
        return self


def told(values: dict, provenance: dict | None = None) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return explain(caught.value.errors(), Outer, provenance or {}, ["f.toml"], values).splitlines()


def test_missing_key_is_named_with_its_table():
    assert told({"inner": {}}) == ["f.toml: 1 problem", "  inner.width: missing, and it has no default"]


def test_unknown_key_inside_lists_and_tables_by_name_finds_its_neighbour():
    lines = told(
        {"inner": {"width": 1}, "many": [{"width": 1, "dept": 2}], "by_name": {"x": {"widht": 1, "width": 2}}}
    )
    assert lines[1:] == [
        "  many.0.dept: unknown key; did you mean 'depth'?",
        "  by_name.x.widht: unknown key; did you mean 'width'?",
    ]


@pytest.mark.parametrize(
    ("key", "hint"), [("radius", ""), ("raduis", ""), ("dept", "; did you mean 'depth'?")]
)
def test_unknown_key_of_one_kind_gets_no_guess_from_another(key: str, hint: str):
    lines = told({"inner": {"width": 1}, "shape": {"kind": "deep", key: 2}})
    assert lines[1] == f"  shape.{key}: unknown key{hint}"


def test_unknown_key_like_none_that_is_known_gets_no_guess():
    assert told({"inner": {"width": 1}, "zzz": 1})[1] == "  zzz: unknown key"


def test_own_checks_speak_in_their_own_words():
    assert told({"inner": {"width": 13}})[1] == "  (whole config): a width of 13 brings bad luck. Take 12."


def test_long_and_nested_values_are_told_in_short():
    assert told({"inner": "x" * 1000})[1].endswith("… of 1002 characters)")
    assert told({"inner": {"width": [1, 2, 3]}})[1].endswith("(got a list)")
    assert told({"inner": {"width": {"a": 1}}})[1].endswith("(got a table)")


def test_source_is_the_nearest_key_that_a_file_holds():
    provenance = {("many",): "a.toml", ("inner",): "a.toml", ("inner", "width"): "b.toml"}
    lines = told({"inner": {"width": "x"}, "many": [{"depth": 1}]}, provenance)
    assert lines[1].startswith("  b.toml: inner.width: ")
    assert lines[2].startswith("  a.toml: many.0.width: missing")


@pytest.mark.parametrize(("name", "words"), [("recal", "; did you mean 'recall'?"), ("zzzz", ""), ("", "")])
def test_guess_is_made_only_where_one_is_near(name: str, words: str):
    assert did_you_mean(name, ["recall", "precision"]) == words
