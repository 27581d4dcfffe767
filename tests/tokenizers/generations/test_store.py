"""Two writers at once, damage, and places that name a generation."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers.generations.stores import append, retrain, tuples_of
from trec_semid.core.errors import DataError, LockError
from trec_semid.core.paths import exists, find_files, read_bytes, write_bytes
from trec_semid.runtime.owners import check_owner
from trec_semid.tokenizers.generations import create as creating
from trec_semid.tokenizers.generations import publish as publishing
from trec_semid.tokenizers.generations.collect import collect, plan_collection
from trec_semid.tokenizers.generations.create import create_bytes
from trec_semid.tokenizers.generations.publish import roll_back
from trec_semid.tokenizers.generations.store import Entry, Store, open_or_create, open_store, resolve
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of two generations."""
    monkeypatch.setattr(publishing, "code_commit", lambda: "none")
    uri = str(tmp_path / "store")
    retrain(uri, {"hat": (0,), "shoe": (2,)}, (3,), 4)
    append(uri, {"cap": (0,)})
    return uri


@pytest.mark.parametrize("root", ["disk", "memory"])
def test_a_file_is_created_once(root: str, tmp_path: Path):
    place = f"{tmp_path}/deep" if root == "disk" else f"memory://{tmp_path.name}/deep"
    write_bytes(f"{place}/beside", b"")
    create_bytes(f"{place}/one", b"first")
    with pytest.raises(FileExistsError, match="is there already"):
        create_bytes(f"{place}/one", b"second")
    create_bytes(f"{place}/one", b"first")  # as where the answer to the first request was lost
    assert read_bytes(f"{place}/one") == b"first"
    assert find_files(place) == ["beside", "one"]


def test_a_disk_without_hard_links_renames_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(creating.os, "link", no_links)
    create_bytes(f"{tmp_path}/one", b"first")
    with pytest.raises(FileExistsError, match="is there already"):
        create_bytes(f"{tmp_path}/one", b"second")
    assert read_bytes(f"{tmp_path}/one") == b"first"
    monkeypatch.setattr(creating, "_rename", lambda *_: errno.EINVAL)
    with pytest.raises(DataError, match=r"no hard links.* Put the store on a Linux disk"):
        open_or_create(f"{tmp_path}/store")
    assert find_files(str(tmp_path)) == ["one"]
    assert not (tmp_path / "store").exists()


def test_of_two_that_publish_at_once_one_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch):
    """The second slips past the lock, between the first one's number and its last file."""
    write, raced = publishing.save_items, []

    def save(*args: Any) -> None:
        write(*args)
        if not raced:
            raced.append(True)
            raced.append(append(uri, {"beret": (1,)}).number)

    monkeypatch.setattr(publishing, "save_items", save)
    with pytest.raises(LockError, match=r"another process was faster \(publish of generation 4, .*run again"):
        append(uri, {"boot": (1,)})
    store = open_store(uri)
    assert (raced[1], store.newest().current, store.folders()) == (4, 4, [1, 2, 4])
    assert "boot" not in tuples_of(uri, 4)[0]
    assert append(uri, {"boot": (1,)}).number == 5
    seen = store.newest()
    roll_back(store, seen, 1)
    with pytest.raises(LockError, match="rollback of generation 1"):
        roll_back(store, seen, 2)
    plan = plan_collection(store)
    roll_back(store, store.newest(), 2)
    with pytest.raises(LockError, match="rollback of generation 2"):
        collect(store, plan)
    assert store.folders() == [1, 2, 4, 5]


def test_an_interrupt_right_after_the_last_file_undoes_nothing(uri: str, monkeypatch: pytest.MonkeyPatch):
    advance = Store.advance

    def interrupted(self: Store, before: Entry, action: Any, number: int, **changes: Any) -> Entry:
        entry = advance(self, before, action, number, **changes)
        if action == "publish":
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(Store, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append(uri, {"boot": (1,)})
    assert open_store(uri).current().number == 3
    assert tuples_of(uri, 3)[0]["boot"] == (1, 0)


def test_places_name_generations(uri: str):
    folders = [f"{uri}/generation-{number}" for number in (1, 2)]
    assert [resolve(place) for place in (f"{uri}@1", uri, f"{uri}/", *folders)] == [
        folders[0],
        folders[1],
        folders[1],
        *folders,
    ]
    assert SemanticIds.load(semantic_ids_file(f"{uri}@1")).item_ids.to_pylist() == ["hat", "shoe"]
    assert resolve("runs/a@b") == "runs/a@b"
    with pytest.raises(DataError, match=r"no such generation \(not that many\) \(got 7\)\. There are: 1, 2"):
        resolve(f"{uri}@7")
    with pytest.raises(DataError, match=r"no store of semantic IDs here"):
        resolve("runs/a@7")
    store = open_store(uri)
    collect(store, plan_collection(store))
    for place in (f"{uri}@1", folders[0]):
        with pytest.raises(DataError, match=r"it was collected, or never published\) \(got 1\)"):
            resolve(place)
    with pytest.raises(DataError, match="lies inside a store of semantic IDs"):
        check_owner(f"{uri}/runs/a", "rank")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("store.json", "damaged"),
        ("history/entry-00000004.json", "damaged: .*Remove this entry"),
        ("generation-2/generation.json", "damaged: .*rollback STORE NUMBER"),
        ("generation-2/semantic_ids.parquet", "damaged: .*sha256"),
        ("generation-2/codes.json", "damaged"),
    ],
)
def test_damage_is_named_and_nothing_is_published_on_it(uri: str, name: str, told: str):
    content = bytearray(read_bytes(f"{uri}/{name}"))
    content[len(content) // 2] ^= 1
    write_bytes(f"{uri}/{name}", bytes(content))
    files = find_files(uri)
    with pytest.raises(DataError, match=told) as error:
        append(uri, {"boot": (1,)})
    assert name.rpartition("/")[2] in str(error.value)
    assert find_files(uri) == files
    assert not exists(f"{uri}/generation-3")
