import errno
import sys

import pyarrow as pa
import pytest

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.raw.formats.files import reading, resolve, size_of
from trec_semid.data.raw.formats.parts import find_inputs


def test_package_folders_are_found_without_importing_the_package(tmp_path, monkeypatch):
    package = tmp_path / "carries_data_for_test"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package:carries_data_for_test/data") == str(package / "data")
    assert "carries_data_for_test" not in sys.modules


@pytest.mark.parametrize("path", ["package:no_such_package_here/data", "package:not a name/x", "package:"])
def test_missing_package_names_its_remedy(path):
    with pytest.raises(ConfigError, match=r"is not installed. Remedy: pip install"):
        resolve(path)


def test_size_of_a_file_that_is_not_there_is_negative(tmp_path):
    (tmp_path / "f").write_bytes(b"hello")
    assert size_of(str(tmp_path / "f")) == 5
    assert size_of(str(tmp_path / "g")) == -1


def test_missing_input_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such file.*Correct the path"):
        find_inputs(str(tmp_path / "none.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no files in this folder"):
        find_inputs(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("gone"),
        EOFError("ended"),
        OSError(errno.EIO, "broken"),
        pa.ArrowInvalid("bad"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
)
def test_low_level_errors_become_data_errors_of_the_file(error):
    with pytest.raises(DataError, match=r"some.csv"), reading("some.csv"):
        raise error
