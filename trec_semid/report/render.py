"""Turns the report's content into one page that needs nothing outside itself, and into JSON."""

import json
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trec_semid import __version__
from trec_semid.report.content import Report
from trec_semid.report.drawing import legend_mark
from trec_semid.report.parts import Part
from trec_semid.report.sections import all_sections, subtitle

PACKAGE = "trec_semid.report"


def render_page(report: Report) -> str:
    """Return the report as one HTML page; every text from data is escaped."""
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
        title=report.title,
        subtitle=subtitle(report),
        sections=all_sections(report),
        legend_mark=legend_mark,
        style=Markup(style),  # noqa: S704 - our own file
        version=__version__,
    )


def render_json(report: Report) -> str:
    """Return the report's numbers as JSON; there is no NaN in it."""
    return json.dumps(report.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _kind(part: Part) -> str:
    """Return which macro of the template shows a part."""
    return type(part).__name__.lower()
