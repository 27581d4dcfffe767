"""Every tokenizer: its config and its class, and the way back from a saved folder."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import safetensors
import safetensors.torch
from pydantic import Field, ValidationError
from torch import Tensor

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.explain import explain
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
from trec_semid.tokenizers.tokenizer import FORMAT_VERSION, VIEW_WEIGHTS, WEIGHTS, Tokenizer

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
_AGAIN = "Copy the folder again, or tokenize again"
_MOST_FAULTS = 3
"""That an error names."""


class _Saved(Config):
    """What `config.json` says of a method."""

    config: TokenizerConfig


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
        DataError: no such folder, or files that do not belong to this version or to each other; says so where
            they are those of another kind.
    """
    place, weights_uri, view_uri = (join(uri, name) for name in ("config.json", WEIGHTS, VIEW_WEIGHTS))
    described, weights = _read(place), _read_weights(weights_uri)
    tokenizer = _restored(described, weights)
    if isinstance(tokenizer, _Misfit):
        problem, file = tokenizer.problem, weights_uri if tokenizer.is_of_weights else place
        raise DataError(problem, file=file, remedy=_remedy(described, weights))
    if view := described.get("behaviour"):
        content = _read_weights(view_uri, as_bytes=True)
        try:
            tokenizer.behaviour = BehaviourView.restored(view, content)
        except (KeyError, TypeError, ValidationError, RuntimeError, safetensors.SafetensorError) as error:
            problem = f"not the behaviour view that config.json describes: {_short(error)}"
            raise DataError(problem, file=view_uri, remedy=_AGAIN) from None
    return tokenizer.eval()


class _Misfit(NamedTuple):
    """Why files are no tokenizer."""

    problem: str
    is_of_weights: bool


def _restored(described: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tokenizer | _Misfit:
    """Return the tokenizer of a description and of its state, or what is wrong with them."""
    config, dims = described.get("config"), described.get("modalities")
    if not isinstance(dims, dict) or not all(type(dim) is int and dim > 0 for dim in dims.values()):
        return _Misfit("not a tokenizer: `modalities` are no names with widths", is_of_weights=False)
    try:
        tokenizer = build_tokenizer(_Saved.model_validate({"config": config}).config, dims)
    except ValidationError as error:
        told = explain(error.errors(), _Saved, {}, [], {"config": config}).splitlines()[1:]
        return _Misfit(f"not a tokenizer of this version: {_first(told)}", is_of_weights=False)
    except ConfigError as error:
        return _Misfit(f"not a tokenizer: {error}", is_of_weights=False)
    own = tokenizer.state_dict()
    faults = [f"{name} is missing" for name in own if name not in weights]
    faults += [f"{name} is no part of it" for name in weights if name not in own]
    both = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    faults += [f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}" for name in both]
    if faults:
        kind = tokenizer.config.model_dump()["kind"]
        problem = f"not the weights of kind '{kind}' as config.json has it: {_first(faults)}"
        return _Misfit(problem, is_of_weights=True)
    tokenizer.load_state_dict(dict(weights))
    return tokenizer


def _remedy(described: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return what to do about a misfit: another kind may fit, as where a kind was given another name."""
    config = described.get("config")
    if isinstance(config, dict):
        for each in TOKENIZERS:
            kind = str(each.model_fields["kind"].default)
            as_other = {**described, "config": {**config, "kind": kind}}
            if kind != config.get("kind") and not isinstance(_restored(as_other, weights), _Misfit):
                return (
                    f"Settings and weights are those of kind '{kind}', as this version calls it: tokenize "
                    f"again with tokenizer.kind = '{kind}', the same settings and the same seed, which "
                    "gives the same codes"
                )
    return _AGAIN


def _read_weights(uri: str, *, as_bytes: bool = False) -> Any:
    """Return tensors by name, or what the file holds."""
    try:
        content = read_bytes(uri)
        return content if as_bytes else safetensors.torch.load(content)
    except FileNotFoundError:
        raise DataError("missing beside config.json", file=uri, remedy=_AGAIN) from None
    except safetensors.SafetensorError as error:
        raise DataError(f"weights do not fit config.json: {error}", file=uri, remedy=_AGAIN) from None


def _short(error: Exception) -> str:
    return str(error).splitlines()[0]


def _first(faults: list[str]) -> str:
    return "; ".join(
        [*(fault.strip() for fault in faults[:_MOST_FAULTS]), *(["..."] * (len(faults) > _MOST_FAULTS))]
    )


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
