import pytest
import torch

from tests.ranks import run_ranks
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, write_bytes
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.search import catalogue as catalogue_module
from trec_semid.search.catalogue import (
    Catalogue,
    build_catalogue,
    load_catalogue,
    save_catalogue,
    shortest_stretch,
    stretch_of,
)


class ItemsAreRows(RetrievalModel):
    """Scores item i by the vector (i, 2 i), and notes how many items it is shown at a time."""

    has_item_vectors = True

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []
        self.items = self.show

    def show(self, listed: range) -> torch.Tensor:
        self.shown.append(len(listed))
        return torch.tensor([[i, 2.0 * i] for i in listed])

    def item_vectors(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def forward(self, listed, places):
        raise NotImplementedError


def drawn(num_items: int, *, is_of_codes: bool = True) -> Catalogue:
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_items, 3, generator=rng)
    codes = torch.randint(5, (num_items, 2), generator=rng).short()
    tables = torch.randn(2, 6, 3, generator=rng)
    return Catalogue(num_items, 0, vectors, *((codes, tables) if is_of_codes else (None, None)))


def same(one: Catalogue, other: Catalogue) -> bool:
    return one[:2] == other[:2] and all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one[2:5], other[2:5], strict=True)
    )


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("is_of_codes", [True, False])
def test_a_catalogue_is_read_as_it_was_written(tmp_path, monkeypatch, scheme, is_of_codes):
    monkeypatch.setattr(catalogue_module, "_FILE_ROWS", 4)
    written, folder = drawn(11, is_of_codes=is_of_codes), f"{scheme}{tmp_path}/catalogue"
    save_catalogue(folder, written)
    assert same(load_catalogue(folder), written)
    part = load_catalogue(folder, slice(3, 9))
    assert part.rows == slice(3, 9)
    assert part.num_items == 11
    assert written.vectors is not None
    torch.testing.assert_close(part.vectors, written.vectors[3:9], rtol=0, atol=0)


def test_a_catalogue_of_codes_alone_has_no_vectors(tmp_path):
    written = drawn(5)._replace(vectors=None)
    save_catalogue(str(tmp_path), written)
    assert same(load_catalogue(str(tmp_path)), written)


def test_damage_and_absence_are_named(tmp_path):
    folder = str(tmp_path)
    with pytest.raises(DataError, match="no catalogue here"):
        load_catalogue(folder)
    save_catalogue(folder, drawn(5))
    with pytest.raises(DataError, match="no rows 2 to 5"):
        load_catalogue(folder, slice(2, 6))
    place = join(folder, "rows-000000000000.safetensors")
    content = bytearray(read_bytes(place))
    content[-1] ^= 1
    write_bytes(place, bytes(content))
    with pytest.raises(DataError, match=r"rows-0+\.safetensors.*damaged"):
        load_catalogue(folder)
    described = read_bytes(join(folder, "catalogue.json"))
    write_bytes(join(folder, "catalogue.json"), described.replace(b'"num_items": 5', b'"num_items": 4'))
    with pytest.raises(DataError, match="not what was written"):
        load_catalogue(folder)


@pytest.mark.parametrize(("num_items", "world_size"), [(10, 1), (10, 4), (9, 4), (2, 4), (1, 3)])
def test_stretches_are_the_catalogue_and_ask_for_equally_many_items(monkeypatch, num_items, world_size):
    monkeypatch.setattr(catalogue_module, "_CHUNK_ROWS", 2)
    parts, shown = [], []
    for rank in range(world_size):
        model = ItemsAreRows()
        stretch = build_catalogue(model, range, num_items, Ranks(rank, world_size, 0, torch.device("cpu")))
        assert stretch.rows == stretch_of(rank, world_size, num_items)
        assert stretch.is_shared == (world_size > 1)
        parts.append(stretch.vectors)
        shown.append(model.shown)
    assert shortest_stretch(world_size, num_items) == min(len(part) for part in parts if len(part))
    expected = torch.tensor([[i, 2.0 * i] for i in range(num_items)])
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=0)
    assert all(each == shown[0] for each in shown)


def written_by_ranks(folder: str) -> None:
    whole = drawn(11)
    with process_group() as ranks:
        rows = stretch_of(ranks.rank, ranks.world_size, 11)
        assert whole.vectors is not None
        assert whole.codes is not None
        vectors, codes = whole.vectors[rows], whole.codes[rows]
        save_catalogue(
            folder, whole._replace(first_row=rows.start, vectors=vectors, codes=codes, is_shared=True)
        )


@pytest.mark.ranks
def test_what_ranks_write_together_is_read_by_one(tmp_path):
    run_ranks(written_by_ranks, 2, str(tmp_path))
    assert same(load_catalogue(str(tmp_path)), drawn(11))
