"""The site shows what lies outside docs/, and a link that leads nowhere stops its build."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
README = """# A house

[A guide](docs/guide.md#part) and [a config](configs/a.toml), [all of them](configs), `[none](gone.md)`.
"""
GUIDE = """# Guide

## Part

[Home](../README.md), [code](../trec_semid/room/file.py), [other](deep/other.md).
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with this house's mkdocs.yml (its nav aside) and hook."""
    texts = {
        "README.md": README,
        "CONTRIBUTING.md": "# Contributing\n\n[Tests](trec_semid/room)\n",
        "docs/guide.md": GUIDE,
        "docs/deep/other.md": "# Other\n\n[Back](../guide.md) and [config](../../configs/a.toml)\n",
        "configs/a.toml": "answer = 42\n",
        "trec_semid/__init__.py": "",
        "trec_semid/room/__init__.py": '"""A room."""\n',
        "trec_semid/room/file.py": '"""A file."""\n\n\ndef seen() -> int:\n    """Return what is seen."""\n',
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/site_pages.py", tmp_path / "tools")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    del config["nav"]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    return tmp_path


def build(checkout: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def links(page: Path) -> set[str]:
    return set(re.findall(r'<a [^>]*href="([^"]+)"', page.read_text()))


def test_links_out_of_docs_lead_to_pages_that_show_what_is_there(checkout: Path):
    code, said = build(checkout)
    assert code == 0, said
    site = checkout / "site"
    assert {"guide.html#part", "source/configs/a.toml.html", "source/configs.html"} <= links(
        site / "index.html"
    )
    assert {"index.html", "source/trec_semid/room/file.py.html"} <= links(site / "guide.html")
    assert {"../guide.html", "../source/configs/a.toml.html"} <= links(site / "deep/other.html")
    assert "answer" in (site / "source/configs/a.toml.html").read_text()
    assert "a.toml" in (site / "source/configs.html").read_text()
    assert "Return what is seen" in (site / "api/room.html").read_text()


def test_a_reader_s_browser_fetches_nothing_from_elsewhere(checkout: Path):
    assert build(checkout)[0] == 0
    fetched = r'<(?:script|img|iframe)[^>]+src="(https?:)?//|<link[^>]+href="(https?:)?//|url\((https?:)?//'
    for page in (checkout / "site").rglob("*.html"):
        assert not re.search(fetched, page.read_text()), page


@pytest.mark.parametrize("link", ["gone.md", "guide.md#gone", "../configs/gone.toml", "deep"])
def test_a_link_that_leads_nowhere_stops_the_build(checkout: Path, link: str):
    with (checkout / "docs/deep/other.md").open("a") as file:
        file.write(f"\n[link](../{link})\n")
    code, said = build(checkout)
    assert code != 0
    assert "deep/other.md" in said


def test_every_room_has_its_page_in_the_navigation_of_the_api():
    rooms = {path.parent.name for path in (ROOT / "trec_semid").glob("*/__init__.py")}
    script = "import sys; sys.path.insert(0, 'tools'); import site_pages; print(*site_pages.api_pages())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"api.md", *(f"api/{room}.md" for room in rooms)}
