"""The page of the architecture is that of this checkout; tools/check_docs.py holds the names on it."""

import re
import tomllib
from pathlib import Path

import pytest

from trec_semid.models.methods import RETRIEVERS
from trec_semid.tokenizers.methods import TOKENIZERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
METHODS = (ROOT / "docs/methods.md").read_text()
WALKS = ("A batch through `rank`", "A code, from content", "A user through `retrieve`")


def test_the_rooms_are_those_that_imports_are_held_to():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = re.search(r"## The rooms\n```\n(.*?)\n```", PAGE, re.S)
    assert shown
    assert shown[1].splitlines() == layers
    described = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert described == {room for line in layers for room in line.split(" | ")}
    assert described == {path.parent.name for path in (ROOT / "trec_semid").glob("*/__init__.py")}


def test_torchrec_is_said_to_be_where_it_is():
    said = set(re.findall(r"^\| `(\w+)` \|[^|]*\| yes \|$", PAGE, re.M))
    imports = re.compile(r"^\s*(?:from|import) (?:torchrec|fbgemm)", re.M)
    files = (ROOT / "trec_semid").rglob("*.py")
    found = {path.relative_to(ROOT).parts[1] for path in files if imports.search(path.read_text())}
    assert said == found


@pytest.mark.parametrize("walk", WALKS)
def test_every_step_of_a_walk_names_its_file(walk: str):
    section = PAGE.partition(f"## {walk}")[2].partition("\n## ")[0]
    steps = re.split(r"^\d+\. ", section, flags=re.M)[1:]
    assert len(steps) >= 8
    assert not [step for step in steps if not re.search(r"`[\w/]+\.py(::[\w.]+)?`", step)]


def test_every_tokenizer_and_retriever_has_its_row_among_the_methods():
    methods = (*TOKENIZERS.values(), *RETRIEVERS.values())
    files = {method.__module__.replace(".", "/") + ".py" for method in methods}
    assert len(files) >= 10
    assert files <= set(re.findall(r"\]\(\.\./(trec_semid/\S+\.py)\)", METHODS))
