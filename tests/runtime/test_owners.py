import json
import uuid

import pytest

from tests.occupants import VERBS, contents, occupy
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, make_folder, write_bytes
from trec_semid.runtime.owners import check_file, check_owner, kinds_of

WRITES = {
    "tokenize": ["config.toml", "tokenizer/x", "semantic_ids.parquet"],
    "rank": ["config.toml", "checkpoints/mine", "predictions/mine", "plan.json", "metrics.json"],
    "report": ["report.html", "report.md"],
    "study": ["study.md", "study.html"],
}


@pytest.fixture(params=["path", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "path" else f"memory://owners-{uuid.uuid4().hex}"


@pytest.mark.parametrize("kind", VERBS)
def test_a_folder_says_which_verb_wrote_it(root, kind):
    assert kinds_of(join(root, "none")) == set()
    occupy(join(root, "x"), kind)
    assert kinds_of(join(root, "x")) == {kind}


@pytest.mark.parametrize("kind", VERBS)
@pytest.mark.parametrize("verb", VERBS)
def test_only_its_own_verb_may_write_a_folder(root, verb, kind):
    occupy(join(root, "x"), kind)
    if verb == kind:
        check_owner(join(root, "x"), verb)
        return
    with pytest.raises(DataError, match=r"something else than an? .*: this is an? .*remove it") as error:
        check_owner(join(root, "x"), verb)
    assert error.value.file == join(root, "x")


@pytest.mark.parametrize("verb", VERBS)
def test_free_places_may_be_written(root, verb):
    check_owner(join(root, "none/at/all"), verb)
    make_folder(join(root, "empty"))
    check_owner(join(root, "empty"), verb)
    write_bytes(join(root, "file"), b"")
    with pytest.raises(DataError, match="this is a file"):
        check_owner(join(root, "file"), verb)


@pytest.mark.parametrize("run", ["rank", "retrieve"])
def test_a_report_may_lie_in_the_run_that_it_is_about_and_the_run_goes_on(root, run):
    folder = join(root, "run")
    occupy(folder, run)
    check_owner(folder, "report", beside=[join(root, "other"), folder + "/"])
    occupy(folder, "report")
    check_owner(folder, run)
    with pytest.raises(DataError, match="this is a r"):
        check_owner(folder, "report", beside=[join(root, "other")])


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in WRITES.items() for name in names])
def test_files_of_somebody_else_are_not_overwritten(root, verb, name):
    write_bytes(join(root, "x", name), b"mine")
    with pytest.raises(DataError, match="would be lost"):
        check_owner(join(root, "x"), verb)


@pytest.mark.parametrize("verb", ["tokenize", "rank", "retrieve", "report", "study"])
def test_what_a_verb_leaves_alone_is_no_hindrance(root, verb):
    write_bytes(join(root, "x/notes.txt"), b"mine")
    check_owner(join(root, "x"), verb)


@pytest.mark.parametrize("verb", ["prepare", "assign", "export"])
@pytest.mark.parametrize("own", [False, True])
def test_what_a_verb_replaces_whole_may_hold_nothing_else(root, verb, own):
    if own:
        occupy(join(root, "x"), verb)
    write_bytes(join(root, "x/.verified.json"), b"")
    write_bytes(join(root, "x/config.toml.partial-12345678"), b"")
    check_owner(join(root, "x"), verb)
    write_bytes(join(root, "x/notes/a.txt"), b"mine")
    with pytest.raises(DataError, match=r"\('notes'\), which would be lost"):
        check_owner(join(root, "x"), verb)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"job": 1}', '{"job": "other"}'])
@pytest.mark.parametrize("verb", VERBS)
def test_run_that_cannot_be_read_is_nobodys_to_overwrite(root, verb, content):
    write_bytes(join(root, "x/run.json"), content.encode())
    with pytest.raises(DataError, match=r"its run.json cannot be read"):
        check_owner(join(root, "x"), verb)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["prepare", "assign", "export"])
@pytest.mark.parametrize("below", ["x", "events/x", "deep/er/x"])
def test_nothing_is_written_inside_what_is_read_or_replaced_whole(root, verb, kind, below):
    occupy(join(root, "outer"), kind)
    with pytest.raises(DataError, match=r"lies inside an? "):
        check_owner(join(root, "outer", below), verb)


@pytest.mark.parametrize("kind", ["tokenize", "rank", "retrieve", "study", "report"])
def test_inside_a_run_only_its_own_folders_are_taken(root, kind):
    occupy(join(root, "outer"), kind)
    check_owner(join(root, "outer/bundle"), "export")
    check_owner(join(root, "outer/report"), "report")
    if kind not in ("study", "report"):
        for own in ("checkpoints/x", "predictions", "tokenizer/deep/x"):
            with pytest.raises(DataError, match=r"lies inside an? .* run"):
                check_owner(join(root, "outer", own), "export")


def test_marks_of_other_programs_around_a_folder_do_not_count(root):
    write_bytes(join(root, "outer/manifest.json"), json.dumps({"name": "web"}).encode())
    check_owner(join(root, "outer/runs/a"), "rank")


@pytest.mark.parametrize(
    ("source", "out", "is_inside"),
    [
        ("raw", "raw/data", True),
        ("raw/", "raw/deep/data", True),
        ("raw", "raw", True),
        ("raw", "raw-data", False),
        ("raw", "data", False),
        ("raw/log.csv", "raw/data", False),
        ("raw/*", "raw/data", True),
        ("raw/*", "raw/deep/data", True),
        ("raw/*.csv", "raw/data", False),
        ("raw/*.csv", "raw/data.csv", True),
        ("raw/**", "raw/deep/data", True),
        ("ra?/d*", "raw/data", True),
        ("none", "none/data", False),
    ],
)
def test_nothing_is_written_where_it_would_be_read_as_data(root, source, out, is_inside):
    write_bytes(join(root, "raw/log.csv"), b"x")
    write_bytes(join(root, "raw/deep/log.csv"), b"x")
    before = contents(root)
    if not is_inside:
        check_owner(join(root, out), "prepare", [f"{root}/{source}"])
        return
    with pytest.raises(DataError, match=r"lies inside the data that is read|would be lost"):
        check_owner(join(root, out), "prepare", [f"{root}/{source}"])
    assert contents(root) == before


@pytest.mark.parametrize("kind", VERBS)
def test_single_file_takes_no_place_of_a_verbs_own(root, kind):
    occupy(join(root, "x"), kind)
    check_file(join(root, "none/plan.json"))
    for name in contents(join(root, "x")):
        if "/" not in name:
            with pytest.raises(DataError, match="of which it is no part"):
                check_file(join(root, "x", name))
    if kind in ("prepare", "assign", "export"):
        with pytest.raises(DataError, match="of which it is no part"):
            check_file(join(root, "x/plan.json"))
    else:
        check_file(join(root, "x/plan-of-mine.json"))
