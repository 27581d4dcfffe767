import hashlib
import os
import shutil
from pathlib import Path

import pytest

from trec_semid.core.paths import remove, write_bytes
from trec_semid.data.raw.inputs import describe_inputs, have_changed


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A file, a folder and a pattern, each with content."""
    (tmp_path / "one.csv").write_text("hello")
    for folder in ("parts", "globbed"):
        (tmp_path / folder).mkdir()
        for number in (0, 1):
            (tmp_path / folder / f"{number}.parquet").write_text(f"part {number}")
    return [f"{tmp_path}/one.csv", f"{tmp_path}/parts", f"{tmp_path}/globbed/*.parquet"]


def rewrite(file: Path, text: str) -> None:
    """Write at another time, however coarse the clock of the disk."""
    about = file.stat()
    file.write_text(text)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))


def test_every_file_is_described_by_size_and_sha256(inputs, tmp_path):
    described = describe_inputs(inputs)
    assert [each["input"] for each in described] == [inputs[0], *[inputs[1]] * 2, *[inputs[2]] * 2]
    first = {name: described[0][name] for name in ("file", "size", "sha256")}
    assert first == {"file": inputs[0], "size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert not have_changed(described, inputs)


@pytest.mark.parametrize("name", ["one.csv", "parts/1.parquet", "globbed/0.parquet"])
def test_an_edit_that_keeps_the_size_is_noticed(inputs, tmp_path, name):
    described = describe_inputs(inputs)
    old = (tmp_path / name).read_text()
    rewrite(tmp_path / name, old)
    assert not have_changed(described, inputs), "written again with the same content"
    rewrite(tmp_path / name, old[::-1])
    assert have_changed(described, inputs)


@pytest.mark.parametrize("folder", ["parts", "globbed"])
def test_files_that_came_or_went_are_noticed(inputs, tmp_path, folder):
    described = describe_inputs(inputs)
    (tmp_path / folder / "2.parquet").write_text("part 2")
    assert have_changed(described, inputs)
    (tmp_path / folder / "2.parquet").unlink()
    assert not have_changed(described, inputs)
    (tmp_path / folder / "1.parquet").unlink()
    assert have_changed(described, inputs)


def test_an_input_that_is_gone_altogether_has_not_changed(inputs, tmp_path):
    described = describe_inputs(inputs)
    shutil.rmtree(tmp_path / "globbed")
    (tmp_path / "one.csv").unlink()
    assert not have_changed(described, inputs)


def test_pictures_that_came_or_were_written_anew_are_noticed(tmp_path):
    folder = str(tmp_path / "pictures")
    (tmp_path / "pictures/deep").mkdir(parents=True)
    (tmp_path / "pictures/a.png").write_bytes(b"a")
    (tmp_path / "pictures/deep/b.png").write_bytes(b"b")
    described = describe_inputs([], [folder])
    assert not have_changed(described, [], [folder])
    rewrite(tmp_path / "pictures/deep/b.png", "c")
    assert have_changed(described, [], [folder])
    described = describe_inputs([], [folder])
    (tmp_path / "pictures/c.png").write_bytes(b"c")
    assert have_changed(described, [], [folder])
    shutil.rmtree(folder)
    assert not have_changed(described, [], [folder])


def test_inputs_in_other_file_systems_are_followed_too():
    write_bytes("memory://inputs-test/log.csv", b"one")
    described = describe_inputs(["memory://inputs-test"])
    assert not have_changed(described, ["memory://inputs-test"])
    write_bytes("memory://inputs-test/log.csv", b"two")
    assert have_changed(described, ["memory://inputs-test"])
    remove("memory://inputs-test")


def test_a_record_of_another_version_counts_as_changed(inputs):
    assert have_changed([{"file": inputs[0], "size": 5, "sha256": "x"}], inputs)
