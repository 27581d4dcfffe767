"""Content of items: any number of named modalities, each an array that exists or an encoder's work."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, assert_never

import pyarrow as pa
from pydantic import Field

from trec_semid.core.arrays import Array
from trec_semid.data.encoders.arrays import ColumnConfig, NpyConfig, column_chunks, in_array, npy_chunks
from trec_semid.data.encoders.attributes import ONE_LINE_OF_ATTRIBUTES, AttributesConfig, attribute_chunks
from trec_semid.data.encoders.chunks import Chunk, Items
from trec_semid.data.encoders.image import ImageConfig, image_chunks
from trec_semid.data.encoders.store import ONE_LINE_OF_VECTORS, store_content
from trec_semid.data.encoders.text import TextConfig, text_chunks
from trec_semid.data.schema import ModalityFacts
from trec_semid.runtime.logs import working

ContentConfig = Annotated[
    NpyConfig | ColumnConfig | TextConfig | ImageConfig | AttributesConfig, Field(discriminator="kind")
]
"""How one modality comes about; `columns` lists the item columns it needs."""


def write_contents(
    configs: Mapping[str, ContentConfig],
    items: pa.Table,
    source_rows: Array,
    out: str,
    cache: str | None,
    *,
    num_source_rows: int | None = None,
    items_file: str | None = None,
    locate: Callable[[int], tuple[str, int]] | None = None,
) -> dict[str, ModalityFacts]:
    """Write `content/<name>.npy` and `content/<name>.mask.npy` of every modality below `out`.

    Args:
        configs: modality name to how it comes about.
        items: the N items in row order, with the columns that the configs name.
        source_rows: (N,) int64 row of each item in the original items file.
        out: dataset folder, path or URI.
        cache: folder for encoded vectors, path or URI, shared by all datasets; None keeps nothing.
        num_source_rows: rows of the original items file; array files must have as many.
        items_file: the original items file, for error messages.
        locate: file and row number of a row of the original items, where that is not the one file.

    Returns:
        The facts of each modality.

    Raises:
        DataError: content that cannot be used; names file, row, field and value.
        ConfigError: attributes that cannot be projected to the requested width.
        StackError: an encoder's package is not installed.
    """
    facts: dict[str, ModalityFacts] = {}
    read = Items(items, source_rows, num_source_rows, items_file, locate)
    for name, config in configs.items():
        chunks = _chunks(config, read, cache)
        blamed = in_array(config, read) if isinstance(config, NpyConfig) else read
        remedy = ONE_LINE_OF_ATTRIBUTES if isinstance(config, AttributesConfig) else ONE_LINE_OF_VECTORS
        facts[name] = store_content(
            name, chunks, blamed, out, dtype=config.dtype, source=config.source, one_line_remedy=remedy
        )
    return facts


def _chunks(config: ContentConfig, items: Items, cache: str | None) -> Iterator[Chunk]:
    match config:
        case NpyConfig():
            return _tracked(npy_chunks(config, items), config, items)
        case ColumnConfig():
            return _tracked(column_chunks(config, items), config, items)
        case TextConfig():
            return text_chunks(config, items, cache)
        case ImageConfig():
            return image_chunks(config, items, cache)
        case AttributesConfig():
            return _tracked(attribute_chunks(config, items), config, items)
        case _:
            assert_never(config)


def _tracked(chunks: Iterator[Chunk], config: ContentConfig, items: Items) -> Iterator[Chunk]:
    """Show progress; the encoders show their own, batch by batch."""
    with working(f"content from {config.source}", len(items.source_rows)) as work:
        for number, chunk in enumerate(chunks):
            if number == 0:
                work.restart_clock()  # what is fitted before the first chunk says nothing about the rest
            yield chunk
            work.advance(len(chunk.present))
