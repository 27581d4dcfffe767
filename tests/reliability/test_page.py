"""The page of promises names tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
WHOLE, SHORT = r"`((?:tests|tools)/[\w/]+\.py)(?:::(\w+))?`", r"`::(\w+)`"


def named() -> list[tuple[str, str | None]]:
    places, file = [], ""
    for match in re.finditer(f"{WHOLE}|{SHORT}", PAGE):
        file = match[1] or file
        places.append((file, match[2] or match[3]))
    return places


@pytest.mark.parametrize(("file", "name"), named())
def test_each_promise_has_its_test(file: str, name: str | None):
    text = (ROOT / file).read_text()
    assert name is None or re.search(
        rf"^(def|class) {name}\b|^    def {name}\b|^{name} = ", text, re.MULTILINE
    )


def test_every_row_names_one():
    rows = [row for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith("| promise")]
    assert len(rows) > 50
    assert not [row for row in rows if not re.search(WHOLE, row)]
