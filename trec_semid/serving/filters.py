"""Which items a request may be answered with, as bits of all items.

Legend: B requests, N items.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import final

import numpy as np

from trec_semid.core.arrays import Bytes, Flags, Ints
from trec_semid.serving.engine import Filters
from trec_semid.serving.opened import OpenBundle, at_place

_MOST_KEPT = 256
"""Values of fields whose items are kept as bits, N / 8 bytes each."""


@final
class ItemFilters:
    """Turns filters into flags of items; the items of a field's value are looked for once."""

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle, self._kept = bundle, OrderedDict[tuple[str, str], Bytes]()
        for facts in bundle.manifest.fields:
            if facts.entity == "item":  # opened now, so that no request waits for it
                bundle.field("item", facts.name)

    def allowed(self, filters: Sequence[Filters]) -> tuple[Flags | None, Ints]:
        """Return (B, N) which items may be listed, None where all may; and (B,) ids that are unknown.

        Forbidden items are not looked at: they are few, and stand with the items of histories.

        Raises:
            DataError: a field that items do not have.
        """
        unknown = np.zeros(len(filters), np.int64)
        if all(each.allowed is None and not each.fields for each in filters):
            return None, unknown
        flags = np.ones((len(filters), len(self._bundle.items)), bool)
        for number, each in enumerate(filters):
            if each.allowed is not None:
                rows = self._bundle.items.rows_of(each.allowed)
                unknown[number] = int((rows < 0).sum())
                flags[number] = False
                flags[number, rows[rows >= 0]] = True
            for name, values in each.fields.items():
                has = np.zeros(len(self._bundle.items), bool)
                with at_place(f"filters.fields.{name}"):
                    self._bundle.field("item", name)  # also of no values
                    for value in values:
                        has |= self._with_value(name, value)
                flags[number] &= has
        return flags, unknown

    def _with_value(self, name: str, value: str) -> Flags:
        """Return (N,) which items have a value of a field."""
        key, num_items = (name, value), len(self._bundle.items)
        if key not in self._kept:
            self._kept[key] = np.packbits(self._found(name, value))
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return np.unpackbits(self._kept[key], count=num_items).astype(bool)

    def _found(self, name: str, value: str) -> Flags:
        field = self._bundle.field("item", name)
        number = int(field.numbers_of([value])[0])
        if number == 0:  # no item has a value that nobody knows
            return np.zeros(len(self._bundle.items), bool)
        starts, lengths, values = field.column
        before = np.concatenate([[0], np.cumsum(np.asarray(values) == number)])
        return before[starts + lengths] > before[starts]
