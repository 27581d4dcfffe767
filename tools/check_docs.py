"""Run what the documents tell people to type, and check that what they link to exists.

A ```sh block runs when the line above it is `<!-- run -->`; a block of any language after
`<!-- file: name.toml -->` is written to that file first, so that a worked example is the tested one.
Blocks of one document run in order in one scratch folder, which sees the checkout's `configs`, with
`trec-semid` on the path. Usage: python tools/check_docs.py [--links-only] [FILE.md...]
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SEEN = ("configs", "tools", "docs", "tests")
"""What of the checkout the scratch folder sees."""
PATIENCE_S = 600
_BLOCK = re.compile(
    r"^<!-- (run|file: (?P<name>\S+)) -->\n+```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)")


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
        faults += broken_links(path)
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
