"""A tiny ranking problem with content, and the whole in-the-loop training written out on plain tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, one_hot, softmax

from tests.tokenizers.planted import plant
from trec_semid.data.features import Feature
from trec_semid.data.item_rows import ItemRows, find_item_rows
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.models.in_the_loop import RankerInTheLoop, RankerInTheLoopWithLoss
from trec_semid.models.live_codes import FinetuneConfig, LiveCodes
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig
from trec_semid.tokenizers.inputs.contents import ItemContents, Standardised
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.mmq_published import PublishedMmq, PublishedMmqConfig

NUM_ITEMS, NUM_USERS, DIM, CODES, TEMPERATURE = 40, 9, 8, 7, 0.2
TUNING = FinetuneConfig(reconstruction_weight=0.5, auxiliary_weight=0.25)


def catalogue() -> ItemContents:
    """Return items of two modalities, some without vision, exact in half precision."""
    planted = plant(NUM_ITEMS, missing=0.5).catalogue
    halves = {name: np.nan_to_num(values).astype(np.float16) for name, values in planted.vectors.items()}
    return ItemContents(halves, planted.present)


def tokenizer() -> LearnedTokenizer:
    """Return an MMQ tokenizer at its random start, standardised."""
    torch.manual_seed(1)
    config = PublishedMmqConfig(
        codebook_size=CODES, num_shared=1, num_specific=2, latent_dim=5, temperature=TEMPERATURE
    )
    items = catalogue()
    made = PublishedMmq(config, items.dims)
    made.standardiser.fit(items, items.rows_with_content())
    return made


def content_of(rows: np.ndarray) -> Standardised:
    """Return standardised content as the tables hold it, in half precision."""
    contents = catalogue().batch(rows)
    return Standardised(tokenizer().standardiser(contents).half().float(), contents.present)


def features(num_positions: int) -> list[Feature]:
    """Return the features in the usual order: codes stand between other features."""
    rows = CODES + 1
    targets = [Feature(f"item_code_{r}", "item_code", f"t_code_{r}", rows, r) for r in range(num_positions)]
    history = [
        Feature(f"history_code_{r}", "history_code", f"t_code_{r}", rows, r) for r in range(num_positions)
    ]
    return [
        Feature("user_id", "user", "t_user_id", NUM_USERS),
        Feature("item_id", "item", "t_item_id", NUM_ITEMS),
        *targets,
        Feature("history_item", "history", "t_item_id", NUM_ITEMS),
        *history,
    ]


def build(
    device: str = "meta", *, world_size: int = 1, codes: Tensor | None = None
) -> RankerInTheLoopWithLoss:
    """Return the unsharded model, dense weights and tokenizer always alike."""
    made = tokenizer()
    num_positions = len(made.codebook_sizes)
    described = features(num_positions)
    plain = [feature.name for feature in described if "code" not in feature.role]
    specs = [
        TableSpec("t_user_id", NUM_USERS, ("user_id",)),
        TableSpec("t_item_id", NUM_ITEMS, ("item_id", "history_item")),
    ]
    sparse = PooledTables(specs, TablesConfig(dim=DIM), plain, device=device)
    tables = CodeTables(
        [CodeTable(f"t_code_{r}", CODES + 1) for r in range(num_positions)], DIM, device=device
    )
    torch.manual_seed(2)
    dense = Ppnet(PpnetConfig(layer_dims=[8], gate_dim=8), described, DIM)
    start = torch.zeros(NUM_ITEMS, num_positions, dtype=torch.int16) if codes is None else codes
    ranker = RankerInTheLoop(sparse, LiveCodes(tables, start, made), dense, described)
    return RankerInTheLoopWithLoss(ranker, TUNING, world_size=world_size)


class Rows(NamedTuple):
    """One global batch."""

    users: np.ndarray
    targets: np.ndarray
    histories: list[np.ndarray]
    labels: np.ndarray


def global_batch(step: int, num_rows: int = 9) -> Rows:
    """Return rows whose items repeat, one history empty."""
    rng = np.random.default_rng(step)
    histories = [rng.integers(12, size=length) for length in rng.integers(0, 5, num_rows)]
    histories[1] = np.zeros(0, np.int64)
    return Rows(
        rng.integers(NUM_USERS, size=num_rows),
        rng.integers(12, size=num_rows),
        histories,
        rng.integers(2, size=num_rows).astype(np.float32),
    )


class Part(NamedTuple):
    """One rank's rows with a padding row where it has one less."""

    ids: dict[str, tuple[Tensor, Tensor]]
    """Feature to (values, lengths)."""
    items: ItemRows
    labels: Tensor
    weights: Tensor


def my_part(batch: Rows, rank: int, world_size: int, *, num_recent: int | None = None) -> Part:
    """Cut a rank's stretch of the batch and fill it up."""
    size = -(-len(batch.labels) // world_size)
    mine = slice(rank * size, (rank + 1) * size)
    histories = batch.histories[mine]
    num_padding = size - len(histories)
    lengths = np.array([len(history) for history in histories], np.int64)
    flat = np.concatenate([np.zeros(0, np.int64), *histories])
    padding = np.zeros(num_padding, np.int64)
    ones = torch.from_numpy(np.append(np.ones(len(histories), np.int64), padding))
    ids = {
        "user_id": (torch.from_numpy(batch.users[mine]), ones),
        "item_id": (torch.from_numpy(batch.targets[mine]), ones),
        "history_item": (torch.from_numpy(flat), torch.from_numpy(np.append(lengths, padding))),
    }
    items = find_item_rows(batch.targets[mine], flat, lengths, num_recent=num_recent, num_padding=num_padding)
    labels = torch.from_numpy(np.append(batch.labels[mine], padding).astype(np.float32))
    return Part(ids, items, labels, ones.float())


def scored_by_hand(
    tables: dict[str, Tensor], made: LearnedTokenizer, dense: Ppnet, batch: Rows
) -> tuple[Tensor, Tensor]:
    """Return (loss, logits) of eq 15-19 with every index a one-hot row and every item its own lookup."""
    num_positions = len(made.codebook_sizes)
    code_tables = torch.stack([tables[f"t_code_{r}"] for r in range(num_positions)])
    vectors, errors = _items_by_hand(code_tables, made, content_of(np.arange(NUM_ITEMS)))
    targets = torch.from_numpy(batch.targets)
    columns = [
        tables["t_user_id"][batch.users],
        tables["t_item_id"][targets],
        vectors[targets].flatten(1),
        torch.stack([_mean(tables["t_item_id"], history) for history in batch.histories]),
        torch.stack([_mean(vectors.flatten(1), history) for history in batch.histories]),
    ]
    logits = dense(torch.cat(columns, dim=1))
    loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels))
    anchors = (
        TUNING.reconstruction_weight * errors["reconstruction"]
        + TUNING.auxiliary_weight * errors["auxiliary"]
    )
    return loss + anchors[targets].mean(), logits


def _items_by_hand(
    code_tables: Tensor, made: LearnedTokenizer, contents: Standardised
) -> tuple[Tensor, dict[str, Tensor]]:
    views = made.view_standardised(*contents)
    cosines = torch.einsum(
        "brd,rkd->brk", normalize(views.latents, dim=-1), normalize(made.codebooks, dim=-1)
    )
    soft = softmax(cosines / TEMPERATURE, dim=-1)
    ind = soft + (one_hot(soft.argmax(-1), CODES).float() - soft).detach()
    vectors = torch.einsum("brk,rkd->brd", ind, code_tables[:, :CODES])
    vectors = torch.where(views.present.unsqueeze(2), vectors, code_tables[:, CODES])
    return vectors, made.errors(views, torch.einsum("brk,rkd->brd", ind, made.codebooks))


def _mean(table: Tensor, rows: np.ndarray) -> Tensor:
    return table[rows].mean(0) if len(rows) else torch.zeros(table.shape[1])
