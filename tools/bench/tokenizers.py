"""Items/s of fitting tokenizers and of encoding with them, beside faiss and beside their matrix products.

    .venv/bin/python tools/bench/tokenizers.py fit    [--items N] [--dim D] [--codebook K] [--iterations N]
    .venv/bin/python tools/bench/tokenizers.py encode [--items N] [--dim D] [--codebook K] [--latent D]

fit: six codes of clustered vectors; RQ-KMeans (ours, faiss k-means level by level), MMQ, faiss's
`ResidualQuantizer` with a beam of 1 (it takes powers of two), plain faiss k-means residuals, and
`ResidualVQ` of vector-quantize-pytorch where it is installed (moving averages as it comes; k-means start
on the first batch, of 20 items a code; then batches as MMQ's).
encode: MMQ and RQ-KMeans as `tokenize` calls them, chunk by chunk, beside MMQ's matrix products alone and
the same three of others.
One process, --threads threads for all.
"""

import argparse
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("what", choices=["fit", "encode"])
PARSER.add_argument("--items", type=int, default=50_000)
PARSER.add_argument("--dim", type=int, default=256)
PARSER.add_argument("--codebook", type=int, default=1024)
PARSER.add_argument("--latent", type=int, default=256, help="width of MMQ's latents")
PARSER.add_argument("--iterations", type=int, default=10, help="Lloyd steps of a level, epochs of MMQ")
PARSER.add_argument("--turns", type=int, default=3)
PARSER.add_argument("--threads", type=int, default=1)
OPTIONS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # read when torch and faiss are imported

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from trec_semid.tokenizers.inputs.contents import ItemContents  # noqa: E402
from trec_semid.tokenizers.mmq import Mmq, MmqConfig, MmqFitConfig  # noqa: E402
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig  # noqa: E402
from trec_semid.tokenizers.tokenizer import Tokenizer  # noqa: E402

LEVELS = 6
CHUNK = 1024
BATCH = 1024


def make_catalogue() -> ItemContents:
    """Draw items around 500 centres, two modalities of half the width each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(500, OPTIONS.dim)).astype(np.float32)
    noise = rng.normal(size=(OPTIONS.items, OPTIONS.dim)).astype(np.float32)
    vectors = centres[rng.integers(0, 500, OPTIONS.items)] + 0.5 * noise
    half = OPTIONS.dim // 2
    parts = {"text": vectors[:, :half].copy(), "vision": vectors[:, half:].copy()}
    return ItemContents(parts, {name: np.ones(OPTIONS.items, bool) for name in parts})


def build(kind: str) -> Tokenizer:
    """Return an untrained tokenizer of six codes."""
    dims = {"text": OPTIONS.dim // 2, "vision": OPTIONS.dim - OPTIONS.dim // 2}
    if kind == "RQ-KMeans":
        config = RqKmeansConfig(codebook_size=OPTIONS.codebook, levels=LEVELS, iterations=OPTIONS.iterations)
        return RqKmeans(config, dims)
    fit = MmqFitConfig(epochs=OPTIONS.iterations, batch_size=BATCH)
    return Mmq(MmqConfig(codebook_size=OPTIONS.codebook, latent_dim=OPTIONS.latent, fit=fit), dims)


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fit_all(tokenizer: Tokenizer, catalogue: ItemContents) -> None:
    """Fit to the end."""
    for _ in tokenizer.fit(catalogue, np.arange(catalogue.num_items), 0):
        pass


def fit_moving_averages(vectors: np.ndarray) -> None:
    """Fit `ResidualVQ`: a pass over shuffled items for each iteration, no gradients, for it needs none."""
    package, random = importlib.import_module("vector_quantize_pytorch"), np.random.default_rng(0)
    quantizer = package.ResidualVQ(
        dim=OPTIONS.dim, num_quantizers=LEVELS, codebook_size=OPTIONS.codebook, kmeans_init=True
    ).train()
    with torch.no_grad():
        quantizer(torch.from_numpy(random.permutation(vectors)[: 20 * OPTIONS.codebook])[None])
        for _ in range(OPTIONS.iterations):
            for batch in torch.from_numpy(random.permutation(vectors)).split(BATCH):
                quantizer(batch[None])


def fit() -> None:
    """Fit each way once and print its items/s."""
    catalogue = make_catalogue()
    vectors = np.concatenate([catalogue.vectors["text"], catalogue.vectors["vision"]], axis=1)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)

    def residual_quantizer() -> None:
        bits = [int(np.log2(OPTIONS.codebook))] * LEVELS
        quantizer = faiss.ResidualQuantizer(OPTIONS.dim, LEVELS, bits[0])
        quantizer.max_beam_size, quantizer.cp.niter = 1, OPTIONS.iterations
        quantizer.train(vectors)

    def plain_residuals() -> None:
        residuals = vectors.copy()
        for _ in range(LEVELS):
            kmeans = faiss.Kmeans(
                OPTIONS.dim, OPTIONS.codebook, niter=OPTIONS.iterations, max_points_per_centroid=10**9
            )
            kmeans.train(residuals)
            residuals -= kmeans.centroids[kmeans.index.search(residuals, 1)[1][:, 0]]

    ways: dict[str, Callable[[], object]] = {
        "RQ-KMeans": lambda: fit_all(build("RQ-KMeans"), catalogue),
        "MMQ": lambda: fit_all(build("MMQ"), catalogue),
        "faiss k-means residuals": plain_residuals,
        "faiss ResidualQuantizer": residual_quantizer,
        "ResidualVQ": partial(fit_moving_averages, vectors),
    }
    print(
        f"fit {OPTIONS.items:,} x {OPTIONS.dim}, {LEVELS} codes of {OPTIONS.codebook:,}, "
        f"{OPTIONS.iterations} iterations, {OPTIONS.threads} threads"
    )
    for name, work in ways.items():
        if name == "ResidualVQ" and importlib.util.find_spec("vector_quantize_pytorch") is None:
            print(f"{name:<26} not installed: pip install vector-quantize-pytorch")
            continue
        spent = seconds(work)
        print(f"{name:<26} {spent:8.1f} s  {OPTIONS.items / spent:10,.0f} items/s", flush=True)


def encode_all(tokenizer: Tokenizer, catalogue: ItemContents) -> None:
    """Encode every item, chunk by chunk."""
    for _, contents in catalogue.chunks(np.arange(catalogue.num_items), CHUNK):
        tokenizer.encode(contents)


def other_encoders(catalogue: ItemContents) -> dict[str, Callable[[], object]]:
    """Return others' ways to six codes, with codewords that nothing was fitted for: they cost the same."""
    vectors = np.concatenate([catalogue.vectors["text"], catalogue.vectors["vision"]], axis=1)
    chunks = np.split(np.ascontiguousarray(vectors, np.float32), range(CHUNK, len(vectors), CHUNK))
    bits = int(np.ceil(np.log2(OPTIONS.codebook)))  # faiss takes powers of two
    ways: dict[str, Callable[[], object]] = {
        f"faiss ResidualQuantizer, {2**bits:,}": partial(by_residual_quantizer, chunks, bits),
        "faiss k-means residuals": partial(by_plain_residuals, chunks),
    }
    if importlib.util.find_spec("vector_quantize_pytorch") is not None:
        ways["ResidualVQ"] = partial(by_residual_vq, chunks)
    return ways


def draw_codewords(size: int) -> np.ndarray:
    """Return six codebooks (6, size, dim)."""
    return np.random.default_rng(1).normal(size=(LEVELS, size, OPTIONS.dim)).astype(np.float32)


def by_residual_quantizer(chunks: list[np.ndarray], bits: int) -> None:
    """Encode with faiss's own, beam 1."""
    quantizer = faiss.ResidualQuantizer(OPTIONS.dim, LEVELS, bits)
    quantizer.max_beam_size = 1
    faiss.copy_array_to_vector(draw_codewords(2**bits).reshape(-1), quantizer.codebooks)
    quantizer.is_trained = True
    for chunk in chunks:
        quantizer.compute_codes(chunk)


def by_plain_residuals(chunks: list[np.ndarray]) -> None:
    """Search each level's codewords, and subtract."""
    codebooks, indexes = draw_codewords(OPTIONS.codebook), []
    for codebook in codebooks:
        indexes.append(faiss.IndexFlatL2(OPTIONS.dim))
        indexes[-1].add(codebook)
    for chunk in chunks:
        residuals = chunk.copy()
        for codebook, index in zip(codebooks, indexes, strict=True):
            residuals -= codebook[index.search(residuals, 1)[1][:, 0]]


def by_residual_vq(chunks: list[np.ndarray]) -> None:
    """Encode with vector-quantize-pytorch."""
    package = importlib.import_module("vector_quantize_pytorch")
    sizes = {"dim": OPTIONS.dim, "num_quantizers": LEVELS, "codebook_size": OPTIONS.codebook}
    quantizer = package.ResidualVQ(**sizes).eval()
    for chunk in chunks:
        quantizer(torch.from_numpy(chunk)[None])


def encode() -> None:
    """Encode in turns and print medians of items/s."""
    catalogue = make_catalogue()
    rows = np.arange(catalogue.num_items)
    fitted = {kind: build(kind) for kind in ("MMQ", "RQ-KMeans")}
    for tokenizer in fitted.values():
        tokenizer.standardiser.fit(catalogue, rows[:10_000])
    mmq = fitted["MMQ"]
    assert isinstance(mmq, Mmq)
    shared, specific = torch.randn(CHUNK, OPTIONS.dim), torch.randn(CHUNK, OPTIONS.dim // 2)
    latents, keys = torch.randn(LEVELS, CHUNK, OPTIONS.latent), mmq.codebooks.detach().mT.contiguous()
    wide, narrow = (
        torch.randn(OPTIONS.dim, 2 * OPTIONS.latent),
        torch.randn(OPTIONS.dim // 2, 2 * OPTIONS.latent),
    )

    def products() -> None:
        for _ in range(0, catalogue.num_items, CHUNK):
            torch.mm(shared, wide)
            torch.mm(specific, narrow)
            torch.mm(specific, narrow)
            torch.bmm(latents, keys)

    ways: dict[str, Callable[[], object]] = {
        "MMQ": partial(encode_all, mmq, catalogue),
        "MMQ's matrix products": products,
        "RQ-KMeans": partial(encode_all, fitted["RQ-KMeans"], catalogue),
        **other_encoders(catalogue),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(OPTIONS.turns):
        for name, work in ways.items():
            spent[name].append(seconds(work))
    print(
        f"encode {OPTIONS.items:,} x {OPTIONS.dim}, {LEVELS} codes of {OPTIONS.codebook:,}, MMQ latents "
        f"{OPTIONS.latent}, {OPTIONS.threads} threads, {OPTIONS.turns} turns"
    )
    for name, times in spent.items():
        print(f"{name:<32} {OPTIONS.items / np.median(times):10,.0f} items/s")
    ratios = np.array(spent["MMQ"]) / np.array(spent["MMQ's matrix products"])
    print(f"MMQ / its matrix products  {np.median(ratios):.2f}   ({ratios.min():.2f} to {ratios.max():.2f})")


if __name__ == "__main__":
    with torch.no_grad() if OPTIONS.what == "encode" else torch.enable_grad():
        fit() if OPTIONS.what == "fit" else encode()
