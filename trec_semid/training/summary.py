"""What a training run came to, as lines to read."""

from collections.abc import Mapping

from rich.table import Table

from trec_semid.core.paths import join
from trec_semid.core.text_table import as_text


def summary(run: str, metrics: Mapping[str, float]) -> str:
    """Return metrics of whole splits side by side, and where all of them are.

    Args:
        run: its folder.
        metrics: by `split/metric`; those of strata, `split/metric/stratum`, are left to the file.
    """
    whole = {tuple(name.split("/")): value for name, value in metrics.items() if name.count("/") == 1}
    splits, names = (list(dict.fromkeys(key[part] for key in whole)) for part in (0, 1))
    table = Table("", *splits)
    for name in names:
        found = (whole.get((split, name)) for split in splits)
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in found))
    return f"{as_text(table)}\nall metrics: {join(run, 'metrics.json')}"
