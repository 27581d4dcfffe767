"""Garbage collection: which generations somebody still needs, and how the others go."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from trec_semid.core.errors import DataError
from trec_semid.core.paths import remove, unfinished_note
from trec_semid.tokenizers.generations.manifest import ReadGeneration, reading_fault
from trec_semid.tokenizers.generations.store import Entry, Store


class Collected(NamedTuple):
    """What a collection comes to."""

    needed: dict[int, str]
    """Generations that stay, and why."""
    collected: list[int]
    leftovers: list[int]
    """Folders that no entry of the history names: of writers that were killed."""
    seen: Entry
    """What held when this was looked up."""


def readable_by(store: Store, read: ReadGeneration) -> list[int]:
    """Return the generations that a model can read, its own one with them.

    Raises:
        DataError: the description of one is damaged.
    """
    return [one.number for one in store.published() if reading_fault(read, one) is None]


def plan_collection(
    store: Store, keep: Collection[int] = (), models: Sequence[ReadGeneration] = ()
) -> Collected:
    """Return which generations stay and which go.

    Args:
        store: nobody may write to it meanwhile.
        keep: generations that are named.
        models: what runs that stay say of the generation that they read.

    Raises:
        DataError: a generation that is named is not there, or a model is of another store.
    """
    newest = store.newest()
    needed: dict[int, str] = {number: "named" for number in keep if store.generation(number)}
    for model in models:
        if model.store != store.id:
            remedy = "Leave it out, or name its own store"
            raise DataError(
                "a model of another store", file=store.uri, field="model", value=model.place, remedy=remedy
            )
        for number in readable_by(store, model):
            needed.setdefault(number, f"read by a model of generation {model.number}")
    if newest.current:
        needed[newest.current] = "current"
    gone = [number for number in newest.published if number not in needed]
    strange = [number for number in store.folders() if number not in newest.published]
    return Collected(dict(sorted(needed.items())), gone, strange, newest)


def collect(store: Store, plan: Collected) -> None:
    """Remove what nobody needs: first by word, then from the disk.

    Leftovers get an entry too: one may be the folder of a publisher whose lock was taken over. With this
    entry between its own two, the publisher is refused before it names a folder that is gone.

    Who is killed in between leaves folders that nobody reads, and that the next collection removes.

    Raises:
        LockError: another process was faster; nothing was removed.
    """
    told = [("collected", plan.collected), ("never published", plan.leftovers)]
    note = "; ".join(f"{what} {', '.join(map(str, numbers))}" for what, numbers in told if numbers)
    if note:
        store.advance(plan.seen, "collect", 0, published=tuple(plan.needed), note=note)
    for number in (*plan.collected, *plan.leftovers):
        remove(store.folder(number))
        remove(unfinished_note(store.folder(number)))
