"""What a bundle says of single items: codes of content that it has not seen, and facts of items that it has.

Legend: N items, n asked for, R positions, K codes, D width.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from trec_semid.core.arrays import Array, Float32s, Ints
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.serving.engine import AssignAnswer, AssignAsked, ItemFacts, NotServedError
from trec_semid.serving.opened import OpenBundle
from trec_semid.serving.reader import Table, map_column
from trec_semid.tokenizers.inputs.contents import Contents
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.tokenizers.tokenizer import Tokenizer

_NUM_NEIGHBOURS = 10
_ROWS_AT_ONCE = 1 << 16


@final
class UnseenItems:
    """The map, the tokenizer and the tables of items of a bundle."""

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle = bundle
        ids = bundle.manifest.semantic_ids
        self._codes: Array | None = bundle.arrays(ids.rows.file)["codes"] if ids else None
        self._tokenizer: Tokenizer | None = None

    @torch.no_grad()
    def assign(self, asked: Sequence[AssignAsked]) -> list[AssignAnswer]:
        """Return the codes of content, and the items whose codes are nearest to it.

        An item is as far as each of its codes is from the content (`Tokenizer.distances`, the other codes as
        the content has them) beyond the code that the content has there, summed up: 0 where all are the same.

        Raises:
            NotServedError: the bundle has no tokenizer.
            DataError: a modality that it does not know, or a vector of another width, or not of numbers.
        """
        if not asked:
            return []
        tokenizer = self._loaded()
        contents = _contents_of(tokenizer, asked)
        codes = tokenizer.encode(contents)
        each = [tokenizer.distances(contents, codes, r).float() for r in range(codes.shape[1])]
        answers: list[AssignAnswer] = []
        for at, request in enumerate(asked):
            rows, distances = self._nearest([part[at] for part in each], codes[at], request.n)
            names = tuple(self._bundle.items.ids_of(rows))
            answers.append(AssignAnswer(tuple(codes[at].tolist()), names, distances))
        return answers

    def item(self, item: str) -> ItemFacts:
        """Return what is known of an item; see `Engine`."""
        row = int(self._bundle.items.rows_of([item])[0])
        if row < 0:
            raise DataError("no such item in the bundle", file=self._bundle.uri, field="item", value=item)
        ids = self._bundle.manifest.semantic_ids
        read = ids.generation if ids else None
        return ItemFacts(
            item,
            () if self._codes is None else tuple(int(code) for code in self._codes[row]),
            tuple(self._bundle.items.ids_of(self._neighbours(row))),
            f"{read.store}@{read.number}" if read else None,
            self._readable(row),
        )

    def find(self, words: str, number: int) -> list[ItemFacts]:
        """Return the items whose readable text has all the words; see `Engine`."""
        readable, num_items = self._bundle.manifest.readable, len(self._bundle.items)
        asked = words.split()
        if readable is None or not asked or number < 1:
            return []
        path, has_all = join(self._bundle.folder, readable.file), np.ones(num_items, bool)
        columns = [map_column(path, name) for name in self._columns(path)]
        for word in asked:
            options = pc.MatchSubstringOptions(word, ignore_case=True)
            has = np.zeros(num_items, bool)
            for column in columns:
                found = pc.call_function("match_substring", [column], options)
                has |= pc.call_function("coalesce", [found, pa.scalar(False)]).to_numpy(False)
            has_all &= has
        order = self._best_known
        rows = order[has_all[order]][:number].tolist()
        names = self._bundle.items.ids_of(rows)
        return [
            ItemFacts(name, (), (), None, self._readable(row)) for name, row in zip(names, rows, strict=True)
        ]

    def examples(self, number: int) -> tuple[str, ...]:
        """Return ids of items, best known first; see `Engine`."""
        return tuple(self._bundle.items.ids_of(self._best_known[:number]))

    @cached_property
    def _best_known(self) -> Ints:
        """(N,) rows by training events, or by what histories have; the lower of equal ones first."""
        facts, num_items = self._bundle.manifest.retriever, len(self._bundle.items)
        counts = np.zeros(num_items, np.int64)
        if facts is not None:
            counts = np.asarray(self._bundle.arrays(facts.items.file)["counts"])
        elif self._bundle.reader.histories is not None:
            counts = np.bincount(self._bundle.reader.histories.values, minlength=num_items)
        return np.lexsort((np.arange(num_items), -counts)).astype(np.int64)

    def _loaded(self) -> Tokenizer:
        names = [facts.file for facts in self._bundle.manifest.tokenizer]
        if "tokenizer/config.json" not in names or self._codes is None:
            raise NotServedError("this bundle has no tokenizer: it gives content no codes.")
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(join(self._bundle.folder, "tokenizer"))
        return self._tokenizer

    def _nearest(self, distances: Sequence[Tensor], own: Tensor, number: int) -> tuple[Ints, Float32s]:
        """Return the (n,) nearest items of (K,) distances a position, and how far they are."""
        assert self._codes is not None, "a bundle without codes is refused"
        total = np.zeros(len(self._codes), np.float32)
        for position, (each, code) in enumerate(zip(distances, own.tolist(), strict=True)):
            if code == len(each):
                continue  # the content lacks the modality, so the position tells nothing
            # An item that lacks it is as far as the farthest code.
            beyond = each - each[code]
            total += torch.cat([beyond, beyond.max().view(1)]).numpy()[self._codes[:, position]]
        rows = np.lexsort((np.arange(len(total)), total))[:number]
        return rows, total[rows]

    def _neighbours(self, row: int) -> Ints:
        """Return the rows of the nearest other items: by first codes, or else by vectors."""
        if self._codes is not None:
            shared = np.cumprod(self._codes == self._codes[row], axis=1).sum(1)
            shared[row] = -1
            order = np.lexsort((np.arange(len(shared)), -shared))[:_NUM_NEIGHBOURS]
            return order[shared[order] > 0]
        table = self._item_table()
        if table is None:
            return np.zeros(0, np.int64)
        cosines = _cosines(table, row)
        cosines[row] = -np.inf
        return np.lexsort((np.arange(len(cosines)), -cosines))[: min(_NUM_NEIGHBOURS, len(cosines) - 1)]

    def _item_table(self) -> Table | None:
        facts, tables = self._bundle.manifest.retriever, self._bundle.reader.tables
        of_members = [member.vectors for member in facts.members] if facts else ["t_item_id"]
        return next((tables[name] for name in of_members if name in tables), None)

    def _readable(self, row: int) -> dict[str, str]:
        manifest, told = self._bundle.manifest, dict[str, str]()
        if manifest.readable:
            path = join(self._bundle.folder, manifest.readable.file)
            for name in self._columns(path):
                value = map_column(path, name)[row].as_py()
                told |= {} if value is None else {name: str(value)}
        for facts in manifest.fields:
            if facts.entity == "item":
                field = self._bundle.field("item", facts.name)
                numbers, _ = field.column.take(np.array([row]))
                told[facts.name] = ", ".join(field.values.ids_of(numbers[numbers > 0] - 1))
        return told

    def _columns(self, path: str) -> list[str]:
        schema: Any = pa.ipc.open_file(pa.memory_map(path)).schema
        return list(schema.names)


def _cosines(table: Table, row: int) -> Float32s:
    """Return (N,) cosines of all rows with one; 0 where a row is zeros."""
    own, cosines = table.rows(np.array([row]))[0], np.zeros(table.num_rows, np.float32)
    for first in range(0, table.num_rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, table.num_rows)
        part = table.stretch(first, last)
        lengths = np.linalg.norm(part, axis=1) * np.linalg.norm(own)
        cosines[first:last] = part @ own / np.where(lengths > 0, lengths, 1)
    return cosines


def _contents_of(tokenizer: Tokenizer, asked: Sequence[AssignAsked]) -> Contents:
    """Return what the tokenizer reads of requests, in its order; what is not given is missing."""
    for number, request in enumerate(asked):
        for name, vector in request.contents.items():
            width = tokenizer.inputs.get(name)
            if width is None:
                remedy = f"The tokenizer reads: {', '.join(tokenizer.inputs)}"
                raise DataError("no such modality", row=number + 1, field=name, remedy=remedy)
            if len(vector) != width:
                problem = f"a vector of {len(vector)} numbers, and the tokenizer reads {width}"
                raise DataError(problem, row=number + 1, field=name)
            if not np.isfinite(vector).all() or not np.any(vector):
                raise DataError("a vector that is zeros, or not of numbers", row=number + 1, field=name)
    nothing = {name: (0.0,) * width for name, width in tokenizer.inputs.items()}
    vectors = tuple(
        torch.tensor([request.contents.get(name, nothing[name]) for request in asked]).float()
        for name in tokenizer.inputs
    )
    present = torch.tensor([[name in request.contents for name in tokenizer.inputs] for request in asked])
    return tokenizer.complete(Contents(vectors, present))
