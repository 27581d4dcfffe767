import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.training import assert_same, save_checkpoint, small
from trec_semid.checkpoints.folder import (
    MARKER,
    best_step,
    complete_steps,
    latest_step,
    read_facts,
    step_fault,
    step_folder,
)
from trec_semid.checkpoints.load import load_checkpoint, read_tensors
from trec_semid.checkpoints.tensors import named_tensors
from trec_semid.core.errors import CheckpointError
from trec_semid.runtime.fingerprints import fingerprint, signed_json

FILES = [MARKER, "loop.json", "semantic_ids.parquet", "tensors/.metadata", "tensors/__0_0.distcp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("damage"))
    for step in (1, 2):
        save_checkpoint(place, step, small(steps=step), extra_files={"semantic_ids.parquet": b"codes" * 40})
    return place


def test_a_marker_lists_every_file_with_what_an_independent_look_says_of_it(folder):
    step = Path(folder, "step-2")
    there = {str(path.relative_to(step)) for path in step.rglob("*") if path.is_file()}
    assert there == set(FILES)
    files = read_facts(folder, 2).files
    assert files == {name: fingerprint(str(step / name)) for name in there - {MARKER}}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_any_damage_to_any_file_of_a_step_is_named_and_nothing_of_it_is_loaded(folder, data):
    name = data.draw(st.sampled_from(FILES), "file")
    path = Path(folder, "step-2", name)
    content = path.read_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "delete"]), "how")
    if how == "flip":
        at, mask = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
        path.write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
    elif how == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif how == "grow":
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
    else:
        path.unlink()
    fresh = small(seed=9)
    before = {key: tensor.clone() for key, tensor in named_tensors(fresh).items()}
    try:
        if (name, how) == (MARKER, "delete"):
            assert latest_step(folder) == 1  # the step is as if it had never been saved
            return
        assert f"step-2/{name}" in str(step_fault(folder, 2))
        with pytest.raises(CheckpointError, match=f"step-2/{name}"):
            load_checkpoint(folder, fresh)
        with pytest.raises(CheckpointError, match=f"step-2/{name}"):
            read_tensors(folder, 2, "model/")
        assert all(torch.equal(before[key], tensor) for key, tensor in named_tensors(fresh).items())
        load_checkpoint(folder, fresh, step=1)
        assert_same(fresh, small(steps=1))
    finally:
        path.write_bytes(content)
        assert step_fault(folder, 2) is None


def test_a_pickle_that_is_not_ours_is_never_opened(tmp_path, monkeypatch):
    place = str(tmp_path / "c")
    save_checkpoint(place, 1, small())
    # Run while it is unpickled, were it: the file's checksum comes first.
    Path(place, "step-1/tensors/.metadata").write_bytes(b"cbuiltins\nexec\n(S'raise SystemExit(7)'\ntR.")
    with pytest.raises(CheckpointError, match=r"\.metadata: damaged"):
        load_checkpoint(place, small())


def test_metadata_that_cannot_be_read_though_it_is_what_was_written_is_a_checkpoint_error(tmp_path):
    place = str(tmp_path / "c")
    save_checkpoint(place, 1, small())
    path, facts = Path(place, "step-1/tensors/.metadata"), read_facts(place, 1)
    path.write_bytes(b"cno_such_module\nName\n.")
    files = {**facts.files, "tensors/.metadata": fingerprint(str(path))}
    signed = facts.model_copy(update={"files": files})
    Path(place, "step-1", MARKER).write_bytes(signed_json(signed.model_dump()))
    for load in (lambda: load_checkpoint(place, small()), lambda: read_tensors(place, 1, "model/")):
        with pytest.raises(CheckpointError, match="step-1/tensors: not readable: No module named"):
            load()


def test_a_tensor_file_that_torch_cannot_read_is_a_checkpoint_error(tmp_path):
    place = str(tmp_path / "c")
    save_checkpoint(place, 1, small())
    path, facts = Path(place, "step-1/tensors/__0_0.distcp"), read_facts(place, 1)
    path.write_bytes(b"\0" * 9000)
    files = {**facts.files, "tensors/__0_0.distcp": fingerprint(str(path))}
    signed = facts.model_copy(update={"files": files})
    Path(place, "step-1", MARKER).write_bytes(signed_json(signed.model_dump()))
    for load in (lambda: load_checkpoint(place, small()), lambda: read_tensors(place, 1, "model/")):
        with pytest.raises(CheckpointError, match="step-1/tensors: cannot load"):
            load()


def test_a_checkpoint_of_another_version_is_refused_by_that_name(tmp_path):
    place = str(tmp_path / "c")
    save_checkpoint(place, 1, small())
    old = {**read_facts(place, 1).model_dump(), "schema_version": 1}
    Path(place, "step-1", MARKER).write_bytes(signed_json(old))
    with pytest.raises(CheckpointError, match="saved by another version of trec_semid"):
        load_checkpoint(place, small())


def test_a_best_step_is_never_silently_another_one(tmp_path):
    place = str(tmp_path / "c")
    for step in (1, 2, 3):
        save_checkpoint(place, step, small(), is_best=step < 3)
    assert best_step(place) == 2
    Path(step_folder(place, 2), MARKER).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"step-2/checkpoint\.json"):
        best_step(place)
    shutil.rmtree(Path(place, "step-2"))
    assert best_step(place) is None
    assert complete_steps(place) == [3]
