"""Training and listing of every retriever beside SASRec of equal width, over short and long histories.

    .venv/bin/python tools/bench/retrieval/models.py [--models NAME ...] [--histories N ...] [--json FILE]

Users, items and codes are drawn; every history is as long as it may be. All models have one width, and two
blocks where they have a transformer (HeterRec and TIGER one in either part), whose attention drops nothing.
A training step is loss, backward and update of a batch that lies ready, placed on one rank as in `trec-semid
retrieve`; losses over items are over all of them. A sequence is one history: all its places predict an item,
but with TIGER, where it predicts one, and HyMiRec, where it predicts ten.
A batch has --cells items in its histories, or half as many again and again, until it fits in --memory GiB; a
model of which one history does not fit is left out and named with the reason.
Listing: from histories to the best --beams items of the whole catalogue, nothing masked; vectors of all items
are made anew in every turn. TIGER and AsymRec list by a beam as wide as the lists are long.
The history's bytes are of what is read of its items, were it stored with the user: a float32 vector where an
item is read by its ID or content, a byte or two for each code. Coefficients of codes take two bytes each.
Contestants take turns, and ratios are of processor time, so that other work on the machine does not count.
"""

import options

PARSER = options.parser_of(__doc__)
PARSER.add_argument("--models", nargs="+", help="which, by name; SASRec always takes part")
PARSER.add_argument("--histories", type=int, nargs="+", default=[50, 1000], help="items of a history")
PARSER.add_argument("--cells", type=int, default=6_400, help="items of all histories of a batch")
PARSER.add_argument("--steps", type=int, default=1, help="training steps in a turn")
PARSER.add_argument("--asked", type=int, default=64, help="users listed in a turn")
PARSER.add_argument("--memory", type=float, default=6.0, help="GiB for all models of a length together")
OPTIONS = options.read(PARSER)

import resource  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any, NamedTuple, cast  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from contest import Spent, evaluating, keep, take_turns, tell  # noqa: E402
from given import NO_FEATURES, Given  # noqa: E402
from ours import Contestant, blocks, drawn_content, items_of  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

from trec_semid.data.ragged import Ragged  # noqa: E402
from trec_semid.data.retrieval.batches import SequenceBatch, SequenceMaker, Window, history_batch  # noqa: E402
from trec_semid.data.retrieval.sequences import Sequences  # noqa: E402
from trec_semid.metrics.target_positions import UserItems  # noqa: E402
from trec_semid.models.methods import AnyRetrieverConfig, retriever_of  # noqa: E402
from trec_semid.models.retrieval_model import RetrievalModel  # noqa: E402
from trec_semid.models.retriever import Frame, LossConfig, RetrieverConfig  # noqa: E402
from trec_semid.runtime.ranks import Ranks, process_group  # noqa: E402
from trec_semid.search.catalogue import build_catalogue  # noqa: E402
from trec_semid.search.exact import ExactSearch  # noqa: E402
from trec_semid.search.interests import InterestsConfig  # noqa: E402

BASE = "SASRec"
WHOLE = blocks(OPTIONS, OPTIONS.blocks).model_copy(update={"attention_dropout": 0.0})
HALF = blocks(OPTIONS, OPTIONS.blocks // 2).model_copy(update={"attention_dropout": 0.0})
OF_ITEMS = LossConfig(item_similarity_is_cosine=True, item_temperature=0.07)
OF_CODES = LossConfig(item_weight=0.0, code_weight=1.0)
OF_CHAINED_CODES = OF_CODES.model_copy(update={"code_heads": "chained"})
_NO_MEMORY = ("allocate memory", "not enough memory")


class Setup(NamedTuple):
    """A model, what it reads, and what a history teaches it."""

    model: dict[str, Any]
    """As in `[model]`."""
    reads_id: bool = True
    reads_codes: bool = False
    loss: LossConfig = OF_ITEMS
    reads_content: bool = False
    num_targets: int = 1
    """Of a history whose end alone predicts."""
    slides: bool = False
    """Whether its end alone predicts."""
    num_read: int | None = None
    """Last items that are read by ID; all where not given."""

    @property
    def predicts_codes(self) -> bool:
        """Whether codes are predicted, and items are not."""
        return self.loss.code_weight > 0


ALL = {
    BASE: Setup({"kind": "sasrec", "transformer": WHOLE}),
    "ComiRec-SA": Setup({"kind": "comirec", "extractor": "attention"}),
    "ComiRec-DR": Setup({"kind": "comirec", "extractor": "routing"}),
    "GemiRec": Setup(
        {"kind": "gemirec", "transformer": WHOLE, "state_weight": 1.0, "interest": {"codebook_size": 32}}
    ),
    "HyMiRec": Setup(
        {"kind": "hymirec", "transformer": WHOLE, "recent": 50},
        reads_codes=True,
        slides=True,
        num_targets=10,
        num_read=50,
    ),
    "HeterRec": Setup({"kind": "heterrec", "tokens": HALF, "items": HALF}, reads_codes=True),
    "RPG": Setup({"kind": "rpg", "transformer": WHOLE}, reads_id=False, reads_codes=True, loss=OF_CODES),
    "AsymRec": Setup(
        {"kind": "asymrec", "transformer": WHOLE}, reads_id=False, reads_content=True, loss=OF_CHAINED_CODES
    ),
    "TIGER": Setup(
        {"kind": "tiger", "encoder": HALF, "decoder": HALF},
        reads_id=False,
        reads_codes=True,
        loss=OF_CODES,
        slides=True,
    ),
}


class Contest:
    """Models over histories of one length that fit, and why others do not."""

    def __init__(self, history: int, setups: dict[str, Setup], ranks: Ranks) -> None:
        OPTIONS.history = history
        self.history, self._ranks = history, ranks
        self.given = self._draw()
        self.models: dict[str, Contestant] = {}
        self.rows: dict[str, int] = {}
        """Histories of a training batch."""
        self.targets: dict[str, float] = {}
        """Items that a history predicts."""
        self.reasons: dict[str, str] = {}
        self._setups = setups
        for name, setup in setups.items():
            self._enter(name, setup)

    def training(self, name: str, turn: int) -> int:
        """Train for a turn; return the number of histories."""
        for batch in self._batches(name, turn):
            self.models[name].train(batch)
        return OPTIONS.steps * self.rows[name]

    def listing(self, name: str, turn: int) -> int:
        """List for a turn's users; return how many."""
        one, rows = self.models[name], self.rows[name]
        features = self._features(self._setups[name])
        numbers = np.arange(OPTIONS.asked) % self.given.options.users
        lists = self._lister(one)
        for first in range(0, OPTIONS.asked, rows):
            lists(history_batch(self.given.before, numbers[first : first + rows], features, rows))
        return OPTIONS.asked

    def history_bytes(self, name: str) -> dict[str, int]:
        """Return bytes of what is read of a history, and with two bytes for each code's coefficient."""
        setup, options = self._setups[name], self.given.options
        num_read = min(setup.num_read or self.history, self.history)
        of_vectors = num_read * options.dim * 4 * (setup.reads_id or setup.reads_content)
        num_codes = self.history * options.positions * setup.reads_codes
        size = of_vectors + num_codes * (1 if options.codebook <= 256 else 2)
        return {"history_bytes": size} | ({"with_coefficients": size + 2 * num_codes} if num_codes else {})

    def _draw(self) -> Given:
        """Draw users with events for a history, its targets, and one of each split after."""
        rng = np.random.default_rng(0)
        users = max(OPTIONS.asked, OPTIONS.cells // self.history)
        most = self.history + max(setup.num_targets for setup in ALL.values())
        items = (OPTIONS.items * rng.random(users * (most + 2)) ** 3).astype(np.int64)
        counts = np.stack([np.full(users, most), np.ones(users, np.int64), np.ones(users, np.int64)], 1)
        sequences = Sequences(items, np.arange(users + 1) * (most + 2), counts)
        codes = (OPTIONS.codebook * rng.random((OPTIONS.items, OPTIONS.positions)) ** 2).astype(np.int16)
        OPTIONS.users = users
        before = sequences.evaluation_rows("test", self.history).histories
        return Given(sequences, before, codes, OPTIONS)

    def _enter(self, name: str, setup: Setup) -> None:
        """Place a model, and find how many histories of a batch fit."""
        adapter: TypeAdapter[RetrieverConfig] = TypeAdapter(AnyRetrieverConfig)
        config = adapter.validate_python(setup.model)
        rows = max(OPTIONS.cells // self.history, 1)
        while rows:
            try:
                model = self._build(config, setup)
                contents = drawn_content(OPTIONS.items) if setup.reads_content else None
                self.models[name] = Contestant(
                    model, self.given, self._features(setup), self._ranks, contents
                )
                self.rows[name] = rows
                batch = self._batches(name, 0)[0]
                self.targets[name] = batch.global_size * setup.num_targets / rows
                self.models[name].train(batch)
                self.listing(name, 0)
                return
            except (RuntimeError, MemoryError) as error:
                if not any(words in str(error) for words in _NO_MEMORY) and str(error):
                    raise
                self.models.pop(name, None)
            rows //= 2
        self.reasons[name] = f"one history does not fit in {OPTIONS.memory:g} GiB"

    def _build(self, config: RetrieverConfig, setup: Setup) -> RetrievalModel:
        torch.manual_seed(0)
        items = items_of(
            self.given,
            has_id=setup.reads_id,
            has_codes=setup.reads_codes or setup.predicts_codes,
            device="meta",
            reads_content=setup.reads_content,
        )
        frame = Frame(
            OPTIONS.dim,
            self.history,
            setup.loss,
            predicts_codes=setup.predicts_codes,
            has_codes=setup.reads_codes or setup.predicts_codes,
            window=setup.num_targets,
            num_items=OPTIONS.items,
        )
        return retriever_of(config).build(items, frame)

    def _features(self, setup: Setup) -> Any:
        return self.given.id_features() if setup.reads_id else NO_FEATURES

    def _batches(self, name: str, turn: int) -> list[SequenceBatch]:
        """Return a turn's batches of whole histories and their targets."""
        setup, rows = self._setups[name], self.rows[name]
        starts, length = self.given.sequences.starts[:-1], self.history + setup.num_targets
        windows = Ragged(starts, np.full_like(starts, length), self.given.sequences.items)
        listed = None if setup.predicts_codes else np.arange(OPTIONS.items)
        window = Window(setup.num_targets, setup.slides)
        maker = SequenceMaker(windows, self._features(setup), window, listed=listed)
        generator = np.random.default_rng(0)
        drawn = [(np.arange(rows) + (turn + step) * rows) % len(starts) for step in range(OPTIONS.steps)]
        return [maker.make(some, maker.num_places(some), generator) for some in drawn]

    def _lister(self, one: Contestant) -> Callable[[SequenceBatch], object]:
        """Return what lists for a batch of users, with vectors of all items made now."""
        model = evaluating(one.lists.model)
        if not model.scores_catalogue:
            return one.lists.by_beam
        with torch.no_grad():
            alone = Ranks(0, 1, 0, torch.device("cpu"))
            search = ExactSearch([build_catalogue(model, one.feed.chunk, OPTIONS.items, alone)])

        @torch.no_grad()
        def by_scores(batch: SequenceBatch) -> object:
            tokens = model.items(one.feed.listed(batch))
            queries = InterestsConfig().counted(model.queries(tokens, batch.places))
            none = torch.zeros(len(batch.rows), dtype=torch.int64)
            nothing = UserItems(none[:0], none, none[:0], none)
            return search.top_items([queries], nothing, OPTIONS.beams)

        return by_scores


def compare(history: int, setups: dict[str, Setup], ranks: Ranks) -> dict[str, Any]:
    """Run both contests over histories of one length, and print their tables."""
    contest = Contest(history, setups, ranks)
    names = list(contest.models)
    print(f"\nHistories of {history:,} items")
    for name, reason in contest.reasons.items():
        print(f"{name} takes no part: {reason}")
    for name in names:
        told = ", ".join(f"{key} {value:,}" for key, value in contest.history_bytes(name).items())
        print(f"{name}: {contest.rows[name]} histories a batch, {contest.targets[name]:g} items each; {told}")
    trained = take_turns({name: partial(contest.training, name) for name in names}, OPTIONS.turns)
    print("\nTraining")
    tell(trained, "sequence", BASE)
    listed = take_turns({name: partial(contest.listing, name) for name in names}, OPTIONS.turns)
    print("\nListing")
    tell(listed, "user", BASE)
    known = {
        name: {"rows": contest.rows[name], "targets": contest.targets[name], **contest.history_bytes(name)}
        for name in names
    }
    spent: dict[str, dict[str, list[Spent]]] = {"training": trained, "listing": listed}
    return {**spent, "models": known, "left out": contest.reasons}


def bound_memory() -> None:
    """Let the process take so much more than it has, and no more: then torch says that there is none left."""
    with open("/proc/self/status", encoding="ascii") as file:
        taken = next(int(line.split()[1]) for line in file if line.startswith("VmData"))
    limit = taken * 1024 + int(OPTIONS.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def main() -> None:
    """Compare the asked models over the asked lengths."""
    chosen = OPTIONS.models or list(ALL)
    unknown = [name for name in chosen if name not in ALL]
    if unknown:
        PARSER.error(f"--models: no {', '.join(unknown)}; there are {', '.join(ALL)}")
    setups = {name: setup for name, setup in ALL.items() if name in {BASE, *chosen}}
    print(
        f"{OPTIONS.items:,} items, {OPTIONS.positions} codes of {OPTIONS.codebook}, width {OPTIONS.dim},",
        end=" ",
    )
    print(f"{OPTIONS.threads} threads, medians of {OPTIONS.turns} turns")
    with process_group() as ranks:
        bound_memory()
        numbers = {f"{history}": compare(history, setups, ranks) for history in OPTIONS.histories}
    keep(OPTIONS.json, cast(dict[str, Any], {"options": vars(OPTIONS), **numbers}))


if __name__ == "__main__":
    main()
