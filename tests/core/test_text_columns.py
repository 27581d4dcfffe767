import pytest
from rich.table import Table

from trec_semid.core.text_columns import as_text


def test_numbers_stand_to_the_right_and_nothing_is_coloured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("name", "value")
    table.add_row("[b]a[/b]", "1")
    table.add_row("b", "1000")
    text = as_text(table)
    assert "│ a    │     1 │" in text
    assert "\x1b" not in text
