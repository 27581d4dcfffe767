from pathlib import Path

import pytest
import torch

from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError
from trec_semid.runtime.ranks import Ranks
from trec_semid.sharding.topology import GIB, ClusterConfig, build_topology

CLUSTERS = sorted(str(path) for path in Path("configs/cluster").glob("*.toml"))


@pytest.mark.parametrize("file", CLUSTERS)
def test_every_cluster_file_makes_a_topology_of_its_size(file: str):
    cluster = load_config(ClusterConfig, [file])
    topology = build_topology(cluster)
    assert cluster.name == Path(file).stem
    assert len(topology.devices) == topology.world_size == cluster.num_nodes * cluster.devices_per_node
    assert topology.local_world_size == cluster.devices_per_node
    assert topology.compute_device == cluster.device


def test_cluster_files_reach_from_a_laptop_to_512_gpus():
    assert {load_config(ClusterConfig, [file]).world_size for file in CLUSTERS} >= {2, 8, 64, 512}


def test_the_reserve_is_taken_off_device_memory_and_off_the_ranks_share_of_host_memory():
    cluster = ClusterConfig(num_nodes=2, devices_per_node=4, hbm_gib=80, ddr_gib=400, storage_reserve=0.25)
    storage = build_topology(cluster).devices[5].storage
    assert (storage.hbm, storage.ddr) == (60 * GIB, 75 * GIB)


def test_a_cpu_cluster_has_no_device_memory():
    cluster = ClusterConfig(device="cpu", devices_per_node=2, hbm_gib=80, ddr_gib=16, storage_reserve=0.5)
    storage = build_topology(cluster).devices[1].storage
    assert (storage.hbm, storage.ddr) == (0, 4 * GIB)


def test_bandwidths_reach_the_planner_in_bytes_per_millisecond():
    cluster = ClusterConfig(
        devices_per_node=2, hbm_gib=80, ddr_gib=64, intra_node_gb_s=450, inter_node_gb_s=50, ddr_gb_s=100
    )
    topology = build_topology(cluster)
    assert topology.intra_host_bw == pytest.approx(450e9 / 1e3)
    assert topology.inter_host_bw == pytest.approx(50e9 / 1e3)
    assert topology.ddr_mem_bw == pytest.approx(50e9 / 1e3)


def test_the_running_group_is_described_from_its_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cluster = ClusterConfig.here(Ranks(3, 6, 1, torch.device("cpu")))
    assert (cluster.num_nodes, cluster.devices_per_node, cluster.device) == (3, 2, "cpu")
    assert cluster.ddr_gib > 0.5


@pytest.mark.parametrize(
    ("change", "text"),
    [("ddr_gib=0", "ddr_gib: Input should be greater than 0"), ("device=cuda", "needs hbm_gib")],
)
def test_a_cluster_without_memory_is_refused(change: str, text: str):
    with pytest.raises(ConfigError, match=text):
        load_config(ClusterConfig, ["configs/cluster/laptop_cpu.toml"], [change])
