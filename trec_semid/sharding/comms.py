"""In which precision looked-up rows and their gradients travel between ranks."""

import math
from typing import Any, Literal, cast, final

from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    FbgemmQuantizedCommCodec,
    QCommsConfig,
    get_qcomm_codecs,
)
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from trec_semid.core.config import Config

Precision = Literal["fp32", "fp16", "bf16"]
_EXCHANGES = (
    CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL,
    CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER,
    CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL,
)


class CommsConfig(Config):
    """Precision of what ranks exchange of sharded tables; tables, sums and updates stay in float32."""

    forward: Precision = "fp32"
    """Of looked-up rows, in evaluation as well."""
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


def build_codecs(comms: CommsConfig, global_batch_size: int) -> dict[str, QuantizedCommCodecs] | None:
    """Return what torchrec's sharders are given, by the name of the exchange; None where nothing changes.

    torchrec's own registry would take fp16 for bf16 on a CPU, with a warning; gloo exchanges both.

    Args:
        comms: the precisions.
        global_batch_size: rows over all ranks, which fp16 gradients are multiplied by, to a power of two.
    """
    if comms.is_exact:
        return None
    config = QCommsConfig(CommType(comms.forward), CommType(comms.backward))
    codecs = {exchange.name: get_qcomm_codecs(config) for exchange in _EXCHANGES}
    if comms.backward == "fp16":
        scale = 2.0 ** round(math.log2(max(global_batch_size, 1)))
        for each in codecs.values():
            each.backward = cast(Any, ScaledHalf(scale))  # the library itself casts its codec so
    return codecs


@final
class ScaledHalf(FbgemmQuantizedCommCodec):
    """float16 of numbers times a scale: decode(encode(x)) = half(x * scale) / scale.

    torchrec's `loss_scale` divides while the numbers are still float16, where small ones become 0 after all.
    """

    def __init__(self, scale: float) -> None:
        super().__init__(comm_precision=SparseType.FP16, is_fwd=False)
        self._scale = scale

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Return (n,) float16 of (n,) float32."""
        return super().encode(input_tensor * self._scale, ctx)

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Return (n,) float32 of (n,) float16."""
        return super().decode(input_tensor, ctx) / self._scale
