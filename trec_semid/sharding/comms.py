"""In which precision looked-up rows and their gradients travel between ranks."""

import math
from typing import Any, Literal, NamedTuple, cast, final

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor, nn
from torchrec.distributed.fbgemm_qcomm_codec import FbgemmQuantizedCommCodec
from torchrec.distributed.types import CommOp, QuantizedCommCodecs, ShardedModule

from trec_semid.core.config import Config

Precision = Literal["fp32", "fp16", "bf16"]
_EXCHANGES = (
    CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL,
    CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER,
    CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL,
)


class CommsConfig(Config):
    """Precision of what ranks exchange of sharded tables in training; tables and updates stay in float32.

    Evaluation exchanges float32, so that scores are those of the tables: every verb and a bundle give them.
    """

    forward: Precision = "fp32"
    """Of looked-up rows."""
    backward: Precision = "fp32"
    """Of their gradients. `fp16` is made for numbers from 6e-5 to 65504: gradients are multiplied on their
    way by about the rows of a global batch, over which the loss is the mean."""

    @property
    def is_exact(self) -> bool:
        """Whether all travels as it is."""
        return self.forward == self.backward == "fp32"

    def __str__(self) -> str:
        """Return it for people."""
        return f"rows travel as {self.forward}, their gradients as {self.backward}"


class Codecs(NamedTuple):
    """What torchrec's sharders are given."""

    registry: dict[str, QuantizedCommCodecs]
    """By the name of the exchange."""
    forward: "TrainingCodec"

    def follow(self, sharded: nn.Module) -> None:
        """Let rows be rounded where the modules that exchange them train, and nowhere else."""

        def set_mode(module: nn.Module, given: Any) -> None:
            """Do as the module does that is called."""
            self.forward.is_training = module.training

        for module in sharded.modules():
            if isinstance(module, ShardedModule):
                module.register_forward_pre_hook(set_mode)


def build_codecs(comms: CommsConfig, global_batch_size: int) -> Codecs | None:
    """Return what makes values travel in these precisions; None where they travel as they are.

    torchrec's own registry would take fp16 for bf16 on a CPU, with a warning; gloo exchanges both.

    Args:
        comms: the precisions.
        global_batch_size: rows over all ranks, which fp16 gradients are multiplied by, to a power of two.
    """
    if comms.is_exact:
        return None
    scale = 2.0 ** round(math.log2(max(global_batch_size, 1))) if comms.backward == "fp16" else 1.0
    forward, backward = TrainingCodec(comms.forward), ScaledCodec(comms.backward, scale)
    # The library itself casts its codec so.
    codecs = QuantizedCommCodecs(cast(Any, forward), cast(Any, backward))
    return Codecs({exchange.name: codecs for exchange in _EXCHANGES}, forward)


@final
class TrainingCodec(FbgemmQuantizedCommCodec):
    """Rounds in training, and leaves everything as it is in evaluation."""

    def __init__(self, precision: Precision) -> None:
        super().__init__(comm_precision=SparseType(precision))
        self.is_training = True

    @property
    def quantized_dtype(self) -> torch.dtype:
        """What `encode` returns now."""
        return super().quantized_dtype if self.is_training else torch.float32

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Return (n,) numbers as they travel."""
        return super().encode(input_tensor, ctx) if self.is_training else input_tensor

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Return (n,) float32."""
        return super().decode(input_tensor, ctx) if self.is_training else input_tensor


@final
class ScaledCodec(FbgemmQuantizedCommCodec):
    """Rounds numbers times a scale: decode(encode(x)) = round(x * scale) / scale.

    torchrec's `loss_scale` divides while the numbers are still float16, where small ones become 0 after all.
    """

    def __init__(self, precision: Precision, scale: float) -> None:
        super().__init__(comm_precision=SparseType(precision), is_fwd=False)
        self._scale = scale

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Return (n,) numbers as they travel."""
        return super().encode(input_tensor * self._scale, ctx)

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Return (n,) float32."""
        return super().decode(input_tensor, ctx) / self._scale
