import asyncio
from pathlib import Path

import pytest

from tests.serving.server.engines import WholeNumbers, served
from trec_semid.core.errors import ConfigError
from trec_semid.serving.server.config import TokenConfig
from trec_semid.serving.server.secrets import read_secrets


def test_only_who_has_a_secret_is_answered_and_probes_need_none(tmp_path: Path):
    (tmp_path / "secrets").write_text("old one\n\n new-one \n")

    async def scenario() -> None:
        async with served(WholeNumbers(), token={"file": str(tmp_path / "secrets")}) as server:
            for given, status in {
                None: 401,
                "Bearer wrong": 401,
                "Bearer ": 401,
                "Basic new-one": 401,
                "new-one": 401,
                "Bearer new-on": 401,
                "Bearer new-one": 200,
                "bearer old one": 200,
            }.items():
                headers = {"Authorization": given} if given else {}
                for path in ("/v1/items/i1", "/metrics"):
                    answer = await server.client.get(path, headers=headers)
                    assert answer.status_code == status, (given, path)
                posted = await server.client.post("/v1/rank", json={"candidates": ["i1"]}, headers=headers)
                assert posted.status_code == status
                if status == 401:
                    assert (posted.headers["www-authenticate"], posted.json()["error"]) == (
                        "Bearer",
                        "unauthorized",
                    )
            for path in ("/", "/healthz", "/readyz", "/openapi.json"):
                assert (await server.client.get(path)).status_code == 200
            described = (await server.client.get("/openapi.json")).json()
            assert described["paths"]["/v1/rank"]["post"]["security"]
            assert "security" not in described["paths"]["/healthz"]["get"]

    asyncio.run(scenario())


def test_secret_may_be_in_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVER_SECRET", "  hush ")
    secrets = read_secrets(TokenConfig(variable="SERVER_SECRET"))
    assert secrets.admit(b"Bearer hush")
    assert not secrets.admit(b"Bearer hus")
    assert "hush" not in repr(secrets)


def test_without_secrets_everybody_is_answered():
    assert read_secrets(TokenConfig()).admit(None)


def test_secret_that_is_not_there_is_refused_before_anything_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "empty").write_text("\n \n")
    monkeypatch.delenv("SERVER_SECRET", raising=False)
    for config, words in (
        (TokenConfig(file=str(tmp_path / "gone")), "gone"),
        (TokenConfig(file=str(tmp_path / "empty")), "no secret in it"),
        (TokenConfig(variable="SERVER_SECRET"), "no environment variable SERVER_SECRET"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_secrets(config)
    with pytest.raises(ValueError, match="in one place"):
        TokenConfig(file="a", variable="B")
