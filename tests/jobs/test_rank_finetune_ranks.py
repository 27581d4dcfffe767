"""Tokenizers tuned with a ranker on two ranks, which come to what one rank comes to."""

from typing import Any

import pytest

from tests.jobs.ranking import losses_of
from tests.jobs.test_rank_finetune import TUNING, tuned, write_problem
from tests.ranks import run_ranks
from trec_semid.jobs.rank import run

TUNED = ("mmq", "published", "rq_vae_aligned")
OPTIONS = {"turn_steps": 2, "effective_codes": 3.0, "starts_from_codebooks": True}
"""Of one of them: in the model's turns no rank has a gradient of the tokenizer."""
Results = dict[str, dict[str, Any]]


def train_each(problem: dict[str, Any], folder: str) -> Results:
    """Tune every kind of tokenizer, one after another, so that ranks start once."""
    facts: Results = {}
    for name in TUNED:
        changes = {"train": {"max_epochs": 2}, "features": {"prefixes": {"lengths": [2], "num_rows": 30}}}
        of_name = {**problem, "semantic_ids": str(problem["semantic_ids"]).replace("/mmq", f"/{name}")}
        options = OPTIONS if name == "published" else {}
        config = tuned(of_name, f"{folder}/{name}", finetune={**TUNING, **options}, **changes)
        facts[name] = {"metrics": run(config).metrics, "losses": losses_of(config.run)}
    return facts


@pytest.fixture(scope="module")
def on_one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, list[Results]]:
    folder = tmp_path_factory.mktemp("ranks")
    problem = write_problem(str(folder))
    return train_each(problem, f"{folder}/one"), run_ranks(train_each, 2, problem, f"{folder}/two")


@pytest.mark.ranks
@pytest.mark.parametrize("tokenizer", TUNED)
def test_two_ranks_tune_like_one(on_one_and_two: tuple[Results, list[Results]], tokenizer: str):
    alone = on_one_and_two[0][tokenizer]
    for each in on_one_and_two[1]:
        facts = each[tokenizer]
        assert facts["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert facts["metrics"]["test/auc"] == pytest.approx(alone["metrics"]["test/auc"], abs=5e-3)
        assert facts["metrics"]["all/entropy"] == pytest.approx(alone["metrics"]["all/entropy"], abs=0.05)
