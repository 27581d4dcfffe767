import pytest

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.sources.recbole_atomic import RecboleConfig, read_recbole
from trec_semid.data.sources.source import Needs


def write(folder, *, inter=None, item=None):
    folder.mkdir(exist_ok=True)
    (folder / "tiny.inter").write_text(
        inter
        or "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t9\t3\t1000000010\n2\t8\t4.5\t1000000020\n"
    )
    (folder / "tiny.item").write_text(
        item or 'item_id:token\tname:token_seq\tvector:float_seq\n8\tsay "x\t0.5 1\n9\tNA\t\n'
    )


def read(folder, **more):
    config = RecboleConfig(folder=str(folder), timestamp="timestamp", **more)
    return read_recbole(config, Needs([], []))


def test_columns_lose_their_types_and_keep_what_they_mean(tmp_path):
    write(tmp_path / "tiny")
    source = read(tmp_path / "tiny", rating="rating", null_values=["NA"])
    assert source.events.ratings.numbers().tolist() == [3, 4.5]
    assert source.events.times.values.tolist() == [1_000_000_010, 1_000_000_020]
    assert source.items.ids.to_pylist() == ["8", "9"]
    assert source.items.column("name")[0].to_pylist() == ['say "x', None]
    assert source.items.column("vector")[0].to_pylist() == [[0.5, 1.0], None]
    assert source.users is None


def test_faults_are_named(tmp_path):
    write(tmp_path / "tiny", inter="user_id:token\titem_id\ttimestamp:float\n1\t2\t3\n")
    with pytest.raises(DataError, match=r"tiny.inter, field 'item_id': not a typed column header"):
        read(tmp_path / "tiny")
    write(tmp_path / "tiny")
    with pytest.raises(DataError, match=r"field 'stars': no such column. Map one of: user_id, item_id"):
        read(tmp_path / "tiny", rating="stars")
    write(tmp_path / "tiny", item="item_id:token\tvector:float_seq\n8\t1 2\n9\t1 x\n")
    with pytest.raises(DataError, match=r"tiny.item, row 2, field 'vector': not a list of numbers"):
        read(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=r"'no_such_package_here' is not installed"):
        read("package:no_such_package_here/tiny")


@pytest.mark.parametrize("second", ["token", "float", "token_seq", "float_seq"])
@pytest.mark.parametrize("part", ["inter", "item"])
def test_one_name_under_two_types_is_refused(tmp_path, part, second):
    inter = "user_id:token\titem_id:token\tx:float\tx:{}\ttimestamp:float\n1\t8\t3\t4\t10\n"
    item = "item_id:token\tx:float\tx:{}\n8\t3\t4\n"
    write(tmp_path / "tiny", **{part: {"inter": inter, "item": item}[part].format(second)})
    with pytest.raises(
        DataError, match=rf"tiny.{part}, field 'x': (one name under two types|two columns of one name)"
    ):
        read(tmp_path / "tiny")


def test_movielens_100k_of_the_recbole_package():
    pytest.importorskip("importlib.util").find_spec("recbole") or pytest.skip("recbole is not installed")
    folder = "package:recbole/dataset_example/ml-100k"
    source = read_recbole(RecboleConfig(folder=folder, rating="rating", timestamp="timestamp"), Needs([], []))
    assert len(source.events.users) == 100_000
    assert (len(source.events.user_ids), len(source.items.ids), len(source.users.ids)) == (943, 1682, 943)
