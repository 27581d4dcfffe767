"""Popularity: the list that everyone gets who is not known."""

from typing import Literal

from trec_semid.core.config import Config


class PopularityConfig(Config):
    """Items by their number of training events; nothing is learnt."""

    kind: Literal["popularity"] = "popularity"
