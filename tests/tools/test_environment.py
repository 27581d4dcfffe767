"""tools/environment runs for real in a small checkout whose Python is a stub that notes what it is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = f"""#!/bin/bash
case "$1 $2" in
    "-m venv")
        echo "venv" >>"$NOTES"; sleep "${{SLOW:-0}}"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"
        printf '#!/bin/bash\\necho doctor says; exit ${{DOCTOR:-0}}\\n' >"$3/bin/trec-semid"
        chmod +x "$3/bin/trec-semid" ;;
    "-m pip") echo "pip ${{@:3}}" >>"$NOTES"; echo "pip's own words"; exit "${{PIP:-0}}" ;;
    --version*) echo "Python 3.11.0" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "tools/environment", folder / "tools/environment")
        shutil.copytree(ROOT / "tools/locks", folder / "tools/locks")
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.python = folder / "python3.11"
        self.python.write_text(STUB)
        self.python.chmod(0o755)
        self.environment = os.environ | {"PYTHON": str(self.python), "NOTES": str(folder / "notes")}

    def make(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "tools/environment")],
            env=self.environment | environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def notes(self) -> list[str]:
        """Return what was asked of Python since the last call."""
        file = self.folder / "notes"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_torch_comes_first_with_its_own_requirements_then_the_lock_without(checkout: Checkout):
    done = checkout.make()
    assert done.returncode == 0, done.stderr
    venv, torch, lock, package = checkout.notes()
    assert venv == "venv"
    assert torch.endswith("torch==2.13.0")
    assert "--no-deps" not in torch
    assert lock.endswith("--no-deps --require-hashes -r tools/locks/cpu.lock")
    assert package.endswith("--no-deps --no-build-isolation --editable .")
    assert "ready" in done.stderr


def test_unchanged_environment_is_reused_and_silent(checkout: Checkout):
    checkout.make()
    checkout.notes()
    done = checkout.make()
    assert (done.returncode, done.stderr, checkout.notes()) == (0, "", [])


@pytest.mark.parametrize("changed", ["tools/locks/cpu.lock", "pyproject.toml"])
def test_changed_lock_is_installed_into_what_is_there(checkout: Checkout, changed: str):
    checkout.make()
    checkout.notes()
    with (checkout.folder / changed).open("a") as file:
        file.write("# changed\n")
    assert checkout.make().returncode == 0
    assert [note.split()[0] for note in checkout.notes()] == ["pip", "pip", "pip"]


def test_failed_installation_shows_pips_words_and_goes_on_next_time(checkout: Checkout):
    done = checkout.make(PIP="1")
    assert done.returncode == 1
    assert "pip's own words" in done.stderr
    assert "could not install torch==2.13.0" in done.stderr
    assert checkout.notes()[0] == "venv"
    assert checkout.make().returncode == 0
    assert "venv" not in checkout.notes()


def test_stack_that_does_not_work_is_not_called_ready(checkout: Checkout):
    done = checkout.make(DOCTOR="1")
    assert done.returncode == 1
    assert "doctor says" in done.stderr
    assert not (checkout.folder / ".venv/stamp").exists()


def test_venv_without_a_working_python_is_made_anew(checkout: Checkout):
    (checkout.folder / ".venv/bin").mkdir(parents=True)
    assert checkout.make().returncode == 0
    assert checkout.notes()[0] == "venv"


def test_venv_that_was_moved_here_is_made_anew(checkout: Checkout):
    checkout.make()
    (checkout.folder / ".venv/bin/pip").write_text("#!/somewhere/else/.venv/bin/python\n")
    (checkout.folder / ".venv/stamp").unlink()
    checkout.notes()
    assert checkout.make().returncode == 0
    assert checkout.notes()[0] == "venv"


def test_machine_with_an_nvidia_gpu_gets_the_cuda_lock(checkout: Checkout, tmp_path: Path):
    driver = tmp_path / "driver/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'GPU 0: one'\n")
    driver.chmod(0o755)
    checkout.make(PATH=f"{driver.parent}:{os.environ['PATH']}")
    assert checkout.notes()[2].endswith("-r tools/locks/cuda.lock")


def test_build_of_fbgemm_that_is_not_in_the_lock_goes_first(checkout: Checkout):
    checkout.make()
    checkout.notes()
    (checkout.folder / ".venv/lib/python3.11/site-packages/fbgemm_gpu-1.8.0.dist-info").mkdir(parents=True)
    (checkout.folder / ".venv/stamp").unlink()
    checkout.make()
    assert checkout.notes()[0] == "pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu"


@pytest.mark.parametrize("python", ["/bin/false", "no-such-python"])
def test_python_that_does_not_fit_is_refused_before_anything_is_made(checkout: Checkout, python: str):
    done = checkout.make(PYTHON=python)
    assert done.returncode == 1
    assert f"PYTHON={python} is not Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_two_at_once_make_one_environment(checkout: Checkout):
    command, environment = [str(checkout.folder / "tools/environment")], checkout.environment | {"SLOW": "2"}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert [note.split()[0] for note in checkout.notes()] == ["venv", "pip", "pip", "pip"]


def test_locks_hold_versions_and_hashes_and_no_address():
    for name in ("cpu", "cuda"):
        text = (ROOT / f"tools/locks/{name}.lock").read_text()
        assert "://" not in text
        assert "\ntorch==" not in text  # installed by its own step
        wanted = "fbgemm-gpu-cpu" if name == "cpu" else "fbgemm-gpu"
        assert [line.split("==")[0] for line in text.splitlines() if line.startswith("fbgemm")] == [wanted]
        pins = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
        assert len(pins) > 80
        assert all(line.endswith("\\") for line in pins)  # a hash follows


def test_locks_cover_every_requirement_of_the_package():
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    needed = {canonicalize_name(Requirement(text).name) for text in requires("trec-semid") or []}
    for name in ("cpu", "cuda"):
        lines = (ROOT / f"tools/locks/{name}.lock").read_text().splitlines()
        locked = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
        assert needed - locked == {"torch"}  # which has its own step
