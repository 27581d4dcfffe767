"""Popularity: the list that everyone gets who is not known."""

from typing import Literal, final

from trec_semid.models.retriever import Retriever, RetrieverConfig, SearchKind


class PopularityConfig(RetrieverConfig):
    """Items by their number of training events; nothing is learnt."""

    kind: Literal["popularity"] = "popularity"


@final
class Popularity(Retriever[PopularityConfig]):
    """Counts of training events are all it lists by: an item without one is at the end already."""

    learns = False
    scores_catalogue = False
    takes_penalties = False

    def search(self, asked: SearchKind) -> SearchKind:
        """See `Retriever`."""
        return "popularity"
