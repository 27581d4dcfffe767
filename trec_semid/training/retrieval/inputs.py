"""What a run of `trec-semid retrieve` reads before it trains."""

from typing import NamedTuple

from trec_semid.core.errors import ConfigError
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.schema import Dataset, open_dataset
from trec_semid.runtime.ranks import num_ranks
from trec_semid.search.catalogue import shortest_stretch
from trec_semid.tokenizers.maps.compressed import CompressedItems, read_compressed
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.finetune.tokenizer import expect_effective
from trec_semid.training.finished import TEACHER, checksum_of_results
from trec_semid.training.matched_codes import read_semantic_ids
from trec_semid.training.retrieval.code_faults import expect_facets
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.retrieval.vector_faults import expect_category_fields

MAX_SCORED_ITEMS = 1_000_000
"""Items that a loss over all of them takes in; beyond that they are sampled."""


class RetrieveInputs(NamedTuple):
    """What is read before training."""

    dataset: Dataset
    data: RetrievalData
    semantic_ids: SemanticIds | None
    members: str | None = None
    """Checksum of what the runs of an ensemble came to."""
    compressed: CompressedItems | None = None
    """Items as their codes rebuild them, where the method reads that."""
    teacher: str | None = None
    """Checksum of what the runs came to that teach it; None of a run that is asked, and not trained."""

    @property
    def checksums(self) -> dict[str, str]:
        """What a run is trained on."""
        codes = {"semantic_ids": self.semantic_ids.checksum()} if self.semantic_ids else {}
        members = {"members": self.members} if self.members else {}
        teacher = {TEACHER: self.teacher} if self.teacher else {}
        return {"dataset": self.dataset.facts.checksum, **codes, **members, **teacher}


def read_inputs(config: RetrieveConfig) -> RetrieveInputs:
    """Read the dataset and the semantic IDs.

    Raises:
        ConfigError: unknown modality, too many wrong answers for a loss over all of them, or what the method
            names is not there.
        DataError: something is missing or does not fit together, or there is nothing to learn from, or
            nothing to select a step by.
    """
    config.retriever.expect_available(config.frame)
    dataset = open_dataset(config.dataset, config.verify)
    for name in config.item.content:
        if name not in dataset.facts.modalities:
            have = ", ".join(dataset.facts.modalities) or "none"
            raise ConfigError(f"item.content: {dataset.uri} has no content '{name}'. It has: {have}.")
    ids = None
    if config.semantic_ids:
        ids = read_semantic_ids(config.semantic_ids, dataset)
        expect_facets(config.loss, len(ids.sizes))
    expect_effective(config.finetune, ids)
    runs = config.retriever.members
    members = checksum_of_results(runs) if runs else None
    then_trains = {"test_then_train": config.test_then_train}
    data = RetrievalData(dataset, config.item, config.sequences, **then_trains)
    expect_category_fields(dataset, config.evaluation)
    if (index := config.evaluation.index) is not None:
        index.expect_fits(shortest_stretch(num_ranks(), data.num_items))
    if config.learns:
        expect_scorable(config, len(data.negatives(config.loss.negatives)))
        data.expect_learnable()
    compressed = None
    if config.retriever.reads_codebook and config.semantic_ids and ids is not None:
        compressed = read_compressed(config.semantic_ids, ids)
    return RetrieveInputs(dataset, data, ids, members, compressed)


def expect_scorable(config: RetrieveConfig, num_negatives: int) -> None:
    """Refuse a catalogue that is too large for a loss over all items.

    Args:
        config: of a model that learns.
        num_negatives: the items that `loss.negatives` names.

    Raises:
        ConfigError: says what to do instead.
    """
    if config.lists_all and num_negatives > MAX_SCORED_ITEMS:
        raise ConfigError(
            f"{num_negatives:,} items are too many for a loss over all of them (at most "
            f"{MAX_SCORED_ITEMS:,}). Add [sampled], or predict codes: "
            "set loss.item_weight = 0, loss.code_weight = 1."
        )
