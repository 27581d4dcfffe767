"""What the engine of any bundle answers alike, whatever its model.

Legend: n items asked for.
"""

from collections.abc import Sequence

from trec_semid.serving.engine import (
    AssignAnswer,
    AssignAsked,
    ItemFacts,
    NotServedError,
    RankAnswer,
    RankAsked,
    RetrieveAnswer,
    RetrieveAsked,
)
from trec_semid.serving.opened import OpenBundle
from trec_semid.serving.unseen import UnseenItems


class BundleEngine:
    """An `Engine` that knows single items; what its model answers, those of rankers and retrievers add.

    What callers hear of a refusal does not say where the bundle lies.
    """

    def __init__(self, bundle: OpenBundle) -> None:
        self.bundle, self.manifest, self.version = bundle, bundle.manifest, bundle.version
        self._unseen = UnseenItems(bundle)

    def rank(self, asked: Sequence[RankAsked]) -> list[RankAnswer]:
        """Refuse: see `Engine`."""
        raise NotServedError(f"this bundle is of a {self.manifest.kind}: it gives no probabilities.")

    def retrieve(self, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        """Refuse: see `Engine`."""
        raise NotServedError(f"this bundle is of a {self.manifest.kind}: it has no lists.")

    def assign(self, asked: Sequence[AssignAsked]) -> list[AssignAnswer]:
        """See `Engine`."""
        return self._unseen.assign(asked)

    def item(self, item: str) -> ItemFacts:
        """See `Engine`."""
        return self._unseen.item(item)

    def find(self, words: str, n: int) -> list[ItemFacts]:
        """See `Engine`."""
        return self._unseen.find(words, n)

    def examples(self, n: int) -> tuple[str, ...]:
        """See `Engine`."""
        return self._unseen.examples(n)

    def close(self) -> None:
        """See `Engine`."""
        self.bundle.close()
