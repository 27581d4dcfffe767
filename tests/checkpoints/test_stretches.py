"""Rows of a table that one process saved are read alone, however large the piece they lie in."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from trec_semid.checkpoints import stretches
from trec_semid.checkpoints.storage import alone_without_warning
from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.paths import filesystem, find_files, join, read_bytes, write_bytes


def test_each_number_of_a_piece_is_read_once_and_nothing_of_other_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table, other = torch.randn(3000, 16), torch.randn(9000, 16).half()
    with alone_without_warning():
        save({"table": table, "other": other, "one": torch.tensor(3.0)}, checkpoint_id=tmp_path)
    num_read, opened = [0], stretches.open_file

    def counted(uri: str) -> Any:
        file: Any = opened(uri)
        read_into = file.readinto

        class Counting:
            def __enter__(self) -> "Counting":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def readinto(self, into: Any) -> int:
                size = read_into(into)
                num_read[0] += size
                return size

        return Counting()

    saved = SavedTensors.of_tensors(str(tmp_path), "")
    assert torch.equal(saved.whole("other"), other)
    assert float(saved.whole("one")) == 3.0
    saved.rows("table", 0, 1000)  # where the piece lies is looked up once
    monkeypatch.setattr(stretches, "open_file", counted)
    parts = [saved.rows("table", first, min(first + 700, 3000)) for first in range(0, 3000, 700)]
    assert torch.equal(torch.cat(parts), table)
    assert [len(part) for part in parts] == [700] * 4 + [200]
    assert num_read[0] == table.numel() * 4
    monkeypatch.setattr(stretches, "_NEAR_BYTES", 10 * table[0].numel() * 4)
    asked = np.array([2999, 5, 5, 9, 0, 1500, 2980])
    num_read[0] = 0
    assert torch.equal(saved.some("table", asked), table[torch.from_numpy(asked)])
    # What lies between near rows is read as well: 0 to 9, 1500, and the last two each by itself.
    assert num_read[0] == (10 + 1 + 1 + 1) * table[0].numel() * 4
    monkeypatch.setattr(stretches, "_MOST_BYTES", 100 * table[0].numel() * 4)
    every = np.arange(3000)
    assert torch.equal(saved.some("table", every), table)
    assert tuple(saved.some("table", every[:0]).shape) == (0, *table.shape[1:])


@pytest.mark.parametrize("is_local", [True, False])
def test_rows_far_apart_take_one_opening_of_a_file_and_a_remote_one_is_fetched_once(
    tmp_path: Path, is_local: bool, monkeypatch: pytest.MonkeyPatch
):
    table = torch.randn(20_000, 16)
    with alone_without_warning():
        save({"table": table}, checkpoint_id=tmp_path)
    at = str(tmp_path) if is_local else f"memory://test-{uuid.uuid4().hex}"
    if not is_local:
        for name in find_files(str(tmp_path)):
            write_bytes(join(at, name), read_bytes(str(tmp_path / name)))
    saved = SavedTensors.of_tensors(at, "")
    assert torch.equal(saved.rows("table", 7, 9), table[7:9])  # where the piece lies is looked up once
    opened: list[str] = []
    fetched: list[str] = []
    store, really, fetch = filesystem(at)[0], stretches.open_file, filesystem(at)[0].get

    def opening(uri: str) -> Any:
        opened.append(uri)
        return really(uri)

    def getting(source: str, target: str, **more: Any) -> None:
        fetched.append(target)
        fetch(source, target, **more)

    monkeypatch.setattr(stretches, "open_file", opening)
    monkeypatch.setattr(store, "get", getting)
    monkeypatch.setattr(stretches, "_NEAR_BYTES", 1)
    asked = np.random.default_rng(0).permutation(20_000)[:2000]
    for turn in (1, 2):
        assert torch.equal(saved.some("table", asked), table[torch.from_numpy(asked)])
        assert len(opened) == turn
    assert [Path(each).parent == tmp_path for each in opened] == [is_local] * 2
    assert len(fetched) == (0 if is_local else 1)
    del saved
    assert [Path(each).exists() for each in opened] == [is_local] * 2
