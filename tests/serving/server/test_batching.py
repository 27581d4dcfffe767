import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.serving.server.engines import STORED, Served, WholeNumbers, expected_list, expected_rank, served


def with_server(engine: WholeNumbers, scenario: Callable[[Served], Awaitable[None]], **config: Any) -> None:
    async def run() -> None:
        async with served(engine, **config) as server:
            await scenario(server)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_requests_that_gather_while_the_engine_is_busy_are_answered_together_by_kind():
    engine = WholeNumbers()

    async def scenario(server: Served) -> None:
        engine.gate.clear()
        first = asyncio.create_task(server.post("rank", candidates=["i1"]))
        await until(lambda: bool(engine.batches))
        asked = [("rank", {"candidates": ["i2"]}), ("retrieve", {"n": 3}), ("rank", {"candidates": ["i3"]})]
        others = [asyncio.create_task(server.post(route, **body)) for route, body in asked * 2]
        await until(lambda: server.service.batcher.depth == 6)
        engine.gate.set()
        answers = await asyncio.gather(first, *others)
        assert all(answer.status_code == 200 for answer in answers)
        assert engine.batches == [("rank", 1), ("rank", 4), ("retrieve", 2)]
        assert answers[2].json()["items"] == expected_list("v1", [], 3)
        assert answers[3].json()["scores"] == expected_rank("v1", [], ["i3"])
        assert engine.threads == {*engine.threads} - {threading.get_ident()}
        assert len(engine.threads) == 1

    with_server(engine, scenario)


def test_batches_are_no_larger_than_the_config_says():
    engine = WholeNumbers()

    async def scenario(server: Served) -> None:
        engine.gate.clear()
        first = asyncio.create_task(server.post("rank", candidates=["i1"]))
        await until(lambda: bool(engine.batches))
        others = [asyncio.create_task(server.post("rank", candidates=["i2"] * 4)) for _ in range(3)]
        others += [asyncio.create_task(server.post("rank", candidates=["i2"] * 11))]
        others += [asyncio.create_task(server.post("rank", candidates=["i2"])) for _ in range(7)]
        await until(lambda: server.service.batcher.depth == 11)
        engine.gate.set()
        await asyncio.gather(first, *others)
        # 10 candidates in a batch, 5 requests; one that has more candidates comes alone.
        assert [size for _, size in engine.batches] == [1, 2, 1, 1, 5, 2]

    with_server(engine, scenario, batch={"max_requests": 5, "max_candidates": 10})


def test_idle_engine_waits_for_others_as_long_as_the_config_says_and_no_longer():
    engine = WholeNumbers()

    async def scenario(server: Served) -> None:
        began = time.perf_counter()
        await server.post("rank", candidates=["i1"])
        assert time.perf_counter() - began > 0.15
        engine.batches.clear()
        asked = [asyncio.create_task(server.post("rank", candidates=["i1"])) for _ in range(3)]
        await asyncio.gather(*asked)
        assert engine.batches == [("rank", 3)]
        # A batch that is full waits for nobody.
        began = time.perf_counter()
        await asyncio.gather(*(server.post("rank", candidates=["i1"]) for _ in range(8)))
        assert time.perf_counter() - began < 0.15

    with_server(engine, scenario, batch={"max_wait_ms": 150, "max_requests": 4})


def test_more_requests_than_may_wait_are_told_when_to_come_again_and_the_rest_are_answered():
    engine = WholeNumbers()

    async def scenario(server: Served) -> None:
        engine.gate.clear()
        first = asyncio.create_task(server.post("rank", candidates=["i1"]))
        await until(lambda: bool(engine.batches))
        tasks = [asyncio.create_task(server.post("rank", candidates=["i1"])) for _ in range(20)]
        await until(lambda: sum(task.done() for task in tasks) == 15)
        refused = [task.result() for task in tasks if task.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert refused[0].json()["error"] == "overloaded"
        engine.gate.set()
        answered = [answer.status_code for answer in await asyncio.gather(first, *tasks)]
        assert (answered.count(200), answered.count(429)) == (6, 15)

    with_server(engine, scenario, limits={"queue": 5, "time_s": 30})


def test_request_that_is_too_late_is_told_so_and_not_computed():
    engine = WholeNumbers()

    async def scenario(server: Served) -> None:
        engine.gate.clear()
        began = time.perf_counter()
        answers = await asyncio.gather(server.post("rank", candidates=["i1"]), server.post("retrieve"))
        assert [answer.status_code for answer in answers] == [504, 504]
        assert 0.1 <= time.perf_counter() - began < 5
        assert answers[0].json()["error"] == "too_late"
        engine.gate.set()
        assert (await server.post("rank", user="ann", candidates=["i5"])).json()["scores"] == expected_rank(
            "v1", STORED["ann"], ["i5"]
        )
        # The list was waiting when its time was over.
        assert [kind for kind, _ in engine.batches] == ["rank", "rank"]

    with_server(engine, scenario, limits={"time_s": 0.1})


def test_engine_that_another_took_the_place_of_is_closed_after_its_last_batch():
    old, new = WholeNumbers("old"), WholeNumbers("new")

    async def scenario(server: Served) -> None:
        old.gate.clear()
        before = asyncio.create_task(server.post("retrieve", user="ann", n=5))
        await until(lambda: bool(old.batches))
        server.service.batcher.use(new)
        after = asyncio.create_task(server.post("retrieve", user="ann", n=5))
        await asyncio.sleep(0.05)
        assert not old.is_closed
        old.gate.set()
        for version, task in (("old", before), ("new", after)):
            answer = await task
            assert answer.headers["x-bundle-version"] == answer.json()["version"] == version
            assert answer.json()["items"] == expected_list(version, STORED["ann"], 5)
        await until(lambda: old.is_closed)

    with_server(old, scenario)
    assert new.is_closed


def test_twenty_bundles_in_turn_fail_no_request_and_mix_in_no_answer():
    engines = [WholeNumbers(f"v{number}", seconds=0.0005) for number in range(21)]
    answers: list[tuple[str, dict[str, Any]]] = []

    async def client(server: Served, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            items = [f"i{(number + step) % 50}" for step in range(20)]
            asked = {"rank": {"candidates": items}, "retrieve": {"n": 20}}
            for route, body in asked.items():
                answer = await server.post(route, user="ann", **body)
                assert answer.status_code == 200
                answers.append((route, answer.json() | {"asked": items}))

    async def scenario(server: Served) -> None:
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(server, number, stop)) for number in range(8)]
        for engine in engines[1:]:
            await asyncio.sleep(0.02)
            server.service.batcher.use(engine)
        await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*clients)

    with_server(engines[0], scenario)
    assert all(engine.is_closed for engine in engines)
    versions = [told["version"] for _, told in answers]
    assert set(versions) == {engine.version for engine in engines}
    for route, told in answers:
        if route == "rank":
            assert told["scores"] == expected_rank(told["version"], STORED["ann"], told["asked"])
        else:
            assert told["items"] == expected_list(told["version"], STORED["ann"], 20)


def test_batch_that_does_not_come_back_makes_the_process_unhealthy():
    engine = WholeNumbers()

    async def scenario(server: Served) -> None:
        assert server.service.batcher.busy_s == 0
        engine.gate.clear()
        asked = asyncio.create_task(server.post("rank", candidates=["i1"]))
        await until(lambda: server.service.batcher.busy_s > 0.01)
        engine.gate.set()
        await asked
        assert server.service.batcher.busy_s == 0

    with_server(engine, scenario)
