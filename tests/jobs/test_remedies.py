"""Advice in messages: every key it names is one, every value is taken, and following it comes to an end."""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import models_in
from trec_semid.jobs.verbs import JOBS, job_named
from trec_semid.models.methods import RANKERS, RETRIEVERS
from trec_semid.sharding.topology import ClusterConfig
from trec_semid.training.retrieval.setup import RetrieveConfig

SOURCES = Path(__file__).parents[2] / "trec_semid"
HOLE = "…"
"""Stands in a text for what is filled in when it is said."""
NOT_KEYS = re.compile(r".*\.(toml|json|parquet|npy|py|csv|md|html|save)|torch\..*|e\.g")
DOTTED = re.compile(rf"(?<![\w./{HOLE}])([a-z_]+(?:\.[a-z_][a-z_{HOLE}]*)+)(?![\w/({HOLE}])")
ASSIGNED = re.compile(r"(?<![\w.])([a-z_][a-z_.]*) = ('[^']*'|\"[^\"]*\"|true|false|\[\]|-?\d+(?:\.\d+)?)")
SECTION = re.compile(r"(?<!\w)\[([a-z_]+)\](?!\()")  # not the extra of a package
UNITS = ("nats", "bits", "bytes")


def messages() -> Iterator[tuple[str, str]]:
    """Yield place and text of every string with a space in it that is no docstring."""
    for file in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(file.read_text())
        passed = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            text = None
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
                text = "".join(parts)
                passed |= {id(part) for part in node.values}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
                text = node.value
            if text and " " in text:
                yield f"{file.relative_to(SOURCES)}:{getattr(node, 'lineno', 0)}", text


def keys_of(model: type[BaseModel], at: tuple[str, ...] = (), seen: tuple = ()) -> Iterator[tuple]:
    for name, field in model.model_fields.items():
        yield (*at, name), field
        for below in models_in(field.annotation):
            if below not in seen:
                yield from keys_of(below, (*at, name), (*seen, below))


@pytest.fixture(scope="module")
def keys() -> dict[str, list[FieldInfo]]:
    """Every key of every verb's config, with whatever part of its path a message may leave out before it."""
    found: dict[str, list[FieldInfo]] = {}
    tops = [*(job_named(verb).config for verb in JOBS), ClusterConfig]
    methods = [*RETRIEVERS, *RANKERS]  # the annotation of `model` names what they have in common alone
    for model, at in [*((each, ()) for each in tops), *((each, ("model",)) for each in methods)]:
        for path, field in keys_of(model, at):
            for start in range(len(path)):
                found.setdefault(".".join(path[start:]), []).append(field)
    return found


def known(name: str, keys: Mapping[str, Any]) -> bool:
    pattern = re.compile(re.escape(name).replace(HOLE, "[a-z_]+"))
    return name in keys or (HOLE in name and any(pattern.fullmatch(key) for key in keys))


def test_every_key_that_a_message_names_is_a_key_of_some_config(keys: dict[str, list[FieldInfo]]):
    named = [(place, name) for place, text in messages() for name in DOTTED.findall(text)]
    assert len(named) > 40
    wrong = [(place, name) for place, name in named if not NOT_KEYS.fullmatch(name) and not known(name, keys)]
    assert wrong == []


def takes(field: FieldInfo, value: object) -> bool:
    try:
        create_model("One", value=(field.annotation or Any, field)).model_validate({"value": value})
    except ValidationError:
        return False
    return True


def test_every_value_that_a_message_gives_a_key_is_taken(keys: dict[str, list[FieldInfo]]):
    said = [(place, *pair) for place, text in messages() for pair in ASSIGNED.findall(text)]
    said = [each for each in said if each[1] in keys and HOLE not in each[2]]
    assert len(said) > 20
    wrong = [
        each
        for each in said
        if not any(takes(field, tomllib.loads(f"value = {each[2]}")["value"]) for field in keys[each[1]])
    ]
    assert wrong == []


def test_every_section_that_a_message_names_is_one(keys: dict[str, list[FieldInfo]]):
    named = {name for _, text in messages() for name in SECTION.findall(text)}
    assert {"label", "split", "negatives"} <= named
    assert named - {"table", "extra", *UNITS} <= set(keys)


def follow(values: dict[str, str], said: str) -> dict[str, str]:
    """Do what a refusal says: leave keys out, give what it asks for, set the first of what it offers."""
    advice = said.splitlines()[1].split(": ", 1)[1]
    out = dict(values)
    for name in (re.search(r"leave out ([\w., ]+)", advice) or ("", ""))[1].split(", "):
        out = {key: value for key, value in out.items() if key != name and not key.startswith(f"{name}.")}
    if "give semantic_ids" in advice:
        out["semantic_ids"] = "'codes'"
    first = advice.partition(", or ")[0]
    out |= dict(ASSIGNED.findall(first.rpartition(": ")[2]))
    return out


settings = st.fixed_dictionaries(
    {},
    optional={
        "semantic_ids": st.just("'codes'"),
        "window": st.sampled_from(["1", "2"]),
        "model.kind": st.sampled_from(["'sasrec'", "'tiger'", "'rpg'", "'hymirec'", "'popularity'"]),
        "sequences.rows": st.sampled_from(["'dense'", "'last'", "'sliding'"]),
        "loss.item_weight": st.sampled_from(["0", "1"]),
        "loss.code_weight": st.sampled_from(["0", "1"]),
        "loss.code_heads": st.sampled_from(["'independent'", "'chained'"]),
        "loss.code_facets": st.sampled_from(["1", "2"]),
        "loss.code_share": st.sampled_from(["0", "1"]),
        "loss.negatives": st.sampled_from(["'all'", "'seen'"]),
        "sampled.num_sampled": st.just("64"),
        "item.id": st.sampled_from(["true", "false"]),
        "item.fields": st.sampled_from(["[]", "['genres']"]),
        "item.codes": st.sampled_from(["true", "false"]),
        "item.content_projection": st.sampled_from(["'linear'", "'mixture'"]),
        "evaluation.graph.pool": st.sampled_from(["8", "200"]),
        "evaluation.beam_width": st.sampled_from(["8", "200"]),
        "evaluation.candidates": st.sampled_from(["8", "200"]),
        "evaluation.unseen_penalty": st.sampled_from(["0", "1"]),
        "finetune.recent_items": st.sampled_from(["'all'", "8"]),
    },
)


@given(settings)
def test_following_the_advice_of_a_retriever_comes_to_a_config_that_is_taken(values: dict[str, str]):
    said: list[str] = []
    for _ in range(16):
        sets = ["dataset=d", "run=r", *(f"{key}={value}" for key, value in values.items())]
        try:
            load_config(RetrieveConfig, [], sets)
        except ConfigError as error:
            said.append(str(error))
            following = follow(values, said[-1])
            assert following != values, said  # advice to set what is set, or none
            values = following
        else:
            return
    raise AssertionError(said)
