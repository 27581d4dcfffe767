"""Encoded vectors by the hash of what was encoded, in immutable part files.

One item's vector is looked up by sha256 of its input, below a folder named by the encoder's identity
(its settings and a checksum of its weights). So other splits, filters or orders of the same items
encode nothing again, equal inputs are encoded once a chunk, and an interrupted run goes on after the
last part it wrote. Parts appear whole or not at all, hence several processes may share a cache.
"""

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any, final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.paths import find_files, join, list_folder, open_file, write_bytes
from trec_semid.core.processes import scratch_prefix
from trec_semid.data.encoders.store import disk_faults
from trec_semid.runtime.logs import Work

logger = logging.getLogger(__name__)

Encode = Callable[[Sequence[bytes]], Array]
"""From n inputs to (n, D) float32."""


def identity_of(**parts: Any) -> str:
    """Return a sha256 over everything but the input that decides an encoder's vectors."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def folder_checksum(folder: str) -> str:
    """Return a sha256 over the names and content of every file below a folder."""
    total = hashlib.sha256()
    for name in find_files(folder):
        total.update(f"{name}\0{file_checksum(join(folder, name))}\n".encode())
    return total.hexdigest()


def file_checksum(uri: str) -> str:
    """Return the sha256 of a file."""
    with open_file(uri) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def keys_of(inputs: Sequence[bytes]) -> Array:
    """Return (n, 2) uint64: the first 128 bits of each input's sha256."""
    digests = b"".join(hashlib.sha256(content).digest()[:16] for content in inputs)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


@contextmanager
def open_cache(uri: str | None, identity: str) -> Iterator["VectorCache"]:
    """Yield the cache of one encoder; without a URI one that vanishes afterwards."""
    if uri is not None:
        yield VectorCache(join(uri, identity[:16]))
        return
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
        yield VectorCache(join(scratch, identity[:16]))


@final
class VectorCache:
    """Vectors of one encoder, by key. Memory: 32 bytes a cached vector, and a few parts."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._load = lru_cache(maxsize=16)(self._read_vectors)
        parts = [(name, self._read_keys(name)) for name in list_folder(uri) if name.endswith(".part")]
        self._names = [name for name, keys in parts if len(keys)]
        stored_keys = [keys for _, keys in parts if len(keys)]
        sizes = [len(keys) for keys in stored_keys]
        keys = np.concatenate(stored_keys) if stored_keys else np.empty((0, 2), np.uint64)
        order = np.argsort(keys[:, 0], kind="stable")
        self._keys = keys[order]
        self._part = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._row = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])[order]

    def __len__(self) -> int:
        return len(self._keys)

    def vectors_of(self, inputs: Sequence[bytes], encode: Encode, work: Work) -> Array:
        """Return (n, D) float32 of n ≥ 1 inputs; what is not here yet is encoded and stored."""
        keys = keys_of(inputs)
        at, known = self._find(keys)
        work.advance(int(known.sum()))
        fresh = np.flatnonzero(~known)
        vectors = self._gather(at, known) if known.any() else None
        if not len(fresh):
            assert vectors is not None
            return vectors
        _, first, inverse = np.unique(keys[fresh], axis=0, return_index=True, return_inverse=True)
        encoded = encode([inputs[index] for index in fresh[first]])
        self._write(keys[fresh[first]], encoded)
        if vectors is None:
            vectors = np.empty((len(keys), encoded.shape[1]), np.float32)
        vectors[fresh] = encoded[inverse.reshape(-1)]
        work.advance(len(fresh) - len(first))  # the encoder advances by what it encodes itself
        return vectors

    def _find(self, keys: Array) -> tuple[Array, Array]:
        if not len(self._keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        # Half a key finds the place and the whole key decides: at worst an input is encoded again.
        at = np.minimum(np.searchsorted(self._keys[:, 0], keys[:, 0]), len(self._keys) - 1)
        return at, (self._keys[at] == keys).all(axis=1)

    def _gather(self, at: Array, known: Array) -> Array:
        parts = self._part[at]
        vectors: Array | None = None
        for part in np.unique(parts[known]):
            rows = np.flatnonzero(known & (parts == part))
            stored = self._load(self._names[part])
            if vectors is None:
                vectors = np.empty((len(at), stored.shape[1]), np.float32)
            vectors[rows] = stored[self._row[at[rows]]]
        assert vectors is not None
        return vectors

    def _write(self, keys: Array, vectors: Array) -> None:
        content = io.BytesIO()
        np.lib.format.write_array(content, keys, allow_pickle=False)
        np.lib.format.write_array(content, np.ascontiguousarray(vectors, np.float32), allow_pickle=False)
        # Named by its keys: who encodes the same inputs again writes the same part, not a second one.
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        with disk_faults(self.uri):
            write_bytes(join(self.uri, f"{name}.part"), content.getvalue())

    def _read_keys(self, name: str) -> Array:
        try:
            with open_file(join(self.uri, name)) as file:
                keys = np.lib.format.read_array(file, allow_pickle=False)
                _expect_vectors(file, len(keys))
                return keys
        except (ValueError, EOFError):
            logger.warning("%s is damaged: what it held is encoded again.", join(self.uri, name))
            return np.empty((0, 2), np.uint64)

    def _read_vectors(self, name: str) -> Array:
        with open_file(join(self.uri, name)) as file:
            np.lib.format.read_array(file, allow_pickle=False)
            return np.lib.format.read_array(file, allow_pickle=False)


def _expect_vectors(file: IO[bytes], rows: int) -> None:
    np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # pyright: ignore[reportArgumentType]
    begin = file.tell()
    if shape[0] != rows or file.seek(0, 2) - begin != shape[0] * shape[1] * dtype.itemsize:
        raise ValueError("cut off")
