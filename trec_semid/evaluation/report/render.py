"""Turns the report's content into one page that needs nothing outside itself, and into JSON."""

import json
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trec_semid import __version__
from trec_semid.evaluation.report import codebooks, facts, pictures, tables
from trec_semid.evaluation.report.content import Report
from trec_semid.evaluation.report.definitions import PROTOCOLS, words
from trec_semid.evaluation.report.sections import (
    SLICE_WORDS,
    TEST_WORDS,
    section_titles,
    subtitle,
)

PACKAGE = "trec_semid.evaluation.report"


def render_page(report: Report) -> str:
    """Return the report as one HTML page; every text from data is escaped."""
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files(PACKAGE).joinpath("templates/style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        report=report,
        tables=tables,
        facts=facts,
        pictures=pictures,
        codes=codebooks,
        style=Markup(style),  # noqa: S704 - our own file
        version=__version__,
        subtitle=subtitle(report),
        sections=section_titles(report),
        dimensions=pictures.sliced_dimensions(report),
        shown_codebooks=codebooks.pictured(report.codebooks),
        protocols=PROTOCOLS,
        test_words=TEST_WORDS,
        slice_words=SLICE_WORDS,
        definitions=words(report.bootstrap.replicates),
    )


def render_json(report: Report) -> str:
    """Return the report's numbers as JSON; there is no NaN in it."""
    return json.dumps(report.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
