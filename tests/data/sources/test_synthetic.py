import shutil
from pathlib import Path

import pytest

from trec_semid.core.errors import DataError, LockError
from trec_semid.core.paths import exists, list_folder, make_folder, parent_of, unfinished_note, write_bytes
from trec_semid.data.sources.source import Needs
from trec_semid.data.sources.synthetic import read_synthetic
from trec_semid.data.synthetic.world import SyntheticConfig
from trec_semid.runtime.locks import FolderLock, new_owner


def draw(folder: str, **changes: int) -> int:
    """Draw a small world into a folder, or take the one that is there; return its number of events."""
    sizes = {"num_events": 300, "num_users": 20, "num_items": 30, **changes}
    world = SyntheticConfig.model_validate({"folder": folder, **sizes})
    return len(read_synthetic(world, Needs([], [])).events.users)


@pytest.mark.parametrize("place", ["disk", "store"])
def test_what_a_killed_process_left_of_a_world_is_removed_and_the_world_is_drawn(tmp_path: Path, place: str):
    folder = str(tmp_path / "raw") if place == "disk" else f"memory://{tmp_path.name}/raw"
    make_folder(parent_of(folder))
    if place == "disk":
        write_bytes(f"{folder}.partial-0123abcd/text.npy", b"half")
    else:  # stores cannot rename: the folder itself is half there
        write_bytes(unfinished_note(folder), b"truth.json")
        write_bytes(f"{folder}/text.npy", b"half")
    assert draw(folder) == 300
    assert list_folder(parent_of(folder)) == ["raw"]
    assert exists(f"{folder}/truth.json")


def test_a_world_is_drawn_by_one_process_and_read_by_many(tmp_path: Path):
    folder = str(tmp_path / "raw")
    other = FolderLock(folder, new_owner("prepare"))
    other.take()
    try:
        with pytest.raises(LockError, match="another process works here"):
            draw(folder)
        assert not exists(folder)
        draw(str(tmp_path / "drawn"))
        shutil.move(tmp_path / "drawn", folder)
        assert draw(folder) == 300
        with pytest.raises(LockError):
            draw(folder, num_events=400)
    finally:
        other.release()


def test_somebody_elses_folder_stays_as_it_is(tmp_path: Path):
    write_bytes(str(tmp_path / "raw/notes.txt"), b"mine")
    with pytest.raises(DataError, match="something else than a planted world"):
        draw(str(tmp_path / "raw"))
    assert list_folder(str(tmp_path)) == ["raw"]
    assert list_folder(str(tmp_path / "raw")) == ["notes.txt"]


def test_another_world_takes_the_place_of_a_world_but_not_of_what_lies_beside_it(tmp_path: Path):
    folder = str(tmp_path / "raw")
    assert draw(folder) == 300
    assert draw(folder, num_events=400) == 400
    write_bytes(f"{folder}/metrics.json", b"{}")
    assert draw(folder, num_events=400) == 400
    with pytest.raises(DataError, match=r"more than a planted world \('metrics.json'\), which would be lost"):
        draw(folder)
    assert exists(f"{folder}/metrics.json")
    assert draw(folder, num_events=400) == 400
