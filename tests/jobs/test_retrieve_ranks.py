"""Retrievers of every loss on two ranks, which come to what one rank comes to."""

from typing import Any

import pytest

from tests.jobs.retrieving import retrieve_each
from tests.jobs.test_rank_finetune import side_by_side, write_problem
from tests.jobs.test_retrieve import HETERREC, NO_ITEM, TUNED, VARIED
from tests.ranks import run_ranks

CHAINED = {"loss": {"item_weight": 0.0, "code_heads": "chained"}, "evaluation": {"beam_width": 40}}
TWO_STAGE = {"loss": {"code_heads": "chained"}, "evaluation": {"candidates": 30, "beam_width": 40}}
KINDS: dict[str, dict[str, Any]] = {
    "all items": {},
    "named items": {"loss": {"item_weight": 0.0}},
    "codes alone": {"loss": {"item_weight": 0.0}, "item": NO_ITEM, "model": HETERREC},
    "codes read, varied rows": {"loss": {"code_weight": 0.0}, "model": HETERREC, "sequences": VARIED},
    "three of a varied sliding row, seen items": {
        "loss": {"code_weight": 0.0, "item_similarity_is_cosine": True, "negatives": "seen"},
        "window": 3,
        "sequences": {"rows": "sliding", **VARIED},
    },
    "chained": {**CHAINED, "window": 2},
    "chained codes propose": {**TWO_STAGE, "item": {"content": ["text"]}},
    "tuned, all items": {"finetune": TUNED, "window": 2},
    "tuned, named items": {
        "finetune": TUNED,
        "loss": {"item_weight": 0.0},
        "item": NO_ITEM,
        "model": HETERREC,
    },
}
TWO_EPOCHS = ("all items", "chained codes propose", "tuned, all items", "drawn")
"""What an epoch begins anew and ends with is the same for every loss: the others go through one."""
DRAWN: dict[str, Any] = {"loss": {"code_weight": 0.0}, "sampled": {"num_sampled": 20_000}}
Results = dict[str, dict[str, Any]]
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def on_one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    folder, kinds = tmp_path_factory.mktemp("ranks"), {**KINDS, "drawn": DRAWN}
    kinds |= {name: kinds[name] | {"train": {"max_epochs": 1}} for name in kinds if name not in TWO_EPOCHS}
    problem = side_by_side(write_problem(str(folder)))
    one = retrieve_each(problem, str(folder / "one"), kinds)
    return one, run_ranks(retrieve_each, 2, problem, str(folder / "two"), kinds)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_and_retrieve_as_one(on_one_and_two: tuple[Results, Results], kind: str):
    one, two = (results[kind] for results in on_one_and_two)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["metrics"].keys() == one["metrics"].keys()
    assert two["metrics"]["test/ndcg@10"] == pytest.approx(one["metrics"]["test/ndcg@10"], abs=0.01)


def test_items_drawn_by_two_ranks_stand_for_the_catalogue_as_those_of_one(
    on_one_and_two: tuple[Results, Results],
):
    one, two = (results["drawn"] for results in on_one_and_two)
    assert two["losses"][:3] == pytest.approx(one["losses"][:3], rel=0.01)  # other draws, so they drift
