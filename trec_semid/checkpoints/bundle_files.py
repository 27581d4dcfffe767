"""The files of a bundle: described when they are written, and read only as they were exported."""

import hashlib
import json

from pydantic import ValidationError

from trec_semid.checkpoints.manifest import SCHEMA_VERSION, FileFacts, Manifest
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, write_bytes
from trec_semid.runtime.fingerprints import Fingerprint, check_files, verify

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sha256"
"""The manifest's own sha256, as `sha256sum manifest.json` prints it."""
READ_VERSIONS = (2, SCHEMA_VERSION)
_AGAIN = "Copy or export it again"


def file_facts(name: str, content: bytes) -> FileFacts:
    """Describe a file by its content."""
    return FileFacts(file=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_file(bundle: str, name: str, content: bytes) -> FileFacts:
    """Write a file of a bundle, and describe it."""
    write_bytes(join(bundle, name), content)
    return file_facts(name, content)


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
        if not isinstance(content, dict) or content.get("schema_version") not in READ_VERSIONS:
            remedy = f"This version reads {READ_VERSIONS}: export again, or update what reads it"
            version = content.get("schema_version") if isinstance(content, dict) else None
            raise DataError(
                "bundle of another version", file=uri, field="schema_version", value=version, remedy=remedy
            )
        _expect_signed(bundle, written)
        return Manifest.model_validate(content)
    except FileNotFoundError:
        remedy = "Make one with: trec-semid export CONFIG.toml"
        raise DataError("no bundle here", file=uri, remedy=remedy) from None
    except (ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"not a manifest: {error}", file=uri, remedy=_AGAIN) from None


def manifest_version(bundle: str) -> str:
    """Return the first characters of the manifest's sha256, by which answers name the bundle."""
    return hashlib.sha256(read_bytes(join(bundle, MANIFEST))).hexdigest()[:12]


def _expect_signed(bundle: str, written: bytes) -> None:
    uri = join(bundle, SIGNATURE)
    try:
        signature = read_bytes(uri)
    except FileNotFoundError:
        raise DataError("missing from the bundle", file=uri, remedy=_AGAIN) from None
    if signature != _signature(written):
        problem = f"{MANIFEST} is not the one that was exported (its checksum differs)"
        raise DataError(problem, file=uri, remedy=_AGAIN)


def _signature(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def verify_bundle(bundle: str, *, reads_all: bool = True) -> Manifest:
    """Check every file of a bundle against its manifest; in a process group every rank must call this.

    Args:
        bundle: folder.
        reads_all: whether contents are compared with their sha256, and not sizes alone.

    Raises:
        DataError: as `read_manifest`, or a file is missing or not the one that was exported.
    """
    manifest = read_manifest(bundle)
    known = {one.file: Fingerprint(bytes=one.num_bytes, sha256=one.sha256) for one in manifest.files()}
    check_files(bundle, known, remedy=_AGAIN, may_have=(MANIFEST, SIGNATURE))
    if reads_all:
        verify(bundle, known, remedy=_AGAIN)
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
        raise DataError("missing from the bundle", file=uri, remedy=_AGAIN) from None
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        problem = "not the file that was exported (its checksum differs)"
        raise DataError(problem, file=uri, remedy=_AGAIN)
    return content
