"""Finished retrievers as one."""

from typing import Annotated, Literal, final

from pydantic import field_validator

from trec_semid.core.config import Place
from trec_semid.core.identity import SamePlace
from trec_semid.models.retriever import Retriever, RetrieverConfig


class EnsembleConfig(RetrieverConfig):
    """score(user, item) = mean over runs of their scores; nothing is learnt.

    Scores are logits of a softmax over items, each run's up to a constant a user, so the mean ranks items
    as the product of what the runs take them to be worth.
    """

    kind: Literal["ensemble"] = "ensemble"
    runs: Annotated[list[Place], SamePlace()]
    """Folders of two or more finished runs of `trec-semid retrieve` on the same dataset, with any items and
    models that score the whole catalogue. `[evaluation]` is the ensemble's, not theirs."""

    @field_validator("runs")
    @classmethod
    def _are_several(cls, runs: list[str]) -> list[str]:
        if len(runs) < 2:
            remedy = "name two or more, or ask one finished run again with `trec-semid evaluate`"
            raise ValueError(f"an ensemble is of several runs: {remedy}")
        return runs


@final
class Ensemble(Retriever[EnsembleConfig]):
    """Its members have learnt already, and are placed as they are."""

    learns = False
    scores_catalogue = False

    @property
    def members(self) -> tuple[str, ...]:
        """See `Retriever`."""
        return tuple(self.config.runs)
