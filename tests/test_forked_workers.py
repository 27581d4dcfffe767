import os
import re
from pathlib import Path

import pytest

from tests.commands import run_command

FIRST = """
import os, warnings
import pytest
@pytest.fixture(scope="session")
def process():
    yield os.getpid()
    open("ended-by-%d" % os.getpid(), "w").close()
def test_passes(tmp_path, process): assert process == os.getpid()
def test_fails(): print("words of a test"); assert [1, 2] == [1, 3]
def test_dies(): os._exit(7)
def test_comes_after_a_death(process): warnings.warn("a warning")
@pytest.mark.skip(reason="no reason")
def test_is_skipped(): pass
"""
SECOND = """
import os, threading
from tests.ranks import run_ranks
def test_has_one_thread_and_streams_of_its_own(capfd):
    assert threading.active_count() == 1
    os.system("echo said")
    assert capfd.readouterr().out == "said\\n"
def test_has_ranks_that_are_forks(): assert run_ranks(os.getppid, 1) != [os.getpid()]
"""


def told(folder: Path, *words: str) -> tuple[int, str]:
    """Run these files in two workers, in a fork that has imported everything already."""
    for name, text in {"test_first.py": FIRST, "test_second.py": SECOND}.items():
        (folder / name).write_text(text)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", ".", "--workers", "2", "-rA"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = run_command("pytest", *options, *words, ".", folder=str(folder), environment=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.ranks
def test_workers_tell_of_every_test_also_of_one_that_kills_its_process(tmp_path: Path):
    code, said = told(tmp_path)
    assert code == 1, said
    assert {name: word for word, name in re.findall(r"^(PASSED|FAILED) \S+::(\w+)", said, re.M)} == {
        "test_passes": "PASSED",
        "test_fails": "FAILED",
        "test_dies": "FAILED",
        "test_comes_after_a_death": "PASSED",
        "test_has_one_thread_and_streams_of_its_own": "PASSED",
        "test_has_ranks_that_are_forks": "PASSED",
    }, said
    assert "2 failed, 4 passed, 1 skipped, 1 warning" in said
    assert "At index 1 diff: 2 != 3" in said
    assert "words of a test" in said
    assert "the process of this test ended with 7" in said
    assert "UserWarning: a warning" in said
    assert len(list(tmp_path.glob("ended-by-*"))) == 1  # by the worker that did not die


def test_no_test_begins_after_as_many_failures_as_are_allowed(tmp_path: Path):
    code, said = told(tmp_path, "--maxfail", "1", "test_first.py")
    assert code == 1
    assert "stopping after 1 failures" in said
    assert "test_comes_after_a_death" not in said
