"""The features of a ranking row: which there are, which table each reads, and their source arrays."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.prefixes import PrefixConfig, prefix_rows
from trec_semid.data.ragged import Ragged, ragged_from_arrow
from trec_semid.data.schema import Dataset, FieldFacts

Representation = Literal["item", "semantic", "both"]
Role = Literal[
    "user",
    "user_field",
    "item",
    "item_code",
    "item_prefix",
    "item_field",
    "history",
    "history_code",
    "history_prefix",
]


class Feature(NamedTuple):
    """One key of a batch's `Jagged`."""

    name: str
    role: Role
    table: str
    """Features with the same table share its rows, e.g. target item and history items."""
    num_rows: int
    """Rows of the table; every id is below."""
    position: int = 0
    """Position in the semantic ID, for codes; place among the prefix lengths, for prefixes."""

    @property
    def entity(self) -> str:
        """Whose rows the ids come from: user, item (the target) or history."""
        return self.role.partition("_")[0]


class FeaturesConfig(Config):
    """Which side fields of the dataset take part."""

    item_fields: list[str] | None = None
    """Names of item fields; all where not given."""
    user_fields: list[str] | None = None
    """Names of user fields; all where not given."""
    prefixes: PrefixConfig | None = None
    """Hashed tables of semantic-ID prefixes beside one table a position, for residual tokenizers; none
    where not given."""
    id_min_events: NonNegativeInt = 0
    """Items of fewer training events, as targets and in histories, are without their ID: they are known by
    their codes and fields alone."""


class Sources(NamedTuple):
    """Side fields and codes by feature name, in row order of their entity."""

    fields: dict[str, Ragged]
    codes: Array | None
    """(num_items, R) int32; None without semantic IDs."""
    prefixes: Array | None = None
    """(num_items, P) int64 rows of the prefix tables; None without."""
    has_id: Array | None = None
    """(num_items,) bool: which items' IDs are looked up; None where all are."""

    def gated(self, counts: Array, least: int) -> "Sources":
        """Return these, with the IDs of items of at least so many of (num_items,) training events alone."""
        return self._replace(has_id=counts >= least) if least else self


def describe_features(
    dataset: Dataset,
    config: FeaturesConfig,
    representation: Representation,
    code_sizes: Sequence[int],
    *,
    with_history: bool,
) -> tuple[Feature, ...]:
    """Return the features in the order in which batches carry them.

    Args:
        dataset: gives table sizes.
        config: which side fields.
        representation: item IDs, semantic IDs, or both, for targets and histories alike.
        code_sizes: codebook size per position; a table has one row more, for the 'missing' code.
        with_history: whether rows carry a history.

    Raises:
        ConfigError: an unknown side field.
        DataError: two features with one name, e.g. an item field called `id`.
    """
    facts = dataset.facts
    features = [Feature("user_id", "user", "t_user_id", facts.num_users)]
    features += _side_features("user", facts.user_fields, config.user_fields)
    prefixes = config.prefixes if representation != "item" else None
    _check_lengths(prefixes, code_sizes)
    features += _item_features("item", facts.num_items, representation, code_sizes)
    features += _prefix_features("item", code_sizes, prefixes)
    features += _side_features("item", facts.item_fields, config.item_fields)
    if with_history:
        features += _item_features("history", facts.num_items, representation, code_sizes)
        features += _prefix_features("history", code_sizes, prefixes)
    return _distinct(features, dataset)


def describe_item(
    dataset: Dataset, fields: Sequence[str], *, has_id: bool, key: str = "item.fields"
) -> tuple[Feature, ...]:
    """Return the features of an item by itself: its ID where asked for, and side fields.

    Args:
        dataset: gives table sizes.
        fields: names of side fields.
        has_id: whether its ID is one.
        key: of the config that names the fields.

    Raises:
        ConfigError: an unknown side field.
        DataError: as `describe_features`.
    """
    by_id = [Feature("item_id", "item", "t_item_id", dataset.facts.num_items)] if has_id else []
    named = _side_features("item", dataset.facts.item_fields, fields, key=key)
    return _distinct([*by_id, *named], dataset)


def read_sources(
    dataset: Dataset, features: Sequence[Feature], codes: Array | None, prefixes: Array | None = None
) -> Sources:
    """Read the side fields that the features name, and check every id against its table.

    Args:
        dataset: where the fields are.
        features: from `describe_features`.
        codes: (num_items, R) codes in row order.
        prefixes: (num_items, P) rows of prefix tables, in row order.

    Raises:
        DataError: an id outside its table, with feature, value and row.
    """
    fields: dict[str, Ragged] = {}
    for feature in features:
        if feature.role in ("user_field", "item_field"):
            entity, _, column = feature.name.partition("_")
            table = dataset.users([column]) if entity == "user" else dataset.items([column])
            fields[feature.name] = ragged_from_arrow(table[column])
            check_field(feature, fields[feature.name], f"{dataset.uri}/{entity}s.parquet")
        elif feature.role == "item_code" and codes is not None:
            check_ids(feature, codes[:, feature.position], "semantic IDs")
    return Sources(fields, None if codes is None else np.ascontiguousarray(codes, np.int32), prefixes)


def check_ids(feature: Feature, ids: Array, file: str) -> None:
    """Check that (n,) ids lie in their table: past this point a wrong id is read as another row or crashes.

    Raises:
        DataError: naming the first row with an id below 0 or at least `feature.num_rows`.
    """
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= feature.num_rows):
        row = int(np.argmax((ids < 0) | (ids >= feature.num_rows)))
        remedy = (
            f"Ids of {feature.table} are 0 to {feature.num_rows - 1}: prepare or tokenize the dataset again"
        )
        raise DataError(
            "id outside its table",
            file=file,
            row=row + 1,
            field=feature.name,
            value=int(ids[row]),
            remedy=remedy,
        )


def check_field(feature: Feature, field: Ragged, file: str) -> None:
    """Check a side field's ids; the error names the entity's row.

    Raises:
        DataError: as `check_ids`.
    """
    rows = np.repeat(np.arange(len(field.lengths)), field.lengths)
    ids, _ = field.take(np.arange(len(field.lengths)))
    wrong = (ids < 0) | (ids >= feature.num_rows)
    if wrong.any():
        at = int(np.argmax(wrong))
        remedy = f"Ids of this field are 0 to {feature.num_rows - 1}: prepare the dataset again"
        raise DataError(
            "id outside its table",
            file=file,
            row=int(rows[at]) + 1,
            field=feature.name,
            value=int(ids[at]),
            remedy=remedy,
        )


def _distinct(features: Sequence[Feature], dataset: Dataset) -> tuple[Feature, ...]:
    names = [feature.name for feature in features]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        remedy = "Give the field another name in the prepare config"
        raise DataError(
            "two features have one name", file=f"{dataset.uri}/dataset.json", field=twice, remedy=remedy
        )
    return tuple(features)


def _item_features(
    entity: Literal["item", "history"],
    num_items: int,
    representation: Representation,
    code_sizes: Sequence[int],
) -> list[Feature]:
    features: list[Feature] = []
    if representation != "semantic":
        features.append(
            Feature("item_id" if entity == "item" else "history_item", entity, "t_item_id", num_items)
        )
    if representation != "item":
        role: Role = "item_code" if entity == "item" else "history_code"
        features += [
            Feature(f"{entity}_code_{r}", role, f"t_code_{r}", size + 1, r)
            for r, size in enumerate(code_sizes)
        ]
    return features


def _prefix_features(
    entity: Literal["item", "history"], code_sizes: Sequence[int], config: PrefixConfig | None
) -> list[Feature]:
    if config is None:
        return []
    role: Role = "item_prefix" if entity == "item" else "history_prefix"
    return [
        Feature(
            f"{entity}_prefix_{length}",
            role,
            f"t_prefix_{length}",
            prefix_rows(code_sizes, length, config.num_rows),
            place,
        )
        for place, length in enumerate(config.lengths)
    ]


def _check_lengths(config: PrefixConfig | None, code_sizes: Sequence[int]) -> None:
    if config and config.lengths[-1] > len(code_sizes):
        raise ConfigError(
            f"features.prefixes.lengths: a prefix of {config.lengths[-1]} codes, but semantic IDs have "
            f"{len(code_sizes)}. Leave it out."
        )


def _side_features(
    entity: Literal["user", "item"],
    fields: Mapping[str, FieldFacts],
    asked_fields: Sequence[str] | None,
    *,
    key: str | None = None,
) -> list[Feature]:
    names = list(fields) if asked_fields is None else list(asked_fields)
    for name in names:
        if name not in fields:
            close = difflib.get_close_matches(name, list(fields), n=1)
            hint = (
                f" Did you mean '{close[0]}'?"
                if close
                else f" The dataset has: {', '.join(fields) or 'none'}."
            )
            raise ConfigError(
                f"{key or f'features.{entity}_fields'}: no field '{name}' in the dataset.{hint}"
            )
    role: Role = "user_field" if entity == "user" else "item_field"
    return [Feature(f"{entity}_{name}", role, f"t_{entity}_{name}", fields[name].size) for name in names]
