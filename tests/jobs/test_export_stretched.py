"""A retriever whose tables stay in the checkpoint says what the one says that holds them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.jobs.conftest import Bundles
from trec_semid.core.config import load_saved
from trec_semid.core.errors import CheckpointError
from trec_semid.data.ragged import Ragged
from trec_semid.jobs.retrieve import RetrieveConfig
from trec_semid.runtime.ranks import process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finished import FinishedRun
from trec_semid.training.retrieval.evaluation.asked import AskedModel
from trec_semid.training.retrieval.finished import Member, place_finished
from trec_semid.training.served import retriever
from trec_semid.training.served.kept import keep_rows
from trec_semid.training.served.retriever import ServedMember
from trec_semid.training.served.stretched import place_stretched

HISTORIES = Ragged(np.array([0, 3, 4]), np.array([3, 1, 5]), np.array([4, 39, 4, 0, 7, 8, 9, 21, 30]))


@torch.no_grad()
def expect_same(served: ServedMember, asked: AskedModel) -> None:
    """Expect what is read of items, their vectors and users' queries to be those of another model."""
    listed = asked.feed.chunk(0, 40)
    tokens = asked.model.items(listed)
    read = asked.model.read_of(tokens, listed.rows)
    own = np.concatenate([served.tokens(first, min(first + 11, 40)) for first in range(0, 40, 11)])
    np.testing.assert_allclose(own, read, atol=1e-6)
    assert read.std() > 0.01
    if asked.model.has_item_vectors:
        expected = asked.model.item_vectors(tokens)
        np.testing.assert_allclose(served.vectors(3, 31), expected[3:31], atol=1e-6)
        now, then = (each.queries(HISTORIES, np.arange(3)) for each in (served.asked, asked))
        for mine, theirs in zip(now, then, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["sasrec", "hybrid", "heterrec", "asymrec", "gemirec of histories", "hymirec"]
)
def test_items_and_users_are_those_of_the_model_with_its_tables(
    runs: Bundles, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retriever, "_ITEMS_AT_ONCE", 7)
    config = load_saved(RetrieveConfig, f"{runs(name)}/config.toml")
    member = Member(FinishedRun(runs(name)), config)
    with process_group() as ranks:
        asked, model = place_finished(member, RunFolder(str(tmp_path / "plans"), "retrieve"), ranks)
        model.eval()
        expect_same(ServedMember(member.run, config, place_stretched(member, ranks)), asked)


def test_a_checkpoint_of_another_model_is_refused(runs: Bundles):
    config = load_saved(RetrieveConfig, f"{runs('hybrid')}/config.toml")
    wider = config.model_copy(update={"tables": config.tables.model_copy(update={"dim": 12})})
    with (
        process_group() as ranks,
        pytest.raises(CheckpointError, match=r"does not fit the model \(.*items\."),
    ):
        place_stretched(Member(FinishedRun(runs("hybrid")), wider), ranks)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_rows_that_are_kept_are_those_that_were_read(tmp_path: Path, rows_at_once: int):
    whole = torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(0))
    kept = keep_rows(str(tmp_path / "rows"), lambda first, last: whole[first:last], 20, rows_at_once)
    assert torch.equal(kept, whole)
