"""Which code and which packages a result comes from."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "faiss-cpu", "numpy", "pyarrow", "polars")


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a number, and Python's."""
    return dict(_versions())


@cache
def _versions() -> list[tuple[str, str]]:
    versions = [("python", platform.python_version())]
    for name in ("trec-semid", *PACKAGES):
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def code_commit() -> str:
    """Return the checkout's commit, with '+changes' when files differ from it; 'unknown' outside one.

    As it was when first asked, which is soon after the start: what is edited later is not what runs.
    """
    here = Path(__file__).resolve().parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # else an enclosing checkout is meant
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603, S607
    return result.stdout.strip()
