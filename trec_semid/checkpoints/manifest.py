"""`manifest.json` of a bundle: what it holds, with a checksum of every file."""

import hashlib
import json
from typing import Literal

from pydantic import ValidationError

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, write_bytes
from trec_semid.data.features import Feature, FeaturesConfig, Representation, Role
from trec_semid.data.histories import HistoryConfig
from trec_semid.runtime.fingerprints import Fingerprint, verify
from trec_semid.tokenizers.generations.manifest import ReadGeneration

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sha256"
"""The manifest's own sha256, as `sha256sum manifest.json` prints it."""
SCHEMA_VERSION = 1
TableType = Literal["fp32", "int8"]


class FileFacts(Config):
    """One file of the bundle."""

    file: str
    """Path inside the bundle."""
    num_bytes: int
    sha256: str


class ShardFacts(FileFacts):
    """Rows `first_row` to `first_row + num_rows` of a table."""

    first_row: int
    num_rows: int


class TableFacts(Config):
    """One table."""

    name: str
    rows: int
    dim: int
    dtype: TableType
    """int8: row r is codes[r] * scale[r] + low[r], 8-bit codes with their own scale and low in each row."""
    shards: tuple[ShardFacts, ...]


class FeatureFacts(Config):
    """One input of the dense program: pooled rows of a table."""

    name: str
    role: Role
    table: str
    num_rows: int
    position: int

    def feature(self) -> Feature:
        """Return it as the data room knows it."""
        return Feature(self.name, self.role, self.table, self.num_rows, self.position)


class MapFacts(FileFacts):
    """The item -> code map the model was trained with."""

    checksum: str
    """Of items, codes and codebook sizes: the version of the map."""
    sizes: tuple[int, ...]
    generation: ReadGeneration | None = None
    """Which generation of a store it is; None of any other map."""


class Manifest(Config):
    """Everything a reader needs to know; other programs read this."""

    schema_version: int = SCHEMA_VERSION
    run: str
    step: int
    commit: str
    versions: dict[str, str]
    dataset: str
    dataset_checksum: str
    representation: Representation
    features: tuple[FeatureFacts, ...]
    """In the order of the dense program's input, each `dim` wide."""
    features_config: FeaturesConfig
    history: HistoryConfig
    pooling: Literal["mean", "sum"]
    dim: int
    tables: tuple[TableFacts, ...]
    dense: FileFacts
    """A `torch.export` program: (B, features * dim) float32 to (B,) logits."""
    semantic_ids: MapFacts | None
    tokenizer: tuple[FileFacts, ...]
    """For new items, with how good the map is; empty where the run has none."""
    metrics: dict[str, float]
    """Of the run, at export."""

    def files(self) -> list[FileFacts]:
        """Return every file the manifest vouches for."""
        shards = [shard for table in self.tables for shard in table.shards]
        ids = [self.semantic_ids] if self.semantic_ids else []
        return [*shards, self.dense, *ids, *self.tokenizer]


def file_facts(name: str, content: bytes) -> FileFacts:
    """Describe a file by its content."""
    return FileFacts(file=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_manifest(bundle: str, manifest: Manifest) -> None:
    """Write the manifest and its signature; the manifest last, as it says that the bundle is whole."""
    content = (manifest.model_dump_json(indent=1) + "\n").encode()
    write_bytes(join(bundle, SIGNATURE), _signature(content))
    write_bytes(join(bundle, MANIFEST), content)


def read_manifest(bundle: str) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        DataError: there is none, it is of another version, or it is not the one that was exported.
    """
    uri = join(bundle, MANIFEST)
    try:
        written = read_bytes(uri)
        content = json.loads(written)
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            remedy = f"This version reads version {SCHEMA_VERSION}: export again"
            version = content.get("schema_version") if isinstance(content, dict) else None
            raise DataError(
                "bundle of another version", file=uri, field="schema_version", value=version, remedy=remedy
            )
        _expect_signed(bundle, written)
        return Manifest.model_validate(content)
    except FileNotFoundError:
        remedy = "Make one with: trec-semid export CONFIG.toml"
        raise DataError("no bundle here", file=uri, remedy=remedy) from None
    except (ValidationError, ValueError) as error:
        raise DataError(f"not a manifest: {error}", file=uri, remedy="Copy or export it again") from None


def _expect_signed(bundle: str, written: bytes) -> None:
    uri = join(bundle, SIGNATURE)
    try:
        signature = read_bytes(uri)
    except FileNotFoundError:
        raise DataError("missing from the bundle", file=uri, remedy="Copy or export it again") from None
    if signature != _signature(written):
        problem = f"{MANIFEST} is not the one that was exported (its checksum differs)"
        raise DataError(problem, file=uri, remedy="Copy or export it again")


def _signature(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def verify_bundle(bundle: str) -> Manifest:
    """Check every file of a bundle against its manifest; in a process group every rank must call this.

    Raises:
        DataError: as `read_manifest`, or a file is missing or not the one that was exported.
    """
    manifest = read_manifest(bundle)
    known = {one.file: Fingerprint(bytes=one.num_bytes, sha256=one.sha256) for one in manifest.files()}
    verify(bundle, known, remedy="Copy or export it again")
    return manifest


def read_checked(bundle: str, facts: FileFacts) -> bytes:
    """Read a file of the bundle.

    Raises:
        DataError: it is missing, or not the file that was exported.
    """
    uri = join(bundle, facts.file)
    try:
        content = read_bytes(uri)
    except FileNotFoundError:
        raise DataError("missing from the bundle", file=uri, remedy="Copy or export it again") from None
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        problem = "not the file that was exported (its checksum differs)"
        raise DataError(problem, file=uri, remedy="Copy or export it again")
    return content
