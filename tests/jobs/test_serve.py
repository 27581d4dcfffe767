"""A bundle that `export` wrote, behind the server: answers are those of the engine, asked one by one."""

import asyncio
from pathlib import Path

import pytest

from tests.jobs.exported_kinds import KINDS
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import write_problem
from tests.jobs.retrieving import retrieve_config
from tests.serving.server.engines import served
from trec_semid.jobs import export, retrieve
from trec_semid.jobs.export import ExportConfig
from trec_semid.serving.engine import Filters, RetrieveAsked, open_engine
from trec_semid.serving.server.keeping import Keeper


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("serve")
    problem = write_problem(str(folder))
    changes = {**KINDS["sasrec"]}
    own = {**problem, **{key: changes.pop(key) for key in ("semantic_ids",) if key in changes}}
    retrieve.run(retrieve_config(own, str(folder / "run"), train={"max_epochs": 1}, **changes))
    with pytest.MonkeyPatch.context() as patches:
        export_quickly(patches)
        export.run(ExportConfig(run=str(folder / "run"), out=str(folder / "bundle")))
    return str(folder / "bundle")


def test_lists_of_a_bundle_over_http_are_those_of_its_engine_and_stay_so_when_it_is_opened_anew(
    bundle: str, tmp_path: Path
):
    engine = open_engine(bundle)
    items = engine.examples(12)
    asked = [
        RetrieveAsked(None, items[:3], 5),
        RetrieveAsked(None, None, 4),
        RetrieveAsked(None, items[3:9], 7, Filters(items[:11], items[9:10])),
        RetrieveAsked(None, (items[0], "nobody knows this"), 3),
    ]
    expected = [engine.retrieve([each])[0] for each in asked]
    filters = [{"allowed": each.filters.allowed, "forbidden": each.filters.forbidden} for each in asked]
    bodies = [
        {"history": each.history, "n": each.n, "filters": kept}
        for each, kept in zip(asked, filters, strict=True)
    ]
    (tmp_path / "pointer").write_text(bundle)

    async def scenario() -> None:
        async with served(None) as server:
            service = server.service
            keeper = Keeper(str(tmp_path / "pointer"), service.batcher, service.meters, open_engine)
            await keeper.open_first()
            for _ in range(2):
                answers = await asyncio.gather(*(server.post("retrieve", **body) for body in bodies))
                for answer, known in zip(answers, expected, strict=True):
                    told = answer.json()
                    assert (told["items"], told["basis"]) == (list(known.items), known.basis)
                    assert told["scores"] == pytest.approx(known.scores.tolist(), abs=1e-5)
                    assert (told["unknown"], told["version"]) == (known.unknown, engine.version)
                (tmp_path / "pointer").write_text(f"{bundle}/../{Path(bundle).name}/")
                keeper.nudge()
                await keeper.look()
            shown = (await server.client.get(f"/v1/items/{items[0]}")).json()
            assert shown["item"] == items[0]
            refused = await server.post("rank", candidates=items[:2])
            assert (refused.status_code, refused.json()["error"]) == (404, "not_served")
            wrong = await server.post("retrieve", filters={"fields": {"no such": ["x"]}})
            assert (wrong.status_code, len(wrong.json()["faults"])) == (422, 1)
            assert wrong.json()["faults"][0]["path"] == "filters.fields.no such"

    asyncio.run(scenario())
    engine.close()
