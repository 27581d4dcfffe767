"""A training step asks a device for nothing that its host would have to wait for.

Seen on a CPU, through every operation that a step dispatches: these would hold up the host of a GPU.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.jobs import retrieving
from tests.jobs.test_rank_finetune import tuned, write_problem
from trec_semid.jobs import rank, retrieve
from trec_semid.training import loop
from trec_semid.training.finetune.finetuning import Finetuning
from trec_semid.training.steps import train_steps

WAITS = ("local_scalar_dense", "item", "nonzero", "unique", "masked_select", "equal", "all", "allreduce")
READS = ("tolist", "numpy", "cpu")
TORCH = str(Path(torch.__file__).parent)
LIVE = {"warmup_epochs": 0, "learning_rate": 1e-3, "entropy_floor": 0.0}
CODES_ALONE = {"item": {"fields": [], "content": [], "id": False}, "loss": {"item_weight": 0.0}}


class Watched(TorchDispatchMode):
    """Counts operations, and notes those whose answer the host needs.

    What libraries ask is left out: fbgemm reads the number of its step, which lies on the host whatever the
    device; torchrec reads how many ids each feature has, at the begin of forward, before any of the model's
    work is queued; torch exchanges gradients inside `backward()`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        name = func.overloadpacket.__name__.strip("_")
        by_mask = name.startswith("index") and len(args) > 1 and _has_mask(args[1])
        if by_mask or name.rstrip("_0123456789") in WAITS:
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Note who asked."""
        frames = [one for one in traceback.extract_stack() if f"{TORCH}/" not in one.filename]
        asking = next(
            one for one in reversed(frames) if one.filename != __file__ or "lambda" in str(one.line)
        )
        is_of_library = any(f"/{library}/" in asking.filename for library in ("fbgemm_gpu", "torchrec"))
        is_for_cpu = asking.name == "best_codes"  # a branch that only a CPU takes
        if not (is_of_library or is_for_cpu or str(asking.line).endswith(".backward()")):
            self.waits.append(f"{name} in {asking.filename}:{asking.lineno}")


class Reads(TorchFunctionMode):
    """Notes copies to the host, which no operation is dispatched for on a CPU."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self._watched.note(func.__name__)
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    return isinstance(indices, list | tuple) and any(
        isinstance(part, Tensor) and part.dtype == torch.bool for part in indices
    )


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("waits")))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """What each step of a run did, from its batch to the update."""
    done: list[Watched] = []

    def watched_steps(*args: Any, **named: Any) -> Iterator[Any]:
        reports = train_steps(*args, **named)
        while True:
            with Watched() as watched, Reads(watched):
                report = next(reports, None)
            if report is None:
                return
            done.append(watched)
            yield report

    after_step = Finetuning.after_step

    def watched_after_step(self: Finetuning, report: Any) -> None:
        with done[-1], Reads(done[-1]):
            after_step(self, report)

    monkeypatch.setattr(loop, "train_steps", watched_steps)
    monkeypatch.setattr(Finetuning, "after_step", watched_after_step)
    return done


def expect_no_waits(steps: list[Watched]) -> None:
    """The first step is left out: in it torchrec looks at its input, once."""
    assert len(steps) > 2
    assert min(step.num_operations for step in steps[1:]) > 50
    assert {wait for step in steps[1:] for wait in step.waits} == set()


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: x.unique(),
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).all()),
    ],
)
def test_a_question_to_the_device_is_seen(ask: Any):
    with Watched() as watched, Reads(watched):
        ask(torch.ones(3))
    assert watched.waits


def test_a_ranker_in_a_pipeline(problem: dict[str, Any], tmp_path: Any, steps: list[Watched]):
    train = {"max_epochs": 1, "pipeline": "sparse_dist"}
    rank.run(tuned(problem, str(tmp_path / "run"), finetune=None, train=train))
    expect_no_waits(steps)


@pytest.mark.parametrize(
    "tuning", [None, LIVE, {**LIVE, "recent_items": 2}], ids=["plain", "live codes", "some live codes"]
)
def test_a_ranker(
    problem: dict[str, Any], tmp_path: Any, steps: list[Watched], tuning: dict[str, Any] | None
):
    rank.run(tuned(problem, str(tmp_path / "run"), finetune=tuning, train={"max_epochs": 1}))
    expect_no_waits(steps)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampled": {"num_sampled": 30}, "loss": {"code_weight": 0.0}},
        {**CODES_ALONE, "model": {"kind": "rpg", "transformer": retrieving.STILL}},
        {"finetune": LIVE, "window": 2},
        {"finetune": LIVE, **CODES_ALONE},
    ],
    ids=["all items", "drawn items", "codes alone", "live codes, all items", "live codes, named items"],
)
def test_a_retriever(problem: dict[str, Any], tmp_path: Any, steps: list[Watched], changes: dict[str, Any]):
    train = {"max_epochs": 1}
    retrieve.run(retrieving.retrieve_config(problem, str(tmp_path / "run"), train=train, **changes))
    expect_no_waits(steps)
