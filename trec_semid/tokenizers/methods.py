"""Every tokenizer: its config and its class, and the way back from a saved folder."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import safetensors
import safetensors.torch
from pydantic import Field, TypeAdapter, ValidationError

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes
from trec_semid.tokenizers.cosine_rq import CosineRq, CosineRqConfig
from trec_semid.tokenizers.inputs.behaviour import BehaviourView
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.mhq import Mhq, MhqConfig
from trec_semid.tokenizers.mmq import Mmq, MmqConfig
from trec_semid.tokenizers.mmq_published import PublishedMmq, PublishedMmqConfig
from trec_semid.tokenizers.opq import Opq, OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVae, RqVaeConfig
from trec_semid.tokenizers.tokenizer import FORMAT_VERSION, VIEW_WEIGHTS, Tokenizer

TokenizerConfig = Annotated[
    MmqConfig | PublishedMmqConfig | RqVaeConfig | RqKmeansConfig | OpqConfig | CosineRqConfig | MhqConfig,
    Field(discriminator="kind"),
]
TOKENIZERS: dict[type[Config], type[Tokenizer]] = {
    MmqConfig: Mmq,  # shared and specific experts that carry the error on, moving averages
    PublishedMmqConfig: PublishedMmq,  # shared and specific experts side by side, cosine codebooks
    RqVaeConfig: RqVae,  # autoencoder with residual codebooks
    RqKmeansConfig: RqKmeans,  # residual k-means, no gradients
    OpqConfig: Opq,  # rotation and product codebooks, no gradients
    MhqConfig: Mhq,  # facets with residual levels, moving averages
    CosineRqConfig: CosineRq,  # residual codebooks of directions, with coefficients
}
_CONFIGS: TypeAdapter[Any] = TypeAdapter(TokenizerConfig)


def build_tokenizer(config: Config, dims: Mapping[str, int]) -> Tokenizer:
    """Make an untrained tokenizer.

    Args:
        config: one of the union's members.
        dims: modality to width, in the order contents will come in.
    """
    return TOKENIZERS[type(config)](config, dims)


def learning_kinds() -> tuple[str, ...]:
    """Return the kinds whose codebooks learn by gradient, which a recommender can fine-tune."""
    learning = (config for config, method in TOKENIZERS.items() if issubclass(method, LearnedTokenizer))
    return tuple(str(config.model_fields["kind"].default) for config in learning)


def as_learned(tokenizer: Tokenizer) -> LearnedTokenizer | None:
    """Return the tokenizer as one whose codebooks learn by gradient; None where they do not."""
    return tokenizer if isinstance(tokenizer, LearnedTokenizer) else None


def load_tokenizer(uri: str) -> Tokenizer:
    """Read a folder that `Tokenizer.save` wrote; the result is in evaluation mode.

    Raises:
        DataError: no such folder, or files that do not belong to this version or to each other.
    """
    described = _read(join(uri, "config.json"))
    weights_uri, view_uri = join(uri, "weights.safetensors"), join(uri, VIEW_WEIGHTS)
    try:
        tokenizer = build_tokenizer(_CONFIGS.validate_python(described["config"]), described["modalities"])
        tokenizer.load_state_dict(safetensors.torch.load(read_bytes(weights_uri)))
        if view := described.get("behaviour"):
            weights_uri = view_uri
            tokenizer.behaviour = BehaviourView.restored(view, read_bytes(view_uri))
    except (KeyError, ValidationError) as error:
        raise DataError(f"not a tokenizer: {error}", file=join(uri, "config.json")) from None
    except (FileNotFoundError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(f"weights do not fit config.json: {error}", file=weights_uri) from None
    return tokenizer.eval()


def _read(uri: str) -> dict[str, Any]:
    try:
        described = json.loads(read_bytes(uri))
    except FileNotFoundError:
        remedy = "Make one with: trec-semid tokenize CONFIG.toml"
        raise DataError("no tokenizer here", file=uri, remedy=remedy) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=uri) from None
    if described.get("format") != FORMAT_VERSION:
        remedy = f"This version reads format {FORMAT_VERSION}: tokenize again"
        raise DataError(
            "tokenizer of another format",
            file=uri,
            field="format",
            value=described.get("format"),
            remedy=remedy,
        )
    return described
