import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tests.ranks import run_ranks
from trec_semid.runtime.ranks import gather_objects, process_group


def sum_over_ranks(start: int) -> tuple[int, int, list[int], str]:
    with process_group() as ranks:
        total = torch.tensor(start + ranks.rank)
        dist.all_reduce(total)
        return ranks.rank, int(total), gather_objects(ranks.local_rank), os.environ["OMP_NUM_THREADS"]


def environment_of_rank(name: str) -> tuple[bool, str]:
    return "torchrec" in sys.modules, os.environ[name]


def fail_on_last_rank() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("the last rank fell over")


@pytest.mark.ranks
def test_every_rank_returns_its_value_in_rank_order():
    assert run_ranks(sum_over_ranks, 2, 10) == [(0, 21, [0, 1], "1"), (1, 21, [0, 1], "1")]


@pytest.mark.ranks
def test_a_rank_that_fails_shows_its_own_traceback():
    with pytest.raises(ChildFailedError, match="the last rank fell over"):
        run_ranks(fail_on_last_rank, 2)


@pytest.mark.ranks
def test_ranks_import_nothing_again_and_see_the_environment_of_their_launch(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("OF_THIS_LAUNCH", value)
        assert run_ranks(environment_of_rank, 1, "OF_THIS_LAUNCH") == [(True, value)]
