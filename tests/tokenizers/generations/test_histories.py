"""Random histories of a store, against dicts that are told the same: what is published never changes."""

import shutil
import tempfile
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.tokenizers.generations.stores import append, retrain, tuples_of
from trec_semid.core.errors import DataError, LockError
from trec_semid.core.paths import find_files
from trec_semid.tokenizers.generations import publish as publishing
from trec_semid.tokenizers.generations.collect import collect, plan_collection, readable_by
from trec_semid.tokenizers.generations.manifest import Generation
from trec_semid.tokenizers.generations.publish import roll_back
from trec_semid.tokenizers.generations.store import Store, open_store

SLOTS, CODES = 3, 3
STEPS = 6
"""That write a generation, after it has its number."""
ITEMS = st.sampled_from([f"item {number}" for number in range(7)])
BATCHES = st.dictionaries(ITEMS, st.integers(0, CODES - 1), min_size=1, max_size=4)
REMOVED = st.sets(ITEMS, max_size=2)
Tuples = dict[str, tuple[int, ...]]


class Told(NamedTuple):
    """A generation as the dicts have it."""

    live: Tuples
    gone: Tuples
    before: int | None
    """The one that it was appended to."""
    removes: bool


class RefusedError(Exception):
    """What is asked cannot be."""


class Histories(RuleBasedStateMachine):
    @initialize(in_memory=st.booleans(), batch=st.dictionaries(ITEMS, st.just(0), min_size=1, max_size=SLOTS))
    def begin(self, in_memory: bool, batch: dict[str, int]) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(publishing, "code_commit", lambda: "none")  # asks git
        self.folder = tempfile.mkdtemp()
        self.uri = f"memory://{uuid.uuid4().hex}/store" if in_memory else f"{self.folder}/store"
        self.known: dict[int, Told] = {}
        self.ever: dict[int, Told] = {}  # also what was collected since: others were appended to it
        self.used: set[int] = set()
        self.current: int | None = None
        self.publish_retrained(batch)

    @property
    def store(self) -> Store:
        return open_store(self.uri)

    def note(self, generation: Generation, told: Told) -> None:
        number = generation.number
        assert number > max(self.used, default=0), "a number is never given twice"
        before = self.known.get(self.current or 0, Told({}, {}, None, False)).live
        both = before.keys() & told.live.keys()
        change = generation.change
        assert change.added == len(told.live.keys() - before.keys())
        assert change.removed == len(before.keys() - told.live.keys())
        assert change.moved == sum(before[item] != told.live[item] for item in both)
        if both:
            shares = [
                sum(before[item][at] != told.live[item][at] for item in both) / len(both) for at in (0, 1)
            ]
            assert change.drift == pytest.approx(shares)
        self.used.add(number)
        self.known[number] = self.ever[number] = told
        self.current = number
        for model in self.known:
            readable = readable_by(self.store, self.store.generation(model).as_read("model"))
            assert {*readable} == {now for now in self.known if self.can_read(model, now)}

    @rule(batch=BATCHES)
    def publish_retrained(self, batch: dict[str, int]) -> None:
        codes = {item: (code,) for item, code in batch.items()}
        try:
            live = with_slots({}, {}, codes)
        except RefusedError:
            with pytest.raises(DataError, match=f"all {SLOTS} slots of its tuple are taken"):
                retrain(self.uri, codes, (CODES,), SLOTS)
            return
        self.note(retrain(self.uri, codes, (CODES,), SLOTS), Told(live, {}, None, False))

    @precondition(lambda self: self.current)
    @rule(batch=st.one_of(st.just({}), BATCHES), removed=REMOVED)
    def append_anything(self, batch: dict[str, int], removed: set[str]) -> None:
        self.publish_appended(batch, removed)

    @precondition(lambda self: self.current)
    @rule(batch=BATCHES, dies=st.booleans(), collects=st.booleans())
    def add_new_ones(self, batch: dict[str, int], dies: bool, collects: bool) -> None:
        live = self.known[self.current or 0].live
        if new := {item: code for item, code in batch.items() if item not in live}:
            self.publish_appended(new, set(), dies=dies, collects=collects)

    @precondition(lambda self: self.current)
    @rule(data=st.data(), batch=BATCHES)
    def remove_some(self, data: Any, batch: dict[str, int]) -> None:
        live = self.known[self.current or 0].live
        removed = data.draw(st.sets(st.sampled_from(sorted(live)), min_size=1, max_size=2))
        self.publish_appended({item: code for item, code in batch.items() if item not in live}, removed)

    def collect_leftovers(self) -> None:
        """As a process does that took the lock over."""
        collect(self.store, plan_collection(self.store, list(self.known)))

    def nothing_was_published(self) -> None:
        self.used.add(self.store.newest().highest)
        assert self.store.folders() == sorted(self.known)
        self.what_is_published_is_as_it_was()

    def publish_appended(
        self, batch: dict[str, int], removed: set[str], *, dies: bool = False, collects: bool = False
    ) -> None:
        codes = {item: (code,) for item, code in batch.items()}
        before = self.known[self.current or 0]
        try:
            if removed - before.live.keys() or batch.keys() & before.live.keys():
                raise RefusedError
            live = {item: codes for item, codes in before.live.items() if item not in removed}
            gone = before.gone | {item: before.live[item] for item in removed}
            live = with_slots(live, gone, codes)
            if not live:
                raise RefusedError
        except RefusedError:
            with pytest.raises(DataError):
                append(self.uri, codes, sorted(removed))
            return
        if not batch and not removed:
            return
        for step in range(STEPS if dies else 0):
            with pytest.raises(ZeroDivisionError), During(step, lambda: 1 / 0):
                append(self.uri, codes, sorted(removed))
            self.nothing_was_published()
        # On a disk the folder has its name just before the last step, in place from its first file on.
        seen_from = 1 if self.uri.startswith("memory") else STEPS - 1
        for step in range(seen_from, STEPS if collects else 0):
            told = pytest.raises(LockError, match=r"was faster \(never published")
            with told, During(step, self.collect_leftovers):
                append(self.uri, codes, sorted(removed))
            self.nothing_was_published()
        gone = {item: codes for item, codes in gone.items() if item not in live}
        with During(0, self.collect_leftovers if collects else int):
            generation = append(self.uri, codes, sorted(removed))
        self.note(generation, Told(live, gone, self.current, removes=bool(removed)))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def roll_back(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.known)))
        roll_back(self.store, self.store.newest(), number)
        self.current = number

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def collect(self, data: Any) -> None:
        keep, model = (data.draw(st.sampled_from(sorted(self.known))) for _ in range(2))
        read = self.store.generation(model).as_read("model")
        readable = {number for number in self.known if self.can_read(model, number)}
        collect(self.store, plan_collection(self.store, [keep], [read]))
        self.known = {
            number: told
            for number, told in self.known.items()
            if number in {keep, self.current, model} | readable
        }
        folders = {name.partition("/")[0] for name in find_files(self.uri) if name.startswith("generation")}
        assert folders == {f"generation-{number}" for number in self.known}

    def can_read(self, model: int, now: int) -> bool:
        """By a walk back over what was appended, with nothing removed on the way."""
        number: int | None = now
        while number and number != model and not self.ever[number].removes:
            number = self.ever[number].before
        return number == model

    @invariant()
    def what_is_published_is_as_it_was(self) -> None:
        newest = self.store.newest()
        assert (newest.current, newest.published) == (self.current, tuple(sorted(self.known)))
        for number in {self.current, *list(self.known)[:1]} - {None}:
            assert tuples_of(self.uri, number or 0) == (
                self.known[number or 0].live,
                self.known[number or 0].gone,
            )

    def teardown(self) -> None:
        for number, told in getattr(self, "known", {}).items():
            assert tuples_of(self.uri, number) == (told.live, told.gone)
            tuples = [*told.live.values(), *told.gone.values()]
            assert len(set(tuples)) == len(tuples), "no two items of a lineage ever have one tuple"
        self.patch.undo()
        shutil.rmtree(getattr(self, "folder", "nowhere"), ignore_errors=True)


def with_slots(live: Tuples, gone: Tuples, new: Tuples) -> Tuples:
    """Add items one by one: who was there before gets its own tuple, others the lowest free slot."""
    live = dict(live)
    taken = {*live.values(), *gone.values()}
    for item, codes in new.items():
        if item in gone:
            live[item] = gone[item]
            continue
        slot = next((slot for slot in range(SLOTS) if (*codes, slot) not in taken), None)
        if slot is None:
            raise RefusedError
        live[item] = (*codes, slot)
        taken.add(live[item])
    return live


class During:
    """Do something at the n-th of the steps that write a generation, right before it."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.left, self.act, self.patch = at, act, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        steps = ("save_items", "write_record", "fingerprints", "utc_now", "write_bytes")
        for name in steps:
            self.patch.setattr(publishing, name, self.counted(getattr(publishing, name)))
        self.patch.setattr(Store, "advance", self.counted(Store.advance, spares="begin"))

    def counted(self, function: Any, spares: str = "") -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if spares and spares in args:
                return function(*args, **kwargs)
            self.left -= 1
            if self.left == -1:
                self.act()
            return function(*args, **kwargs)

        return call

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=6, stateful_step_count=15, deadline=None)
