"""The server against its own description: requests drawn from `/openapi.json`, worked examples, limits."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, checks

from tests.serving.server.engines import Standing, WholeNumbers
from trec_semid.serving.server import messages

LIMITS = {"candidates": 12, "history": 11, "filter_ids": 10, "n": 20}
REFUSING = ("/v1/rank", "/v1/retrieve", "/v1/assign", "/v1/items")
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    server = Standing(WholeNumbers(), limits=LIMITS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def description(standing: Standing) -> Any:
    return standing.run(standing.server.client.get("/openapi.json")).json()


def send(standing: Standing, case: Case) -> httpx.Response:
    asked = case.as_transport_kwargs(base_url="http://server")
    kept = ("method", "url", "headers", "params", "cookies", "json")
    given = {name: asked[name] for name in kept if asked.get(name) is not None}
    if asked.get("data") is not None:
        given["content"] = asked["data"]
    return standing.run(standing.server.client.request(**given))


@pytest.mark.parametrize("mode", GenerationMode)
def test_requests_drawn_from_the_description_are_answered_as_it_says(
    standing: Standing, description: Any, mode: GenerationMode
):
    schema = schemathesis.openapi.from_dict(description)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 8
    statuses: set[int] = set()
    for operation in operations:
        if operation.path not in REFUSING and mode == GenerationMode.NEGATIVE:
            continue  # it takes nothing that could be wrong

        @settings(max_examples=12, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            response = send(standing, case)
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        ask()
    # Which other refusals are drawn differs from run to run.
    assert (200 if mode == GenerationMode.POSITIVE else 422) in statuses


def test_worked_examples_of_requests_are_answered_and_those_of_answers_are_of_their_kind(
    standing: Standing, description: Any
):
    schemas = description["components"]["schemas"]
    for route, name in (("rank", "Rank"), ("retrieve", "Retrieve"), ("assign", "Assign")):
        (example,) = schemas[f"{name}Request"]["examples"]
        assert standing.run(standing.server.post(route, **example)).status_code == 200
    for kind in (messages.RankReply, messages.RetrieveReply, messages.AssignReply, messages.ItemReply):
        (example,) = schemas[kind.__name__]["examples"]
        assert kind.model_validate(example, strict=True, extra="forbid")
    (example,) = schemas["ErrorReply"]["examples"]
    assert messages.ErrorReply.model_validate(example, extra="forbid")


def test_description_names_the_limits_of_this_server_and_says_what_every_key_is(description: Any):
    schemas = description["components"]["schemas"]
    rank = schemas["RankRequest"]["properties"]
    assert (rank["candidates"]["maxItems"], rank["history"]["anyOf"][0]["maxItems"]) == (12, 11)
    assert schemas["RetrieveRequest"]["properties"]["n"]["maximum"] == 20
    assert schemas["RequestFilters"]["properties"]["forbidden"]["maxItems"] == 10
    lacking = [
        f"{name}.{key}"
        for name, schema in schemas.items()
        if name.endswith("Request")
        for key, field in schema["properties"].items()
        if not field.get("description")
    ]
    assert not lacking
