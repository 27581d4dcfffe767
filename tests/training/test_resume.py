import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.training import small
from trec_semid.checkpoints.folder import complete_steps
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.core.errors import CheckpointError
from trec_semid.runtime.logs import RunLog, read_events
from trec_semid.runtime.ranks import Ranks
from trec_semid.training.config import CheckpointsConfig
from trec_semid.training.resume import Start, find_start, newest_loop

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
# Step 4 was the best when 4 and 6 were saved, step 8 when 8 and 10 were.
BEST = {2: 2, 4: 4, 6: 4, 8: 8, 10: 8}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    writer = CheckpointWriter(str(tmp_path / "checkpoints"), keep_last=3)
    for step, best in BEST.items():
        selection = {"metric": "auc", "best_step": best, "best_value": best / 100, "num_waited": 0}
        loop = {"selection": selection, "went_back_to": None, "step": step}
        writer.save(step, small(), loop=loop, is_best=best == step)
    assert complete_steps(writer.folder) == [4, 6, 8, 10]
    return writer.folder


def start(folder: str, resume_from: int | None = None, **saving: Any) -> Start | None:
    log = RunLog(str(Path(folder).parent))
    try:
        return find_start(folder, resume_from, CheckpointsConfig(**saving), ALONE, log)
    finally:
        log.close()


def damage(folder: str, step: int) -> None:
    path = Path(folder, f"step-{step}/tensors/__0_0.distcp")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_every_step_that_is_left_has_its_own_best_one(folder):
    for step in (10, 8, 6):
        begun = start(folder)
        assert begun
        assert (begun.step, begun.has_best) == (step, True)
        damage(folder, step)


def test_nothing_to_go_on_from_is_a_beginning(tmp_path):
    assert start(str(tmp_path / "none")) is None
    assert newest_loop(str(tmp_path / "none")) is None


def test_a_lost_best_step_offers_the_steps_that_still_have_theirs(folder):
    shutil.rmtree(Path(folder, "step-8"))
    with pytest.raises(CheckpointError) as error:
        start(folder)
    text = str(error.value)
    assert re.search(
        r"step-10: the best step so far, 8 \(auc 0\.0800\), is lost: .*no complete checkpoint", text
    )
    assert "checkpoints.lost_best=reselect goes on from step 10" in text
    assert re.findall(r"resume_from=(\d+)", text) == ["4", "6"]
    for step in (4, 6):
        begun = start(folder, step)
        assert begun
        assert (begun.step, begun.has_best, begun.went_back_to) == (step, True, step)
    anew = start(folder, lost_best="reselect")
    assert anew
    assert (anew.step, anew.has_best) == (10, False)


def test_only_ways_that_work_are_offered(folder):
    damage(folder, 8)
    damage(folder, 4)
    with pytest.raises(CheckpointError) as error:
        start(folder)
    assert "resume_from" not in str(error.value)


def test_damage_is_in_the_log_and_the_loop_of_the_next_one_can_be_read(folder):
    Path(folder, "step-10/loop.json").write_text("{}")
    assert start(folder) is not None
    events = read_events(str(Path(folder).parent / "log.jsonl"))
    assert [(event["event"], event["step"]) for event in events] == [("damaged", 10), ("damaged", 8)]
    newest = newest_loop(folder)
    assert newest
    assert newest[0] == 8


def test_a_loop_that_can_be_read_of_no_step_is_an_error(folder):
    for step in complete_steps(folder):
        Path(folder, f"step-{step}/loop.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used(.*\n.*loop\.json){4}"):
        newest_loop(folder)
