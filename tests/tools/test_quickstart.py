"""The commands that the quickstart ends with export its retriever and serve it: here over a small run."""

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run_command, start_command
from tests.jobs.exported_kinds import IDS_ALONE
from tests.jobs.ranking import write_problem
from tests.jobs.retrieving import retrieve_config
from trec_semid.data.schema import Dataset
from trec_semid.jobs import retrieve

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


def named_commands() -> list[list[str]]:
    """The words of each command that is printed, after the program's name."""
    lines = re.findall(
        r'^echo "    \.venv/bin/trec-semid (.+)"$', (ROOT / "tools/quickstart").read_text(), re.M
    )
    return [line.split() for line in lines]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the quickstart leaves it: configs, and a finished retriever where they look for it."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    problem: dict[str, Any] = write_problem(str(folder / "problem"))
    changes = {**IDS_ALONE}
    given = problem | {"semantic_ids": changes.pop("semantic_ids")}
    run = str(folder / "runs/quickstart/sasrec")
    retrieve.run(retrieve_config(given, run, train={"max_epochs": 1}, **changes))
    return folder


def asked(url: str, body: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_named_commands_export_and_serve(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    exports, serves = named_commands()
    assert (exports[0], serves[0]) == ("export", "serve")
    done = run_command("trec_semid.cli.main", *exports, folder=str(checkout))
    assert done.returncode == 0, done.stderr
    out, err = checkout / "out.txt", checkout / "err.txt"
    words = [*serves, "--set", "port=0"]  # a free one: tests run side by side
    served = start_command("trec_semid.cli.main", *words, stdout=out, stderr=err, folder=str(checkout))
    try:
        until, found = time.monotonic() + PATIENCE_S, None
        while found is None and time.monotonic() < until and served.is_alive():
            time.sleep(0.1)
            said = err.read_text() if err.exists() else ""
            found = re.search(r"(http://[\d.]+:\d+): ready", said)
        assert found, err.read_text()
        users = Dataset(str(checkout / "problem/data")).users(["user_id"])["user_id"]
        answer = asked(f"{found[1]}/v1/retrieve", {"user": users[0].as_py(), "n": 5})
        assert len(answer["items"]) == 5
    finally:
        served.terminate()
        served.join(30)
    assert served.exitcode == 0
