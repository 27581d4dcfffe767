"""RPG: a causal transformer over items, each the mean of its codes, which are predicted in parallel."""

from typing import Literal, final

from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.item_transformer import ItemTransformer, ItemTransformerConfig
from trec_semid.models.next_item import NextItemModel
from trec_semid.models.retriever import Frame, Needs, Retriever


class RpgConfig(ItemTransformerConfig):
    """RPG: Generating Long Semantic IDs in Parallel for Recommendation, KDD 2025.

    With items of codes alone and `CodeHeads` it is the method of the paper, whose transformer is GPT-2's.
    """

    kind: Literal["rpg"] = "rpg"


@final
class Rpg(Retriever[RpgConfig]):
    """Its codes may be few and searched by a beam, or many, as in the paper, and scored for every item."""

    needs = Needs(codes="predicted")
    has_code_heads = True

    def build(self, items: ItemTokens, frame: Frame) -> NextItemModel:
        """See `Retriever`."""
        sequences = ItemTransformer(self.config, takes_mean=True, max_len=frame.max_len, dim=frame.dim)
        return NextItemModel(items, sequences, frame.loss, has_codes=frame.predicts_codes)
