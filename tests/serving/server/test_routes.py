import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.server.engines import (
    ITEMS,
    STORED,
    Served,
    Standing,
    WholeNumbers,
    expected_list,
    expected_rank,
    served,
)
from trec_semid.core.errors import DataError

PARTS = ("read", "wait", "engine", "write")
ids = st.sampled_from([*(f"i{row}" for row in range(ITEMS)), "nobody", "ü", "x" * 40])
histories = st.none() | st.lists(ids, max_size=6)
users = st.none() | st.sampled_from(["ann", "bob", "stranger"])


def with_server(
    scenario: Callable[[Served], Awaitable[None]], engine: WholeNumbers | None = None, **config: Any
) -> None:
    async def run() -> None:
        async with served(engine or WholeNumbers(), **config) as server:
            await scenario(server)

    asyncio.run(run())


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    server = Standing(WholeNumbers())
    yield server
    server.close()


@given(st.lists(st.tuples(users, histories, st.lists(ids, min_size=1, max_size=8)), min_size=1, max_size=12))
def test_scores_of_requests_at_once_are_those_of_each_alone(
    standing: Standing, asked: list[tuple[Any, Any, list[str]]]
):
    async def ask() -> list[Any]:
        bodies = [{"user": user, "history": history, "candidates": items} for user, history, items in asked]
        return await asyncio.gather(*(standing.server.post("rank", **body) for body in bodies))

    known = {f"i{row}" for row in range(ITEMS)}
    for (user, history, items), answer in zip(asked, standing.run(ask()), strict=True):
        counted = history if history is not None else STORED.get(user, ())
        told = answer.json()
        assert answer.status_code == 200
        assert told["scores"] == expected_rank("v1", counted, items)
        assert told["unknown"] == sum(item not in known for item in (*counted, *items))
        basis = "history" if history is not None else "stored" if user in STORED else "unknown_user"
        assert (told["version"], told["basis"]) == ("v1", basis)


@given(
    users, histories, st.integers(1, 60), st.none() | st.lists(ids, max_size=20), st.lists(ids, max_size=20)
)
def test_list_is_the_one_that_sorting_every_item_gives(
    standing: Standing, user: Any, history: Any, n: int, allowed: Any, forbidden: Any
):
    filters = {"allowed": allowed, "forbidden": forbidden}
    asked = standing.server.post("retrieve", user=user, history=history, n=n, filters=filters)
    counted = history if history is not None else STORED.get(user, ())
    assert standing.run(asked).json()["items"] == expected_list("v1", counted, n, allowed, forbidden)


def test_user_that_nobody_knows_gets_what_is_popular_and_is_told_so():
    async def scenario(server: Served) -> None:
        answer = (await server.post("retrieve", user="stranger", n=3)).json()
        assert (answer["items"], answer["basis"]) == (["i0", "i1", "i2"], "popularity")
        assert (await server.post("retrieve", user="ann", n=3)).json()["basis"] == "stored"
        assert (await server.post("retrieve", user="ann", history=["i9"], n=3)).json()["basis"] == "history"

    with_server(scenario)


def test_items_are_found_by_words_and_shown_by_id():
    async def scenario(server: Served) -> None:
        found = (await server.client.get("/v1/items", params={"words": "STORY i12", "n": 5})).json()
        assert [each["item"] for each in found["items"]] == ["i12"]
        shown = (await server.client.get("/v1/items/i12")).json()
        assert (shown["item"], shown["codes"], shown["readable"]) == (
            "i12",
            [1, 2],
            {"title": "The i12 story"},
        )
        missing = await server.client.get("/v1/items/a%2Fb%3F")
        assert (missing.status_code, missing.json()["error"]) == (404, "unknown_item")
        assert "a/b?" in missing.json()["message"]

    with_server(scenario)


def test_content_is_assigned_codes():
    async def scenario(server: Served) -> None:
        answer = (await server.post("assign", contents={"text": [1, 2.5], "image": [0.5]}, n=2)).json()
        assert answer == {"version": "v1", "codes": [4, 0], "nearest": ["i0", "i1"], "distances": [0.0, 1.0]}

    with_server(scenario)


WRONG: list[tuple[str, Any, int, str, str, str]] = [
    ("rank", {}, 422, "candidates", "Field required", "Add it"),
    ("rank", {"candidates": []}, 422, "candidates", "at least 1", "Send at least 1"),
    ("rank", {"candidates": ["i1", 7]}, 422, "candidates.1", "valid string", "in quotes"),
    ("rank", {"candidates": ["i1"], "histroy": []}, 422, "histroy", "unknown key", "did you mean 'history'?"),
    ("rank", {"candidates": ["i1"], "context": {"age": []}}, 422, "context.age", "valid", "Send"),
    (
        "rank",
        {"candidates": ["i1"], "context": {"age": "old"}},
        422,
        "context.age",
        "no number",
        "Send a number",
    ),
    ("rank", {"candidates": ["i1"] * 9}, 413, "candidates", "at most 8", "several requests"),
    ("rank", {"candidates": ["i1"], "history": ["i1"] * 6}, 413, "history", "at most 5", "several requests"),
    ("rank", [1], 422, "(body)", "be an object", "Send one JSON object"),
    ("rank", b"{", 422, "(body)", "Invalid JSON", "Send one JSON object"),
    ("rank", b'{"candidates": ["\xff"]}', 422, "(body)", "Invalid JSON", "UTF-8"),
    ("rank", b"", 422, "(body)", "Invalid JSON", "Send one JSON object"),
    ("retrieve", {"n": 0}, 422, "n", "greater than or equal to 1", "Send at least 1"),
    ("retrieve", {"n": 21}, 422, "n", "less than or equal to 20", "Send at most 20"),
    ("retrieve", {"n": True}, 422, "n", "valid integer", "Send a whole number"),
    ("retrieve", {"search": "guess"}, 422, "search", "'exact', 'index' or 'beam'", "Send one of"),
    ("retrieve", {"filters": {"forbiden": []}}, 422, "filters.forbiden", "unknown key", "'forbidden'"),
    ("retrieve", {"filters": {"allowed": ["i1"] * 8}}, 413, "filters.allowed", "at most 7", "several"),
    ("assign", {"contents": {"text": ["x"]}}, 422, "contents.text.0", "valid number", "Send a number"),
    ("assign", b'{"contents": {"text": [NaN]}}', 422, "contents.text.0", "finite", "finite number"),
]


def test_each_fault_is_told_by_path_value_and_remedy_in_one_shape():
    async def scenario(server: Served) -> None:
        for route, body, status, path, problem, remedy in WRONG:
            content = body if isinstance(body, bytes) else json.dumps(body)
            answer = await server.client.post(f"/v1/{route}", content=content)
            told = answer.json()
            assert (answer.status_code, len(told["faults"])) == (status, 1), told
            fault = told["faults"][0]
            assert fault["path"] == path
            assert problem in fault["problem"], fault
            assert remedy in fault["remedy"], fault
            assert told["request_id"] == answer.headers["x-request-id"]
            assert told["version"] == "v1"

    with_server(scenario, limits={"candidates": 8, "history": 5, "filter_ids": 7, "n": 20})


def test_other_refusals_have_the_same_shape():
    async def scenario(server: Served) -> None:
        for method, path, status, error in (
            ("GET", "/nowhere", 404, "no_such_route"),
            ("GET", "/v1/rank", 405, "method_not_allowed"),
            ("GET", "/v1/items?n=0", 422, "invalid"),
        ):
            answer = await server.client.request(method, path)
            assert (answer.status_code, answer.json()["error"]) == (status, error)
            assert set(answer.json()) == {"version", "error", "message", "faults", "request_id"}

    with_server(scenario)


def test_what_a_bundle_cannot_do_is_told_with_the_reason():
    async def scenario(server: Served) -> None:
        answer = await server.post("rank", candidates=["i1"])
        assert (answer.status_code, answer.json()["error"]) == (404, "not_served")
        assert answer.json()["message"] == "this bundle cannot rank"

    with_server(scenario, WholeNumbers(can=["retrieve"]))


def test_fault_of_the_engine_spoils_no_other_request_and_shows_nothing_of_the_inside(
    caplog: pytest.LogCaptureFixture,
):
    engine = WholeNumbers()
    engine.poison = "mallory"

    async def scenario(server: Served) -> None:
        asked = [
            server.post("rank", user=user, candidates=["i1"]) for user in ("ann", "mallory", "bob", "ann")
        ]
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
        assert "fault" not in answers[1].json()["message"]
        assert answers[2].json()["scores"] == expected_rank("v1", STORED["bob"], ["i1"])

    with_server(scenario, engine)


def test_damaged_file_of_the_bundle_is_no_fault_of_the_request(caplog: pytest.LogCaptureFixture):
    engine = WholeNumbers()
    engine.poison, engine.fault = "mallory", DataError("cut off", file="/srv/bundle/tables/x")

    async def scenario(server: Served) -> None:
        answer = await server.post("rank", user="mallory", candidates=["i1"])
        assert (answer.status_code, answer.json()["error"]) == (500, "failed")
        assert "srv" not in answer.text

    with_server(scenario, engine)
    assert "cut off" in caplog.text


def test_probes_tell_when_requests_may_come():
    async def scenario() -> None:
        async with served(None) as server:
            assert (await server.client.get("/healthz")).status_code == 200
            ready = await server.client.get("/readyz")
            assert (ready.status_code, ready.json()) == (
                503,
                {"ready": False, "version": None, "problem": None},
            )
            refused = await server.post("rank", candidates=["i1"])
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            server.service.batcher.use(WholeNumbers())
            assert (await server.client.get("/readyz")).json()["version"] == "v1"
            server.service.is_stopping = True
            assert (await server.client.get("/readyz")).status_code == 503
            # What comes all the same is answered.
            assert (await server.post("rank", candidates=["i1"])).status_code == 200

    asyncio.run(scenario())


def test_counts_tell_what_was_asked_and_answered():
    async def scenario(server: Served) -> None:
        await server.post("rank", user="ann", candidates=["i1", "gone", "lost"])
        await server.post("retrieve", n=3, filters={"allowed": []})
        await server.post("retrieve", n=0)
        page = (await server.client.get("/metrics")).text
        counts = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        assert counts['trec_semid_requests_total{route="/v1/rank",status="200"}'] == "1.0"
        assert counts['trec_semid_requests_total{route="/v1/retrieve",status="422"}'] == "1.0"
        assert counts['trec_semid_unknown_ids_total{route="/v1/rank"}'] == "2.0"
        assert counts["trec_semid_empty_lists_total"] == "1.0"
        assert counts['trec_semid_request_seconds_count{route="/v1/retrieve"}'] == "2.0"
        assert counts['trec_semid_batch_requests_count{kind="rank"}'] == "1.0"
        assert counts['trec_semid_basis_total{basis="popularity",route="/v1/retrieve"}'] == "1.0"
        assert counts["trec_semid_queue_requests"] == "0.0"
        assert counts['trec_semid_catalogue_items{version="v1"}'] == f"{ITEMS}.0"
        assert counts['trec_semid_listed_items{version="v1"}'] == "0.0"
        parts = [counts[f'trec_semid_stage_seconds_total{{stage="{part}"}}'] for part in PARTS]
        assert all(0 < float(part) < 1 for part in parts)

    with_server(scenario)


def test_every_request_is_a_line_of_json_without_what_it_holds():
    async def scenario(server: Served) -> None:
        headers = {"X-Request-Id": "mine-1", "Authorization": "Bearer s3cret"}
        await server.client.post("/v1/rank", json={"user": "ann", "candidates": ["i1"]}, headers=headers)
        await server.client.post("/v1/rank", content=b"{", headers={"X-Request-Id": 'a"\n{b'})
        first, second = map(json.loads, server.lines)
        assert set(first) == {"time", "route", "status", "ms", "batch", "version", "request_id"}
        assert (first["route"], first["status"], first["batch"]) == ("/v1/rank", 200, 1)
        assert (first["version"], first["request_id"]) == ("v1", "mine-1")
        assert (second["status"], second["batch"]) == (422, 0)
        assert len(second["request_id"]) == 16  # one that a log cannot hold is replaced
        assert not any("ann" in line or "s3cret" in line for line in server.lines)

    with_server(scenario)


def test_page_to_try_it_fetches_nothing_from_elsewhere():
    async def scenario(server: Served) -> None:
        page = await server.client.get("/")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        for name in ("/", "/page.js", "/page.css"):
            answer = await server.client.get(name)
            assert answer.status_code == 200
            assert "//" not in answer.text.replace("// ", "")
            assert "innerHTML" not in answer.text

    with_server(scenario)
