import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.server.engines import Served, WholeNumbers, served
from trec_semid.core.errors import DataError
from trec_semid.core.paths import write_bytes
from trec_semid.serving.engine import RetrieveAnswer
from trec_semid.serving.server import keeping
from trec_semid.serving.server.keeping import Keeper, check_engine, find_bundle


def write_bundle(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(content)
    (folder / "manifest.json.sha256").write_text(hashlib.sha256(content.encode()).hexdigest())
    return folder


class Opener:
    """Opens what `write_bundle` writes: its content is the version of an engine, or what is wrong with it."""

    def __init__(self) -> None:
        self.opened: list[WholeNumbers] = []
        self.tried: list[str] = []

    def __call__(self, uri: str) -> WholeNumbers:
        self.tried.append(uri)
        content = (Path(uri) / "manifest.json").read_text()
        if content == "broken":
            raise DataError("not the file that was exported", file=uri)
        can = ["rank"] if content.startswith("ranker") else ["rank", "retrieve"]
        engine = Mad(content) if content == "mad" else WholeNumbers(content, can=can)
        self.opened.append(engine)
        return engine


class Mad(WholeNumbers):
    def retrieve(self, asked: Any) -> list[RetrieveAnswer]:
        answers = super().retrieve(asked)
        return [answer._replace(scores=np.full(len(answer.items), np.nan, np.float32)) for answer in answers]


def keeper_of(server: Served, place: Path, opener: Opener) -> Keeper:
    return Keeper(str(place), server.service.batcher, server.service.meters, opener)


def test_bundle_is_found_by_itself_by_a_link_and_by_a_file_that_names_it(tmp_path: Path):
    bundle = write_bundle(tmp_path / "bundles" / "one", "v1")
    (tmp_path / "link").symlink_to(bundle)
    (tmp_path / "pointer").write_text("bundles/one\n")
    (tmp_path / "pointer_of_all").write_text(f"{bundle}")
    found = find_bundle(f"{bundle}/")
    assert found.uri == str(bundle)
    for name in ("link", "pointer", "pointer_of_all"):
        assert find_bundle(str(tmp_path / name)) == found


def test_bundle_in_a_store_is_found_by_a_file_there():
    for name in ("manifest.json", "manifest.json.sha256"):
        write_bytes(f"memory://keeping/bundles/two/{name}", b"v2")
    write_bytes("memory://keeping/pointer", b"bundles/two")
    assert find_bundle("memory://keeping/pointer") == ("memory://keeping/bundles/two", b"v2")


@pytest.mark.parametrize("content", ["", "two\nlines", "gone", b"\xff\xfe"])
def test_place_without_a_bundle_is_refused(tmp_path: Path, content: str | bytes):
    (tmp_path / "pointer").write_bytes(content.encode() if isinstance(content, str) else content)
    for place in (tmp_path / "pointer", tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match="bundle"):
            find_bundle(str(place))


def test_another_bundle_takes_over_where_the_place_names_it(tmp_path: Path):
    opener = Opener()
    for version in ("v1", "v2"):
        write_bundle(tmp_path / version, version)
    pointer = tmp_path / "pointer"
    pointer.write_text("v1")

    async def scenario() -> None:
        async with served(None) as server:
            keeper = keeper_of(server, pointer, opener)
            await keeper.open_first()
            assert server.service.batcher.version == "v1"
            assert not await keeper.look()
            assert len(opener.opened) == 1
            pointer.write_text("v2")
            assert await keeper.look()
            assert (await server.post("rank", candidates=["i1"])).json()["version"] == "v2"
            # A folder whose content was replaced is another bundle too.
            write_bundle(tmp_path / "v2", "v3")
            assert await keeper.look()
            assert server.service.batcher.version == "v3"
            page = (await server.client.get("/metrics")).text
            assert 'trec_semid_swaps_total{outcome="taken"} 2.0' in page
            assert 'trec_semid_bundle{version="v3"} 1.0' in page
            assert 'trec_semid_bundle{version="v2"} 0.0' in page

    asyncio.run(scenario())
    assert all(engine.is_closed for engine in opener.opened)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("broken", "not the file that was exported"),
        ("mad", "make no sense"),
        ("ranker", "cannot retrieve"),
        (None, "bundle"),
    ],
)
def test_bundle_that_is_no_good_leaves_the_one_before_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, words: str
):
    opener = Opener()
    write_bundle(tmp_path / "v1", "v1")
    if content:
        write_bundle(tmp_path / "next", content)
    pointer = tmp_path / "pointer"
    pointer.write_text("v1")
    monkeypatch.setattr(keeping, "_AGAIN_S", (0.05, 0.1))

    async def scenario() -> None:
        async with served(None) as server:
            keeper = keeper_of(server, pointer, opener)
            server.service.problem = lambda: keeper.problem
            await keeper.open_first()
            pointer.write_text("next")
            assert not await keeper.look()
            tried = len(opener.tried)
            assert not await keeper.look()
            assert len(opener.tried) == tried  # not again at once
            assert (await server.post("retrieve", n=3)).json()["version"] == "v1"
            ready = await server.client.get("/readyz")
            assert (ready.status_code, ready.json()["version"]) == (200, "v1")
            assert words in ready.json()["problem"]
            if content:
                await asyncio.sleep(0.06)
                assert not await keeper.look()
                assert len(opener.tried) == tried + 1  # but later: it may have been half copied
            write_bundle(tmp_path / "next", "v2")
            assert await keeper.look()
            assert (await server.client.get("/readyz")).json()["problem"] is None

    asyncio.run(scenario())
    assert all(engine.is_closed for engine in opener.opened)


def test_first_bundle_that_cannot_be_opened_ends_the_start(tmp_path: Path):
    write_bundle(tmp_path / "v1", "broken")

    async def scenario() -> None:
        async with served(None) as server:
            with pytest.raises(DataError, match="not the file that was exported"):
                await keeper_of(server, tmp_path / "v1", Opener()).open_first()

    asyncio.run(scenario())


def test_watching_sees_another_bundle_by_itself_and_at_once_when_nudged(tmp_path: Path):
    for version in ("v1", "v2", "v3"):
        write_bundle(tmp_path / version, version)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "v1")

    def point(version: str) -> None:
        (tmp_path / "next").symlink_to(tmp_path / version)
        os.replace(tmp_path / "next", link)

    async def is_served(server: Served, version: str) -> None:
        async with asyncio.timeout(5):
            while server.service.batcher.version != version:
                await asyncio.sleep(0.005)

    async def scenario() -> None:
        async with served(None) as server:
            keeper = keeper_of(server, link, Opener())
            await keeper.open_first()
            watch = asyncio.create_task(keeper.watch(0.02))
            point("v2")
            await is_served(server, "v2")
            watch.cancel()
            watch = asyncio.create_task(keeper.watch(0))
            point("v3")
            await asyncio.sleep(0.1)
            assert server.service.batcher.version == "v2"
            keeper.nudge()
            await is_served(server, "v3")
            watch.cancel()

    asyncio.run(scenario())


def test_check_says_what_an_engine_can():
    assert check_engine(WholeNumbers()) == {"rank", "retrieve"}
    assert check_engine(WholeNumbers(can=["retrieve"])) == {"retrieve"}
    with pytest.raises(DataError, match="cannot rank and retrieve"):
        check_engine(WholeNumbers(can=[]))
