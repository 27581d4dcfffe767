"""Small trials of the installed stack; `doctor` runs each as a process of its own.

A wrong build can kill the interpreter, so nothing here is imported by the package, and this file imports
nothing of it: `python -P probes.py NAME` prints what it is doing and, last, its facts as JSON.
"""

import gc
import importlib
import json
import sys
import tempfile
from typing import Any

LIBRARIES = (
    "numpy", "pyarrow", "polars", "pydantic", "faiss", "safetensors", "iopath", "fsspec", "tensorboard",
    "torchx", "jinja2", "PIL",
)  # fmt: skip
Facts = dict[str, Any]


def probe_torch() -> Facts:
    """Import torch and add two numbers on every device."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in ["cpu", *(f"cuda:{index}" for index in range(gpus))]:
        assert torch.ones(2, device=device).sum().item() == 2
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus, "file": torch.__file__}


def probe_fbgemm() -> Facts:
    """Load fbgemm's operators, which were compiled against one torch, and call one."""
    import torch

    fbgemm = importlib.import_module("fbgemm_gpu")
    facts: Facts = {"file": fbgemm.__file__, "version": getattr(fbgemm, "__version__", None)}
    sums = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2, 3]))
    assert sums.tolist() == [0, 1, 3, 6], f"fbgemm's cumulative sum is wrong: {sums.tolist()}"
    return facts


def probe_torchrec() -> Facts:
    """Look up and differentiate through a tiny EmbeddingBagCollection."""
    import torch
    import torchrec

    table = torchrec.EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=3, feature_names=["f"])
    bags = torchrec.EmbeddingBagCollection(tables=[table])
    ids, lengths = torch.tensor([0, 2, 2]), torch.tensor([1, 2])
    keyed = torchrec.KeyedJaggedTensor.from_lengths_sync(keys=["f"], values=ids, lengths=lengths)
    bags(keyed).values().sum().backward()
    gradient = next(bags.parameters()).grad
    assert gradient is not None
    assert gradient[:, 0].tolist() == [1, 0, 2], "the gradient of an embedding bag is wrong"
    return {"version": getattr(torchrec, "__version__", None), "file": torchrec.__file__}


def probe_kernels() -> Facts:
    """Make one fused step of fbgemm's table kernel on the CPU, and on a GPU where there is one."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    where = [("cpu", EmbeddingLocation.HOST, ComputeDevice.CPU)]
    if torch.cuda.is_available():
        where.append(("cuda", EmbeddingLocation.DEVICE, ComputeDevice.CUDA))
    for device, location, compute in where:
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(3, 4, location, compute)],
            optimizer=EmbOptimType.EXACT_SGD,
            learning_rate=0.5,
            device=torch.device(device),
        )
        table = kernel.split_embedding_weights()[0]
        table.data.fill_(1.0)
        ids, offsets = torch.tensor([1, 1], device=device), torch.tensor([0, 2], device=device)
        kernel(ids, offsets).sum().backward()
        rows = kernel.split_embedding_weights()[0][:, 0].tolist()
        assert rows == [1.0, 0.0, 1.0], f"the fused step on {device} is wrong: {rows}"
    return {"devices": [device for device, _, _ in where]}


def probe_gloo() -> Facts:
    """Add over two processes on the CPU."""
    return _all_reduce("gloo", 2)


def probe_nccl() -> Facts:
    """Add over up to two GPUs."""
    import torch

    return _all_reduce("nccl", min(torch.cuda.device_count(), 2))


def probe_libraries() -> Facts:
    """Import every other library; what it was importing is the last line when one kills the process."""
    for name in LIBRARIES:
        sys.stdout.write(f"importing {name}\n")
        sys.stdout.flush()
        importlib.import_module(name)
    return {"imported": len(LIBRARIES)}


def _all_reduce(backend: str, world_size: int) -> Facts:
    from torch.multiprocessing.spawn import start_processes

    # Forks need not import torch again; but CUDA works in none.
    method = "spawn" if backend == "nccl" else "fork"
    with tempfile.TemporaryDirectory(prefix="trec-semid-") as folder:
        args = (backend, world_size, f"file://{folder}/store")
        start_processes(_add_ranks, args=args, nprocs=world_size, start_method=method)
    return {"processes": world_size}


def _add_ranks(rank: int, backend: str, world_size: int, store: str) -> None:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=world_size)
    total = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(total)
    assert total.item() == world_size * (world_size + 1) / 2, f"{backend} adds wrongly: {total.item()}"
    dist.destroy_process_group()


PROBES = {
    "torch": probe_torch,
    "fbgemm": probe_fbgemm,
    "torchrec": probe_torchrec,
    "libraries": probe_libraries,
    "kernels": probe_kernels,
    "gloo": probe_gloo,
    "nccl": probe_nccl,
}

if __name__ == "__main__":
    gc.disable()  # a trial is imports for the most part: nothing of what they make is garbage
    sys.stdout.write("\n" + json.dumps(PROBES[sys.argv[1]]()) + "\n")
