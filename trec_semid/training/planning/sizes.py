"""Sizes that tables are planned for: a dataset's, or those that a plan config gives instead."""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow.parquet as pq
from pydantic import NonNegativeFloat, PositiveInt

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import arrow_filesystem
from trec_semid.data.features import Feature
from trec_semid.data.retrieval.dataset import Negatives
from trec_semid.data.schema import SPLITS, Dataset, DatasetFacts, SplitFacts, read_facts
from trec_semid.tokenizers.maps.code_files import stated_sizes
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, read_origin
from trec_semid.training.matched_codes import read_semantic_ids, verified_file


class SizesConfig(Config):
    """Sizes that replace those of the dataset; with both counts given, no dataset is read at all."""

    num_users: PositiveInt | None = None
    num_items: PositiveInt | None = None
    num_seen_items: PositiveInt | None = None
    """Items with a training event, which `loss.negatives = "seen"` is over; the dataset's where not given."""
    codebook_sizes: tuple[PositiveInt, ...] | None = None
    """Codes per position of the semantic ID; read from `semantic_ids` where not given."""
    more_tables: dict[str, PositiveInt] = {}
    """Rows of further tables, read by one feature each, e.g. hashed prefixes of semantic IDs."""
    content: dict[str, PositiveInt] = {}
    """Width of each modality that is projected or tuned with; the dataset's where not given."""
    mean_lengths: dict[str, NonNegativeFloat] = {}
    """Average ids per row of a feature. Otherwise a history counts as full and all else as 1."""

    @property
    def reads_dataset(self) -> bool:
        """Whether a count is the dataset's own."""
        return self.num_users is None or self.num_items is None

    def dataset(self, uri: str) -> Dataset:
        """Return the dataset with these counts instead of its own; imagined where both are given."""
        if self.reads_dataset:
            counts = {"num_users": self.num_users, "num_items": self.num_items}
            given = {name: count for name, count in counts.items() if count is not None}
            return Dataset(uri, read_facts(uri).model_copy(update=given))
        assert self.num_users
        assert self.num_items
        return Dataset(uri, _imagined_facts(self.num_users, self.num_items))

    def negatives(self, which: Negatives, dataset: Dataset) -> int:
        """Return how many items a loss takes for wrong answers.

        Raises:
            ConfigError: it is not known how many were seen, or it is more than there are.
        """
        num_items, seen = dataset.facts.num_items, self.num_seen_items
        if which == "all":
            return num_items
        if seen is None and self.num_items is not None:
            raise ConfigError(
                "sizes.num_seen_items: not given, and loss.negatives = 'seen' is over so many of "
                "sizes.num_items. Give it."
            )
        train = dataset.facts.splits["train"]
        seen = train.items - train.unseen_items if seen is None else seen
        if seen > num_items:
            raise ConfigError(f"sizes.num_seen_items: {seen:,} of {num_items:,} items. Give a part of them.")
        return seen

    def codebooks(self, semantic_ids: str | None, dataset: Dataset) -> tuple[int, ...]:
        """Return the codes per position.

        Args:
            semantic_ids: what the config names; of this dataset, unless its items are imagined.
            dataset: of `dataset`.

        Raises:
            ConfigError: neither sizes nor semantic IDs are given.
            DataError: there are no semantic IDs in that place, they are damaged, or of another dataset.
        """
        if self.codebook_sizes:
            return self.codebook_sizes
        if semantic_ids is None:
            raise ConfigError(
                "semantic_ids: not given, and neither is sizes.codebook_sizes. Give one of them."
            )
        file = verified_file(semantic_ids)
        metadata = _metadata(file)
        origin = read_origin(metadata, file)
        if self.num_items is None and origin and origin.dataset_checksum != dataset.facts.checksum:
            return read_semantic_ids(semantic_ids, dataset).sizes
        return stated_sizes(metadata, file) or SemanticIds.load(file).sizes

    def widths(self, dataset: Dataset, key: str, names: Sequence[str] | None = None) -> dict[str, int]:
        """Return the width of each modality.

        Args:
            dataset: whose widths count where none are given.
            key: of the config, which asks for content.
            names: of the modalities; all that are known where not given.

        Raises:
            ConfigError: a width is not known.
        """
        known = self.content or {name: facts.dim for name, facts in dataset.facts.modalities.items()}
        unknown = [name for name in names or () if name not in known]
        if unknown or not known:
            what = f"the width of '{unknown[0]}' is not known" if unknown else "no content is known"
            raise ConfigError(f"{key}: {what} to plan for. Give its widths as sizes.content.")
        return {name: known[name] for name in names or known}

    def extra_features(self) -> Iterable[Feature]:
        """Yield what reads the further tables."""
        for name, rows in self.more_tables.items():
            yield Feature(name.removeprefix("t_"), "item_field", name, rows)

    def expect_lengths_of(self, features: Sequence[Feature]) -> None:
        """Refuse a mean length of a feature that there is not.

        Raises:
            ConfigError: names it.
        """
        unknown = set(self.mean_lengths) - {feature.name for feature in features}
        if unknown:
            names = ", ".join(feature.name for feature in features)
            raise ConfigError(
                f"sizes.mean_lengths: no feature '{sorted(unknown)[0]}'. The features are: {names}."
            )


def _imagined_facts(num_users: int, num_items: int) -> DatasetFacts:
    nothing = SplitFacts(events=0, users=0, items=0, unseen_users=0, unseen_items=0, unseen_item_events=0)
    return DatasetFacts(
        name="imagined",
        num_users=num_users,
        num_items=num_items,
        num_events=0,
        split_rule="none",
        splits=dict.fromkeys(SPLITS, nothing),
        tie_rule="none",
        label_rule="none",
        has_timestamps=False,
        checksum="",
    )


def _metadata(file: str) -> Mapping[bytes, bytes]:
    """Read a file's header alone; nothing where there is none, which reading the file will say."""
    fs, inner = arrow_filesystem(file)
    try:
        return pq.read_schema(inner, filesystem=fs).metadata or {}
    except (OSError, ValueError):
        return {}
