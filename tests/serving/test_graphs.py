"""Programs run without `torch.export.load` compute what it computes, and hold nothing that does harm."""

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trec_semid.serving.graphs import GraphError, read_graph


class Everything(nn.Module):
    """Of every kind of argument and output one; weights that are computed with, and one that is written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.weight = nn.Parameter(torch.randn(8, 3))
        self.register_buffer("order", torch.arange(8).flip(0))
        self.constant = torch.full((3,), 2.0)

    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_users, longest, width = histories.shape
        with torch.no_grad():
            states = self.layer(histories * 1.0)
        first, *others = states[:, :, self.order].unbind(-1)
        states = torch.stack([first, *reversed(others)], -1) + torch.cat([histories[..., :4]] * 2, -1)
        is_there = torch.arange(longest)[None] < lengths[:, None]
        is_there = (is_there | is_there) & ~(is_there ^ is_there)
        scores = torch.einsum("blw,wk->blk", states, nn.functional.normalize(self.weight, dim=0))
        scores = scores.masked_fill(~is_there[:, :, None], -torch.inf).softmax(1)
        filled = scores.new_zeros(num_users * longest, 3)
        filled += scores.flatten(0, 1)
        half = filled.to(torch.float64).unflatten(0, (num_users, longest)).mean((1, 2), dtype=torch.float32)
        return scores * self.constant, half, states.new_full((longest + 1, width // 2), float("inf"))


def inputs(num_users: int, longest: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_users)
    histories = torch.randn(num_users, longest, 8, generator=generator)
    return histories, torch.randint(1, longest + 1, (num_users,), generator=generator)


def saved(module: nn.Module, example: tuple[Tensor, ...], sizes: Any = None) -> bytes:
    program = torch.export.export(module.eval(), example, dynamic_shapes=sizes, strict=False)
    program._example_inputs = None
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def content() -> bytes:
    users, items = torch.export.Dim("users", min=2), torch.export.Dim("items", min=2, max=12)
    return saved(Everything(), inputs(3, 4), [{0: users, 1: items}, {0: users}])


def opened(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return read_graph(archive)


def test_every_kind_of_operation_gives_what_torch_gives(content: bytes):
    graph, oracle = opened(content), torch.export.load(io.BytesIO(content)).module()
    with torch.no_grad():
        for num_users, longest in ((3, 4), (2, 12), (7, 5), (3, 4)):  # the last: nothing stays of the others
            given = inputs(num_users, longest)
            expected, said = oracle(*given), graph(*given)
            assert len(said) == len(expected) == 3
            for one, other in zip(said, expected, strict=True):
                # Where weights lie in memory decides the last bit of a product.
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
                assert not one.requires_grad


class Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x.add_(1)
        return x


def test_one_output_is_no_tuple_and_inputs_stay_as_they_are():
    graph, x = opened(saved(Written(), (torch.zeros(2, 3),))), torch.ones(2, 3)
    assert torch.equal(graph(x), torch.full((2, 3), 3.0))
    assert torch.equal(x, torch.ones(2, 3))


def changed(
    content: bytes, change: Callable[[dict[str, Any]], object], file: str = "models/model.json"
) -> bytes:
    told = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(told, "w") as after:
        for name in before.namelist():
            part = before.read(name)
            if name.endswith(file):
                described = json.loads(part)
                change(described)
                part = json.dumps(described).encode()
            after.writestr(name, part)
    return told.getvalue()


def nodes(told: dict[str, Any]) -> list[dict[str, Any]]:
    return told["graph_module"]["graph"]["nodes"]


def runs(target: str) -> Callable[[dict[str, Any]], object]:
    return lambda told: nodes(told)[-1].update(target=target)


def of_a_weight(change: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda told: next(iter(told["config"].values())).update(change)


def reaches_beyond(told: dict[str, Any]) -> None:
    next(iter(told["config"].values()))["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]


WEIGHTS = "model_weights_config.json"
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "reads a file": (runs("torch.ops.aten.from_file.default"), "no operation that a program may hold", ""),
    "calls Python": (runs("builtins.eval"), "no operation that a program may hold", ""),
    "calls a module": (runs("os.system"), "no operation that a program may hold", ""),
    "of another library": (runs("torch.ops.fbgemm.x.default"), "no operation that a program may hold", ""),
    "without checks": (runs("torch.ops.aten._embedding_bag.default"), "no operation that a program", ""),
    "a dunder": (runs("torch.ops.aten.add.__class__"), "no operation that a program may hold", ""),
    "an attribute": (runs("torch.ops.aten.add.Tensor.x"), "no operation that a program may hold", ""),
    "no such operation": (runs("torch.ops.aten.nonsense.default"), "AttributeError", ""),
    "a value of nobody": (
        lambda told: nodes(told)[-1]["inputs"][0].update(arg={"as_tensor": {"name": "x"}}),
        "KeyError",
        "",
    ),
    "a value given twice": (lambda told: nodes(told).append(nodes(told)[-1]), "is given twice", ""),
    "a custom object": (
        lambda told: nodes(told)[-1]["inputs"][0].update(arg={"as_custom_obj": {"name": "x"}}),
        "kind 'as_custom_obj'",
        "",
    ),
    "another schema": (lambda told: told["schema_version"].update(major=9), "its schema is version 9", ""),
    "no graph": (lambda told: told.clear(), "KeyError", ""),
    "a pickle": (of_a_weight({"use_pickle": True}), "is a pickle", WEIGHTS),
    "a path that leaves": (of_a_weight({"path_name": "../../x"}), "KeyError", WEIGHTS),
    "more than its bytes": (reaches_beyond, "as_strided|RuntimeError", WEIGHTS),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_what_no_export_writes_is_refused_when_it_is_read(content: bytes, kind: str):
    change, told, file = HOSTILE[kind]
    with pytest.raises(GraphError, match=told):
        opened(changed(content, change, file or "models/model.json"))


def test_a_file_that_is_none_is_refused():
    for junk in (b"", b"PK", b"x" * 100):
        with pytest.raises((GraphError, zipfile.BadZipFile)):
            opened(junk)
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w"):
        pass
    with pytest.raises(GraphError, match="IndexError"):
        opened(empty.getvalue())
