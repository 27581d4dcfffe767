"""What becomes of all ranks when one fails, is killed, frozen or late; with time-outs of ten minutes."""

import json
import re

import pytest
from torch.distributed import HashStore

from tests.commands import run_command
from trec_semid.runtime.watch import Sign, Watch, late_rank

Ends = dict[str, dict[str, tuple[int | str, str]]]
REFUSED = "x.csv, row 7: ratings are no numbers"
IN_COLLECTIVE, AT_WORK = ", others in_a_collective", ", others at_work"


@pytest.fixture(scope="module")
def ends() -> Ends:
    done = run_command("tests.runtime.fault_ranks")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Where rank 0 has ended of the fault already, a third one may hear of that first.
STORE_GONE = r"rank 0, which holds the ranks' store at localhost:\d+, is gone"
RANK_1_GONE = rf"rank 1 is gone \(\S+, process \d+\): killed, or its host is down|{STORE_GONE}"


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "guilty", "code", "words"),
    [
        ("refuse on 0" + IN_COLLECTIVE, 0, 2, f"rank 0 failed: {REFUSED}"),
        ("refuse on 1" + AT_WORK, 1, 2, f"rank 1 failed: {REFUSED}"),
        ("refuse on 1, others in_a_collective_of_its_own", 1, 2, f"rank 1 failed: {REFUSED}"),
        ("error in lone work", 0, 2, f"rank 0 failed: {REFUSED}"),
        ("raise_odd on 1" + IN_COLLECTIVE, 1, 1, "rank 1 failed: Odd: a part was not written"),
        ("crash on 0" + AT_WORK, 0, 1, "rank 0 failed: RuntimeError: no such kernel"),
        ("crash on 1" + IN_COLLECTIVE, 1, 1, "rank 1 failed: RuntimeError: no such kernel"),
        ("terminate on 0" + AT_WORK, 0, 143, "rank 0 was stopped by SIGTERM"),
        ("terminate on 1" + IN_COLLECTIVE, 1, 143, "rank 1 was stopped by SIGTERM"),
    ],
)
def test_error_on_one_rank_ends_all_with_its_words_and_exit_code(
    ends: Ends, scenario: str, guilty: int, code: int, words: str
):
    for rank, (exit_code, said) in ends[scenario].items():
        assert exit_code == code, said
        assert (words in said) == (int(rank) != guilty), said
        assert f"rank {rank}: " in said


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "guilty", "words"),
    [
        ("kill on 1" + IN_COLLECTIVE, 1, RANK_1_GONE),
        ("kill on 1" + AT_WORK, 1, "rank 1 gives no sign of life for [56] s"),
        ("kill on 0" + IN_COLLECTIVE, 0, r"rank 0, which holds the ranks' store at localhost:\d+, is gone"),
        ("kill on 0" + AT_WORK, 0, r"rank 0, which holds the ranks' store at localhost:\d+, is gone"),
        ("freeze on 1" + IN_COLLECTIVE, 1, r"rank 1 gives no sign of life for [56] s \(.*: stopped"),
        ("freeze on 1" + AT_WORK, 1, r"rank 1 gives no sign of life for [56] s \(.*: stopped"),
        ("freeze on 0" + IN_COLLECTIVE, 0, r"rank 0, which holds the ranks' store .* has not answered for"),
    ],
)
def test_rank_that_is_killed_or_frozen_is_named_and_the_others_end(
    ends: Ends, scenario: str, guilty: int, words: str
):
    for rank, (exit_code, said) in ends[scenario].items():
        if int(rank) == guilty:
            assert exit_code == -9
        else:
            assert exit_code == 1, said
            assert re.search(words, said), said


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("guilty", [0, 1])
def test_rank_that_others_wait_for_in_vain_is_named_with_its_place(ends: Ends, guilty: int):
    for exit_code, said in ends[f"loop on {guilty}{IN_COLLECTIVE}"].values():
        assert exit_code == 1, said
        assert re.search(
            rf"rank {guilty} does not come to where (1 rank has|[2-9] ranks have) waited for it for", said
        ), said
        assert "trec_semid/cli/main.py:" in said


@pytest.mark.ranks
@pytest.mark.slow
def test_error_on_all_ranks_is_told_by_each_in_its_own_words(ends: Ends):
    assert {said for _, said in ends["refuse on all"].values()} == {
        f"rank {rank}: error: {REFUSED}\n" for rank in range(3)
    }


@pytest.mark.ranks
@pytest.mark.slow
def test_rank_that_never_comes_is_missed(ends: Ends):
    assert {code for code, _ in ends["rank 2 does not come"].values()} == {1}
    assert any("not all 3 ranks came together" in said for _, said in ends["rank 2 does not come"].values())


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["well", "long lone work", "group with lone work"])
def test_lone_work_of_any_length_is_no_fault(ends: Ends, scenario: str):
    assert [(code, said) for code, said in ends[scenario].values()] == [(0, "")] * 3


@pytest.mark.ranks
@pytest.mark.slow
def test_signal_on_one_rank_stops_all_after_the_same_step(ends: Ends):
    for exit_code, said in ends["stop in good order"].values():
        assert exit_code == 143
        assert said.startswith("left after step 20 by 15\n")


def signs(*waited_s: float, alone: int | None = None) -> dict[int, Sign]:
    each = [Sign(1, "here", f"at {rank}", waited, rank == alone) for rank, waited in enumerate(waited_s)]
    return dict(enumerate(each))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (signs(0, 0, 0), None),
        (signs(9, 9, 0), None),  # patience is not at its end
        (signs(11, 11, 0), 2),
        (signs(0, 11, 11), 0),
        (signs(11, 0, 0), 1),  # the first of several
        (signs(11, 12, 13), 0),  # all wait: for something else
        (signs(0, 11, 11, alone=0), None),
    ],
)
def test_late_rank_is_the_one_that_does_not_wait(given: dict[int, Sign], named: int | None):
    fault = late_rank(given, 10.0)
    assert (fault.rank if fault else None) == named


def test_a_job_within_another_says_for_itself_whether_ranks_may_work_alone():
    watch = Watch(HashStore(), 0, 2, patience_s=10.0, has_lone_work=True)

    def is_alone() -> bool:
        watch._beat()
        return watch._signs([0])[0].is_alone

    assert is_alone()
    with watch.of_job(has_lone_work=False):
        assert not is_alone()
        with watch.lone_work():
            assert is_alone()
        assert not is_alone()
    assert is_alone()
