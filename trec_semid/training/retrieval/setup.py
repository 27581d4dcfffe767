"""Config of `trec-semid retrieve`."""

from typing import Annotated, Any, Literal, Self

from pydantic import PositiveInt, ValidationInfo, field_validator, model_validator

from trec_semid.core.config import faults_of_unread, is_saved, keys_given
from trec_semid.core.identity import MayChange
from trec_semid.data.retrieval.dataset import ItemConfig, SampledConfig
from trec_semid.data.retrieval.sequences import SequencesConfig
from trec_semid.embeddings.tables import TablesConfig
from trec_semid.models.methods import AnyRetrieverConfig, retriever_of
from trec_semid.models.retriever import Frame, LossConfig, Retriever
from trec_semid.models.retrievers.sasrec import SasrecConfig
from trec_semid.training.config import TrainConfig, TrainingRunConfig
from trec_semid.training.retrieval.code_faults import (
    OF_CODE_LOSSES,
    OF_MIXTURES,
    CodeFacts,
    faults_of_candidates,
    faults_of_code_lists,
    faults_of_heads,
    faults_of_items,
    faults_of_start,
    faults_of_states,
    faults_of_width,
    settled_evaluation,
)
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig
from trec_semid.training.retrieval.vector_faults import (
    VectorFacts,
    faults_of_vectors,
)


class RetrieveTrainConfig(TrainConfig):
    """Training of a retriever."""

    batch_size: PositiveInt = 256
    """Sequences of a global batch, over all ranks."""
    evaluation_batch_size: Annotated[PositiveInt, MayChange()] = 512
    max_epochs: Annotated[PositiveInt, MayChange(only_up=True, reopens="larger")] = 100
    patience: Annotated[PositiveInt, MayChange(reopens="larger")] = 5
    select_by: Literal["ndcg@10", "recall@10", "ndcg@5", "recall@5"] = "ndcg@10"
    """Metric of the validation split that decides which step is best."""

    @field_validator("pipeline")
    @classmethod
    def _is_traceable(cls, kind: str) -> str:
        if kind != "plain":
            problem = "retrievers branch on shapes, which torch.fx cannot trace"
            raise ValueError(f"{problem}: set train.pipeline = 'plain'")
        return kind


class RetrieveConfig(TrainingRunConfig):
    """What `trec-semid retrieve` reads."""

    item: ItemConfig = ItemConfig()
    sequences: SequencesConfig = SequencesConfig()
    window: PositiveInt = 1
    """The next so many items are targets of a position, as far as its row goes; a user's sliding rows end so
    many items apart."""
    tables: TablesConfig = TablesConfig.model_validate({"dim": 64, "init_std": 0.02})
    model: AnyRetrieverConfig = SasrecConfig.model_validate({})
    loss: LossConfig = LossConfig()
    sampled: SampledConfig | None = None
    """Where the loss over items is sampled; over all items where not given."""
    # Frozen, so a narrower type is sound.
    train: RetrieveTrainConfig = RetrieveTrainConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _makes_sense(self, info: ValidationInfo) -> Self:
        evaluation = settled_evaluation(self.code_facts, self.loss, self.evaluation, is_saved=is_saved(info))
        object.__setattr__(self, "evaluation", evaluation)  # a default that other keys decide
        if not is_saved(info) and (faults := self.faults_together()):
            raise ValueError("\n".join(faults))
        return self

    def faults_together(self) -> list[str]:
        """See `Config`."""
        return self._faults() if self.learns else self._of_no_effect()

    @property
    def retriever(self) -> Retriever[Any]:
        """The method that `[model]` asks for."""
        return retriever_of(self.model)

    @property
    def frame(self) -> Frame:
        """What the method is given besides items."""
        return Frame(
            self.tables.dim,
            self.sequences.max_len,
            self.loss,
            self.predicts_codes,
            has_codes=self.semantic_ids is not None,
            window=self.window,
        )

    def _faults(self) -> list[str]:
        """Return all that makes no sense together, each with what to do.

        They are told as if the remedies of the others were taken already: doing all that is said is enough.
        """
        return [
            *faults_of_items(self.code_facts, self.item, self.finetune),
            *self._faults_of_losses(),
            *faults_of_heads(self.code_facts, self.loss),
            *self._faults_of_rows(),
            *self._faults_of_lists(),
            *faults_of_candidates(self.code_facts, self.evaluation),
            *faults_of_code_lists(self.code_facts, self.loss, self.evaluation),
            *faults_of_states(self.code_facts, self.evaluation),
            *self._faults_of_vectors(),
            *self._faults_of_teacher(),
            *self._faults_of_comms(),
            *self.retriever.faults(self.frame),
            *faults_of_start(self.code_facts, self.start_codes),
        ]

    def _of_no_effect(self) -> list[str]:
        keys = ("semantic_ids", "finetune", "sampled", "start_from", "resume_from")
        given = [key for key in keys if getattr(self, key)]
        penalty_does_nothing = not self.retriever.takes_penalties and self.evaluation.unseen_penalty > 0
        given += keys_given(self.item, "item", ("codes", "content_projection", *OF_MIXTURES))
        given += keys_given(self.loss, "loss", ("code_facets", *OF_CODE_LOSSES))
        effects = {
            "window": self.window > 1,
            "sequences.augment": self.sequences.augment is not None,
            "loss.negatives": self.loss.negatives != "all",
            "loss.code_weight": self.loss.code_weight > 0,
            "loss.code_heads": self.loss.code_heads != "independent",
            "loss.teacher": self.loss.teacher is not None,
            "evaluation.beam_width": self.evaluation.beam_width is not None,
            "evaluation.candidates": self.evaluation.candidates is not None,
            "evaluation.graph": self.evaluation.has_graph,
            "evaluation.code_prior": self.evaluation.has_code_prior,
            "evaluation.unseen_penalty": penalty_does_nothing,
            "evaluation.interests": self.evaluation.interests is not None,
            "evaluation.index": self.evaluation.has_index,
            "evaluation.list_metrics.distance": self.evaluation.list_metrics.distance,
            "evaluation.list_metrics.state_rank": self.evaluation.list_metrics.state_rank,
        }
        given += [key for key, is_set in effects.items() if is_set]
        told = f"model.kind = '{self.model.kind}' learns nothing: leave out {', '.join(given)}"
        return [told] if given else []

    def _faults_of_losses(self) -> list[str]:
        faults: list[str] = []
        needs, kind = self.retriever.needs.codes, self.model.kind
        if needs == "alone" and (self.scores_items or not self.predicts_codes):
            faults.append(f"model.kind = '{kind}' says codes: {self._advice(alone=True)}")
        elif needs == "read" and (not self.scores_items or self.loss.code_weight > 0):
            faults.append(f"model.kind = '{kind}' predicts items, not codes: {self._advice_without_codes()}")
        elif not self.scores_items and not self.predicts_codes:
            faults.append(
                f"loss.item_weight = 0 leaves no loss where codes are not predicted: {self._advice()}"
            )
        elif needs == "predicted" and not self.predicts_codes:
            faults.append(f"model.kind = '{kind}' predicts codes: {self._advice()}")
        elif self.loss.code_weight > 0 and not self.semantic_ids:
            faults.append(
                "loss.code_weight: there are no codes to predict: give semantic_ids, or set "
                "loss.code_weight = 0"
            )
        if (
            needs == "read"
        ):  # others may predict codes in one arm, and leave these keys as they are in the next
            because = f"model.kind = '{kind}' predicts no codes"
            faults += faults_of_unread(self.loss, "loss", OF_CODE_LOSSES, because)
        of_items = {"sampled": self.sampled is not None, "loss.negatives": self.loss.negatives != "all"}
        named = ", ".join(key for key, is_set in of_items.items() if is_set)
        if named and self._has_no_item_loss:
            faults.append(f"{named}: of the loss over items, which has no weight: leave out {named}")
        return faults

    @property
    def scores_catalogue(self) -> bool:
        """Whether every item can be scored; otherwise lists are a beam's, or begin with one."""
        codes_count = self.loss.code_heads == "chained" and (
            not self.scores_items or self.loss.code_share > 0
        )
        return self.retriever.scores_catalogue and not codes_count

    @property
    def _has_no_item_loss(self) -> bool:
        """Whether there is none, or will be none once the other faults are mended."""
        if self.retriever.needs.codes == "read":
            return False
        lists_codes = self._has_beam and not self.evaluation.candidates
        return not self.scores_items or self.retriever.needs.codes == "alone" or lists_codes

    @property
    def _has_beam(self) -> bool:
        return self.evaluation.beam_width is not None or self._needs_beam

    @property
    def _needs_beam(self) -> bool:
        is_chained = self.loss.code_heads == "chained" and self.retriever.has_code_heads
        asks_codes = not self.scores_items or self.evaluation.candidates is not None
        return self.retriever.needs.beam or (is_chained and asks_codes)

    def _faults_of_rows(self) -> list[str]:
        faults: list[str] = []
        rows = self.retriever.needs.rows
        if rows and self.sequences.rows != rows:
            says = "predicts at the end of a row alone" if rows == "sliding" else f"reads {rows} rows"
            faults.append(f"model.kind = '{self.model.kind}' {says}: set sequences.rows = '{rows}'")
        if self.sequences.augment and self.test_then_train:
            faults.append(
                "sequences.augment: with test_then_train rows teach their last items alone, which a crop may "
                "lack: leave out sequences.augment"
            )
        if self.window > 1 and self.retriever.needs.one_target:
            faults.append(f"window: model.kind = '{self.model.kind}' predicts one item a row: set window = 1")
        return faults

    def _faults_of_lists(self) -> list[str]:
        faults: list[str] = []
        evaluation, selected = self.evaluation, int(self.train.select_by.rpartition("@")[2])
        longest = max(*evaluation.cutoffs, selected)
        if selected not in evaluation.cutoffs:
            faults.append(
                f"evaluation.cutoffs: train.select_by = '{self.train.select_by}' needs {selected}: add it to "
                "the lengths, or select by another"
            )
        if not self._has_beam:
            return faults
        if evaluation.beam_width is None:
            longest = max(longest, evaluation.candidates or 0)
            cause = f"model.kind = '{self.model.kind}'"
            cause = cause if self.retriever.needs.beam else "loss.code_heads = 'chained'"
            faults.append(f"{cause} cannot score all items: set evaluation.beam_width = {longest} or more")
        elif self.retriever.needs.codes == "read":
            return [
                *faults,
                f"evaluation.beam_width: goes over codes, and '{self.model.kind}' predicts items: leave out "
                "evaluation.beam_width",
            ]
        elif not self._lists_codes_alone and not evaluation.candidates:
            faults.append(f"evaluation.beam_width: a beam goes over codes: {self._advice(alone=True)}")
        if evaluation.unseen_penalty and not evaluation.candidates:
            faults.append(
                "evaluation.unseen_penalty: is taken off items' scores, and a beam has none: set "
                "evaluation.unseen_penalty = 0"
            )
        return [*faults, *faults_of_width(evaluation, longest)]

    @property
    def _lists_codes_alone(self) -> bool:
        """Whether codes are predicted, and no items scored; or nothing else will be."""
        return self.retriever.needs.codes == "alone" or (self.predicts_codes and not self.scores_items)

    @property
    def code_facts(self) -> CodeFacts:
        """What it has to do with codes."""
        return CodeFacts(
            self.model.kind,
            has_ids=self.semantic_ids is not None,
            are_items_codes=self.retriever.needs.codes == "alone",
            has_heads=self.retriever.has_code_heads,
            reads_codebook=self.retriever.reads_codebook,
            predicts_codes=self.predicts_codes or self.retriever.needs.codes == "predicted",
            scores_items=self.scores_items,
            has_beam=self._has_beam,
            advice=self._advice(),
            longest=max(*self.evaluation.cutoffs, int(self.train.select_by.rpartition("@")[2])),
        )

    def _faults_of_vectors(self) -> list[str]:
        facts = VectorFacts(
            self.model.kind,
            self.retriever.num_interests,
            weighs_interests=self.retriever.weighs_interests,
            has_vectors=self.scores_items and self.retriever.needs.codes != "alone",
            has_beam=self._has_beam or self.evaluation.candidates is not None,
            counts_codes=self.predicts_codes and self.loss.code_share > 0,
        )
        return faults_of_vectors(facts, self.evaluation)

    def _faults_of_comms(self) -> list[str]:
        if self.sharding.comms.backward != "fp16":
            return []
        told = (
            "sharding.comms.backward = 'fp16': a listed item's gradient is a sum over all places of a batch, "
            "which would be cut off at its largest number: set 'bf16'"
        )
        return [told]

    def _faults_of_teacher(self) -> list[str]:
        if self.loss.teacher is None:
            return []
        why = ""
        if not self.retriever.can_be_taught:
            why = f"model.kind = '{self.model.kind}' has no losses over lists"
        elif self.predicts_codes and self.loss.code_heads == "chained":
            why = "chained heads would be asked anew for every item of every list"
        elif self.finetune:
            why = "codes move with [finetune], and those of listed items would not"
        elif self.test_then_train:
            why = "with test_then_train a teacher of yesterday knows nothing of the day"
        return [f"loss.teacher: {why}: leave out loss.teacher"] if why else []

    def _advice(self, *, alone: bool = False) -> str:
        """Return what is left to do for codes to be predicted, or for nothing else to be."""
        sets = ["loss.item_weight = 0"] if alone and self.scores_items else []
        sets += ["loss.code_weight = 1"] if self.loss.code_weight == 0 else []
        told = [] if self.semantic_ids else ["give semantic_ids"]
        return ", ".join([*told, *([f"set {', '.join(sets)}"] if sets else [])])

    def _advice_without_codes(self) -> str:
        sets = [] if self.scores_items else ["loss.item_weight = 1"]
        sets += ["loss.code_weight = 0"] if self.loss.code_weight > 0 else []
        return f"set {', '.join(sets)}"

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.retriever.learns

    @property
    def lists_all(self) -> bool:
        """Whether every batch lists all items that are wrong answers, its own among them."""
        return self.scores_items and not self.sampled

    @property
    def num_in_full(self) -> int | None:
        """Last items of a history that batches list; None where all are: a tuned tokenizer reads content."""
        return None if self.finetune else self.retriever.num_in_full

    @property
    def predicts_codes(self) -> bool:
        """Whether codes of the next item are predicted."""
        return self.semantic_ids is not None and self.loss.code_weight > 0

    @property
    def scores_items(self) -> bool:
        """Whether items are scored by their vectors."""
        return self.loss.item_weight > 0
