"""The sorted tuples that a beam goes over lie in a bundle, and are mapped."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.jobs.conftest import Bundles
from trec_semid.checkpoints.bundle_files import read_manifest, write_manifest
from trec_semid.core.errors import DataError
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.serving.engine import RetrieveAsked, open_engine
from trec_semid.serving.writing.ids import write_arrays


@pytest.mark.parametrize("name", ["tiger", "rpg by a beam", "hybrid of chained codes", "asymrec"])
def test_the_tuples_of_a_bundle_lie_in_it_in_order_and_a_bundle_without_has_them_sorted(
    bundles: Bundles, name: str, tmp_path: Path
):
    manifest: Any = read_manifest(bundles(name))
    (facts,) = manifest.retriever.members
    held = safetensors.numpy.load_file(f"{bundles(name)}/{facts.codes.file}")
    built = TupleTrie.build(held["codes"], tuple(held["sizes"].tolist())).arrays()
    stored = safetensors.numpy.load_file(f"{bundles(name)}/{facts.trie.file}")
    assert sorted(stored) == sorted(built)
    for key, values in built.items():
        np.testing.assert_array_equal(stored[key], values)
        assert stored[key].dtype == values.dtype

    def with_trie(copy: Path, trie: Any) -> str:
        """Return a copy of the bundle whose manifest names another file, or none."""
        own = facts.model_copy(update={"trie": trie})
        retriever = manifest.retriever.model_copy(update={"members": (own,)})
        write_manifest(str(copy), manifest.model_copy(update={"retriever": retriever}))
        return str(copy)

    copy = tmp_path / "copy"
    shutil.copytree(bundles(name), copy)
    asked = [RetrieveAsked(None, ("i001", "i007"), 12), RetrieveAsked(None, ("i030",), 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TupleTrie, "build", None)  # nothing is sorted where it lies there
        mapped = open_engine(bundles(name)).retrieve(asked)
    # Sorted tuples that point outside are refused, signed or not.
    stored["items"][:] = 10**9
    broken = write_arrays(str(copy), facts.trie.file, stored)
    with pytest.raises(DataError, match="no trie of 40 items: items are not each item once"):
        open_engine(with_trie(copy, broken)).retrieve(asked)
    (copy / facts.trie.file).unlink()
    for one, other in zip(mapped, open_engine(with_trie(copy, None)).retrieve(asked), strict=True):
        assert one.items == other.items
        np.testing.assert_array_equal(one.scores, other.scores)


def test_what_lists_without_a_beam_has_no_tuples_in_order(bundles: Bundles):
    manifest: Any = read_manifest(bundles("hybrid"))
    assert manifest.retriever.members[0].trie is None
