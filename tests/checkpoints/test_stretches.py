"""Rows of a table that one process saved are read alone, however large the piece they lie in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from trec_semid.checkpoints import stretches
from trec_semid.checkpoints.storage import alone_without_warning
from trec_semid.checkpoints.stretches import SavedTensors


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
