import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import describe_again, write_small_dataset
from tests.ranks import run_ranks
from trec_semid.core.errors import DataError
from trec_semid.core.paths import find_files, join, read_bytes, write_bytes
from trec_semid.data.schema import Dataset, open_dataset
from trec_semid.evaluation import resampling
from trec_semid.jobs import plan, tokenize
from trec_semid.runtime import fingerprints
from trec_semid.runtime.fingerprints import STAMP, read_signed, signed_json
from trec_semid.runtime.ranks import barrier, process_group
from trec_semid.study.grid import StudyConfig, plan_runs
from trec_semid.training.ranking.setup import RankConfig, read_inputs
from trec_semid.training.retrieval import inputs as retrieve_inputs


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return write_small_dataset(str(tmp_path_factory.mktemp("small") / "data"), num_users=12)


@pytest.fixture
def copy(small, tmp_path) -> str:
    return shutil.copytree(small, tmp_path / "data").as_posix()


def damage(folder, name, how, at, bit):
    content = bytearray(read_bytes(join(folder, name)))
    if how == "flip":
        content[at % len(content)] ^= 1 << bit
    elif how == "cut":
        del content[at % len(content) :]
    elif how == "grow":
        content += bytes([bit])
    if how == "delete":
        Path(folder, name).unlink()
    elif how == "add":
        write_bytes(join(folder, f"{name}-{bit}"), b"")
    else:
        write_bytes(join(folder, name), bytes(content))


@settings(max_examples=80)
@given(st.data())
def test_no_damage_to_any_file_is_read(small, tmp_path_factory, data):
    folder = shutil.copytree(small, tmp_path_factory.mktemp("damaged") / "data").as_posix()
    name = data.draw(st.sampled_from(find_files(small)))
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "delete", "add"]))
    damage(folder, name, how, data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 7)))
    with pytest.raises(DataError, match=name if how != "add" else "does not belong here") as error:
        open_dataset(folder)
    assert error.value.exit_code == 2
    shutil.rmtree(os.path.dirname(folder))


def test_a_whole_part_that_is_gone_is_missed_even_without_reading(copy):
    Path(copy, "events/part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00000.parquet: this file is missing"):
        Dataset(copy)


def test_a_stamp_spares_the_second_reading_and_always_does_not_trust_it(copy, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -(10**18))
    open_dataset(copy)
    assert Path(copy, STAMP).exists()
    assert open_dataset(copy).facts.checksum == Dataset(copy).facts.checksum
    file = Path(copy, "content/text.npy")
    monkeypatch.setattr(fingerprints, "_is_stamped", lambda *_: True)  # as if the disk had changed a bit
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    open_dataset(copy)
    with pytest.raises(DataError, match=r"text.npy: damaged: its content is not what was written"):
        open_dataset(copy, "always")


def test_datasets_in_memory_are_verified_without_a_stamp(small):
    for name in find_files(small):
        write_bytes(f"memory://verified/{name}", read_bytes(join(small, name)))
    assert open_dataset("memory://verified").events().num_rows == Dataset(small).facts.num_events
    damage_at = "memory://verified/content/image.npy"
    write_bytes(damage_at, read_bytes(damage_at)[:-1] + b"?")
    with pytest.raises(DataError, match=r"image.npy: damaged"):
        open_dataset("memory://verified")


def test_rows_that_the_description_does_not_count_are_refused(copy):
    describe_again(copy, num_events=1, num_users=1, num_items=1)
    dataset = open_dataset(copy)
    for read in (dataset.events, dataset.users, dataset.items, lambda: dataset.content("text")):
        with pytest.raises(DataError, match="and 1 were written"):
            read()
    with pytest.raises(DataError, match="and 1 were written"):
        list(dataset.event_batches(["item_row"]))


TOKENIZER = {"kind": "rq_kmeans", "levels": 1, "codebook_size": 4}
CLUSTER = Path(__file__).parents[2] / "configs/cluster"
VERBS = {
    "tokenize": lambda data, run: tokenize.run(
        tokenize.TokenizeConfig.model_validate({"dataset": data, "run": run, "tokenizer": TOKENIZER})
    ),
    "rank": lambda data, run: read_inputs(RankConfig(dataset=data, run=run, representation="item")),
    "retrieve": lambda data, run: retrieve_inputs.read_inputs(
        retrieve_inputs.RetrieveConfig.model_validate(
            {"dataset": data, "run": run, "model": {"kind": "popularity"}}
        )
    ),
    "plan": lambda data, run: plan.run(
        plan.PlanConfig.model_validate(
            {
                "rank": {"dataset": data, "run": run, "representation": "item"},
                "cluster": [str(sorted(CLUSTER.glob("*.toml"))[0])],
                "out": f"{run}.json",
            }
        )
    ),
    "study": lambda data, run: resampling.training_strata(resampling.open_dataset(data)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_flipped_byte_and_writes_nothing(copy, tmp_path, verb):
    damage(copy, "events/part-00000.parquet", "flip", 5000, 3)
    with pytest.raises(DataError, match=r"part-00000.parquet: damaged"):
        VERBS[verb](copy, str(tmp_path / "run"))
    assert os.listdir(tmp_path) == ["data"]


def _open_on_rank(whole: str, damaged: str, gone: str) -> tuple[list[str], list[str]]:
    """Open three folders; return what each came to and which files this rank read of the whole one."""
    read, plain = [], fingerprints.fingerprint
    fingerprints.fingerprint = lambda uri: read.append(os.path.relpath(uri, whole)) or plain(uri)
    told = []
    with process_group(patience_s=60) as ranks:
        if ranks.is_main:
            open_dataset(whole, alone=True)  # as `prepare` does while the others wait
            read.clear()
        barrier()
        for folder in (whole, damaged, gone):
            try:
                told.append(open_dataset(folder, "always").facts.checksum)
            except DataError as error:
                told.append(str(error))
    return told, [name for name in read if not name.startswith("..")]


@pytest.mark.ranks
def test_ranks_share_the_reading_and_agree_on_damage(small, tmp_path):
    damaged, gone = (shutil.copytree(small, tmp_path / name).as_posix() for name in ("damaged", "gone"))
    damage(damaged, "items.parquet", "flip", 50, 0)
    damage(gone, "users.parquet", "delete", 0, 0)
    results = run_ranks(_open_on_rank, 3, small, damaged, gone)
    facts = Dataset(small).facts
    assert all(told[0] == facts.checksum for told, _ in results)
    assert all("items.parquet: damaged" in told[1] for told, _ in results)
    assert all("users.parquet: this file is missing" in told[2] for told, _ in results)
    assert sorted(name for _, names in results for name in names) == sorted(facts.files)
    assert all(names for _, names in results)
    assert np.ptp([len(names) for _, names in results]) <= 1


def test_a_study_that_verifies_always_has_its_runs_verify_always():
    steps = [{"verb": verb, "name": verb} for verb in ("prepare", "tokenize", "rank", "retrieve", "report")]
    for mode in ("once", "always"):
        config = StudyConfig.model_validate({"out": "o", "step": steps, "verify": mode})
        asked = {run.verb for run in plan_runs(config) if "verify=always" in run.sets}
        assert asked == ({"tokenize", "rank", "retrieve", "report"} if mode == "always" else set())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (lambda facts: signed_json({**facts, "schema_version": 1}), r"another version \(got 1\)"),
        # Another version has other keys: nobody needs a list of them.
        (lambda facts: signed_json({"schema_version": 1, "rows": 3}), r"another version \(got 1\)"),
        (lambda facts: json.dumps({**facts, "schema_version": 1}).encode(), "does not state its own sha256"),
    ],
)
def test_a_dataset_of_another_version_is_to_be_prepared_again(copy, said, told):
    description = join(copy, "dataset.json")
    write_bytes(description, said(read_signed(read_bytes(description))))
    with pytest.raises(DataError, match=f"{told}.*[Pp]repare (it|the dataset) again") as error:
        open_dataset(copy)
    assert str(error.value).count("\n") == 0
