"""An index as arrays, which a file without code can hold, and the index that arrays describe.

faiss's own files are read by a parser that trusts them. Here every number is looked at before faiss walks
along it. What is not kept are the item vectors, which their owner has anyway.

Legend: n items, D width, C centres.
"""

from collections.abc import Mapping
from typing import Any, cast

import faiss
import numpy as np
from torch import Tensor

from trec_semid.core.arrays import Array, Flags
from trec_semid.core.errors import DataError
from trec_semid.data.ragged import Ragged
from trec_semid.search.reach import reached_from


def arrays_of(index: Any) -> dict[str, Array]:
    """Return what an index holds besides vectors: nothing of a flat one.

    Of inverted lists `centres` (C, D) and `lists` (n,), which list each item is in. Of a graph `levels` (n,),
    `offsets` (n + 1,), `neighbours` and `entry` (2,): the item where walks begin, and the highest level.
    """
    if isinstance(index, faiss.IndexIVFFlat):
        lists, held = np.empty(index.ntotal, np.int64), cast("Any", index.invlists)
        for number in range(index.nlist):
            size = held.list_size(number)
            if size:
                lists[faiss.rev_swig_ptr(held.get_ids(number), size)] = number
        return {"centres": index.quantizer.reconstruct_n(0, index.nlist), "lists": lists}
    if isinstance(index, faiss.IndexHNSWFlat):
        graph: Any = index.hnsw
        return {
            "levels": faiss.vector_to_array(graph.levels),
            "offsets": faiss.vector_to_array(graph.offsets).astype(np.int64),
            "neighbours": faiss.vector_to_array(graph.neighbors),
            "entry": np.array([graph.entry_point, graph.max_level], np.int64),
        }
    return {}


def reachable_places(index: Any, count: int) -> Flags:
    """Return (n,) which items a search can come to: all, but for those that no edge of a graph leads to.

    A walk goes along edges of every level, from the item where walks begin.
    """
    if not isinstance(index, faiss.IndexHNSWFlat):
        return np.ones(count, bool)
    arrays = arrays_of(index)
    offsets, neighbours = arrays["offsets"], arrays["neighbours"]
    edges = Ragged(offsets[:-1], np.diff(offsets), neighbours)
    return reached_from(arrays["entry"][:1], lambda places: edges.take(places)[0], count)


def fill(index: Any, vectors: Tensor, arrays: Mapping[str, Array]) -> None:
    """Put vectors into an index that is empty, as arrays say.

    Args:
        index: of the same kind and sizes as the one that the arrays are of.
        vectors: (n, D) float32.
        arrays: of `arrays_of`.

    Raises:
        DataError: they are none of such an index.
    """
    content = np.ascontiguousarray(vectors.numpy())
    try:
        if isinstance(index, faiss.IndexIVFFlat):
            _fill_lists(index, content, arrays)
        elif isinstance(index, faiss.IndexHNSWFlat):
            _fill_graph(index, content, arrays)
        else:
            index.add(content)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"not an index: {error}", field="index", remedy="Copy or export it again") from None


def _fill_lists(index: Any, vectors: Array, arrays: Mapping[str, Array]) -> None:
    centres = np.ascontiguousarray(arrays["centres"], np.float32)
    lists = np.ascontiguousarray(arrays["lists"], np.int64)
    _expect(centres.shape == (index.nlist, index.d), "centres of another size")
    _expect(lists.shape == (len(vectors),), "not one list an item")
    _expect(bool(((lists >= 0) & (lists < index.nlist)).all()), "a list that is none")
    index.quantizer.add(centres)
    index.is_trained = True
    index.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(lists))


def _fill_graph(index: Any, vectors: Array, arrays: Mapping[str, Array]) -> None:
    graph, count = index.hnsw, len(vectors)
    levels, neighbours = (np.ascontiguousarray(arrays[name], np.int32) for name in ("levels", "neighbours"))
    offsets, (entry, highest) = arrays["offsets"].astype(np.int64), arrays["entry"].tolist()
    # Of neighbours of the levels below each one.
    places = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    _expect(levels.shape == (count,) and offsets.shape == (count + 1,), "not one level an item")
    _expect(bool(((levels >= 1) & (levels < len(places))).all()), "a level that is none")
    _expect(bool(offsets[0] == 0 and (np.diff(offsets) == places[levels]).all()), "offsets of another graph")
    _expect(neighbours.shape == (offsets[-1],), "another number of neighbours")
    _expect(bool(((neighbours >= -1) & (neighbours < count)).all()), "a neighbour that is none")
    _expect(0 <= entry < count and levels[entry] == highest + 1 == levels.max(), "no item where walks begin")
    for level in range(1, int(levels.max())):
        own = np.flatnonzero(levels > level)
        at = (offsets[own] + places[level])[:, None] + np.arange(places[level + 1] - places[level])
        there = neighbours[at]
        _expect(bool((levels[there[there >= 0]] > level).all()), "a neighbour that is not on its level")
    index.storage.add(vectors)
    index.ntotal = count
    faiss.copy_array_to_vector(levels, graph.levels)
    faiss.copy_array_to_vector(offsets.astype(np.uint64), graph.offsets)
    faiss.copy_array_to_vector(neighbours, graph.neighbors)
    graph.entry_point, graph.max_level = entry, highest


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
