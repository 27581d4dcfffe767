"""Sections as one HTML page, with nothing in it that reaches outside."""

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trec_semid import __version__
from trec_semid.report.page.drawing import legend_mark
from trec_semid.report.page.parts import Part, Section

PACKAGE = "trec_semid.report"


def render_sections(title: str, told: str, sections: Sequence[Section], beside: str) -> str:
    """Return sections as one HTML page.

    Args:
        title: of the page.
        told: the line under it.
        sections: in order.
        beside: files with the same numbers.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = _kind
    style = resources.files(PACKAGE).joinpath("templates/style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        title=title,
        subtitle=told,
        sections=sections,
        beside=beside,
        legend_mark=legend_mark,
        style=Markup(style),  # noqa: S704 - our own file
        version=__version__,
    )


def _kind(part: Part) -> str:
    """Return which macro of the template shows a part."""
    return type(part).__name__.lower()
