"""Run what the documents tell people to type, and check that what they link to and name exists.

A ```sh block runs when the line above it is `<!-- run -->`; a block of any language after
`<!-- file: name.toml -->` is written to that file first, so that a worked example is the tested one.
Blocks of one document run in order in one scratch folder, which sees the checkout's `configs`, with
`trec-semid` on the path. A file of Python in backticks, such as `jobs/rank.py`, has to end the path of one in
the checkout, and `jobs/rank.py::run` or `chained.py::ChainedHeads.loss` has to name what is defined there.
Usage: python tools/check_docs.py [--links-only] [FILE.md...]
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SEEN = ("configs", "tools", "docs", "tests")
"""What of the checkout the scratch folder sees."""
CODE = ("trec_semid", "launch", "tools", "tests")
"""Where the files lie that documents name."""
PATIENCE_S = 600
_BLOCK = re.compile(
    r"^<!-- (run|file: (?P<name>\S+)) -->\n+```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)")
_NAMED = re.compile(r"`([\w./-]*\w\.py)(?:::([\w.]+))?`")


class Block(NamedTuple):
    """A part of a document that is run, or written to a file."""

    line: int
    file: str | None
    text: str


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the marked blocks in order."""
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(line, found["name"], found["text"])


def broken_links(path: Path) -> list[str]:
    """Return a fault for every relative link that leads nowhere."""
    links = [link.partition("#")[0] for link in _LINK.findall(_without_code(path.read_text()))]
    return [f"{path}: link to {link} leads nowhere" for link in links if not (path.parent / link).exists()]


def names_of_nothing(path: Path) -> list[str]:
    """Return a fault for every file of Python, or name in one, that a document names in vain."""
    text = path.read_text()
    own = {block.file for block in blocks_of(text)}
    faults: list[str] = []
    for file, name in _NAMED.findall(re.sub(r"```.*?```", "", text, flags=re.S)):
        places = [place for place in python_files() if f"/{place}".endswith(f"/{file}")]
        if not places and file not in own:
            faults.append(f"{path}: {file} is no file of the checkout")
        if places and name and not any(name in defined_in(place) for place in places):
            faults.append(f"{path}: {file} defines no {name}")
    return faults


@cache
def python_files() -> tuple[str, ...]:
    """Return the paths of the checkout's files of Python, from its root."""
    return tuple(str(path.relative_to(ROOT)) for folder in CODE for path in (ROOT / folder).rglob("*.py"))


@cache
def defined_in(file: str) -> frozenset[str]:
    """Return what a file defines at its top: functions, classes, constants, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def run_blocks(path: Path, scratch: Path) -> list[str]:
    """Write and run a document's blocks; stop at the first that fails and return it as a fault."""
    for name in SEEN:
        if (ROOT / name).exists():
            (scratch / name).symlink_to(ROOT / name)
    for block in blocks_of(path.read_text()):
        if block.file:
            (scratch / block.file).parent.mkdir(parents=True, exist_ok=True)
            (scratch / block.file).write_text(block.text)
            continue
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(
            command,
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-3000:]
            return [f"{path}:{block.line}: exit code {done.returncode} from\n{block.text}{said}"]
    return []


def main(words: list[str]) -> int:
    """Check the named documents, or README.md and all of docs."""
    links_only = "--links-only" in words
    named = [Path(word) for word in words if word != "--links-only"]
    paths = named or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    faults: list[str] = []
    for path in paths:
        if not path.is_file():
            faults.append(f"{path}: no such document")
            continue
        faults += broken_links(path) + names_of_nothing(path)
        if not links_only:
            with tempfile.TemporaryDirectory(prefix="trec-semid-docs-") as scratch:
                faults += run_blocks(path, Path(scratch))
    for fault in faults:
        print(fault)
    print(f"docs: {len(paths)} documents, {len(faults)} faults")
    return 1 if faults else 0


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
