import os

import numpy as np
import pytest

from trec_semid.core.config import load_config
from trec_semid.core.errors import DataError
from trec_semid.data.prepare import PrepareConfig
from trec_semid.data.schema import Dataset
from trec_semid.jobs.prepare import finished, run, summary

CONFIG = """
name = "tiny"
out = "{folder}/out"
label = {{ kind = "all_positive" }}
split = {{ kind = "leave_one_out" }}
[source]
kind = "tables"
interactions = {{ path = "{folder}/log.csv", user = "u", item = "i", timestamp = "t" }}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "log.csv").write_text(
        "u,i,t\n" + "".join(f"u{n % 4},i{n % 7},{10**9 + n}\n" for n in range(40))
    )
    (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path))
    return load_config(PrepareConfig, [str(tmp_path / "c.toml")])


def test_run_writes_the_dataset_and_prints_its_facts(config, capfd):
    facts = run(config)
    assert Dataset(config.out).facts == facts
    printed = capfd.readouterr().out
    assert "tiny: 4 users, 7 items, 40 events" in printed
    assert "leave-one-out" in printed
    assert "items unseen" in printed
    assert facts.checksum in printed


def test_second_run_finds_the_dataset_there(config, capfd):
    run(config)
    before = os.stat(f"{config.out}/dataset.json").st_mtime_ns
    capfd.readouterr()
    run(config)
    assert "already there" in capfd.readouterr().err
    assert os.stat(f"{config.out}/dataset.json").st_mtime_ns == before


def test_other_config_replaces_the_dataset(config):
    first = run(config)
    second = run(config.model_copy(update={"ties": "published"}))
    assert second.tie_rule != first.tie_rule
    assert not [name for name in os.listdir(os.path.dirname(config.out)) if "partial" in name]


def test_changed_source_is_prepared_again_and_a_removed_one_is_not_missed(config):
    run(config)
    log = config.source.interactions.path
    with open(log, "a") as file:
        file.write("u1,i1,1000000100\n")
    assert finished(config) is None
    assert run(config).num_events == 41
    os.remove(log)
    assert finished(config).num_events == 41


def test_half_a_dataset_is_not_taken_for_one(config):
    assert finished(config) is None
    run(config)
    with open(f"{config.out}/dataset.json", "w") as file:
        file.write("{}")
    assert finished(config) is None
    os.remove(f"{config.out}/dataset.json")
    with pytest.raises(DataError, match="something else than a dataset"):
        run(config)


@pytest.mark.parametrize("name", ["events/part-00000.parquet", "dataset.json", "config.toml"])
def test_a_damaged_dataset_is_made_again(config, name, capfd):
    first = run(config)
    place = f"{config.out}/{name}"
    with open(place, "r+b") as file:
        file.seek(40)
        byte = file.read(1)
        file.seek(40)
        file.write(bytes([byte[0] ^ 1]))
    assert finished(config) is None
    if name != "config.toml":  # which then is another config's
        told = "".join(capfd.readouterr().err.split())
        assert f"{name}:" in told
        assert "Itispreparedagain" in told
    assert run(config) == first


def test_summary_names_ties_and_content(config):
    text = summary(run(config))
    assert "ties: equal timestamps shuffled with seed 0" in text
    assert "train" in text
    assert max(len(line) for line in text.splitlines()) < 160


def test_a_reexported_array_is_prepared_again(config, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(7, 3, dtype=np.float32) + 1)
    content = {"x": {"kind": "npy", "file": str(tmp_path / "x.npy")}}
    items = {"path": str(tmp_path / "items.csv"), "id": "i"}
    (tmp_path / "items.csv").write_text("i\n" + "".join(f"i{n}\n" for n in range(7)))
    values = config.model_dump()
    source = values["source"] | {"items": items}
    with_array = PrepareConfig.model_validate(values | {"content": content, "source": source})
    first = run(with_array)
    assert finished(with_array) == first
    np.save(tmp_path / "x.npy", np.eye(7, 3, dtype=np.float32) + 2)
    assert finished(with_array) is None
    assert run(with_array).checksum != first.checksum


def test_an_edit_of_the_same_size_is_prepared_again(config):
    first = run(config)
    log = config.source.interactions.path
    with open(log) as file:
        text = file.read()
    with open(log, "w") as file:
        file.write(text.replace("u1,i1,1000000001\n", "u2,i1,1000000001\n"))
    assert run(config).checksum != first.checksum
