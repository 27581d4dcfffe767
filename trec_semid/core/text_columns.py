"""Tables of numbers as text."""

import io

from rich.console import Console
from rich.table import Table


def as_text(table: Table) -> str:
    """Return the table with all columns but the first to the right."""
    for column in table.columns[1:]:
        column.justify = "right"
    text = io.StringIO()
    Console(file=text, width=100, force_terminal=False).print(table)
    return text.getvalue().rstrip("\n")
