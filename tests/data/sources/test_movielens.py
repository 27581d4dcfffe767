import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.sources.movielens import MovielensConfig, read_movielens
from trec_semid.data.sources.source import Needs

GENRE_FLAGS = {"Animation": 3, "Comedy": 5, "unknown": 0}


def flags(*genres):
    return "|".join("1" if number in [GENRE_FLAGS[g] for g in genres] else "0" for number in range(19))


def write_100k(folder):
    (folder / "u.data").write_text("196\t2\t3\t881250949\n186\t1\t5\t891717742\n")
    (folder / "u.item").write_bytes(
        "\n".join(
            [
                f"1|Toy Story (1995)|01-Jan-1995||http://a|{flags('Animation', 'Comedy')}",
                f'2|Misérables, "Les" (1995)|||http://b|{flags("unknown")}',
                "",
            ]
        ).encode("latin-1")
    )
    (folder / "u.user").write_text("186|24|M|technician|85711\n196|53|F|other|94043\n")


def write_1m(folder):
    (folder / "ratings.dat").write_text("196::2::3::881250949\n186::1::5::891717742\n")
    movies = '1::Toy Story (1995)::Animation|Comedy\n2::Misérables, "Les" (1995)::\n'
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    (folder / "users.dat").write_text("186::M::24::7::85711\n196::F::53::0::94043\n")


def write_10m(folder):
    (folder / "ratings.dat").write_text("196::2::3::881250949\n186::1::5::891717742\n")
    movies = '1::Toy Story (1995)::Animation|Comedy\n2::Misérables, "Les" (1995)::(no genres listed)\n'
    (folder / "movies.dat").write_bytes(movies.encode())


def write_csv(folder):
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n196,2,3.0,881250949\n186,1,5.0,891717742\n"
    )
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n"
        '2,"Misérables, ""Les"" (1995)",(no genres listed)\n'
    )


WRITERS = {"100k": write_100k, "1m": write_1m, "10m": write_10m, "csv": write_csv}


@pytest.mark.parametrize("release", WRITERS)
def test_every_release_gives_the_same_columns(tmp_path, release):
    WRITERS[release](tmp_path)
    source = read_movielens(MovielensConfig(release=release, folder=str(tmp_path)), Needs([], []))
    assert source.items.ids.to_pylist() == ["1", "2"]
    assert source.items.column("title")[0].to_pylist() == ["Toy Story (1995)", 'Misérables, "Les" (1995)']
    assert source.items.column("genres")[0].to_pylist() == ["Animation|Comedy", ""]
    assert source.items.column("year")[0].to_pylist() == [1995, 1995]
    assert source.events.ratings.numbers().tolist() == [3, 5]
    assert source.events.times.values.tolist() == [881250949, 891717742]
    assert source.events.user_ids.to_pylist() == ["196", "186"]
    if release in ("100k", "1m"):
        assert source.users.ids.to_pylist() == ["186", "196"]
        assert source.users.column("gender")[0].to_pylist() == ["M", "F"]
        assert source.users.column("age")[0].to_pylist() == ["24", "53"]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"u.item: no such file"):
        read_movielens(MovielensConfig(release="100k", folder=str(tmp_path)), Needs([], []))


def test_cut_off_rating_is_refused_by_row(tmp_path):
    write_1m(tmp_path)
    with (tmp_path / "ratings.dat").open("a") as file:
        file.write("196::1::5\n")
    with pytest.raises(DataError, match=r"ratings.dat, row 3: has 3 fields where 4 columns are named"):
        read_movielens(MovielensConfig(release="1m", folder=str(tmp_path)), Needs([], []))
