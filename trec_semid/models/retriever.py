"""What a method of retrieval is: the questions that all else asks of it, whatever its kind.

A kind is one file in `models/retrievers` (its config and its `Retriever`) and one row in `models/methods.py`.
Nothing outside `models` asks what kind it is.
"""

from abc import ABC
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from trec_semid.core.config import Config, Place
from trec_semid.core.errors import ConfigError
from trec_semid.core.identity import SamePlace
from trec_semid.data.retrieval.dataset import Negatives
from trec_semid.layers.attention import TransformerConfig
from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.tokenizers.maps.compressed import CompressedItems

SearchKind = Literal["exact", "beam", "two_stage", "graph", "popularity"]
"""How items are listed: every item is scored, a beam goes over codes, codes propose items that are scored
then, a graph between items of like codes is followed, or all users get one list."""


class RetrieverConfig(Config):
    """What `[model]` says of a retriever. A kind's own class gives `kind` its name and adds sizes."""

    kind: Any


class TeacherConfig(Config):
    """Finished runs whose lists a retriever learns besides: distillation of several into one.

    L = loss(target) + w sum_k p(k) loss(k): the model's own losses, over items and over codes, of each of the
    `top` items k that the teacher lists for a place, with p = softmax(t_k / T) over that list of its scores
    t, the mean over runs. Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, over
    the first items alone as in Tang and Wang, "Ranking Distillation", KDD 2018.
    """

    runs: Annotated[list[Place], SamePlace(), Field(min_length=1)]
    """Folders of finished runs of `trec-semid retrieve` on the same dataset that score every item; several
    score together as an ensemble does."""
    weight: PositiveFloat = 1.0
    """w."""
    top: int = Field(default=50, ge=2)
    """Items of a list, 6 bytes each for every training event that some row reads last."""
    temperature: PositiveFloat = 1.0
    """T: the higher, the more alike the items of a list count."""

    @field_validator("runs")
    @classmethod
    def _are_runs_and_others(cls, runs: list[str]) -> list[str]:
        for run in runs:
            if run.rstrip("/").split("/")[-2:-1] == ["checkpoints"]:
                raise ValueError(f"{run} is a step: name the run, whose best step teaches")
        if len({run.rstrip("/") for run in runs}) < len(runs):
            raise ValueError("a run is named twice: name each once")
        return runs


class LossConfig(Config):
    """What a retriever learns, and what it scores by."""

    item_weight: NonNegativeFloat = 1.0
    """Of the cross-entropy over items."""
    negatives: Negatives = "all"
    """Items that it takes for wrong answers: all, or those `seen` in training, whatever the label. One never
    seen is then not learnt to be wrong, and is retrieved by its content and codes."""
    code_weight: NonNegativeFloat = 0.0
    """Of the cross-entropy over codes, a mean over positions; without it codes are read, not predicted."""
    item_temperature: PositiveFloat = 1.0
    """Divides the scores of items."""
    item_similarity_is_cosine: bool = False
    """Whether states and items are brought to unit length before they are multiplied."""
    code_heads: Literal["independent", "chained"] = "independent"
    """Whether a code is predicted from the history alone, or from the codes before it as well: lists are then
    a beam's where items are not scored."""
    code_facets: PositiveInt = 1
    """`chained`: codes are so many facets of equally many levels, one facet after another; a code depends on
    those before it in its facet."""
    code_temperature: PositiveFloat = 0.1
    """Divides cosines of codes."""
    code_share: NonNegativeFloat = 0.1
    """score = item score + code_share * sum of log-probabilities of the item's codes. The sum of R of these
    spreads wide: at 1 it outweighs a sharp item score."""
    teacher: TeacherConfig | None = None
    """Finished runs whose lists are learnt besides; none where not given."""

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss by its name: of targets, and of a teacher's lists."""
        of_targets = {"items": self.item_weight, "codes": self.code_weight}
        if self.teacher is None:
            return of_targets
        of_lists = {f"listed_{name}": self.teacher.weight * each for name, each in of_targets.items()}
        return {**of_targets, **of_lists}


class Needs(NamedTuple):
    """What a method has to be given; what is not said here is the config's choice."""

    codes: Literal["optional", "read", "predicted", "alone"] = "optional"
    """`read`: codes are read and not predicted, and items have a loss; `predicted`: a loss over codes;
    `alone`: items and losses are of codes and of nothing else."""
    rows: Literal["dense", "last", "sliding"] | None = None
    """Which `sequences.rows` alone make sense; None where all do."""
    one_target: bool = False
    """Whether a place predicts one item, whatever `window` says: it has to be 1."""
    beam: bool = False
    """Whether lists come from a beam only, because not every item can be scored."""


class Frame(NamedTuple):
    """What a run gives a method besides items."""

    dim: int
    """Width of an item's tokens."""
    max_len: int
    """Longest history."""
    loss: LossConfig
    predicts_codes: bool
    """Whether there are codes, and a loss over them."""
    has_codes: bool = True
    """Whether items have codes."""
    window: int = 1
    """The next so many items are targets of a place."""
    num_items: int = 0
    """N; not known while a config is checked."""
    map_device: str = "cpu"
    """Where what a model keeps of every item is laid out: `meta` where it is only planned."""
    compressed: CompressedItems | None = None
    """Items as their codes rebuild them, for a method that `reads_codebook`; not known while a config is
    checked."""


KindT = TypeVar("KindT", bound=RetrieverConfig)


class Retriever(ABC, Generic[KindT]):
    """A method of retrieval, as the `[model]` of one run asks for it.

    A method that learns implements `build`; its losses by name, with their weights, are the model's. One
    that learns nothing says so and names what it lists by.
    """

    learns: ClassVar[bool] = True
    """Whether there is a model to train, to plan tables for and to save."""
    needs: ClassVar[Needs] = Needs()
    scores_catalogue: ClassVar[bool] = True
    """Whether its model can score every item, as an ensemble asks of its members."""
    has_code_heads: ClassVar[bool] = False
    """Whether its model is `models.next_item.NextItemModel`: one state a user, and where codes are predicted
    `models.heads`, which `loss.code_heads` chooses and which can propose items to score."""
    takes_penalties: ClassVar[bool] = True
    """Whether taking something off the scores of items without a training event can change its lists."""

    def __init__(self, config: KindT) -> None:
        self.config = config

    @property
    def kind(self) -> str:
        """What `model.kind` calls it."""
        return str(self.config.kind)

    @property
    def members(self) -> tuple[str, ...]:
        """Folders of the finished runs that it combines; none but of an ensemble."""
        return ()

    @property
    def num_interests(self) -> int:
        """M, vectors that stand for a user; one but of a method of many interests (`Queries.vectors`)."""
        return 1

    @property
    def num_in_full(self) -> int | None:
        """Last items of a history whose IDs, fields and content a model reads; None where it is all of them.

        Of items before them it reads codes alone, so that batches bring item rows and nothing else
        (`data.retrieval.places.CodedHistories`). Only of a method whose rows predict at their end.
        """
        return None

    @property
    def reads_codebook(self) -> bool:
        """Whether it reads what the tokenizer's codebook rebuilds of items (`Frame.compressed`)."""
        return False

    @property
    def can_be_taught(self) -> bool:
        """Whether its model has losses over the lists of a teacher (`loss.teacher`)."""
        return self.has_code_heads

    @property
    def weighs_interests(self) -> bool:
        """Whether interests have probabilities (`Queries.interest_log_probs`), which its score counts."""
        return False

    def faults(self, frame: Frame) -> list[str]:
        """Return what of a run's config makes no sense for this method beyond its needs, with remedies.

        Here: transformers whose heads do not divide the width of tokens. A method adds its own.
        """
        faults: list[str] = []
        for name, part in self.config:
            if isinstance(part, TransformerConfig):
                try:
                    part.expect_divides(frame.dim, f"model.{name}")
                except ConfigError as error:
                    faults.append(str(error))
        return faults

    def expect_available(self, frame: Frame) -> None:
        """Refuse what only a look outside the config can tell, before a run writes anything; here nothing.

        Raises:
            ConfigError: says what to name instead.
            StackError: a package is missing.
        """

    def build(self, items: ItemTokens, frame: Frame) -> RetrievalModel:
        """Return the unsharded model over these items; its dense weights are drawn now."""
        raise ConfigError(f"model.kind: '{self.kind}' has no model to build.")

    def search(self, asked: SearchKind) -> SearchKind:
        """Return how items are listed.

        Args:
            asked: how `[evaluation]` asks for it.
        """
        return asked
