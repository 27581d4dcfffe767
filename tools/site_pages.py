"""Pages of the documentation site that lie outside docs/, for MkDocs (`hooks` in mkdocs.yml).

README.md becomes the first page and CONTRIBUTING.md the last. Every room of `trec_semid` gets an API page.
A link from a page to a file or folder of the checkout (a config, a module, a test) leads to a page
that shows it, so that the site stands alone: it needs no address of a repository.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "trec_semid"
TEXTS = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""Documents in the root of the checkout, and their pages."""
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "sh"}
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of TEXTS, of the rooms, and of what any page links to outside docs/."""
    texts = {page: (ROOT / name).read_text() for name, page in TEXTS.items()}
    documents = texts | {file.src_uri: file.content_string for file in files.documentation_pages()}
    pages = texts | api_pages()
    for uri, text in documents.items():
        for link in links_of(text):
            target = in_checkout(uri, link)
            if not target.startswith("docs/") and target not in TEXTS and (ROOT / target).exists():
                pages[f"source/{target}.md"] = source_page(target)
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to the pages that stand for their targets."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def lead(link: str) -> str:
        target = in_checkout(uri, link)
        if (ROOT / target).is_dir() and (ROOT / target / "index.md").is_file():
            target += "/index.md"
        place = TEXTS.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}.md"
        )
        return os.path.relpath(place, os.path.dirname(uri) or ".")

    return replace_links(markdown, lead)


def in_checkout(uri: str, link: str) -> str:
    """Return what a page's link means, as a path from the root of the checkout."""
    folder = "" if uri in TEXTS.values() else os.path.dirname(f"docs/{uri}")
    return os.path.normpath(os.path.join(folder, link))


def links_of(text: str) -> list[str]:
    """Return the relative links of a document, without anchors; code is left out."""
    return _LINK.findall(_CODE.sub("", text))


def replace_links(text: str, lead: Callable[[str], str]) -> str:
    """Replace every relative link outside code by what `lead` makes of it."""
    parts = _CODE.split(text)  # every second part is code
    parts[::2] = [_LINK.sub(lambda link: lead(link[1]), part) for part in parts[::2]]
    return "".join(parts)


def api_pages() -> dict[str, str]:
    """Return a page for every room of the package, and one that lists them."""
    rooms = sorted(path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py"))
    pages = {f"api/{room}.md": f"# {PACKAGE}.{room}\n\n::: {PACKAGE}.{room}\n" for room in rooms}
    listed = "\n".join(f"- [{PACKAGE}.{room}](api/{room}.md)" for room in rooms)
    pages["api.md"] = f"# API\n\nThe public functions and classes of every room.\n\n{listed}\n"
    return pages


def source_page(target: str) -> str:
    """Return a page that shows a file, or that names what a folder holds."""
    place = ROOT / target
    if place.is_dir():
        paths = [path for path in sorted(place.iterdir()) if path.name != "__pycache__"]
        listed = [f"- `{path.name}{'/' * path.is_dir()}`" for path in paths]
        return f"# {target}\n\n" + "\n".join(listed) + "\n"
    language = LANGUAGES.get(place.suffix, "text")
    return f"# {target}\n\n````{language}\n{place.read_text().rstrip()}\n````\n"
