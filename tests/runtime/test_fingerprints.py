import hashlib
import json
import os
import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, write_bytes
from trec_semid.runtime import fingerprints as fp

FILES = {"a.parquet": b"first" * 9, "content/text.npy": b"\x00\x01" * 40, "empty": b""}


def written(folder):
    for name, content in FILES.items():
        write_bytes(join(folder, name), content)
    return fp.fingerprints(folder)


def check_all(folder, known):
    fp.check_files(folder, known, remedy="Again")
    fp.verify(folder, known, remedy="Again")


@pytest.fixture
def long_ago(monkeypatch):
    """Let files of this moment count as settled: nothing else writes to them in these tests."""
    monkeypatch.setattr(fp, "_SETTLED_NS", -(10**18))


def test_a_fingerprint_is_size_and_sha256(tmp_path):
    known = written(str(tmp_path))
    assert list(known) == sorted(FILES)
    for name, content in FILES.items():
        assert known[name] == fp.Fingerprint(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_hidden_files_and_parts_of_unfinished_writes_do_not_count(tmp_path):
    known = written(str(tmp_path))
    for name in (".DS_Store", "content/.lock", "a.parquet.partial-12ab"):
        write_bytes(str(tmp_path / name), b"x")
    assert fp.fingerprints(str(tmp_path)) == known
    fp.check_files(str(tmp_path), known, remedy="Again")


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("damage", ["delete", "cut", "grow", "flip", "add"])
def test_any_damage_to_any_file_is_refused_by_its_name(tmp_path, place, name, damage):
    folder = str(tmp_path) if place == "local" else f"memory://fingerprints-{tmp_path.name}"
    known = written(folder)
    fp.check_files(folder, known, remedy="Again")
    fp.verify(folder, known, remedy="Again")
    content, strange = FILES[name], f"{name}-more"
    if damage in ("cut", "flip") and not content:
        return
    if damage == "delete":
        fp.filesystem(join(folder, name))[0].rm(fp.filesystem(join(folder, name))[1])
    elif damage == "add":
        write_bytes(join(folder, strange), b"")
    else:
        changed = {"cut": content[:-1], "grow": content + b"x", "flip": content[:-1] + b"?"}[damage]
        write_bytes(join(folder, name), changed)
    with pytest.raises(DataError, match="Again") as error:
        check_all(folder, known)
    assert error.value.file == join(folder, strange if damage == "add" else name)


@given(st.data())
def test_no_bit_of_a_signed_file_can_change(data):
    signed = fp.signed_json({"name": "x", "sizes": [1, 2.5, None], "text": "é"})
    assert fp.read_signed(signed) == {"name": "x", "sizes": [1, 2.5, None], "text": "é"}
    at, value = data.draw(st.integers(0, len(signed) - 1)), data.draw(st.integers(0, 255))
    changed = signed[:at] + bytes([value]) + signed[at + 1 :]
    if changed != signed:
        with pytest.raises(ValueError):  # noqa: PT011 - JSON and UTF-8 errors are ValueErrors too
            fp.read_signed(changed)


def test_contents_are_read_once_and_again_after_any_write(tmp_path, long_ago, monkeypatch):
    folder, known, read = str(tmp_path), written(str(tmp_path)), []
    plain = fp.fingerprint
    monkeypatch.setattr(fp, "fingerprint", lambda uri: read.append(uri) or plain(uri))
    for expected_reads in (3, 3):
        fp.verify(folder, known, remedy="Again", mode="once")
        assert len(read) == expected_reads
    fp.verify(folder, known, remedy="Again", mode="always")
    assert len(read) == 6
    fp.verify(folder, {"empty": known["empty"]}, remedy="Again", mode="once")
    assert len(read) == 7  # the stamp stands for what it was made for
    fp.verify(folder, known, remedy="Again", mode="once")
    assert len(read) == 10
    time.sleep(0.01)
    write_bytes(str(tmp_path / "a.parquet"), FILES["a.parquet"][:-1] + b"?")
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    with pytest.raises(DataError, match="damaged"):
        fp.verify(folder, known, remedy="Again", mode="once")


def test_a_file_of_this_moment_gets_no_stamp(tmp_path):
    known = written(str(tmp_path))
    fp.verify(str(tmp_path), known, remedy="Again", mode="once")
    assert not (tmp_path / fp.STAMP).exists()


@pytest.mark.parametrize("stamp", [b"", b"{}", b"[1", b"\xff", json.dumps({"of": "", "files": {}}).encode()])
def test_a_stamp_that_says_nothing_is_no_stamp(tmp_path, long_ago, stamp):
    known = written(str(tmp_path))
    (tmp_path / fp.STAMP).write_bytes(stamp)
    (tmp_path / "a.parquet").write_bytes(b"FIRST" * 9)
    with pytest.raises(DataError, match=r"a\.parquet: damaged"):
        fp.verify(str(tmp_path), known, remedy="Again", mode="once")


@pytest.mark.parametrize("place", ["read-only", "store"])
def test_where_no_stamp_can_be_written_contents_are_read_each_time(tmp_path, long_ago, monkeypatch, place):
    folder = str(tmp_path) if place == "read-only" else f"memory://stamps-{tmp_path.name}"
    known = written(folder)
    if place == "read-only":
        # As root no folder is read-only, so the write itself is made to fail.
        def refuse(uri, content):
            raise PermissionError(13, "Read-only file system")

        monkeypatch.setattr(fp, "write_bytes", refuse)
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    fp.verify(folder, known, remedy="Again", mode="once")
    fp.verify(folder, known, remedy="Again", mode="once")
    tmp_path.chmod(stat.S_IRWXU)
    assert not fp.exists(join(folder, fp.STAMP))
    assert read_bytes(join(folder, "empty")) == b""
