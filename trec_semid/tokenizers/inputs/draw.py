"""Random samples of items, with enough of those that have what a channel or a position reads."""

import numpy as np
import torch

from trec_semid.core.arrays import Flags, Float32s, Ints
from trec_semid.core.seeds import numpy_generator
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.fusion import Fusion
from trec_semid.tokenizers.inputs.standardise import Standardiser
from trec_semid.tokenizers.learned import LearnedTokenizer

_CHUNK_ROWS = 8192


@torch.no_grad()
def draw_inputs(
    standardiser: Standardiser,
    fusion: Fusion,
    channel: int,
    catalogue: ItemContents,
    rows: Ints,
    *,
    size: int,
    seed: int,
) -> Float32s:
    """Return a channel's inputs (n, dim) of at most `size` items that have what it reads, in row order."""
    rows = fusion.rows_of(fusion.channels[channel], catalogue, rows)
    drawn = np.sort(
        numpy_generator(seed, "kmeans items").choice(rows, size=min(len(rows), size), replace=False)
    )
    parts = [
        fusion(standardiser(contents), contents.present)[channel].cpu()
        for contents in (
            read.to(standardiser.mean.device) for _, read in catalogue.chunks(drawn, _CHUNK_ROWS)
        )
    ]
    return torch.cat(parts).numpy()


def draw_for_positions(
    tokenizer: LearnedTokenizer, catalogue: ItemContents, rows: Ints, drawn: Ints, *, least: int, seed: int
) -> list[Ints]:
    """Return the sample (n,) that each of the R positions is to be measured on.

    That is `drawn`, unless it holds few items with what the position reads: then as many other items, all
    with it, so that a modality that few items have is measured on these few. Equal on all ranks.

    Args:
        tokenizer: says which modalities a position reads.
        catalogue: says which items have them.
        rows: (N,) all items that may be drawn.
        drawn: (n,) a sample of them, whatever they have.
        least: items with what a position reads that make `drawn` do; all there are, where these are fewer.
        seed: of another draw.
    """
    some, every = _reads(tokenizer, catalogue, drawn), _reads(tokenizer, catalogue, rows)
    samples: list[Ints] = []
    for position in range(every.shape[1]):
        own = rows[every[:, position]]
        if some[:, position].sum() >= min(len(own), least):
            samples.append(drawn)
        else:  # positions that read the same modality draw the same items
            generator = numpy_generator(seed, "items of a modality")
            samples.append(np.sort(generator.choice(own, size=min(len(own), len(drawn)), replace=False)))
    return samples


def _reads(tokenizer: LearnedTokenizer, catalogue: ItemContents, rows: Ints) -> Flags:
    """Return (n, R): which positions read something of which items."""
    present = np.stack([np.asarray(catalogue.present[name][rows], bool) for name in tokenizer.dims], axis=1)
    return tokenizer.at_positions(torch.from_numpy(present)).numpy()
