"""HyMiRec: a long history read cheaply by its codes, recent items in full, several interests a user.

Legend: B users, M interests, Q coarse interests, U listed items, L longest history, P places that predict,
W targets a place, D width.
"""

import math
from typing import Literal, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn.functional import normalize

from trec_semid.core.config import faults_of_unread
from trec_semid.core.errors import ConfigError
from trec_semid.data.retrieval.places import Places
from trec_semid.layers.attention import TransformerConfig
from trec_semid.layers.full_softmax import Drawn, masked_softmax_loss
from trec_semid.layers.interests.matching import MOST_INTERESTS, matched_interests
from trec_semid.layers.quantize import sum_codewords
from trec_semid.models.exported import Exported
from trec_semid.models.hymirec.causal_lm import CausalLm, CausalLmConfig, expect_readable
from trec_semid.models.hymirec.codebook import CodebookReader
from trec_semid.models.hymirec.exported import HymirecProgram
from trec_semid.models.hymirec.light_half import LightHalf
from trec_semid.models.hymirec.refined_half import RefinedHalf, TransformerBackbone, recent_places
from trec_semid.models.interests import chosen_interests
from trec_semid.models.item_scoring import item_vectors, mean_of_targets
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.queries import Queries
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.models.retriever import Frame, LossConfig, Needs, Retriever, RetrieverConfig
from trec_semid.tokenizers.maps.compressed import CompressedItems

_LEAST_TEMPERATURE = 0.01
"""A learnt one falls no lower."""
_LARGEST_WINDOW = 100
"""Of targets that are grouped, which costs about W^2 M numbers a row and exchange."""


class HymirecConfig(RetrieverConfig):
    """HyMiRec: A Hybrid Multi-interest Learning Framework for LLM-based Recommendation, 2025."""

    kind: Literal["hymirec"] = "hymirec"
    num_interests: int = Field(4, ge=1, le=MOST_INTERESTS)
    """M, the learnt queries whose answers are searched with."""
    coarse_interests: NonNegativeInt = 8
    """Q, what the light half makes of the whole history; 0 leaves the light half out."""
    light_reads: Literal["rows", "codebook", "tuned_codebook"] = "rows"
    """What it reads of an item by its codes: learnt rows, a table a code; or what the tokenizer's codebook
    rebuilds of codes and coefficients, through a learnt map, with the codebook as it was fitted or tuned."""
    recent: NonNegativeInt = 50
    """Last items that the refined half reads in full; 0 leaves it the coarse interests alone."""
    backbone: Literal["transformer", "causal_lm"] = "transformer"
    """What the refined half reads with."""
    transformer: TransformerConfig = TransformerConfig.model_validate({})
    lm: CausalLmConfig | None = None
    """The language model of `causal_lm`."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of recent items that are read."""
    dmil: bool = True
    """Whether the targets of a window are grouped and matched with interests; otherwise each is taught to
    the interest nearest to it, as in ComiRec."""
    max_cosine: float = Field(0.98, gt=0, le=1)
    """Items of a larger cosine with a target are not taken for wrong answers."""
    learns_temperature: bool = True
    """Whether `loss.item_temperature` is where a learnt one starts, which falls no lower than .01."""
    coarse_weight: NonNegativeFloat = 0.0
    """Of the same loss on coarse interests, each target taught to the one nearest to it."""

    def longest_sequence(self, max_len: int) -> int:
        """Return how many tokens the refined half reads of histories of so many items."""
        return min(self.recent, max_len) + self.coarse_interests + self.num_interests


@final
class HymirecModel(RetrievalModel):
    """u_1 .. u_M = refined([recent items; coarse interests; queries]); score = max_m s cos(u_m, v).

    L = mean over targets t of the window of masked_softmax(s cos(u_m(t), v_t)), m(t) the interest that t's
    group is matched with (`layers.interests.matching`). Targets are item vectors. Source: HyMiRec, 2025, as
    far as it is public; temperature and masks are those of RED-Rec's public code. Its targets are outputs of
    the user's model and not item vectors, which looks like a slip.
    """

    def __init__(
        self,
        items: ItemTokens,
        config: HymirecConfig,
        loss: LossConfig,
        *,
        max_len: int,
        compressed: CompressedItems | None = None,
    ) -> None:
        """Draw the weights.

        Args:
            items: what they are made of.
            config: of the model.
            loss: what is learnt.
            max_len: longest history.
            compressed: the items as codes rebuild them, where the light half reads that.

        Raises:
            ConfigError: a light half, and items without codes.
        """
        super().__init__()
        self.items, self.config, self.loss, dim = items, config, loss, items.dim
        self.loss_weights = {"items": loss.item_weight, "coarse": config.coarse_weight}
        self.light = LightHalf(dim, config.coarse_interests, max_len) if config.coarse_interests else None
        if self.light is not None and items.live is None:
            raise ConfigError("model.coarse_interests: the light half reads codes: give semantic_ids.")
        self.codebook: CodebookReader | None = None
        if compressed is not None:
            learns = config.light_reads == "tuned_codebook"
            self.codebook = CodebookReader(compressed, dim, learns=learns)
        num_recent, length = min(config.recent, max_len), config.longest_sequence(max_len)
        backbone = (
            CausalLm(dim, length, config.lm)
            if config.lm is not None
            else TransformerBackbone(dim, length, config.transformer)
        )
        self.refined = RefinedHalf(backbone, dim, config.num_interests, num_recent, config.dropout)
        start = torch.tensor(-math.log(loss.item_temperature))
        self.log_scale = nn.Parameter(start, requires_grad=config.learns_temperature)

    @property
    def has_item_vectors(self) -> bool:
        """Whether items are scored by vectors: they always are."""
        return True

    @property
    def scale(self) -> Tensor:
        """() what multiplies cosines, the inverse of the temperature."""
        return self.log_scale.exp()

    def item_vectors(self, tokens: Tokens) -> Tensor:
        """Return (U, D): the sum of an item's tokens, of unit length."""
        return item_vectors(tokens, self.loss)

    def queries(self, tokens: Tokens, places: Places) -> Queries:
        """Return M vectors of each of the B users."""
        interests, _ = self.interests(tokens, places)
        return Queries(self.scale * interests.float(), None)

    def read_of(self, tokens: Tokens, items: Tensor) -> Tensor:
        """See `RetrievalModel`: (U, 2, D), the sum of tokens and what the light half reads; of (U,) items."""
        total = tokens.total.unsqueeze(1)
        if self.light is None:
            return total
        by_codes = _sums_of_codes(tokens)
        if self.codebook is not None and tokens.codes is not None:
            by_codes = self.codebook(items, tokens.codes)
        return torch.cat([total, by_codes.unsqueeze(1)], dim=1)

    def exported(self, code_tables: Tensor | None) -> Exported:
        """See `RetrievalModel`; code tables (R, K + 1, D) are in what is read."""
        return Exported(HymirecProgram(self.light, self.refined, self.log_scale))

    def interests(self, tokens: Tokens, places: Places) -> tuple[Tensor, Tensor]:
        """Return interests (B, M, D) and coarse interests (B, Q, D), of unit length."""
        num_users, longest = places.inputs.shape
        coarse = tokens.total.new_zeros(num_users, 0, self.items.dim)
        if self.light is not None:
            coarse = self._coarse(self.light, tokens, places)
        # No history of the batch may be as long as the refined half reads.
        recent = recent_places(places.lengths, min(self.refined.num_recent, longest))
        at = places.inputs.gather(1, recent.places)
        items = tokens.total.index_select(0, at.flatten()).view(*at.shape, self.items.dim)
        interests = self.refined(items, recent.is_there, coarse)
        return normalize(interests, dim=-1), normalize(coarse, dim=-1)

    def _coarse(self, light: LightHalf, tokens: Tokens, places: Places) -> Tensor:
        """Return (B, Q, D): the whole history by its codes, of which a batch brings nothing but item rows."""
        coded = places.coded
        if coded is None:  # a tokenizer in the loop chooses codes by content, so all items are listed
            return light(_sums_of_codes(tokens), places)
        assert self.items.live is not None, "items without codes are refused"
        codes = self.items.live.codes[coded.rows].long()
        if self.codebook is not None:
            return light(self.codebook(coded.rows, codes), coded)
        assert tokens.code_tables is not None, "items without codes are refused"
        return light(sum_codewords(tokens.code_tables, codes), coded)

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place (P,), means over its targets, and the items' tokens."""
        self._bound_temperature()
        tokens = self.items(listed)
        vectors = self.item_vectors(tokens)
        # Places number the cells of (B, L), so this is their user; a sliding row predicts once.
        users = places.predicting // places.inputs.shape[1]
        interests, coarse = (part[users] for part in self.interests(tokens, places))
        losses = {"items": self._loss(interests, self._chosen(interests, vectors, places), vectors, places)}
        if self.config.coarse_weight:
            nearest = chosen_interests(coarse, vectors, places.targets)
            losses["coarse"] = self._loss(coarse, nearest, vectors, places)
        return losses, tokens

    def _bound_temperature(self) -> None:
        """Take a learnt temperature that the last step brought below the bound back to it.

        The weight itself is bounded, as in CLIP's code: a bound on what is read of it would leave it without
        a gradient, and beyond the bound for good.
        """
        if self.config.learns_temperature:
            with torch.no_grad():
                self.log_scale.clamp_(max=-math.log(_LEAST_TEMPERATURE))

    def _chosen(self, interests: Tensor, vectors: Tensor, places: Places) -> Tensor:
        """Return (P, W): the interest that each target is taught to."""
        if not self.config.dmil:
            return chosen_interests(interests, vectors, places.targets)
        targets = vectors.detach()[places.targets.clamp(min=0)]
        return matched_interests(interests, targets, places.targets >= 0)

    def _loss(self, interests: Tensor, chosen: Tensor, vectors: Tensor, places: Places) -> Tensor:
        """Return (P,) of interests (P, M, D), of which (P, W) are chosen, and items (U, D)."""
        asked = interests.gather(1, chosen.unsqueeze(2).expand(-1, -1, interests.shape[2]))
        drawn = None
        if len(places.sampled):
            drawn = Drawn(vectors[places.sampled], places.sampled, places.log_q[places.sampled])
        losses = masked_softmax_loss(
            self.scale * asked.flatten(0, 1),
            vectors,
            places.targets.flatten(),
            max_cosine=self.config.max_cosine,
            drawn=drawn,
        )
        return mean_of_targets(losses.view(places.targets.shape), places.targets)


def _faults_of_additions(lm: CausalLmConfig) -> list[str]:
    if not lm.lora_rank:
        return faults_of_unread(
            lm, "model.lm", ["lora_alpha", "lora_dropout"], "nothing is added", "set model.lm.lora_rank = 8"
        )
    if not lm.pretrained:
        return [
            "model.lm.lora_rank: weights that are drawn would stay as they are: set model.lm.lora_rank = 0, "
            "or model.lm.pretrained = true"
        ]
    return []


def _sums_of_codes(tokens: Tokens) -> Tensor:
    """Return (U, D): the rows of an item's codes added up, with a gradient to the choice of chosen ones."""
    if tokens.chosen is not None:
        return tokens.chosen.sum(1)
    assert tokens.codes is not None, "items without codes are refused"
    assert tokens.code_tables is not None, "items without codes are refused"
    return sum_codewords(tokens.code_tables, tokens.codes)


@final
class Hymirec(Retriever[HymirecConfig]):
    """Both halves, or either alone."""

    needs = Needs(codes="read", rows="sliding")

    @property
    def num_interests(self) -> int:
        """See `Retriever`."""
        return self.config.num_interests

    @property
    def num_in_full(self) -> int:
        """See `Retriever`: the recent items; one is listed where the light half reads alone."""
        return max(self.config.recent, 1)

    @property
    def reads_codebook(self) -> bool:
        """See `Retriever`."""
        return self.config.coarse_interests > 0 and self.config.light_reads != "rows"

    def faults(self, frame: Frame) -> list[str]:
        """See `Retriever`."""
        return [
            *super().faults(frame),
            *self._faults_of_halves(frame),
            *self._faults_of_backbone(),
            *self._faults_of_losses(frame),
        ]

    def _faults_of_halves(self, frame: Frame) -> list[str]:
        faults: list[str] = []
        config = self.config
        if not config.coarse_interests and not config.recent:
            faults.append(
                "model.recent, model.coarse_interests: both are 0, which leaves nothing to read: set "
                "model.recent = 50, or model.coarse_interests = 8"
            )
        if config.coarse_interests and not frame.has_codes:
            faults.append(
                "model.coarse_interests: the light half reads codes: give semantic_ids, or set "
                "model.coarse_interests = 0"
            )
        if config.coarse_weight and not config.coarse_interests:
            faults.append(
                "model.coarse_weight: there are no coarse interests: set model.coarse_weight = 0, or "
                "model.coarse_interests = 8"
            )
        if not config.coarse_interests:
            faults += faults_of_unread(config, "model", ["light_reads"], "there is no light half")
        if not config.recent and config.dropout:
            faults += faults_of_unread(config, "model", ["dropout"], "no recent items are read")
        if config.recent > frame.max_len:
            length = f"histories have {frame.max_len} items at most"
            raised = f"raise sequences.max_len to {config.recent}"
            faults += faults_of_unread(config, "model", ["recent"], length, raised)
        return faults

    def _faults_of_backbone(self) -> list[str]:
        config = self.config
        if config.backbone == "causal_lm":
            faults = faults_of_unread(config, "model", ["transformer"], "a language model reads instead")
            if config.lm is None:
                return [
                    "model.backbone = 'causal_lm' reads with a language model: give model.lm.path",
                    *faults,
                ]
            return [*faults, *_faults_of_additions(config.lm)]
        if config.lm is not None:
            return [
                "model.lm: a transformer reads instead: leave it out, or set model.backbone = 'causal_lm'"
            ]
        return []

    def _faults_of_losses(self, frame: Frame) -> list[str]:
        faults: list[str] = []
        if not frame.loss.item_similarity_is_cosine:
            faults.append(
                "model.kind = 'hymirec' scores by cosine: set loss.item_similarity_is_cosine = true"
            )
        if self.config.dmil and self.config.num_interests > 1 and frame.window == 1:
            faults.append(
                "model.dmil: a single target makes no groups: set window = 10 or so, or model.dmil = false"
            )
        if self.config.dmil and frame.window > _LARGEST_WINDOW:
            faults.append(
                f"window: groups of {frame.window} targets a row take too long: set window = "
                f"{_LARGEST_WINDOW} or less, or model.dmil = false"
            )
        if self.config.learns_temperature and frame.loss.item_temperature < _LEAST_TEMPERATURE:
            faults.append(
                f"loss.item_temperature: a learnt one is {_LEAST_TEMPERATURE} or more: set "
                f"loss.item_temperature = {_LEAST_TEMPERATURE}, or model.learns_temperature = false"
            )
        return faults

    def expect_available(self, frame: Frame) -> None:
        """See `Retriever`: a language model has to be there, and to read as much as it is given."""
        if self.config.lm is not None:
            expect_readable(self.config.lm, self.config.longest_sequence(frame.max_len))

    def build(self, items: ItemTokens, frame: Frame) -> HymirecModel:
        """See `Retriever`."""
        return HymirecModel(
            items, self.config, frame.loss, max_len=frame.max_len, compressed=frame.compressed
        )
