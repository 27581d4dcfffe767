import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.prepare import PrepareConfig, prepare_dataset
from trec_semid.data.sources.own_files import OwnFilesConfig, read_own_files
from trec_semid.data.sources.source import Needs

FORMS = ["parquet", "csv", "tsv", "jsonl"]


def write(path, form, columns):
    table = pa.table(columns)
    if form == "parquet":
        pq.write_table(table, path)
        return
    rows = table.to_pylist()
    separator = "\t" if form == "tsv" else ","
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    lines = [list(columns), *([str(value) for value in row.values()] for row in rows)]
    path.write_text("".join(separator.join(line) + "\n" for line in lines))


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_data(tmp_path, form):
    log = {
        "who": ["7", "8", "7"],
        "what": [2, 1, 1],
        "stars": [4.5, 3, 1],
        "at": [10**9 + 30, 10**9 + 20, 10**9 + 10],
    }
    write(tmp_path / f"log.{form}", form, log)
    write(tmp_path / f"items.{form}", form, {"sku": [1, 2], "name": ["one", "two"], "other": ["x", "y"]})
    write(tmp_path / f"users.{form}", form, {"who": ["8", "7"], "age": [30, 40]})
    config = OwnFilesConfig.model_validate(
        {
            "interactions": {
                "path": str(tmp_path / f"log.{form}"),
                "user": "who",
                "item": "what",
                "rating": "stars",
                "timestamp": "at",
            },
            "items": {"path": str(tmp_path / f"items.{form}"), "id": "sku"},
            "users": {"path": str(tmp_path / f"users.{form}"), "id": "who"},
        }
    )
    source = read_own_files(config, Needs(["name"], ["age"]))
    assert source.items.ids.to_pylist() == ["1", "2"]
    assert source.items.column("name")[0].to_pylist() == ["one", "two"]
    assert source.users.ids.to_pylist() == ["8", "7"]
    events = source.events
    assert [events.user_ids.to_pylist()[code] for code in events.users] == ["7", "8", "7"]
    assert [events.item_ids.to_pylist()[code] for code in events.items] == ["2", "1", "1"]
    assert events.ratings.numbers().tolist() == [4.5, 3, 1]
    assert events.times.values.tolist() == [10**9 + 30, 10**9 + 20, 10**9 + 10]


def test_item_columns_that_are_not_there_are_refused(tmp_path):
    write(tmp_path / "log.csv", "csv", {"u": ["a"], "i": ["x"], "o": [1]})
    write(tmp_path / "items.csv", "csv", {"id": ["x"]})
    config = OwnFilesConfig.model_validate(
        {
            "interactions": {"path": str(tmp_path / "log.csv"), "user": "u", "item": "i", "order": "o"},
            "items": {"path": str(tmp_path / "items.csv"), "id": "id"},
        }
    )
    with pytest.raises(DataError, match=r"items.csv, field 'title': no such column. Map one of: id"):
        read_own_files(config, Needs(["title"], []))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('encoding = "klingon"', "unknown encoding"),
        ('separator = "\\n"', "line end cannot separate"),
        ('usr = "u"', "unknown key; did you mean 'user'"),
    ],
)
def test_faults_of_the_mapping_are_named(tmp_path, line, problem):
    text = '[interactions]\npath = "x.csv"\nuser = "u"\nitem = "i"\norder = "o"\n' + line
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_config(OwnFilesConfig, [str(tmp_path / "c.toml")])


def test_a_fault_of_content_names_the_file_and_row_of_its_item(tmp_path):
    for number, zero in ((0, 0.5), (1, 0.0)):
        rows = [{"item": f"i{number}{n}", "v": [zero if n == 1 else 1.0, 0.0]} for n in range(3)]
        (tmp_path / "items").mkdir(exist_ok=True)
        lines = "\n\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"items/part-{number}.jsonl").write_text(lines)
    log = "user,item,time\n" + "".join(f"u{n % 4},i{n % 2}{n % 3},{1_000_000_000 + n}\n" for n in range(40))
    (tmp_path / "log.csv").write_text(log)
    source = {
        "kind": "tables",
        "interactions": {
            "path": str(tmp_path / "log.csv"),
            "user": "user",
            "item": "item",
            "timestamp": "time",
        },
        "items": {"path": str(tmp_path / "items"), "id": "item"},
    }
    made = PrepareConfig.model_validate(
        {
            "name": "x", "out": str(tmp_path / "out"), "source": source, "label": {"kind": "all_positive"},
            "split": {"kind": "global_temporal"}, "content": {"v": {"kind": "column", "column": "v"}},
        }
    )  # fmt: skip
    with pytest.raises(DataError, match=r"part-1.jsonl, row 3, field 'v': a vector of zeros.*item 'i11'"):
        prepare_dataset(made)


def test_partition_folders_are_columns_to_map(tmp_path):
    for day, kind in (("2024-01-01", "view"), ("2024-01-02", "buy")):
        folder = tmp_path / f"log/day={day}/kind={kind}"
        folder.mkdir(parents=True)
        (folder / "part-0.csv").write_text("user,item\nu1,i1\nu2,i2\n")
    path = {"path": str(tmp_path / "log"), "user": "user", "item": "item"}
    columns = {"timestamp": "day", "timestamp_format": "%Y-%m-%d", "behaviour": "kind"}
    source = read_own_files(
        OwnFilesConfig.model_validate({"interactions": {**path, **columns}}), Needs([], [])
    )
    events = source.events
    assert [events.behaviour_names[code] for code in events.behaviours] == ["view", "view", "buy", "buy"]
    first, _, last, _ = events.times.values.tolist()
    assert events.times.values.tolist() == [first, first, last, last]
    assert first < last
