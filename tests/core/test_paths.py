import os
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trec_semid.core import paths
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import (
    PATHS,
    arrow_filesystem,
    exists,
    filesystem,
    find_files,
    is_folder,
    is_local,
    join,
    list_folder,
    local_copy,
    make_folder,
    move,
    open_file,
    parent_of,
    read_bytes,
    remove,
    staged_folder,
    write_bytes,
    write_files,
)

SCHEMES = ["path", "file", "memory"]


@pytest.fixture(params=SCHEMES)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://test-{uuid.uuid4().hex}"
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


class StopError(Exception):
    pass


def stage(target: str, name: str, error: type[BaseException] | None = None) -> None:
    with staged_folder(target) as staging:
        write_bytes(join(staging, name), b"1")
        if error:
            raise error


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("a", ("b",), "a/b"),
        ("a/", ("/b/", "c"), "a/b/c"),
        ("", ("b",), "b"),
        ("/", ("b",), "/b"),
        (".", ("b",), "./b"),
        ("memory://", ("b",), "memory://b"),
        ("memory://a", ("b",), "memory://a/b"),
        ("file:///", ("b",), "file:///b"),
        ("file:///a/", ("b",), "file:///a/b"),
        ("s3://bucket", ("b", "c.txt"), "s3://bucket/b/c.txt"),
    ],
)
def test_parts_are_joined_with_one_slash_and_roots_stay_roots(uri: str, parts: tuple[str, ...], joined: str):
    assert join(uri, *parts) == joined


@pytest.mark.parametrize(
    ("uri", "parent"),
    [
        ("a/b.txt", "a"),
        ("b.txt", "."),
        ("/b.txt", "/"),
        ("/a/b/", "/a"),
        ("memory://b.txt", "memory://"),
        ("memory://a/b.txt", "memory://a"),
        ("file:///b.txt", "file:///"),
        ("s3://bucket/a/b.txt", "s3://bucket/a"),
    ],
)
def test_parent_of_a_file_is_its_folder(uri: str, parent: str):
    assert parent_of(uri) == parent


def test_what_is_written_is_read(root: str):
    write_bytes(join(root, "a/b/c.bin"), b"\x00one")
    assert read_bytes(join(root, "a/b/c.bin")) == b"\x00one"
    assert exists(join(root, "a/b/c.bin"))
    assert is_folder(join(root, "a/b"))
    assert not is_folder(join(root, "a/b/c.bin"))


def test_text_is_utf8_everywhere(root: str):
    make_folder(root)
    with open_file(join(root, "t.txt"), "w") as file:
        file.write("é ≤ 語")
    assert read_bytes(join(root, "t.txt")) == "é ≤ 語".encode()


def test_folders_list_and_find_what_is_in_them(root: str):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        write_bytes(join(root, name), b"x")
    assert list_folder(root) == ["a.txt", "b.txt", "sub"]
    assert find_files(root) == ["a.txt", "b.txt", "sub/c.txt"]
    assert list_folder(join(root, "none")) == []
    assert find_files(join(root, "none")) == []


def test_files_and_folders_are_moved_and_removed(root: str):
    write_bytes(join(root, "a/x.txt"), b"1")
    move(join(root, "a"), join(root, "b"))
    assert find_files(root) == ["b/x.txt"]
    move(join(root, "b/x.txt"), join(root, "b/y.txt"))
    remove(join(root, "b"))
    assert find_files(root) == []
    remove(join(root, "b"))  # nothing there is fine


def test_a_folder_that_another_still_writes_to_is_removed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "staged"
    write_bytes(str(place / "a.txt"), b"1")
    take_away, late = os.rmdir, ["b.txt", "c.txt"]

    def with_a_late_writer(*asked: Any, **more: Any) -> None:
        if late:
            (place / late.pop()).write_bytes(b"2")
        take_away(*asked, **more)

    monkeypatch.setattr(os, "rmdir", with_a_late_writer)
    remove(str(place))
    assert (late, place.exists()) == ([], False)


def test_what_another_has_just_removed_from_a_store_is_no_fault(monkeypatch: pytest.MonkeyPatch):
    root = f"memory://test-{uuid.uuid4().hex}"
    for name in ("a/x.txt", "a/y.txt", "b/z.txt"):
        write_bytes(join(root, name), b"1")
    store = type(filesystem(root)[0])
    take_away, others = store.rm_file, ["x.txt"]

    def with_another_remover(self: Any, path: str) -> None:
        if others and path.endswith(others[0]):
            others.clear()
            take_away(self, path)
        take_away(self, path)

    def refusing(self: Any, path: str) -> None:
        raise PermissionError(path)

    with pytest.raises(FileNotFoundError) as gone:  # what makes this a case of its own
        filesystem(root)[0].rm(filesystem(join(root, "none.txt"))[1])
    assert gone.value.errno is None
    monkeypatch.setattr(store, "rm_file", with_another_remover)
    remove(join(root, "a"))
    assert (others, find_files(root)) == ([], ["b/z.txt"])
    monkeypatch.setattr(store, "rm_file", refusing)
    with pytest.raises(PermissionError):
        remove(join(root, "b"))


def test_file_at_the_root_of_a_store_makes_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_bytes("memory://lonely.txt", b"1")
    assert read_bytes("memory://lonely.txt") == b"1"
    assert os.listdir(tmp_path) == []


def test_home_folder_is_understood_by_every_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_bytes("~/a/x.txt", b"1")
    assert (tmp_path / "a/x.txt").read_bytes() == b"1"
    assert read_bytes("~/a/x.txt") == b"1"
    assert exists("~/a/x.txt")


def test_interrupted_write_leaves_the_old_content_and_no_rest(root: str):
    write_bytes(join(root, "x.txt"), b"old")
    last = (paths, "move") if is_local(root) else (type(filesystem(root)[0]), "pipe_file")
    with mock.patch.object(*last, side_effect=StopError), pytest.raises(StopError):
        write_bytes(join(root, "x.txt"), b"new")
    assert read_bytes(join(root, "x.txt")) == b"old"
    assert list_folder(root) == ["x.txt"]


def test_full_disk_leaves_the_old_content_and_no_rest(tmp_path: Path):
    write_bytes(str(tmp_path / "x.txt"), b"old")
    with (
        mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space left"),
    ):
        write_bytes(str(tmp_path / "x.txt"), b"new")
    assert os.listdir(tmp_path) == ["x.txt"]
    assert (tmp_path / "x.txt").read_bytes() == b"old"


def test_staged_folder_appears_whole_and_replaces_the_old_one(root: str):
    target = join(root, "data/set")
    for name in ("old.txt", "new.txt"):
        with staged_folder(target) as staging:
            write_bytes(join(staging, "deep", name), b"1")
            in_place = not is_local(root)  # where the mark tells
            assert in_place or "deep" not in list_folder(target) or name == "new.txt"
        assert find_files(target) == [f"deep/{name}"]
    assert list_folder(join(root, "data")) == ["set"]


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_failed_staging_leaves_the_old_folder_and_no_rest(root: str, error: type[BaseException]):
    target = join(root, "data/set")
    stage(target, "old.txt")
    with pytest.raises(error):
        stage(target, "new.txt", error)
    assert find_files(root) == ["data/set/old.txt"]


def test_first_staging_that_fails_leaves_nothing(root: str):
    with pytest.raises(StopError):
        stage(join(root, "set"), "x.txt", StopError)
    assert find_files(root) == []


def test_old_folder_comes_back_when_the_replacing_itself_fails(tmp_path: Path):
    target = str(tmp_path / "set")
    stage(target, "old.txt")
    real = paths.move

    def fail_on_new(source: str, to: str) -> None:
        if to == target and "-old" not in source:
            raise StopError
        real(source, to)

    without_exchange = mock.patch.object(paths, "_exchange", return_value=False)
    failing = mock.patch.object(paths, "move", side_effect=fail_on_new)
    with without_exchange, failing, pytest.raises(StopError):
        stage(target, "new.txt")
    assert find_files(str(tmp_path)) == ["set/old.txt"]


def test_local_copy_is_the_file_itself_or_a_copy_that_vanishes(root: str):
    write_bytes(join(root, "x.bin"), b"12")
    with local_copy(join(root, "x.bin")) as path:
        assert Path(path).read_bytes() == b"12"
        assert Path(path).name == "x.bin"
    assert Path(path).exists() == is_local(root)


def test_remote_folder_is_copied_whole():
    root = f"memory://{uuid.uuid4().hex}/set"
    write_bytes(join(root, "a/x.bin"), b"1")
    with local_copy(root) as path:
        assert Path(path, "a/x.bin").read_bytes() == b"1"
    assert not Path(path).exists()


def test_arrow_reads_and_writes_the_same_place(root: str):
    make_folder(root)
    table = pa.table({"x": [1, 2]})
    fs, inner = arrow_filesystem(join(root, "t.parquet"))
    pq.write_table(table, inner, filesystem=fs)
    assert pq.read_table(inner, filesystem=fs).equals(table)
    assert list_folder(root) == ["t.parquet"]


def test_iopath_goes_through_the_same_door():
    root = f"memory://{uuid.uuid4().hex}"
    PATHS.mkdirs(root)
    with PATHS.open(f"{root}/a.txt", "w") as opened:
        file: Any = opened
        file.write("one")
    assert read_bytes(f"{root}/a.txt") == b"one"
    assert PATHS.ls(root) == ["a.txt"]
    assert PATHS.exists(f"{root}/a.txt")
    assert PATHS.isfile(f"{root}/a.txt")
    assert PATHS.isdir(root)
    assert Path(PATHS.get_local_path(f"{root}/a.txt")).read_text() == "one"
    PATHS.mv(f"{root}/a.txt", f"{root}/b.txt")
    PATHS.rm(f"{root}/b.txt")
    assert not PATHS.exists(f"{root}/b.txt")


def test_scheme_that_nothing_reads_is_a_config_error_with_its_remedy():
    with pytest.raises(ConfigError, match="no file system for 'foo://'"):
        filesystem("foo://x")


def test_s3_without_its_package_names_the_extra():
    missing = mock.patch.object(paths.fsspec.core, "url_to_fs", side_effect=ImportError("Install s3fs"))
    with missing, pytest.raises(ConfigError, match=r'pip install "trec-semid\[s3\]"'):
        filesystem("s3://bucket/x")


def test_helpers_go_through_the_path_manager(root: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def noting(name: str):
        real = getattr(PATHS, name)
        return lambda *words, **named: asked.append(name) or real(*words, **named)

    for name in ("open", "exists", "isdir", "ls", "mkdirs"):
        monkeypatch.setattr(PATHS, name, noting(name))
    write_bytes(f"{root}/deep/a", b"1")
    assert read_bytes(f"{root}/deep/a") == b"1"
    assert exists(f"{root}/deep/a")
    assert is_folder(f"{root}/deep")
    assert list_folder(f"{root}/deep") == ["a"]
    assert set(asked) == {"open", "exists", "isdir", "ls", "mkdirs"}


def test_files_that_belong_together_take_their_places_only_once_all_are_written(tmp_path: Path):
    write_files(str(tmp_path), {"a": b"old", "b": b"old"})
    real, calls = os.fsync, []

    def fail_on_second(number: int) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(number)

    with mock.patch.object(os, "fsync", fail_on_second), pytest.raises(OSError, match="No space"):
        write_files(str(tmp_path), {"a": b"new", "b": b"new"})
    assert {name: read_bytes(str(tmp_path / name)) for name in os.listdir(tmp_path)} == {
        "a": b"old",
        "b": b"old",
    }


@pytest.mark.parametrize("write", [write_bytes, lambda uri, content: stage(uri, "x")])
def test_what_another_process_removes_while_it_is_written_is_told_in_words(tmp_path: Path, write: Any):
    real = paths.move

    def removed_first(source: str, target: str) -> None:
        remove(source)
        real(source, target)

    gone = r"partial-\w{8}: removed while it was being written\. Is a second one at work"
    with mock.patch.object(paths, "move", removed_first), pytest.raises(DataError, match=gone):
        write(str(tmp_path / "a.json"), b"x")
    assert os.listdir(tmp_path) == []


def test_remote_listings_are_never_remembered():
    fs = fsspec.filesystem("s3", key="a", secret="b", skip_instance_cache=True)
    assert not fs.dircache.use_listings_cache
