"""Finished retrievers as one."""

from typing import Annotated, Literal, final

from pydantic import Field

from trec_semid.core.config import Place
from trec_semid.core.identity import SamePlace
from trec_semid.models.retriever import Retriever, RetrieverConfig


class EnsembleConfig(RetrieverConfig):
    """score(user, item) = mean over runs of their scores; nothing is learnt.

    Scores are logits of a softmax over items, each run's up to a constant a user, so the mean ranks items
    as the product of what the runs take them to be worth.
    """

    kind: Literal["ensemble"] = "ensemble"
    runs: Annotated[list[Place], SamePlace()] = Field(min_length=1)
    """Folders of finished runs of `trec-semid retrieve` on the same dataset, with any items and models that
    score the whole catalogue; a single one is asked again. `[evaluation]` is the ensemble's, not theirs."""


@final
class Ensemble(Retriever[EnsembleConfig]):
    """Its members have learnt already, and are placed as they are."""

    learns = False
    scores_catalogue = False

    @property
    def members(self) -> tuple[str, ...]:
        """See `Retriever`."""
        return tuple(self.config.runs)
