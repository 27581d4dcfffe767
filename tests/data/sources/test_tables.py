import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.sources.source import Needs
from trec_semid.data.sources.tables import TablesConfig, read_tables

FORMS = ["parquet", "csv", "tsv", "jsonl"]


def write(path, form, columns):
    table = pa.table(columns)
    if form == "parquet":
        pq.write_table(table, path)
        return
    rows = table.to_pylist()
    separator = "\t" if form == "tsv" else ","
    if form == "jsonl":
        import json

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
    config = TablesConfig.model_validate(
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
    source = read_tables(config, Needs(["name"], ["age"]))
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
    config = TablesConfig.model_validate(
        {
            "interactions": {"path": str(tmp_path / "log.csv"), "user": "u", "item": "i", "order": "o"},
            "items": {"path": str(tmp_path / "items.csv"), "id": "id"},
        }
    )
    with pytest.raises(DataError, match=r"items.csv, field 'title': no such column. Map one of: id"):
        read_tables(config, Needs(["title"], []))


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
        load_config(TablesConfig, [str(tmp_path / "c.toml")])
