# ruff: noqa: UP006, UP035, UP045, PLR0913 - TorchX 0.7 reads these type names only, and flags are arguments
"""TorchX components: a verb on any scheduler TorchX knows, as `torchrun -m trec_semid.cli.main VERB`.

    torchx run -s local_cwd launch/components.py:rank -j 1x2 -- configs/quickstart/rank.toml --set=seed=1

What follows `--` goes to the verb as it stands. TorchX refuses a word with a leading dash that comes twice:
write overrides as `--set=a.b=c`. Every argument of a component is a flag of `torchx run`.
"""

from typing import Any, Dict, List, Optional

from torchx import specs
from torchx.components.dist import ddp

RANK_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two threads a rank collapse where ranks share cores
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a shared store keeps stale keys, and restarts hang on them
}


def tokenize(
    *args: str,
    j: str = "1x2",
    name: str = "tokenize",
    image: str = "trec-semid:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    port: int = 29500,
) -> specs.AppDef:
    """Learn codebooks from item content and give every item its semantic ID.

    Args:
        args: config files and `--set=a.b=c` of the verb
        j: nodes x processes per node, e.g. 2x8; one process per GPU
        name: name of the job, or experiment/name
        image: container image with the package; local_cwd takes no notice of it
        h: named resource; replaces cpu, gpu and mem_mb
        cpu: CPU cores per node
        gpu: GPUs per node
        mem_mb: host memory per node [MiB]
        env: environment variables, e.g. NCCL_DEBUG=INFO,A=B
        max_retries: restarts by the scheduler
        mounts: container mounts, e.g. type=bind,src=/data,dst=/data,readonly
        port: port of the first node, where several nodes meet
    """
    place = {"j": j, "name": name, "image": image, "h": h, "cpu": cpu, "gpu": gpu, "memMB": mem_mb}
    return _job("tokenize", args, env, **place, max_retries=max_retries, mounts=mounts, rdzv_port=port)


def rank(
    *args: str,
    j: str = "1x2",
    name: str = "rank",
    image: str = "trec-semid:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    port: int = 29500,
) -> specs.AppDef:
    """Train a ranker over sharded item-ID and semantic-ID tables, and evaluate it.

    Args:
        args: config files and `--set=a.b=c` of the verb
        j: nodes x processes per node, e.g. 2x8; one process per GPU
        name: name of the job, or experiment/name
        image: container image with the package; local_cwd takes no notice of it
        h: named resource; replaces cpu, gpu and mem_mb
        cpu: CPU cores per node
        gpu: GPUs per node
        mem_mb: host memory per node [MiB]
        env: environment variables, e.g. NCCL_DEBUG=INFO,A=B
        max_retries: restarts by the scheduler; the job goes on from its last checkpoint
        mounts: container mounts, e.g. type=bind,src=/data,dst=/data,readonly
        port: port of the first node, where several nodes meet
    """
    place = {"j": j, "name": name, "image": image, "h": h, "cpu": cpu, "gpu": gpu, "memMB": mem_mb}
    return _job("rank", args, env, **place, max_retries=max_retries, mounts=mounts, rdzv_port=port)


def _job(verb: str, args: tuple[str, ...], env: dict[str, str] | None, **where: Any) -> specs.AppDef:
    app = ddp(verb, *args, m="trec_semid.cli.main", env=RANK_ENVIRONMENT | (env or {}), **where)
    app.roles[0].name = verb
    return app
