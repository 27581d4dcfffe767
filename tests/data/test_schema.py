from pathlib import Path

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from trec_semid.core.errors import DataError
from trec_semid.data.schema import Dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(write_small_dataset(str(tmp_path / "data"), num_users=20))


READS = {
    "events/part-00000.parquet": lambda dataset: dataset.events(["user_row"], "train"),
    "items.parquet": lambda dataset: dataset.item_ids,
    "users.parquet": lambda dataset: dataset.users(),
    "content/text.npy": lambda dataset: dataset.content("text"),
    "content/image.mask.npy": lambda dataset: dataset.content_mask("image"),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("fault", ["cut", "empty", "gone"])
def test_damaged_parts_are_named_with_the_remedy(dataset, name, fault):
    file = Path(dataset.uri, name)
    content = file.read_bytes()
    file.unlink()
    if fault != "gone":
        file.write_bytes(content[: len(content) * 2 // 3] if fault == "cut" else b"")
    if name.startswith("events") and fault == "gone":
        file.parent.rmdir()
    with pytest.raises(DataError, match=r"(damaged|missing).*Prepare the dataset again") as refusal:
        READS[name](dataset)
    assert name.split("/")[0] in str(refusal.value.file)
    assert refusal.value.exit_code == 2


def test_a_damaged_part_is_refused_by_readers_that_stream_too(dataset):
    part = Path(dataset.uri, "events/part-00000.parquet")
    assert sum(batch.num_rows for batch in dataset.event_batches(["item_row"])) == dataset.facts.num_events
    part.write_bytes(part.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        list(dataset.event_batches(["item_row"]))


def test_content_of_another_number_of_items_is_refused(dataset):
    np.save(Path(dataset.uri, "content/text.npy"), np.ones((7, 16), np.float32))
    with pytest.raises(DataError, match=r"text.npy: damaged: it has 7 rows, and 40 were written"):
        dataset.content("text")
