"""Items that came after an export: a run that starts from the one before lists them, a delta brings them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import write_problem
from tests.jobs.retrieving import retrieve_config
from tests.tokenizers.generations.stores import append
from trec_semid.checkpoints.folder import best_step
from trec_semid.data.schema import Dataset
from trec_semid.jobs import bundle, export, generations, retrieve
from trec_semid.jobs.export import ExportConfig
from trec_semid.serving.engine import Filters, RetrieveAsked, open_engine

NEW = {"i040": (1, 0), "i041": (2, 3), "i042": (0, 4)}
"""Items to their first two codes."""


def exported(given: dict[str, Any], run: str, **changes: Any) -> str:
    """Train for an epoch, and export."""
    retrieve.run(retrieve_config(given, run, train={"max_epochs": 1}, **changes))
    return export.run(ExportConfig(run=run, out=f"{run}-bundle", shard_rows=15)).out


def test_items_of_a_later_generation_are_listed_after_a_start_from_the_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export_quickly(monkeypatch)
    codes, store = write_problem(str(tmp_path))["semantic_ids"], f"{tmp_path}/store"
    generations.add(store, codes, slots=8)
    given = {"dataset": f"{tmp_path}/data", "semantic_ids": store}
    yesterday = exported(given, f"{tmp_path}/yesterday")
    append(store, NEW)
    grown = {**given, "dataset": write_small_dataset(f"{tmp_path}/grown", num_items=43)}
    checkpoints = f"{tmp_path}/yesterday/checkpoints"
    start = f"{checkpoints}/step-{best_step(checkpoints)}"
    today = exported(grown, f"{tmp_path}/today", start_from=start)
    bundle.diff(yesterday, today, f"{tmp_path}/delta")
    bundle.apply(yesterday, f"{tmp_path}/delta", f"{tmp_path}/served")
    before, now = open_engine(yesterday), open_engine(f"{tmp_path}/served")
    history, only = ("i001", "i007"), Filters(allowed=tuple(NEW))
    asked = RetrieveAsked(None, history, 43)
    (nothing,), (everything,) = before.retrieve([asked._replace(filters=only)]), now.retrieve([asked])
    assert (nothing.items, nothing.unknown) == ((), 3)
    assert set(everything.items) == {f"i{row:03d}" for row in range(43)} - set(history)
    # Filters and histories know them as they know any other item.
    (new,) = now.retrieve([asked._replace(filters=only)])
    assert list(new.items) == [item for item in everything.items if item in NEW]
    dataset = Dataset(grown["dataset"])
    names = [str(name) for name in dataset.vocabulary("item_genres").to_pylist()]
    numbers = dataset.items(["genres"])["genres"].to_pylist()
    genres = {f"i{row:03d}": {names[each] for each in own or ()} for row, own in enumerate(numbers)}
    wanted = min(genres["i040"])
    (some,) = now.retrieve([asked._replace(filters=Filters(fields={"genres": (wanted,)}))])
    assert list(some.items) == [item for item in everything.items if wanted in genres[item]]
    assert "i040" in some.items
    (after,) = now.retrieve([asked._replace(history=(*history, "i041"))])
    assert "i041" not in after.items
    assert not np.allclose(after.scores[:5], everything.scores[:5])
    for item, own in NEW.items():
        facts = now.item(item)
        assert facts.codes[:2] == own
        assert str(facts.generation).endswith("@2")
    assert now.manifest.semantic_ids is not None
    assert now.manifest.semantic_ids.generation is not None
    assert now.manifest.semantic_ids.generation.number == 2
