"""The tokenizer that a run tunes: read from where it was learnt, with the content that it reads."""

from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import exists, join
from trec_semid.data.schema import Dataset
from trec_semid.models.live_codes import FinetuneConfig
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import as_learned, learning_kinds, load_tokenizer
from trec_semid.tokenizers.tokenizer import Tokenizer

TOKENIZER = "tokenizer"
"""Its folder in a run, and its name in a model."""


def load_learned(
    finetune: FinetuneConfig | None, place: str | None, ids: SemanticIds | None
) -> LearnedTokenizer | None:
    """Read the tokenizer that learns with a model; None where none does.

    Args:
        finetune: of the run.
        place: its `semantic_ids`, the run folder of `trec-semid tokenize`.
        ids: the map that lies there.

    Raises:
        ConfigError: it is not a run folder, its codebooks do not learn by gradient, or it would not give
            the map.
    """
    if finetune is None or place is None or ids is None:
        return None
    tokenizer = _read(place)
    if ids.sizes != tokenizer.codebook_sizes:
        raise ConfigError(
            f"finetune: semantic IDs have {ids.sizes} codes, their tokenizer {tokenizer.codebook_sizes}. "
            "Tokenize again, with collisions = 'keep': an extra code is not the tokenizer's to learn."
        )
    if finetune.estimator == "gumbel" and len(tokenizer.stages) > 1:
        raise ConfigError(
            "finetune: noise on the codes of residual levels would leave later levels with residuals of "
            "other codes. Use estimator = 'straight_through', or mmq_published."
        )
    return tokenizer


def expect_effective(finetune: FinetuneConfig | None, ids: SemanticIds | None) -> None:
    """Refuse more codes in effect than a position has, before a run writes anything.

    Raises:
        ConfigError: says how many there are.
    """
    wanted = finetune and finetune.effective_codes
    if wanted and ids and wanted >= min(ids.sizes):
        raise ConfigError(
            f"finetune.effective_codes: {wanted:g} of {min(ids.sizes)} codes of a position would be all of "
            f"them. Set it below {min(ids.sizes)}."
        )


def _read(semantic_ids: str) -> LearnedTokenizer:
    if semantic_ids.endswith(".parquet"):
        raise ConfigError(
            f"finetune: semantic_ids names a file ({semantic_ids}), which has no tokenizer to tune. "
            "Name the run folder of trec-semid tokenize."
        )
    tokenizer = load_tokenizer(join(semantic_ids, TOKENIZER))
    learned = as_learned(tokenizer)
    if learned is None:
        kind, others = kind_of(tokenizer), " or ".join(learning_kinds())
        raise ConfigError(
            f"finetune: codebooks of '{kind}' do not learn by gradient. Use {others}, or leave finetune out."
        )
    _expect_own_codes(semantic_ids)
    return learned


def _expect_own_codes(place: str) -> None:
    """Refuse a map that the tokenizer would not give: the first refresh would undo what was resolved."""
    if not exists(join(place, "quality.json")):
        return
    quality = RunFolder(place, "tokenize").read_json("quality.json")
    resolution = quality.get("collisions", {}).get("resolution")
    if resolution not in (None, "keep"):
        raise ConfigError(
            f"finetune: collisions of {place} were resolved by '{resolution}', which a tokenizer that moves "
            "undoes. Tokenize with collisions = 'keep'."
        )


def kind_of(tokenizer: Tokenizer) -> str:
    """Return the kind of a tokenizer, as configs name it."""
    return str(tokenizer.config.model_dump()["kind"])


def open_content(dataset: Dataset, tokenizer: LearnedTokenizer) -> ItemContents:
    """Return the content that a tokenizer reads.

    Raises:
        ConfigError: the dataset lacks a modality, or has it in another width.
    """
    have = dataset.facts.modalities
    absent = [name for name in tokenizer.inputs if name not in have]
    if absent:
        raise ConfigError(f"finetune: the tokenizer reads '{absent[0]}', which {dataset.uri} does not have.")
    catalogue = ItemContents(
        {name: dataset.content(name) for name in tokenizer.inputs},
        {name: dataset.content_mask(name) for name in tokenizer.inputs},
    )
    if catalogue.dims != tokenizer.inputs:
        raise ConfigError(f"finetune: tokenizer of widths {tokenizer.inputs}, content of {catalogue.dims}.")
    return tokenizer.complete_catalogue(catalogue)
