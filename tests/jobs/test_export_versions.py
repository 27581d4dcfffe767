"""Bundles of the version before are read; others are refused by their version, whatever else they say."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.conftest import Bundles
from trec_semid.checkpoints.bundle_files import read_manifest
from trec_semid.checkpoints.manifest import SCHEMA_VERSION
from trec_semid.core.errors import DataError
from trec_semid.serving.engine import RetrieveAsked, open_engine
from trec_semid.serving.reader import SCHEMA_VERSIONS, BundleError, Reader


def sign(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its signature."""
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json.sha256").write_text(f"{sha256}  manifest.json\n")


@pytest.mark.parametrize("version", [1, 4])
def test_a_bundle_of_another_version_is_refused_by_its_version(
    bundles: Bundles, tmp_path: Path, version: int
):
    content = json.loads(Path(bundles("sasrec"), "manifest.json").read_text())
    sign(tmp_path, {**content, "schema_version": version, "more": None})
    refused = (
        rf"another version \(got {version}\)\. This version reads \(2, 3\): export again, or update what"
    )
    with pytest.raises(DataError, match=refused):
        read_manifest(str(tmp_path))
    with pytest.raises(BundleError, match=f"a bundle of version {version}"):
        Reader(str(tmp_path))


def test_a_bundle_of_the_version_before_says_the_same(bundles: Bundles, tmp_path: Path):
    copy, bundle = tmp_path / "copy", bundles("sasrec")
    shutil.copytree(bundle, copy)
    content = json.loads((copy / "manifest.json").read_text())
    assert (content["schema_version"], SCHEMA_VERSION, SCHEMA_VERSIONS) == (3, 3, (2, 3))
    for member in content["retriever"]["members"]:
        assert member.pop("trie") is None  # which the version before does not know
    sign(copy, {**content, "schema_version": 2})
    asked = [RetrieveAsked(None, ("i001", "i007"), 12)]
    (now,), (before,) = (open_engine(str(place)).retrieve(asked) for place in (bundle, copy))
    assert now.items == before.items
    np.testing.assert_array_equal(now.scores, before.scores)
    assert Reader(str(copy), verify=True).manifest["schema_version"] == 2
