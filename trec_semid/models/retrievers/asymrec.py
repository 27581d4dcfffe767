"""AsymRec: continuous content in, structured discrete codes out."""

from typing import Literal, final

from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.item_transformer import ItemTransformer, ItemTransformerConfig
from trec_semid.models.next_item import NextItemModel
from trec_semid.models.retriever import Frame, Retriever


class AsymrecConfig(ItemTransformerConfig):
    """AsymRec, arXiv 2605.14512, 2026; its code and several of its sizes are not public."""

    kind: Literal["asymrec"] = "asymrec"


@final
class Asymrec(Retriever[AsymrecConfig]):
    """A causal transformer over h_t + pos_t, h_t the content of item t; codes of the next one are predicted.

    Each side is the config's, so that an arm changes one of them alone. Published: `item.id = false`,
    `item.codes = false` and `item.content_projection = "mixture"` (h by experts over raw content), and
    M L codes of `tokenizers.mhq`, M facets of L levels, as the only targets (`loss.item_weight = 0`,
    `loss.code_weight = 1`). Facets are predicted apart, levels of one after another where `loss.code_heads =
    "chained"` and `loss.code_facets = M`. Items are read sqrt(D)-fold, as SASRec reads them: that learns
    faster here (docs/results/beauty.md).
    """

    has_code_heads = True

    def build(self, items: ItemTokens, frame: Frame) -> NextItemModel:
        """See `Retriever`."""
        sequences = ItemTransformer(self.config, takes_mean=False, max_len=frame.max_len, dim=frame.dim)
        return NextItemModel(items, sequences, frame.loss, has_codes=frame.predicts_codes)
