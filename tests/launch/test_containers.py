"""Containers and manifests as files: what they copy, install and start is in this checkout."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trec_semid.core.config import load_config
from trec_semid.jobs.verbs import JOBS
from trec_semid.serving.server.config import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["cpu", "cuda"]


def instructions(kind: str) -> list[tuple[str, str]]:
    text = (ROOT / f"launch/Dockerfile.{kind}").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def config_of(words: list[str]) -> ServeConfig:
    verb, file, *sets = words
    assert verb in JOBS
    given = [word.removeprefix("--set=") for word in sets if word != "--set"]
    return load_config(ServeConfig, [str(ROOT / file)], given)


@pytest.mark.parametrize("kind", KINDS)
def test_container_copies_what_is_there_and_what_is_sent_to_its_builder(kind: str):
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        words.split()[:-1] for name, words in instructions(kind) if name == "COPY" and "--from" not in words
    ]
    sources = [source for each in copied for source in each]
    assert f"tools/locks/{kind}.lock" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in sent), source


@pytest.mark.parametrize("kind", KINDS)
def test_container_has_torch_and_the_packages_of_its_lock_and_no_rights(kind: str):
    given = instructions(kind)
    installed = " ".join(words for name, words in given if name == "RUN")
    pattern = re.search(r"grep -o '(.*?)'", installed)
    assert pattern
    assert re.search(pattern[1], (ROOT / "tools/locks/stack.in").read_text(), re.M)
    assert f"--no-deps --require-hashes -r tools/locks/{kind}.lock" in installed
    lock = (ROOT / f"tools/locks/{kind}.lock").read_text()
    assert all(re.search(rf"^{name}==", lock, re.M) for name in ("fastapi", "uvicorn", "prometheus-client"))
    last_stage = given[max(at for at, (name, _) in enumerate(given) if name == "FROM") :]
    assert ("USER", "serve") in last_stage


@pytest.mark.parametrize("kind", KINDS)
def test_container_serves_what_is_mounted_to_whoever_reaches_it(kind: str):
    given = dict(instructions(kind))
    assert yaml.safe_load(given["ENTRYPOINT"]) == ["trec-semid"]
    config = config_of(yaml.safe_load(given["CMD"]))
    assert (config.host, config.bundle, str(config.port)) == ("0.0.0.0", "/bundles/current", given["EXPOSE"])


def test_pods_are_ready_when_the_server_is_and_are_given_the_time_to_stop():
    service, deployment = yaml.safe_load_all((ROOT / "launch/kubernetes/serve.yaml").read_text())
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = config_of(container["args"])
    assert container["ports"][0]["containerPort"] == config.port
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert waits + config.stop_s < pod["terminationGracePeriodSeconds"]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(config.bundle.startswith(f"{place}/") for place in mounted)
    assert config.token.file
    assert any(config.token.file.startswith(f"{place}/") for place in mounted)
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
