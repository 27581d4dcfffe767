"""How good a tokenizer's codes are: `quality.json` and the metrics drawn from it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trec_semid.core.arrays import Ints
from trec_semid.core.seeds import derive_seed, numpy_generator
from trec_semid.metrics.codes import CodeUsage, code_pairs, code_usage, neighbour_agreement
from trec_semid.metrics.readout import read_out
from trec_semid.tokenizers.collisions import Resolved, describe_resolution
from trec_semid.tokenizers.encode import Encoded
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.standardise import RECONSTRUCTION_CONVENTION
from trec_semid.tokenizers.measures.drift import describe_errors
from trec_semid.tokenizers.measures.remarks import remarks_on
from trec_semid.tokenizers.tokenizer import Tokenizer

NUM_NEIGHBOURS = 10
MAX_COMPARED_ITEMS = 20_000
"""Items that neighbours are sought among; a random sample of larger catalogues."""


def describe_quality(
    tokenizer: Tokenizer, kind: str, catalogue: ItemContents, resolved: Resolved, fitted: Ints, *, seed: int
) -> dict[str, Any]:
    """Return the content of `quality.json`.

    Args:
        tokenizer: fitted.
        kind: what its config calls it.
        catalogue: all items.
        resolved: their codes and errors, and what was done about collisions. An extra code counts in the
            numbers about whole tuples, and is no position of the tokenizer.
        fitted: (n,) rows the tokenizer was fitted on.
        seed: draws the items that are compared with each other.
    """
    encoded, collisions = resolved.encoded, resolved.after
    usage = code_usage(encoded.codes, tokenizer.codebook_sizes)
    compared = _compared_items(catalogue, seed)
    described = {
        "tokenizer": kind,
        "num_items": catalogue.num_items,
        "positions": [
            _describe_position(name, use) for name, use in zip(tokenizer.position_names, usage, strict=True)
        ],
        "reconstruction": float(encoded.errors.sum(1, dtype=np.float64).mean()),
        "reconstruction_convention": RECONSTRUCTION_CONVENTION,
        "cosine": float(encoded.cosines[catalogue.rows_with_content()].mean(dtype=np.float64)),
        "bytes_per_item": _describe_bytes(tokenizer, usage),
        **_describe_unfitted(catalogue, encoded, fitted),
        "utilisation": float(np.mean([use.utilisation for use in usage])),
        "entropy": float(np.mean([use.entropy for use in usage])),
        "perplexity": float(np.mean([use.perplexity for use in usage])),
        "unique_tuples": collisions.unique_tuples,
        "unique_share": collisions.unique_tuples / catalogue.num_items,
        "collision_groups": collisions.groups,
        "items_in_collisions": collisions.items_in_groups,
        "largest_group": collisions.largest_group,
        "collisions": describe_resolution(resolved),
        "neighbour_agreement": _describe_neighbours(tokenizer, catalogue, encoded, compared, seed),
        "modalities": _describe_modalities(catalogue, encoded),
        "training_errors": _describe_training(catalogue, encoded, fitted),
        "alone_share": 1 - collisions.items_in_groups / catalogue.num_items,
        **_describe_pairs(tokenizer, encoded, compared, seed),
        **_describe_codes_alone(tokenizer, catalogue, encoded, compared, seed),
    }
    return described | {"remarks": remarks_on(described)}


def quality_metrics(quality: dict[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the metrics and counts of `metrics.json`."""
    names = ("reconstruction", "cosine", "utilisation", "entropy", "perplexity", "unique_share")
    metrics = {f"all/{name}": quality[name] for name in names}
    metrics["all/bytes_per_item"] = sum(quality["bytes_per_item"].values())
    for name, modality in quality["modalities"].items():
        metrics[f"all/reconstruction/{name}"] = modality["reconstruction"]
    if quality["reconstruction_of_unfitted_items"] is not None:
        metrics["unfitted/reconstruction"] = quality["reconstruction_of_unfitted_items"]
    agreement = quality["neighbour_agreement"]
    metrics["all/neighbour_overlap"] = agreement["mean_code_overlap_of_neighbours"]
    metrics["all/random_overlap"] = agreement["mean_code_overlap_of_random_pairs"]
    names = ("alone_share", "shared_information", "joint_entropy", "reconstruction_from_codes", "readout")
    metrics |= {f"all/{name}": quality[name] for name in names if quality[name] is not None}
    metrics |= {f"all/readout/{name}": value for name, value in quality["readout_by_modality"].items()}
    names = ("unique_tuples", "collision_groups", "items_in_collisions", "largest_group")
    counts = {"all/items": quality["num_items"], "fitted/items": quality["fitted_items"]} | {
        f"all/{name}": quality[name] for name in names
    }
    counts["all/items_in_collisions_before"] = quality["collisions"]["before"]["items_in_groups"]
    counts["all/moved_items"] = quality["collisions"]["moved_items"]
    return metrics, counts


def _describe_position(name: str, usage: CodeUsage) -> dict[str, Any]:
    return {
        "name": name,
        "size": len(usage.counts),
        "used": usage.used,
        "utilisation": usage.utilisation,
        "entropy": usage.entropy,
        "perplexity": usage.perplexity,
        "missing": usage.missing,
        "counts": usage.counts.tolist(),
    }


def _describe_bytes(tokenizer: Tokenizer, usage: Sequence[CodeUsage]) -> dict[str, float]:
    """Return what an item takes with codes packed as tight as whole bits allow, 'missing' where it occurs."""
    code_bits = sum(math.ceil(math.log2(len(use.counts) + (use.missing > 0))) for use in usage)
    return {"codes": code_bits / 8, "coefficients": tokenizer.coefficient_bits * len(usage) / 8}


def _describe_unfitted(catalogue: ItemContents, encoded: Encoded, fitted: Ints) -> dict[str, Any]:
    """Measure reconstruction of items with content that fitting left out: what new items will see."""
    others = np.setdiff1d(catalogue.rows_with_content(), fitted)
    error = float(encoded.errors[others].sum(1, dtype=np.float64).mean()) if len(others) else None
    return {"fitted_items": len(fitted), "reconstruction_of_unfitted_items": error}


def _describe_training(catalogue: ItemContents, encoded: Encoded, fitted: Ints) -> dict[str, Any]:
    """Keep how errors are distributed over the fitted items: what new items are set against."""
    present = np.stack([np.asarray(catalogue.present[name][fitted], bool) for name in catalogue.dims], axis=1)
    return describe_errors(encoded.errors[fitted], present, list(catalogue.dims))


def _describe_modalities(catalogue: ItemContents, encoded: Encoded) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for column, (name, dim) in enumerate(catalogue.dims.items()):
        present = int(catalogue.present[name].sum())
        error = float(encoded.errors[:, column].sum(dtype=np.float64)) / max(present, 1)
        described[name] = {"dim": dim, "present": present, "reconstruction": error}
    return described


def _compared_items(catalogue: ItemContents, seed: int) -> Ints:
    rows = np.arange(catalogue.num_items)
    if len(rows) > MAX_COMPARED_ITEMS:
        rows = np.sort(numpy_generator(seed, "compared items").permutation(rows)[:MAX_COMPARED_ITEMS])
    return rows


def _describe_pairs(tokenizer: Tokenizer, encoded: Encoded, rows: Ints, seed: int) -> dict[str, Any]:
    """Return what every two positions say together; means are None of a single position."""
    sizes, names = tokenizer.codebook_sizes, tokenizer.position_names
    pairs = code_pairs(encoded.codes[rows], sizes, seed=derive_seed(seed, "pairs"))
    told = [pair._asdict() | {"left": names[pair.left], "right": names[pair.right]} for pair in pairs]
    return {
        "shared_information": float(np.mean([pair.shared for pair in pairs])) if pairs else None,
        "joint_entropy": float(np.mean([pair.joint_entropy for pair in pairs])) if pairs else None,
        "pairs": told,
    }


@torch.no_grad()
def _describe_codes_alone(
    tokenizer: Tokenizer, catalogue: ItemContents, encoded: Encoded, rows: Ints, seed: int
) -> dict[str, Any]:
    """Rebuild content from codes alone: by the decoder, and by a linear model for items new to it."""
    contents, of = catalogue.batch(rows).to(tokenizer.device), tokenizer.standardiser
    x, codes = of(contents), torch.from_numpy(encoded.codes[rows]).long().to(tokenizer.device)
    rebuilt = tokenizer.reconstruct_from_codes(contents, codes)
    told: dict[str, Any] = {
        "reconstruction_from_codes": float(of.errors(x, rebuilt, contents.present).sum(1).mean())
    }
    read = read_out(encoded.codes[rows], tokenizer.codebook_sizes, (x * of.std).cpu().numpy(), seed=seed)
    by_modality: dict[str, float] = {}
    if read is not None:
        shares = {name: of.columns(name) for name in tokenizer.dims}
        by_modality = {
            name: 1 - float(read.errors[at].sum() / max(read.squares[at].sum(), 1e-12))
            for name, at in shares.items()
        }
        # The view is made of the content, and is not counted twice.
        brought = np.concatenate([np.arange(len(read.errors))[shares[name]] for name in tokenizer.inputs])
        told["readout"] = 1 - float(read.errors[brought].sum() / max(read.squares[brought].sum(), 1e-12))
    return {"readout": None, **told, "readout_by_modality": by_modality}


def _describe_neighbours(
    tokenizer: Tokenizer, catalogue: ItemContents, encoded: Encoded, rows: Ints, seed: int
) -> dict[str, Any]:
    vectors = tokenizer.standardiser.unit(catalogue.batch(rows).to(tokenizer.device)).cpu().numpy()
    agreement = neighbour_agreement(
        vectors,
        encoded.codes[rows],
        tokenizer.codebook_sizes,
        k=NUM_NEIGHBOURS,
        seed=derive_seed(seed, "anchors"),
    )
    return {
        "k": agreement.k,
        "by_shared_codes": [row._asdict() for row in agreement.by_shared_codes],
        "mean_code_overlap_of_neighbours": agreement.overlap_of_neighbours,
        "mean_code_overlap_of_random_pairs": agreement.overlap_of_pairs,
    }
