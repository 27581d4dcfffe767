"""The study's table as one HTML page that needs nothing outside itself."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from trec_semid.study.table import Table


def render_study(table: Table, *, title: str, result: dict[str, Any]) -> str:
    """Return the page; on narrow screens every row becomes a card. Text from data is escaped.

    Args:
        table: what to show.
        title: the study's name.
        result: `study.json`, of which command, commit and duration are told.
    """
    environment = Environment(
        loader=PackageLoader("trec_semid.jobs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.j2").render(table=table, title=title, result=result)
