import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.cli.faults import complain_of
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.core.processes import scratch_prefix
from trec_semid.runtime.disk import full_disk_fault, wording_full_disk

FULL = [
    OSError(errno.ENOSPC, "No space left on device", "/disk/a.npy"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]
OTHER = [
    OSError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file"),
    ValueError("no space for this"),
    RuntimeError("shape mismatch"),
]


class Odd(BaseException):
    """As torch's CheckpointException: errors of all ranks in one."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("2 ranks failed")
        self.failures = {0: (error, [])}


def caused(error: BaseException) -> BaseException:
    outer = RuntimeError("cannot save")
    outer.__cause__ = error
    return outer


def met(error: BaseException) -> BaseException:
    outer = ValueError("I/O operation on closed file")
    outer.__context__ = error
    return outer


WRAPS = st.lists(
    st.sampled_from([caused, met, Odd, lambda error: BaseExceptionGroup("all", [error])]), max_size=4
)


@given(st.sampled_from(FULL), WRAPS)
def test_full_disk_is_known_however_deep_it_lies(error, wraps):
    for wrap in wraps:
        error = wrap(error)
    with (
        pytest.raises(DataError, match=r"the disk is full.*Free some space") as told,
        wording_full_disk("out"),
    ):
        raise error
    assert told.value.exit_code == 2


@given(st.sampled_from(OTHER), WRAPS)
def test_any_other_error_passes_as_it_is(error, wraps):
    for wrap in wraps:
        error = wrap(error)
    assert full_disk_fault(error) is None
    with pytest.raises(type(error)) as told, wording_full_disk("out"):
        raise error
    assert told.value is error


def test_what_is_full_and_why_is_said(tmp_path, monkeypatch):
    import tempfile

    def said(error: OSError, kept: str = "") -> str:
        with pytest.raises(DataError) as told, wording_full_disk("out", kept):
            raise error
        return str(told.value)

    assert said(FULL[0], "nothing was written").startswith(
        "/disk/a.npy: the disk is full; nothing was written. Free"
    )
    assert said(FULL[1]).startswith("out: the disk is full: your quota is used up. ")
    assert said(FULL[2]).startswith("out: the disk is full, or a file may not grow further (ulimit -f). ")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = str(tmp_path / f"{scratch_prefix()}x/part.npy")
    assert "set TMPDIR to another disk" in said(OSError(errno.ENOSPC, "No space left on device", scratch))


def test_error_that_says_it_already_keeps_its_words():
    error = CheckpointError("runs/a: cannot save: the disk is full. Free some space. Complete steps: 3.")
    error.__cause__ = FULL[0]
    with pytest.raises(CheckpointError) as told, wording_full_disk("out"):
        raise error
    assert told.value is error


@pytest.mark.parametrize("error", FULL)
def test_command_line_has_no_traceback_for_it(error, capsys):
    complain_of(caused(error))
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "Traceback" not in said
