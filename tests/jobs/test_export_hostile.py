"""Bundles of someone who can sign a manifest: refused before a path, a shape or an archive does any harm."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import rank_config, write_problem
from trec_semid.core.errors import DataError
from trec_semid.jobs import export, rank
from trec_semid.jobs.export import ExportConfig
from trec_semid.serving.engine import RankAsked, open_engine
from trec_semid.serving.opened import OpenBundle
from trec_semid.serving.ranking import RankEngine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    config = rank_config(write_problem(str(folder)), str(folder / "run"), train={"max_epochs": 1})
    rank.run(config)
    with pytest.MonkeyPatch.context() as patch:
        export_quickly(patch)
        export.run(ExportConfig(run=config.run, out=str(folder / "bundle")))
    return str(folder / "bundle")


def resigned(bundle: str, copy: Path, change: Any) -> str:
    """Return a copy of a bundle whose manifest was changed by someone who can sign it again."""
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest, copy)
    content = json.dumps(manifest).encode()
    (copy / "manifest.json").write_bytes(content)
    (copy / "manifest.json.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  manifest.json\n")
    return str(copy)


def replaced(facts: dict[str, Any], copy: Path, content: bytes) -> None:
    (copy / facts["file"]).write_bytes(content)
    facts |= {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def packed(name: str, content: bytes, compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def names_a_file_outside(place: str) -> Any:
    return lambda manifest, copy: manifest["tables"][0]["shards"][0].update(file=place)


def holds_a_program(content: bytes) -> Any:
    return lambda manifest, copy: replaced(manifest["ranker"]["of_requests"], copy, content)


def declares_a_huge_shape(manifest: dict[str, Any], copy: Path) -> None:
    text = json.dumps({"weight": {"dtype": "F32", "shape": [2**40, 2**30], "data_offsets": [0, 2**72]}})
    content = len(text).to_bytes(8, "little") + text.encode() + bytes(64)
    replaced(manifest["tables"][0]["shards"][0], copy, content)


def says_more_rows_than_there_are(manifest: dict[str, Any], copy: Path) -> None:
    manifest["tables"][0]["rows"] = manifest["ranker"]["features"][0]["num_rows"] = 2**50
    manifest["tables"][0]["shards"][0]["num_rows"] = 2**50


def names_a_row_that_is_none(manifest: dict[str, Any], copy: Path) -> None:
    facts = manifest["semantic_ids"]["rows"]
    held = safetensors.numpy.load((copy / facts["file"]).read_bytes())
    held["codes"][:] = 2**30
    replaced(facts, copy, safetensors.numpy.save(held))


HOSTILE = {
    "a path above": (names_a_file_outside("../../etc/passwd"), "no path inside the bundle"),
    "a path from the root": (names_a_file_outside("/etc/passwd"), "no path inside the bundle"),
    "a path within that leaves": (names_a_file_outside("tables/../../x"), "no path inside the bundle"),
    "a uri": (names_a_file_outside("file:///etc/passwd"), "no path inside the bundle"),
    "a path of Windows": (names_a_file_outside("..\\\\x"), "no path inside the bundle"),
    "a zip bomb": (
        holds_a_program(packed("x", bytes(10_000_000), zipfile.ZIP_DEFLATED)),
        "a packed archive of 10,000,000 bytes",
    ),
    "a pickle": (holds_a_program(packed("data.pkl", b"\x80\x02X", zipfile.ZIP_STORED)), "is a pickle"),
    "an archive of an archive": (
        holds_a_program(packed("x", packed("y", b"", zipfile.ZIP_STORED), zipfile.ZIP_STORED)),
        "is a pickle, or an archive",
    ),
    "no archive": (holds_a_program(b"PK no archive at all"), "not an archive"),
    "another archive": (holds_a_program(packed("x", b"y", zipfile.ZIP_STORED)), "not a program"),
    "a huge shape": (declares_a_huge_shape, "not what was exported: .*does not lie in bytes"),
    "more rows than there are": (says_more_rows_than_there_are, "not what was exported: "),
    "a kind without a model": (lambda manifest, copy: manifest.update(kind="retriever"), "kind 'retriever'"),
    "a deep nest": (lambda manifest, copy: manifest.update(metrics={"x": "y"}), "not a manifest"),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_bundle_that_is_signed_is_refused(bundle: str, tmp_path: Path, kind: str, verify: bool):
    change, told = HOSTILE[kind]
    copy = resigned(bundle, tmp_path / "copy", change)
    with pytest.raises(DataError, match=told):
        open_engine(copy, verify=verify)


def test_codes_outside_their_tables_are_refused_and_never_read(bundle: str, tmp_path: Path):
    engine = open_engine(resigned(bundle, tmp_path / "copy", names_a_row_that_is_none))
    with pytest.raises(DataError, match=r"not what was exported: .*rows are 0 to"):
        engine.rank([RankAsked("u001", ("i001",), {}, ("i002",))])


def test_a_program_that_reads_requests_once_scores_as_the_one_of_rows_does(bundle: str):
    once, opened = open_engine(bundle), OpenBundle(bundle, verify=False)
    assert once.manifest.ranker.of_requests is not None
    facts = opened.manifest.ranker.model_copy(update={"of_requests": None})  # as of an older bundle
    opened.manifest = opened.manifest.model_copy(update={"ranker": facts})
    items = tuple(f"i{row:03d}" for row in range(40))
    asked = [
        RankAsked("u003", None, {}, items),
        RankAsked(None, items[:3], {}, items[4:5]),
        RankAsked(None, None, {}, items[7:]),
    ]
    for some in (asked, asked[:1], asked[1:2]):
        for one, other in zip(once.rank(some), RankEngine(opened).rank(some), strict=True):
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
