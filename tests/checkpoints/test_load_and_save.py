import errno
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoints.training import assert_same, save_checkpoint, small
from tests.ranks import fork_server
from trec_semid.checkpoints import folder as checkpoint_folder
from trec_semid.checkpoints import save as save_module
from trec_semid.checkpoints.folder import (
    best_step,
    complete_steps,
    latest_step,
    read_file,
    read_files,
    step_fault,
    sweep_steps,
)
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable, named_tensors
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import exists, find_files, join, list_folder, write_bytes
from trec_semid.runtime.ranks import process_group


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "checkpoints")


@pytest.mark.parametrize("scheme", ["path", "file://", "memory://"])
def test_a_trained_model_comes_back_with_its_optimizer(scheme: str, folder: str):
    where = {"path": folder, "file://": f"file://{folder}", "memory://": f"memory://{uuid.uuid4().hex}"}[
        scheme
    ]
    saved = small(steps=3)
    save_checkpoint(where, 3, saved, loop={"epoch": 2})
    fresh = small(seed=1)
    loaded = load_checkpoint(where, fresh)
    assert (loaded.step, loaded.loop) == (3, {"epoch": 2})
    assert_same(saved, fresh)


def test_a_checkpoint_of_before_the_first_step_loads_and_leaves_the_optimizer_fresh(folder: str):
    saved, fresh = small(), small(seed=1)
    save_checkpoint(folder, 0, saved, loop={})
    load_checkpoint(folder, fresh)
    assert_same(saved, fresh)
    assert not fresh.optimizers["dense"].state


def test_the_learning_rate_of_the_moment_comes_back(folder: str):
    saved, fresh = small(steps=1), small()
    saved.optimizers["dense"].param_groups[0]["lr"] = 0.0123
    save_checkpoint(folder, 1, saved, loop={})
    load_checkpoint(folder, fresh)
    assert fresh.optimizers["dense"].param_groups[0]["lr"] == 0.0123


def test_random_numbers_go_on_where_they_were(folder: str):
    trainable = small()
    torch.manual_seed(8)
    save_checkpoint(folder, 1, trainable, loop={})
    wanted = torch.rand(4)
    load_checkpoint(folder, trainable)
    torch.testing.assert_close(torch.rand(4), wanted, rtol=0, atol=0)


def test_the_model_loads_without_its_optimizer(folder: str):
    saved, fresh = small(steps=2), small(seed=1)
    save_checkpoint(folder, 2, saved, loop={})
    load_checkpoint(folder, Trainable(fresh.model))
    assert_same(Trainable(saved.model), Trainable(fresh.model))


def test_extra_files_are_saved_with_the_step_and_checked(folder: str):
    save_checkpoint(folder, 1, small(), loop={}, extra_files={"semantic_ids.parquet": b"codes"})
    assert read_file(folder, 1, "semantic_ids.parquet") == b"codes"
    Path(folder, "step-1", "semantic_ids.parquet").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"semantic_ids\.parquet: not the file that was saved"):
        read_file(folder, 1, "semantic_ids.parquet")
    with pytest.raises(CheckpointError, match=r"no such file\. It has: loop\.json, semantic_ids\.parquet"):
        read_file(folder, 1, "plan.json")


def test_all_small_files_of_a_step_are_read_with_one_look_for_its_folder(folder: str, monkeypatch):
    files = {f"tokenizer/{number}": b"%d" % number for number in range(5)}
    for step in (1, 2, 3):
        save_checkpoint(folder, step, small(), loop={}, extra_files=files)
    listings: list[str] = []
    asked: list[str] = []
    monkeypatch.setattr(checkpoint_folder, "list_folder", lambda at: listings.append(at) or list_folder(at))
    monkeypatch.setattr(checkpoint_folder, "exists", lambda at: asked.append(at) or exists(at))
    read = read_files(folder, 2)
    assert {name: content for name, content in read.items() if name != "loop.json"} == files
    assert listings == [folder]
    assert sorted(name.rpartition("step-2/")[2] for name in asked) == ["checkpoint.json", "loop.json", *files]
    Path(folder, "step-2", "tokenizer", "3").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="tokenizer/3: not the file that was saved"):
        read_files(folder, 2)


def test_the_last_steps_and_the_best_are_kept(folder: str):
    writer = CheckpointWriter(folder, keep_last=2)
    for step in range(1, 7):
        writer.save(step, small(), loop={}, is_best=step in (1, 3))
    assert complete_steps(folder) == [3, 5, 6]
    assert (latest_step(folder), best_step(folder)) == (6, 3)
    assert sorted(os.listdir(folder)) == ["step-3", "step-5", "step-6"]


def test_a_step_saved_again_is_replaced(folder: str):
    save_checkpoint(folder, 1, small(), loop={}, extra_files={"old": b""})
    again = small(steps=1, seed=3)
    save_checkpoint(folder, 1, again, loop={"epoch": 9})
    fresh = small()
    assert load_checkpoint(folder, fresh).loop == {"epoch": 9}
    assert_same(again, fresh)
    assert not Path(folder, "step-1", "old").exists()


def test_a_given_step_is_loaded(folder: str):
    first = small(steps=1)
    save_checkpoint(folder, 1, first, loop={})
    save_checkpoint(folder, 2, small(steps=2, seed=2), loop={})
    fresh = small()
    load_checkpoint(folder, fresh, step=1)
    assert_same(first, fresh)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 7\. There are: 1, 2"):
        load_checkpoint(folder, fresh, step=7)


def test_an_empty_folder_has_no_step_to_load(folder: str):
    assert latest_step(folder) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint here"):
        load_checkpoint(folder, small())


def test_another_model_is_refused_with_what_differs(folder: str):
    save_checkpoint(folder, 1, small(steps=1), loop={})
    wider = small(width=5)
    before = {name: tensor.clone() for name, tensor in named_tensors(wider).items()}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder, wider)
    text = str(error.value)
    assert "step-1/tensors: the checkpoint does not fit the model" in text
    assert "model/0.weight: got (4, 3), the model has (5, 3)" in text
    assert "config.toml" in text
    for name, tensor in before.items():
        torch.testing.assert_close(named_tensors(wider)[name], tensor, rtol=0, atol=0)


def test_missing_and_unexpected_tensors_are_told_apart(folder: str):
    save_checkpoint(folder, 1, Trainable(nn.Linear(2, 1)), loop={})
    other = nn.Module()
    other.weight, other.extra = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder, Trainable(other))
    assert "model/extra: in the model, not in the checkpoint" in str(error.value)
    assert "model/bias: in the checkpoint, not in the model" in str(error.value)
    assert "What another version of trec_semid saved is trained again." in str(error.value)


def test_a_file_cut_short_is_named(folder: str):
    save_checkpoint(folder, 1, small(), loop={})
    shard = next(Path(folder, "step-1", "tensors").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: damaged"):
        load_checkpoint(folder, small())
    shard.unlink()
    assert f"{shard.name}: this file is missing" in str(step_fault(folder, 1))


def test_a_failed_save_leaves_no_visible_step(folder: str, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(folder, 1, small(), loop={})

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, "commit_step", full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        save_checkpoint(folder, 2, small(), loop={})
    with process_group():
        background = CheckpointWriter(folder, in_background=True)
        background.save(3, small(), loop={})
        with pytest.raises(CheckpointError, match=r"in the background: .*the disk is full"):
            background.wait()
    assert complete_steps(folder) == [1]


def save_and_die(folder: str) -> None:
    save_checkpoint(folder, 1, small(steps=1), loop={})
    save_module.commit_step = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
    save_checkpoint(folder, 2, small(steps=2), loop={})


def test_a_process_killed_while_saving_leaves_the_step_before(folder: str):
    process = fork_server().Process(target=save_and_die, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert os.path.isdir(f"{folder}/step-2/tensors")
    assert latest_step(folder) == 1
    fresh = small(seed=5)
    assert load_checkpoint(folder, fresh).step == 1
    assert_same(small(steps=1), fresh)
    save_checkpoint(folder, 3, fresh, loop={})
    assert sorted(os.listdir(folder)) == ["step-1", "step-3"]


def test_steps_that_were_never_completed_are_swept_and_nothing_else(tmp_path):
    folder = str(tmp_path)
    for name in (
        "step-4/checkpoint.json",
        "step-4.1/loop.json",
        "step-6/loop.json",
        "step-x/loop.json",
        "notes",
    ):
        write_bytes(join(folder, name), b"{}")
    assert sweep_steps(folder) == [join(folder, "step-4.1"), join(folder, "step-6")]
    assert find_files(folder) == ["notes", "step-4/checkpoint.json", "step-x/loop.json"]
    assert sweep_steps(join(folder, "none")) == []
