"""How models are written into a bundle."""

from typing import NamedTuple

from trec_semid.checkpoints.manifest import TableType
from trec_semid.serving.writing.forms import Forms


class WriteSettings(NamedTuple):
    """What an export asks for, of any model."""

    dtype: TableType
    """Of tables."""
    shard_rows: int
    """Of a table's files."""
    forms: Forms
    """Of programs."""
