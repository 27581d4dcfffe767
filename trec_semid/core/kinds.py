"""A config section whose class its `kind` names, among the rows of a table."""

from collections.abc import Mapping
from typing import Annotated, Any, Union, final

from pydantic import BaseModel, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema


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
