"""A program in other forms computes what the portable one does, or is left out and told."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from trec_semid.checkpoints.manifest import ProgramFacts
from trec_semid.core.errors import ConfigError, StackError
from trec_semid.models.item_transformer import ItemTransformer
from trec_semid.models.retrievers.sasrec import SasrecConfig
from trec_semid.serving.graphs import Graph
from trec_semid.serving.programs import read_program, this_processor
from trec_semid.serving.writing import forms
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.programs import write_program

ROWS = {0: torch.export.Dim("rows", min=1)}


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))


def write(folder: Path, module: nn.Module, **asked: bool) -> ProgramFacts:
    example = torch.zeros(2, 6)
    return write_program(
        str(folder), "programs/score", module, [example], [ROWS], outputs=("logits",), forms=Forms(**asked)
    )


def answered(place: Path, given: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return onnxruntime.InferenceSession(place.read_bytes()).run(None, given)[0]


def test_onnx_computes_the_same_for_any_number_of_rows(tmp_path: Path):
    facts = write(tmp_path, dense(), onnx=True)
    assert facts.onnx is not None
    assert facts.onnx.file == "programs/score.onnx"
    for num_rows in (1, 2, 9):
        x = torch.randn(num_rows, 6)
        ours = dense()(x).detach().numpy()
        assert answered(tmp_path / facts.onnx.file, {"input": x.numpy()}) == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize(
    ("losses", "is_refused"), [(0, False), (1, False), (2, True)], ids=["never", "once", "twice"]
)
def test_a_program_whose_tracer_has_lost_a_value_is_traced_once_more(
    losses: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export, tries = torch.export.export, iter(range(9))

    def losing(*given: Any, **more: Any) -> Any:
        if next(tries) < losses:
            raise RuntimeError("We found a fake tensor in the exported program constant's list. It may be x.")
        return export(*given, **more)

    monkeypatch.setattr(torch.export, "export", losing)
    if is_refused:
        with pytest.raises(ConfigError, match="cannot export this model: We found a fake tensor"):
            write(tmp_path, dense())
        return
    x, run = torch.randn(3, 6), read_program(str(tmp_path), write(tmp_path, dense()))
    assert torch.equal(run(x), dense()(x))


class OfHistories(nn.Module):
    """The states at the end of histories, as a user program has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.states = ItemTransformer(SasrecConfig(), takes_mean=False, max_len=6, dim=8)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states = self.states(tokens)
        last = (lengths.clamp(min=1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1)


def test_onnx_reads_histories_of_any_length(tmp_path: Path):
    module = OfHistories().eval()
    sizes = [{0: torch.export.Dim("users", min=2), 1: torch.export.Dim("items", min=2, max=6)}]
    sizes.append({0: sizes[0][0]})
    example = [torch.zeros(3, 4, 2, 8), torch.tensor([4, 1, 2])]
    facts = write_program(
        str(tmp_path), "user", module, example, sizes, outputs=("vectors",), forms=Forms(onnx=True)
    )
    assert facts.onnx is not None
    tokens, lengths = torch.randn(5, 6, 2, 8), torch.tensor([6, 5, 1, 2, 3])
    given = {"tokens": tokens.numpy(), "lengths": lengths.numpy()}
    ours = module(tokens, lengths).detach().numpy()
    assert answered(tmp_path / facts.onnx.file, given) == pytest.approx(ours, abs=1e-5)


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).sum(1)


def test_what_onnx_has_no_operation_for_is_told_and_left_out(tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING):
        facts = write(tmp_path, Strange(), onnx=True)
    assert facts.onnx is None
    assert not (tmp_path / "programs/score.onnx").exists()
    assert "programs/score.onnx: not written" in caplog.text
    x = torch.randn(4, 6)
    assert torch.equal(read_program(str(tmp_path), facts)(x), Strange()(x))


def test_onnx_that_computes_something_else_is_left_out(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(forms, "_onnx_difference", lambda *_: 0.5)
    assert write(tmp_path, dense(), onnx=True).onnx is None
    assert "5.0e-01 off" in caplog.text


def test_compiled_code_runs_where_it_is_asked_for_and_of_this_processor(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    facts = write(tmp_path, dense(), compiled=True)
    assert facts.compiled is not None
    x = torch.randn(7, 6)
    expected = dense()(x)
    native = read_program(str(tmp_path), facts, compiled=True)
    assert not isinstance(native, Graph)
    assert torch.allclose(native(x), expected, atol=1e-6)
    assert isinstance(read_program(str(tmp_path), facts), Graph)
    for name in this_processor():
        other = facts.model_copy(update={"compiled": facts.compiled.model_copy(update={name: "other"})})
        portable = read_program(str(tmp_path), other, compiled=True)
        assert isinstance(portable, Graph)
        assert torch.allclose(portable(x), expected, atol=1e-6)
        assert f"{name} other, here" in caplog.text


def test_what_is_not_installed_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(forms, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(StackError, match=r"onnxscript not installed\. Remedy"):
        Forms(onnx=True).expect_available()
    monkeypatch.setattr(forms.shutil, "which", lambda _: None)
    with pytest.raises(StackError, match="no C\\+\\+ compiler"):
        Forms(compiled=True).expect_available()
    Forms().expect_available()
