"""The verb, over maps alone; with tokenizers it is tested where items are assigned and models are asked."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tokenizers.generations.stores import ids_file, tuples_of, write_map
from trec_semid.core.errors import DataError, SemidError
from trec_semid.core.paths import find_files
from trec_semid.jobs import generations as job
from trec_semid.tokenizers.generations.store import open_store

MONDAY = {"hat": (0, 1), "cap": (0, 1), "shoe": (3, 2)}
TUESDAY = {"beret": (0, 1), "boot": (3, 3)}
REFITTED = {"hat": (2, 1), "cap": (2, 0), "shoe": (3, 2), "boot": (3, 3)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four generations, beside what was published into it."""
    folder = tmp_path_factory.mktemp("place")
    for name, codes in (("monday", MONDAY), ("tuesday", TUESDAY), ("refitted", REFITTED)):
        write_map(f"{folder}/{name}.parquet", codes, (4, 4))
    write_map(f"{folder}/over.parquet", {"bob": (0, 1)}, (4, 4))
    write_map(f"{folder}/wide.parquet", {"bob": (7, 1)}, (9, 4))
    write_map(f"{folder}/narrow.parquet", {"bob": (2, 1)}, (2, 4))  # 2 says 'missing' here
    ids_file(f"{folder}/gone.parquet", ["shoe"])
    ids_file(f"{folder}/unknown.parquet", ["hat", "no"])
    store = f"{folder}/store"
    job.add(store, f"{folder}/monday.parquet", slots=3)
    job.add(store, f"{folder}/tuesday.parquet", append=True, remove=f"{folder}/gone.parquet")
    job.add(store, f"{folder}/refitted.parquet", slots=3, note="why")
    job.rollback(store, 2)
    return folder


def test_a_store_says_what_it_has(place: Path, capsys: pytest.CaptureFixture[str]):
    store = str(place / "store")
    live, gone = tuples_of(store, 2)
    assert live == {"hat": (0, 1, 0), "cap": (0, 1, 1), "beret": (0, 1, 2), "boot": (3, 3, 0)}
    assert gone == {"shoe": (3, 2, 0)}
    job.list_all(store)
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:9]] for line in lines if line.startswith("│")]
    assert [row for row in rows if row[0]] == [
        ["1", "", "retrain", "", "3", "3", "0", "0"],
        ["2", "current", "append", "1", "4", "2", "0", "1"],
        ["3", "", "retrain", "2", "4", "1", "2", "1"],
    ]
    change = job.diff(store, 2, 3, f"{place}/out/delta.parquet")
    assert (change.added, change.moved, change.removed) == (1, 2, 1)
    assert change.drift == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    assert pq.read_table(f"{place}/out/delta.parquet").to_pylist() == [
        {"item_id": "shoe", "change": "added", "before": None, "now": [3, 2, 0]},
        {"item_id": "hat", "change": "moved", "before": [0, 1, 0], "now": [2, 1, 0]},
        {"item_id": "cap", "change": "moved", "before": [0, 1, 1], "now": [2, 0, 0]},
        {"item_id": "beret", "change": "removed", "before": [0, 1, 2], "now": None},
    ]
    whole = (place / "out/delta.parquet").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.pq, "write_table", partial(write_and_die, pq.write_table))
        with pytest.raises(KeyboardInterrupt):
            job.diff(store, 1, 2, f"{place}/out/delta.parquet")
    assert (place / "out/delta.parquet").read_bytes() == whole
    capsys.readouterr()
    job.show(f"{store}@3")
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["parent"], said["lineage"], said["sizes"]) == ("retrain", 2, [], [4, 4, 3])
    assert [(one["action"], one["note"]) for one in said["history"]] == [("begin", ""), ("publish", "why")]


def test_a_generation_of_slots_that_is_published_anew_has_its_slots(place: Path, tmp_path: Path):
    again = job.add(f"{tmp_path}/again", f"{place}/store@1")
    assert (again.kind, again.sizes, again.collisions) == ("retrain", (4, 4, 3), "slots")
    job.add(f"{tmp_path}/again", f"{place}/tuesday.parquet", append=True)
    assert tuples_of(f"{tmp_path}/again", 2)[0]["beret"] == (0, 1, 2)


def write_and_die(write: Any, *args: Any, **kwargs: Any) -> None:
    write(*args, **kwargs)
    raise KeyboardInterrupt


def test_the_same_asked_again_changes_nothing(place: Path):
    store, files = str(place / "store"), find_files(str(place))
    batch: dict[str, Any] = {"append": True, "remove": f"{place}/gone.parquet"}
    assert job.add(store, f"{place}/tuesday.parquet", **batch).number == 2
    assert job.rollback(store, 2).number == 2
    assert job.collect_garbage(store, [1], dry_run=True).collected == [3]
    assert find_files(str(place)) == files


def test_what_is_of_several_runs_needs_the_generations_of_each(place: Path, tmp_path: Path):
    store = open_store(f"{place}/store")
    folders = {name: tmp_path / name for name in ("a", "b", "together", "asked", "both", "plain")}
    runs = [str(folders[name]) for name in ("a", "b")]
    reads = [store.generation(number).as_read("x").model_dump() for number in (1, 3)]
    named = {"a": {"generation": reads[0]}, "b": {"generation": reads[1]}}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "metrics.json").write_text("{}")
        verb = "evaluate" if name in ("asked", "both") else "retrieve"
        said = {"job": verb, **named.get("a" if name == "both" else name, {})}
        (folder / "run.json").write_text(json.dumps(said))
        members = f"kind = 'ensemble'\nruns = {runs}" if name == "together" else "kind = 'popularity'"
        (folder / "config.toml").write_text(f"dataset = 'd'\nrun = 'r'\n[model]\n{members}\n")
    for name, asked in (("asked", [str(folders["together"])]), ("both", runs)):
        of = {"runs": [{"run": run, "step": None} for run in asked]}
        (folders[name] / "evaluated.json").write_text(json.dumps(of))
    for name in ("together", "asked", "both"):
        plan = job.collect_garbage(store.uri, models=[str(folders[name])], dry_run=True)
        assert (sorted(plan.needed), plan.collected) == ([1, 2, 3], []), name
    assert job.collect_garbage(store.uri, models=[runs[0]], dry_run=True).collected == [3]
    with pytest.raises(DataError, match="read no generation of a store"):
        job.collect_garbage(store.uri, models=[str(folders["plain"])], dry_run=True)


STORE, MAP = "{at}/store", "{at}/monday.parquet"
REFUSED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("add", [STORE], {}, "nothing to publish. Name a run"),
    ("add", [STORE, "{at}/none.parquet"], {}, r"none\.parquet: no such file"),
    ("add", [STORE, MAP], {"slots": 0}, "a whole number from 1"),
    ("add", [STORE, MAP], {"append": True}, "row 1, .*since generation 1"),
    ("add", [STORE, MAP], {"append": True, "slots": 3}, "never change"),
    ("add", [STORE, MAP], {"remove": "x"}, "just the items of its run"),
    ("add", [STORE], {"remove": "{at}/unknown.parquet"}, "row 2, .*'no'"),
    ("add", ["{at}/no", MAP], {"slots": 1}, "--slots 2 or more"),
    ("add", ["{at}/no", MAP], {"append": True}, "no store of semantic"),
    ("add", [MAP, MAP], {}, "this is a file"),
    (
        "add",
        [STORE, "{at}/over.parquet"],
        {"append": True},
        r"over\.parquet, field 'item_id': all 3 slots of its tuple are taken \(0, 1\); so it is of 1 items "
        r"\(got 'bob'\)\. Publish a retrained generation with --slots 4",
    ),
    (
        "add",
        [STORE, "{at}/wide.parquet"],
        {"append": True},
        r"codes that do not fit generation 2, whose codebooks have \(4, 4\) codes",
    ),
    (
        "add",
        [STORE, "{at}/narrow.parquet"],
        {"append": True},
        r"whose codebooks have \(4, 4\) codes \(got 'codebook sizes \(2, 4\)'\)\. Assign these items with",
    ),
    ("rollback", [STORE, 9], {}, "no such generation .*There are: 1, 2, 3"),
    ("diff", [STORE, 1, 9], {}, "got 9"),
    ("show", ["{at}/no"], {}, "no store of semantic IDs"),
    ("collect_garbage", [STORE, [9]], {}, "got 9"),
    ("collect_garbage", [STORE], {"models": ["{at}/no"]}, "no such file"),
]


@pytest.mark.parametrize(("verb", "words", "options", "told"), REFUSED)
def test_what_cannot_be_is_refused_and_leaves_the_store_as_it_was(
    place: Path, verb: str, words: list[Any], options: dict[str, Any], told: str
):
    def at(value: Any) -> Any:
        if isinstance(value, list):
            return [at(one) for one in value]
        return value.format(at=place) if isinstance(value, str) else value

    before = {name: (place / "store" / name).read_bytes() for name in find_files(f"{place}/store")}
    with pytest.raises(SemidError, match=told) as error:
        getattr(job, verb)(*at(words), **{key: at(value) for key, value in options.items()})
    assert error.value.exit_code == 2
    assert {name: (place / "store" / name).read_bytes() for name in find_files(f"{place}/store")} == before
    assert not (place / "no").exists()
