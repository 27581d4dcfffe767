"""Sections whose class their `kind` names, and pydantic's errors as `file: key: problem; did you mean`."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, final, get_args, get_origin

from pydantic import BaseModel, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from trec_semid.core.toml_text import printable, shown

Provenance = dict[tuple[str, ...], str]
"""Which file or override a key came from."""
Location = tuple[int | str, ...]
_TABLE_EXPECTED = frozenset({"model_type", "model_attributes_type", "dict_type", "mapping_type"})


@final
class Kinds:
    """Says in a field's annotation which classes a section may have: `Annotated[Base, Kinds(table)]`.

    The table is asked when a config is read, so that a row added to it later counts as any other.
    """

    def __init__(self, table: Mapping[type[BaseModel], Any], default: type[BaseModel] | None = None) -> None:
        """Name the table.

        Args:
            table: config class, with a `kind`, to whatever the class stands for.
            default: class of a section that gives no `kind`; none where it has to be given.
        """
        self._table, self._default = table, default

    @property
    def models(self) -> tuple[type[BaseModel], ...]:
        """The classes, in the order of the table."""
        return tuple(self._table)

    @property
    def names(self) -> tuple[str, ...]:
        """What `kind` calls them."""
        return tuple(str(model.model_fields["kind"].default) for model in self._table)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of a union of the table's classes; a table that has grown is asked again."""
        at_first = self.models
        schema = handler.generate_schema(_union(at_first))

        def validated(value: Any, union: core_schema.ValidatorFunctionWrapHandler) -> Any:
            """Return the section; pydantic adds where it stands to the faults that are raised in here."""
            if self._default is not None and isinstance(value, dict) and "kind" not in value:
                return self._default.model_validate(value)
            return union(value) if self.models == at_first else _adapter(self.models).validate_python(value)

        written = core_schema.plain_serializer_function_ser_schema(lambda section: section)
        return core_schema.no_info_wrap_validator_function(validated, schema, serialization=written)


def _union(models: tuple[type[BaseModel], ...]) -> Any:
    return Annotated[Union[models], Field(discriminator="kind")]  # noqa: UP007


def _adapter(models: tuple[type[BaseModel], ...]) -> TypeAdapter[Any]:
    return TypeAdapter(_union(models))


def explain(
    faults: Sequence[Any],
    kind: type[BaseModel],
    provenance: Provenance,
    files: Sequence[str],
    values: Mapping[str, Any],
) -> str:
    """Return one line per fault under one heading, each naming its source and full key.

    Args:
        faults: as pydantic lists them.
        kind: the class that refused.
        provenance: of the keys in `values`.
        files: that were read.
        values: what was validated.
    """
    told: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        location = _written(fault["loc"], values, keeps_last=fault["type"] in ("missing", "extra_forbidden"))
        if fault["type"].startswith("union_tag"):
            location = (*location, _tag_key(fault))
        source = _source(tuple(str(part) for part in location), provenance)
        key = printable(".".join(str(part) for part in location)) or "(whole config)"
        problems = told.setdefault((f"{source}: " if source else "", key), [])
        problem = _problem(fault, kind, key)
        problems += [] if problem in problems else [problem]  # of the branches of a union
    lines = [
        f"  {source}{key}: {fault}"
        for (source, key), problems in told.items()
        for fault in ", or ".join(problems).split("\n")  # a validator may find several faults
    ]
    where = " + ".join(files) if files else "config"
    return f"{where}: {len(lines)} problem{'s' if len(lines) > 1 else ''}\n" + "\n".join(lines)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the choice nearest to `name`, or nothing when none is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _written(location: Location, values: Any, *, keeps_last: bool) -> Location:
    """Return the key as it stands in the file: pydantic's location has the branches of unions as well."""
    at: list[int | str] = []
    value: Any = values
    after_tag = False
    for index, part in enumerate(location):
        is_kept = keeps_last and index == len(location) - 1
        table: Mapping[Any, Any] = value if isinstance(value, Mapping) else {}
        if not is_kept and not after_tag and str(table.get("kind", "")) == part:
            after_tag = True
            continue
        items: list[Any] = value if isinstance(value, list) else []
        if part in table or (items and isinstance(part, int)):
            value, after_tag = table[part] if part in table else items[int(part)], False
            at.append(part)
        elif is_kept:
            at.append(part)
    return tuple(at)


def _source(location: tuple[str, ...], provenance: Provenance) -> str | None:
    at: tuple[str, ...] = ()
    source: str | None = None
    for part in location:
        if (*at, part) in provenance:
            at = (*at, part)
            source = provenance[at]
    return source


def _problem(fault: Any, kind: type[BaseModel], key: str) -> str:
    got, sort = fault.get("input"), fault["type"]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if sort == "extra_forbidden":
        name = str(fault["loc"][-1])
        message = "unknown key" + did_you_mean(name, _fields_at(kind, fault["loc"][:-1]))
    elif sort == "missing":
        message = "missing, and it has no default"
    elif sort.startswith("union_tag"):
        message = _tag_problem(fault, kind)
    elif sort in _TABLE_EXPECTED:
        message = f"expected a table, as [{key}] or --set {key}.<name>=... (got {shown(got)})"
        kinds = [model for model in _models_at(kind, fault["loc"]) if _has_tag(model, got)]
        message += f"; did you mean {key}.kind = '{got}'?" if kinds else ""
    elif sort == "literal_error":
        message += f" (got {shown(got)}){_nearest(got, fault['ctx']['expected'])}"
    elif sort != "value_error":
        message += f" (got {shown(got)})"
    return message


def _tag_key(fault: Any) -> str:
    return str(fault["ctx"]["discriminator"]).strip("'")


def _tag_problem(fault: Any, kind: type[BaseModel]) -> str:
    """Say that a union has no class of this tag, or that no tag is given, and which there are."""
    key, given = _tag_key(fault), fault.get("input")
    models = _models_at(kind, fault["loc"])
    tags = [str(model.model_fields[key].default) for model in models if key in model.model_fields]
    there_are = f"There are: {', '.join(repr(tag) for tag in tags)}."
    if fault["type"] == "union_tag_not_found":
        near = [name for name in given if did_you_mean(str(name), [key])] if isinstance(given, dict) else []
        hint = f"; did you mean '{key}' by '{near[0]}'?" if near else "."
        return f"missing, and it has no default{hint} {there_are}"
    tag = given.get(key) if isinstance(given, dict) else given
    hint = did_you_mean(tag, tags) if isinstance(tag, str) else ""
    return f"no such {key} (got {shown(tag)}){hint or '.'} {there_are}"


def _nearest(got: object, expected: str) -> str:
    choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
    return did_you_mean(got, choices) if isinstance(got, str) else ""


def _fields_at(kind: type[BaseModel], location: Location) -> list[str]:
    """Return the field names that may stand at `location`, over every model that can be there."""
    return [name for model in _models_at(kind, location) for name in model.model_fields]


def _models_at(kind: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [kind]
    names = 0  # parts to come that are names of a table or places in a list, not keys or tags
    for part in location:
        if names:
            names -= 1
            continue
        holders = [model for model in models if part in model.model_fields]
        fields = [model.model_fields[str(part)] for model in holders]
        names = max((_depth(field.annotation) for field in fields), default=0)
        below = [model for field in fields for model in _models_of(field)]
        models = below or [model for model in models if _has_tag(model, part)] or models
    return models


def _models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the models that a field takes: those of its table where its `kind` names one."""
    of_tables = [model for mark in field.metadata if isinstance(mark, Kinds) for model in mark.models]
    return of_tables or models_in(field.annotation)


def _depth(annotation: Any) -> int:
    """Return how many names or places stand between a field and the models in it."""
    own = 1 if get_origin(annotation) in (dict, list, tuple, Mapping, Sequence) else 0
    return own + max(map(_depth, get_args(annotation)), default=0)


def _has_tag(model: type[BaseModel], part: Any) -> bool:
    """Tell whether a union takes this class where its `kind` is `part`."""
    return "kind" in model.model_fields and model.model_fields["kind"].default == part


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field's annotation holds, at any depth of lists, tables and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]
