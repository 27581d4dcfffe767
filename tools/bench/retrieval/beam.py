"""Users/s of the vectorised beam over a trie, beside `transformers.generate` held to the same trie.

    .venv/bin/python tools/bench/retrieval/beam.py [--dataset D --codes C] [--beams W] [--blocks N]

TIGER of this package and T5 of Hugging Face have the same width, heads and blocks, read the same histories
and say a code at a time with a cache; tries lie ready. T5 is held to tuples that exist by
`prefix_allowed_tokens_fn`, which reads a dictionary. "T5, free" is held to nothing: no way of holding it is
faster. HeterRec's parallel heads are searched besides. Weights are random: a search takes as long with any.
Then it is checked that both decode rightly: every returned tuple exists; T5 under our beam, without its
cache, gives the tuples of `generate`; TIGER's tuples score what its loss gives them with teacher forcing;
HeterRec's beam as wide as the catalogue gives the list of exact scores.
"""

from functools import partial

import options

PARSER = options.parser_of(__doc__)
PARSER.add_argument("--asked", type=int, default=512, help="users of a turn, all at once")
PARSER.add_argument("--peer-asked", type=int, default=64, help="users of a turn of T5, all at once")
PARSER.add_argument("--checked", type=int, default=16, help="users whose lists are checked")
OPTIONS = options.read(PARSER)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from contest import Work, keep, take_turns, tell  # noqa: E402
from given import NO_FEATURES, Given, ended_batch, given_data  # noqa: E402
from ours import Lists, build  # noqa: E402
from t5 import MISSING, T5, is_installed  # noqa: E402
from torch import Tensor  # noqa: E402

from trec_semid.data.retrieval.batches import SequenceBatch  # noqa: E402
from trec_semid.runtime.ranks import Ranks, process_group  # noqa: E402
from trec_semid.search.beam import beam_search, decode_items  # noqa: E402
from trec_semid.training.retrieval.item_feed import ItemFeed  # noqa: E402


class Searches:
    """The contestants, and how many of the tuples that they returned there are."""

    def __init__(self, given: Given, ranks: Ranks) -> None:
        feed = ItemFeed(NO_FEATURES, None, ranks)
        self.given, self.feed = given, feed
        self.tiger, self.heterrec = (
            Lists(build(kind, given), feed, OPTIONS.items, OPTIONS.beams) for kind in ("tiger", "heterrec")
        )
        self.peer = T5(given) if is_installed() else None
        self._existing = {tuple(row) for row in given.codes.tolist()}
        self._found: dict[str, list[int]] = {}

    def works(self) -> dict[str, Work]:
        """Return what searches for a turn's users."""
        works: dict[str, Work] = {
            "TIGER": partial(self._search, "TIGER", OPTIONS.asked),
            "HeterRec, parallel heads": partial(self._search, "HeterRec, parallel heads", OPTIONS.asked),
        }
        if self.peer:
            works["T5"] = partial(self._search, "T5", OPTIONS.peer_asked)
            works["T5, free"] = partial(self._search, "T5, free", OPTIONS.peer_asked)
        return works

    def codes_of(self, name: str, batch: SequenceBatch) -> Tensor:
        """Return (B, W, R) tuples of one contestant, best first."""
        if name.startswith("T5"):
            assert self.peer is not None, "asked for where it is installed"
            return self.peer.generate(batch, OPTIONS.beams, is_held=name == "T5")
        return (self.tiger if name == "TIGER" else self.heterrec).by_beam(batch).codes

    def _search(self, name: str, number: int, turn: int) -> int:
        users = (turn * number + np.arange(number)) % OPTIONS.users
        codes = self.codes_of(name, self.given.histories(users, NO_FEATURES))
        self._found.setdefault(name, []).append(codes.flatten(0, 1))
        return number

    def validity(self) -> dict[str, float]:
        """Return the share of all tuples returned so far that are some item's."""
        shares = {}
        for name, found in self._found.items():
            exists = [tuple(codes) in self._existing for codes in torch.cat(found).tolist()]
            shares[name] = float(np.mean(exists))
        return shares


@torch.no_grad()
def check_peer(searches: Searches, batch: SequenceBatch) -> str:
    """Compare `generate` with our beam over the same T5, which then has no cache."""
    assert searches.peer is not None, "asked for where it is installed"
    asked = searches.peer.next_log_probs(batch)
    ours = beam_search(searches.tiger.trie, len(batch.rows), asked, OPTIONS.beams)
    same = (ours.codes == searches.codes_of("T5", batch)).all(2).float().mean()
    return f"tuples of generate that our beam over the same T5 has in the same place: {same:.1%}"


@torch.no_grad()
def check_tiger(searches: Searches, batch: SequenceBatch) -> str:
    """Compare scores of beams with the loss of rows that end in an item of the tuple."""
    found = searches.tiger.by_beam(batch)
    items = {tuple(codes): item for item, codes in enumerate(searches.given.codes.tolist())}
    rows = [
        [*batch.items[history[:length]].tolist(), items[tuple(codes)]]
        for history, length, beams in zip(
            batch.places.inputs, batch.places.lengths, found.codes.tolist(), strict=True
        )
        for codes in beams
    ]
    ends = ended_batch(rows)
    losses = searches.tiger.model(searches.feed.listed(ends), ends.places)[0]["codes"]
    apart = (found.scores.flatten() + OPTIONS.positions * losses).abs().max()
    return f"TIGER's scores differ from those with teacher forcing by {apart:.1e} at most"


@torch.no_grad()
def check_heterrec(searches: Searches, batch: SequenceBatch) -> str:
    """Compare a beam as wide as the catalogue with exact scores."""
    lists = searches.heterrec
    exact, trie = lists.by_scores(batch), lists.trie
    widest = decode_items(
        trie, len(batch.rows), lists.asked(batch), width=trie.num_tuples, num_items=exact.shape[1]
    )
    same = (widest.items == exact).float().mean()
    return f"places where HeterRec's widest beam has the item of the exact list: {same:.1%}"


def main() -> None:
    """Run the contest, then the checks."""
    given = given_data(OPTIONS)
    with process_group() as ranks:
        searches = Searches(given, ranks)
        spent = take_turns(searches.works(), OPTIONS.turns)
        checked = given.histories(np.arange(OPTIONS.checked), NO_FEATURES)
        told = [check_tiger(searches, checked), check_heterrec(searches, checked)]
        told += [check_peer(searches, checked)] if searches.peer else [MISSING]
    print(
        f"{OPTIONS.items:,} items of {OPTIONS.positions} codes of {OPTIONS.codebook}, beam {OPTIONS.beams},",
        end=" ",
    )
    print(f"width {OPTIONS.dim}, {OPTIONS.heads} heads, {OPTIONS.blocks} blocks,", end=" ")
    print(f"{OPTIONS.asked} users at once (T5 {OPTIONS.peer_asked}), {OPTIONS.threads} threads,", end=" ")
    print(f"medians of {OPTIONS.turns} turns")
    tell(spent, "user", "T5")
    validity = searches.validity()
    print("tuples that exist: " + ", ".join(f"{name} {share:.1%}" for name, share in validity.items()))
    print("\n".join(told))
    keep(OPTIONS.json, {"options": vars(OPTIONS), "seconds": spent, "validity": validity, "checks": told})


if __name__ == "__main__":
    main()
