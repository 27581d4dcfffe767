import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from trec_semid.runtime import ranks
from trec_semid.runtime.ranks import Ranks, barrier, broadcast_object, gather_objects, process_group

LENGTHS = (0, 900, *range(1000, 1030), 1 << 20)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def facts_of_rank() -> dict:
    facts: dict = {}
    for turn in range(2):  # jobs may follow each other in one process
        with process_group(patience_s=60) as me:
            facts[f"me {turn}"] = (me.rank, me.world_size, me.local_rank, me.is_main, me.device.type)
            total = torch.tensor([me.rank + 1.0])
            dist.all_reduce(total)
            facts[f"total {turn}"] = total.item()
            facts["gathered"] = gather_objects({"rank": me.rank})
            facts["told"] = broadcast_object(f"from {me.rank}")
            # Around what goes in one message, and of ranks of which only one has much to say.
            long = [me.rank * bytes(size) for size in LENGTHS]
            facts["long gathered"] = [[len(each) for each in gather_objects(content)] for content in long]
            facts["long told"] = [broadcast_object(bytes([1 - me.rank]) * size).count(1) for size in LENGTHS]
            with process_group() as inner:
                facts["inner"] = inner == me
            facts["still there"] = dist.is_initialized()
            barrier()
        facts[f"gone {turn}"] = not dist.is_initialized()
    return facts


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return run_ranks(facts_of_rank, 2)


@pytest.mark.ranks
def test_processes_of_torchrun_find_each_other_again_and_again(two_ranks: list[dict]):
    for turn in range(2):
        assert [facts[f"me {turn}"] for facts in two_ranks] == [
            (0, 2, 0, True, "cpu"),
            (1, 2, 1, False, "cpu"),
        ]
        assert all(facts[f"total {turn}"] == 3.0 for facts in two_ranks)
        assert all(facts[f"gone {turn}"] for facts in two_ranks)


@pytest.mark.ranks
def test_objects_are_gathered_in_rank_order_and_told_by_rank_0(two_ranks: list[dict]):
    for facts in two_ranks:
        assert facts["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert facts["told"] == "from 0"
        assert facts["long gathered"] == [[0, size] for size in LENGTHS]
        assert facts["long told"] == [*LENGTHS]


@pytest.mark.ranks
def test_group_inside_a_group_is_the_same_and_does_not_end_it(two_ranks: list[dict]):
    assert all(facts["inner"] and facts["still there"] for facts in two_ranks)


def test_single_process_is_a_group_of_one():
    for _ in range(2):
        with process_group() as me:
            assert me == Ranks(0, 1, 0, torch.device("cpu"))
            assert dist.get_world_size() == 1
            assert gather_objects(5) == [5]
            barrier()
        assert not dist.is_initialized()


def test_without_a_group_objects_stay_here():
    assert gather_objects("x") == ["x"]
    assert broadcast_object("x") == "x"
    barrier()


def test_group_is_ended_when_its_job_fails():
    with pytest.raises(ValueError, match="broke"), process_group():
        raise ValueError("broke")
    assert not dist.is_initialized()


def test_address_of_a_scheduler_without_a_rank_is_no_launch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "node-7")
    with process_group() as me:
        assert me.world_size == 1


@pytest.mark.parametrize(("gpus", "backend"), [(2, "cpu:gloo,cuda:nccl"), (1, "gloo"), (0, "gloo")])
def test_every_rank_of_a_node_chooses_the_same_backend(gpus: int, backend: str):
    chosen = []
    for local_rank in (0, 1):
        torchrun = {
            "RANK": str(local_rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": "2",
        }
        with (
            mock.patch.dict(os.environ, torchrun),
            mock.patch.object(ranks.torch.cuda, "is_available", return_value=gpus > 0),
            mock.patch.object(ranks.torch.cuda, "device_count", return_value=gpus),
            mock.patch.object(ranks.torch.cuda, "set_device"),
            mock.patch.object(ranks.dist, "init_process_group") as init,
            mock.patch.object(ranks.dist, "destroy_process_group"),
            process_group(),
        ):
            chosen.append(init.call_args.args[0])
    assert chosen == [backend, backend]
