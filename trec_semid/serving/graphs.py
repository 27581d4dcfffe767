"""Runs what `torch.export` wrote: operations one after another, without rebuilding how they were traced.

`torch.export.load` derives the sizes of every value anew, which takes seconds of a processor, evaluates text
of the file, and takes pickles. Here the archive's JSON is read for its operations alone, each of which must
be one of ATen that touches nothing but its inputs.
"""

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final
from zipfile import ZipFile

import torch
from torch import Tensor

_MAJOR = 8
"""Of the schema of `torch._export.serde.schema`, which is this one since torch 2.5."""
_ATEN = "torch.ops.aten."
_PRIVATE = (
    "_to_copy",
    "_softmax",
    "_log_softmax",
    "__and__",
    "__or__",
    "__xor__",
    "__lshift__",
    "__rshift__",
)
"""Operations of a leading underscore that check their inputs as public ones do."""
_REFUSED = ("from_file", "set_", "record_stream")
"""Public operations that reach beyond their inputs."""
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
"""Say of sizes what holds by how a program is called."""
_NO_GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
    },
    "math.trunc": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch.sym_int": int,
    "torch.sym_float": float,
}
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_LAYOUTS = {7: torch.strided}


class GraphError(Exception):
    """A program that is none that this runs, and why."""


class _Value(NamedTuple):
    """Stands in arguments for what an operation, an input or a weight has given."""

    slot: int


class _Step(NamedTuple):
    """One operation."""

    run: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    fills: list[tuple[int | str, Any]]
    """Which of the arguments are values, or lists of such."""
    outputs: tuple[int, ...]
    """Slots of what it gives."""
    is_one: bool
    """Whether it gives one value, and no tuple of such."""
    dead: tuple[int, ...]
    """Slots that nobody asks for after it."""


@final
class Graph:
    """A program: (...) inputs in, a tensor out, or a tuple of several."""

    def __init__(
        self, described: Mapping[str, Any], given: Sequence[str], weights: Mapping[str, Tensor]
    ) -> None:
        """Prepare the operations; those of weights alone are run now.

        Args:
            described: `Graph` of the schema.
            given: names of the inputs.
            weights: by their names in the graph.

        Raises:
            GraphError: it is not one that this runs.
        """
        self._slots = {name: slot for slot, name in enumerate([*given, *weights])}
        self._num_inputs = len(given)
        self._values: list[Any] = [None] * len(given) + list(weights.values())
        varying = set(range(len(given)))
        steps: list[_Step] = []
        for node in described["nodes"]:
            step = self._step(node)
            if step is None:
                continue
            asked = set(_slots_of([value for _, value in step.fills]))
            # What may be drawn, or written into, is not what it is once for all.
            if asked & varying or not asked or _is_mutable(step.run):
                varying |= {*step.outputs, *(asked if _is_mutable(step.run) else ())}
                steps.append(step)
            else:
                with torch.no_grad():
                    _run(step, self._values)
        self._outputs = [_argument(each, self._slots) for each in described["outputs"]]
        self._steps = _with_ends(steps, self._outputs, varying)

    def __call__(self, *inputs: Any) -> Any:
        """Return the output, or all of them."""
        values = self._values.copy()
        values[: self._num_inputs] = inputs
        for step in self._steps:
            _run(step, values)
        said = [_filled(each, values) for each in self._outputs]
        return said[0] if len(said) == 1 else tuple(said)

    def _step(self, node: Mapping[str, Any]) -> _Step | None:
        """Return an operation; None of one that only checks."""
        target = str(node["target"])
        if target.removeprefix(_ATEN).partition(".")[0] in _CHECKS:
            return None
        inputs = [(each["name"], each.get("kind") or 1, each["arg"]) for each in node["inputs"]]
        if target == _NO_GRAD:
            # No gradient is taken here anyway: what is inside goes on as it is.
            _, (_, _, inner), *inputs = inputs
            inside = inner["as_graph"]["graph"]
            names = [_name_of(each) or "" for each in inside["inputs"]]
            run: Callable[..., Any] = Graph(inside, names, {})
        else:
            run = _operation(target)
        args = [_argument(arg, self._slots) for _, kind, arg in inputs if kind == 1]
        kwargs = {str(name): _argument(arg, self._slots) for name, kind, arg in inputs if kind == 2}
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        fills = [(place, value) for place, value in places if any(True for _ in _slots_of(value))]
        outputs, is_one = node["outputs"], len(node["outputs"]) == 1
        if is_one and "as_tensors" in outputs[0]:  # a list of tensors, which has names of its own
            outputs, is_one = [{"as_tensor": each} for each in outputs[0]["as_tensors"]], False
        return _Step(run, args, kwargs, fills, tuple(self._new(each) for each in outputs), is_one, ())

    def _new(self, output: Mapping[str, Any]) -> int:
        """Return the slot of what an operation gives."""
        name = _name_of(output)
        if name is not None:
            if name in self._slots:
                raise GraphError(f"'{name}' is given twice")
            self._slots[name] = len(self._values)
        self._values.append(None)
        return len(self._values) - 1


def read_graph(archive: ZipFile) -> Graph:
    """Return the program of an archive.

    Args:
        archive: as `torch.export.save` wrote it.

    Raises:
        GraphError: it is not one that this runs.
    """
    try:
        root = archive.namelist()[0].partition("/")[0]
        told = json.loads(archive.read(f"{root}/models/model.json"))
        major = told["schema_version"]["major"]
        if major != _MAJOR:
            raise GraphError(f"its schema is version {major}, and this reads {_MAJOR}")
        module = told["graph_module"]
        tensors = _tensors(archive, f"{root}/data/weights/", "model_weights_config.json")
        tensors |= _tensors(archive, f"{root}/data/constants/", "model_constants_config.json")
        given: list[str] = []
        weights: dict[str, Tensor] = {}
        for spec in module["signature"]["input_specs"]:
            ((kind, each),) = spec.items()
            if kind == "user_input":
                given.append(each["arg"]["as_tensor"]["name"])
            else:
                weights[each["arg"]["name"]] = tensors[each[_NAMED[kind]]]
        if any("user_output" not in spec for spec in module["signature"]["output_specs"]):
            raise GraphError("it changes its weights or inputs")
        return Graph(module["graph"], given, weights)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        told = (str(error).strip().splitlines() or [""])[0]
        raise GraphError(f"{type(error).__name__}: {told}") from error


_NAMED = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _tensors(archive: ZipFile, folder: str, config: str) -> dict[str, Tensor]:
    """Return the tensors of a folder by name."""
    tensors: dict[str, Tensor] = {}
    content: dict[str, Tensor] = {}
    for name, payload in json.loads(archive.read(folder + config))["config"].items():
        if payload["use_pickle"]:
            raise GraphError(f"'{name}' is a pickle")
        known, path = payload["tensor_meta"], str(payload["path_name"])
        dtype = _DTYPES[known["dtype"]]
        if path not in content:
            data = bytearray(archive.read(folder + path))
            content[path] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        sizes, strides = ([each["as_int"] for each in known[part]] for part in ("sizes", "strides"))
        tensors[name] = content[path].as_strided(sizes, strides, known["storage_offset"]["as_int"])
    return tensors


def _operation(target: str) -> Callable[..., Any]:
    """Return what computes an operation.

    Raises:
        GraphError: it is none of ATen, or one that reaches beyond its inputs.
    """
    if target in _OF_NUMBERS:
        return _OF_NUMBERS[target]
    name, _, overload = target.removeprefix(_ATEN).partition(".")
    if target == f"{_ATEN}sym_size.int":
        return _size
    is_private = name.startswith("_") and name not in _PRIVATE
    if not target.startswith(_ATEN) or is_private or name in _REFUSED or not _is_plain(overload):
        raise GraphError(f"'{target}' is no operation that a program may hold")
    return getattr(getattr(torch.ops.aten, name), overload)


def _is_plain(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim]


def _is_mutable(run: Callable[..., Any]) -> bool:
    """Whether an operation writes into its inputs, or gives something else each time."""
    schema = getattr(run, "_schema", None)
    if schema is None:
        return isinstance(run, Graph)
    return bool(schema.is_mutable) or torch.Tag.nondeterministic_seeded in getattr(run, "tags", ())


def _argument(argument: Mapping[str, Any], slots: Mapping[str, int]) -> Any:
    """Return an argument: itself, or which value it is."""
    ((kind, value),) = argument.items()
    if kind not in _ARGUMENTS:
        raise GraphError(f"an argument of kind '{kind}'")
    return _ARGUMENTS[kind](value, slots)


def _itself(value: Any, _: Mapping[str, int]) -> Any:
    return value


def _number(value: Mapping[str, Any], slots: Mapping[str, int]) -> Any:
    ((kind, number),) = value.items()
    return _Value(slots[number]) if kind == "as_name" else number


def _numbers(value: Sequence[Mapping[str, Any]], slots: Mapping[str, int]) -> list[Any]:
    return [_number(each, slots) for each in value]


def _tensors_of(value: Sequence[Mapping[str, Any]], slots: Mapping[str, int]) -> list[Any]:
    return [_Value(slots[each["name"]]) for each in value]


_ARGUMENTS: dict[str, Callable[[Any, Mapping[str, int]], Any]] = {
    **dict.fromkeys(("as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings"), _itself),
    **dict.fromkeys(("as_sym_int", "as_sym_bool", "as_sym_float"), _number),
    **dict.fromkeys(("as_sym_ints", "as_sym_bools", "as_sym_floats"), _numbers),
    "as_none": lambda value, slots: None,
    "as_tensor": lambda value, slots: _Value(slots[value["name"]]),
    "as_tensors": _tensors_of,
    "as_optional_tensor": _argument,
    "as_optional_tensors": lambda value, slots: [_argument(each, slots) for each in value],
    "as_float": lambda value, slots: float(value),  # JSON has no infinity: it is text there
    "as_floats": lambda value, slots: [float(each) for each in value],
    "as_scalar_type": lambda value, slots: _DTYPES[value],
    "as_memory_format": lambda value, slots: _FORMATS[value],
    "as_layout": lambda value, slots: _LAYOUTS[value],
    "as_device": lambda value, slots: torch.device(value["type"], value["index"]),
}
"""Kind of an argument in the file, to what reads it."""


def _name_of(argument: Mapping[str, Any]) -> str | None:
    """Return the name of a value; None of what is none."""
    (named,) = argument.values()
    name = named.get("name") or named.get("as_name") if isinstance(named, dict) else None
    return None if name is None else str(name)


def _slots_of(argument: Any) -> Iterator[int]:
    """Yield which values an argument holds."""
    if isinstance(argument, _Value):
        yield argument.slot
    elif isinstance(argument, list):
        for each in argument:
            yield from _slots_of(each)


def _filled(argument: Any, values: Sequence[Any]) -> Any:
    """Return an argument with values in their places."""
    if isinstance(argument, _Value):
        return values[argument.slot]
    return [_filled(each, values) for each in argument] if isinstance(argument, list) else argument


def _run(step: _Step, values: list[Any]) -> None:
    args, kwargs = step.args.copy(), step.kwargs
    for place, argument in step.fills:
        value = values[argument.slot] if type(argument) is _Value else _filled(argument, values)
        if isinstance(place, int):
            args[place] = value
        else:
            kwargs = {**kwargs, place: value}
    said = step.run(*args, **kwargs)
    if step.is_one:
        values[step.outputs[0]] = said
    else:
        for slot, each in zip(step.outputs, said, strict=True):
            values[slot] = each
    for slot in step.dead:
        values[slot] = None


def _with_ends(steps: Sequence[_Step], outputs: Sequence[Any], varying: set[int]) -> list[_Step]:
    """Return operations that forget what nobody asks for after them."""
    later = set(_slots_of(list(outputs)))
    ended: list[_Step] = []
    for step in reversed(steps):
        touched = {*_slots_of([value for _, value in step.fills]), *step.outputs} & varying
        ended.append(step._replace(dead=tuple(touched - later)))
        later |= touched
    return ended[::-1]
