"""SASRec: a causal transformer over items, each the sum of its tokens."""

from typing import Literal, final

from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.item_transformer import ItemTransformer, ItemTransformerConfig
from trec_semid.models.next_item import NextItemModel
from trec_semid.models.retriever import Frame, Retriever


class SasrecConfig(ItemTransformerConfig):
    """Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018, with blocks that norm first."""

    kind: Literal["sasrec"] = "sasrec"


@final
class Sasrec(Retriever[SasrecConfig]):
    """With ID tokens alone the published model; with content and codes besides it is the hybrid."""

    has_code_heads = True

    def build(self, items: ItemTokens, frame: Frame) -> NextItemModel:
        """See `Retriever`."""
        sequences = ItemTransformer(self.config, takes_mean=False, max_len=frame.max_len, dim=frame.dim)
        return NextItemModel(items, sequences, frame.loss, has_codes=frame.predicts_codes)
