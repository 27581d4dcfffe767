"""The hardware a plan is for: nodes, devices, memory, bandwidths; any cluster, without having it."""

import os
from typing import Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    Topology,
    TopologyFactory,
    TrainerConfig,
)

from trec_semid.core.config import Config
from trec_semid.runtime.memory import total_memory_bytes
from trec_semid.runtime.ranks import Ranks

GIB = 1024**3


class ClusterConfig(Config):
    """A cluster of equal nodes with equal devices; one rank runs per device.

    Bandwidths are what a data sheet says for one direction [GB/s, 10^9 bytes]. They decide between
    placements, not whether tables fit.
    """

    name: str = "cluster"
    num_nodes: PositiveInt = 1
    devices_per_node: PositiveInt = 1
    device: Literal["cpu", "cuda"] = "cuda"
    hbm_gib: float = Field(default=0.0, ge=0)
    """Device memory of one device [GiB]; 0 for device = "cpu"."""
    ddr_gib: PositiveFloat
    """Host memory of one node [GiB], shared by its ranks."""
    storage_reserve: float = Field(default=0.15, ge=0, lt=1)
    """Share of either memory reserved for dense parameters, activations and buffers."""
    intra_node_gb_s: PositiveFloat = 300.0
    """Device to device inside a node, per device [GB/s]."""
    inter_node_gb_s: PositiveFloat = 25.0
    """Device to device between nodes, per device [GB/s]."""
    hbm_gb_s: PositiveFloat = 2000.0
    """Memory bandwidth of one device [GB/s]."""
    ddr_gb_s: PositiveFloat = 100.0
    """Memory bandwidth of one node's host memory [GB/s], shared by its ranks."""
    host_link_gb_s: PositiveFloat = 32.0
    """Host memory to device, per device [GB/s]."""

    @model_validator(mode="after")
    def _devices_have_memory(self) -> Self:
        if self.device == "cuda" and self.hbm_gib == 0:
            raise ValueError('device "cuda" needs hbm_gib, the memory of one device')
        return self

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.num_nodes * self.devices_per_node

    @property
    def hbm_bytes(self) -> int:
        """Device memory a rank may fill with tables [bytes]."""
        return int(self.hbm_gib * GIB * (1 - self.storage_reserve)) if self.device == "cuda" else 0

    @property
    def ddr_bytes(self) -> int:
        """Host memory a rank may fill with tables [bytes]."""
        return int(self.ddr_gib / self.devices_per_node * GIB * (1 - self.storage_reserve))

    def less(self, hbm_bytes: int, ddr_bytes: int) -> "ClusterConfig":
        """Return the cluster as it is for tables that come beside others, of so many bytes on a rank."""
        # `hbm_bytes` and `ddr_bytes` take the reserve off what is set here, so it is divided out first.
        share = GIB * (1 - self.storage_reserve)
        left = {
            "hbm_gib": max(self.hbm_gib - hbm_bytes / share, 0.0),
            "ddr_gib": max(self.ddr_gib - ddr_bytes * self.devices_per_node / share, 1e-6),
        }
        return self.model_copy(update=left)

    @staticmethod
    def here(ranks: Ranks) -> "ClusterConfig":
        """Describe the machines under the running process group, taking each node to be like this one."""
        devices_per_node = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), ranks.world_size)
        is_gpu = ranks.device.type == "cuda"
        hbm_bytes = torch.cuda.get_device_properties(ranks.device).total_memory if is_gpu else 0
        return ClusterConfig(
            name="this machine",
            num_nodes=max(ranks.world_size // devices_per_node, 1),
            devices_per_node=devices_per_node,
            device="cuda" if is_gpu else "cpu",
            hbm_gib=round(hbm_bytes / GIB, 2),
            ddr_gib=round(total_memory_bytes() / GIB, 2),
        )


def build_topology(cluster: ClusterConfig) -> Topology:
    """Return the planner's view of a cluster, with the reserve already taken off its memory."""
    gb_s = 1e9 / 1e3  # the planner counts bytes per millisecond
    hardware = HardwareConfig(
        intra_host_bw=cluster.intra_node_gb_s * gb_s,
        inter_host_bw=cluster.inter_node_gb_s * gb_s,
        hbm_mem_bw=cluster.hbm_gb_s * gb_s,
        ddr_mem_bw=cluster.ddr_gb_s / cluster.devices_per_node * gb_s,
        hbm_to_ddr_mem_bw=cluster.host_link_gb_s * gb_s,
    )
    trainer = TrainerConfig(
        world_size=cluster.world_size,
        local_world_size=cluster.devices_per_node,
        hbm_cap_bytes=cluster.hbm_bytes,
        ddr_cap_bytes=cluster.ddr_bytes,
    )
    # Without the switch the library takes bandwidths of its own and says nothing.
    kernel = KernelConfig(compute_device=cluster.device, use_hardware_based_bandwidth=True)
    return TopologyFactory.create_topology(trainer, hardware, kernel)
