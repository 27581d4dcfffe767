import os
from pathlib import Path

import pytest

from trec_semid.runtime.memory import free_memory_bytes, total_memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("line", "own", "above", "limits"),
    [
        # Version 2 in a container that sees its group as the root, and below a slice with a smaller limit.
        ("0::/", "", "", ("memory__max", "memory__current")),
        ("0::/slice/job", "slice/job", "slice", ("memory__max", "memory__current")),
        # Version 1; a container whose own path is the host's finds its group at the mount itself.
        ("9:memory:/job", "memory/job", "memory", ("memory__limit_in_bytes", "memory__usage_in_bytes")),
        ("4:cpu,memory:/host/12ab", "memory", "memory", ("memory__limit_in_bytes", "memory__usage_in_bytes")),
    ],
)
def test_the_smallest_limit_of_the_group_and_those_above_counts(
    line: str, own: str, above: str, limits: tuple[str, str], tmp_path: Path
):
    groups, said = tmp_path / "groups", tmp_path / "own"
    said.write_text(f"7:pids:/other\n{line}\n")
    limit, used = limits
    write(groups / own, **{limit: 3_000_000, used: 1_000_000})
    if above != own:
        write(groups / above, **{limit: 2_000_000, used: 1_900_000})
        assert (total_memory_bytes(groups, said), free_memory_bytes(groups, said)) == (2_000_000, 100_000)
    else:
        assert (total_memory_bytes(groups, said), free_memory_bytes(groups, said)) == (3_000_000, 2_000_000)


@pytest.mark.parametrize(
    ("line", "folder", "files", "key"),
    [
        ("0::/", "", ("memory__max", "memory__current"), "inactive_file"),
        ("9:memory:/", "memory", ("memory__limit_in_bytes", "memory__usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_files_that_were_read_leave_when_room_is_needed(
    line: str, folder: str, files: tuple[str, str], key: str, tmp_path: Path
):
    groups, said = tmp_path / "groups", tmp_path / "own"
    said.write_text(f"{line}\n")
    write(groups / folder, **{files[0]: 3_000_000, files[1]: 2_990_000})
    (groups / folder / "memory.stat").write_text(f"anon 5\ninactive_anon 7\n{key} 2_000\n{key} 2000000\n")
    assert (total_memory_bytes(groups, said), free_memory_bytes(groups, said)) == (3_000_000, 2_010_000)


def test_without_a_limit_the_machine_counts(tmp_path: Path):
    groups, said = tmp_path / "groups", tmp_path / "own"
    assert total_memory_bytes(groups, said) == MACHINE  # no such files
    said.write_text("0::/job\n")
    write(groups / "job", memory__max="max", memory__current=1_000)
    assert total_memory_bytes(groups, said) == MACHINE
    assert 0 < free_memory_bytes(groups, said) <= MACHINE
