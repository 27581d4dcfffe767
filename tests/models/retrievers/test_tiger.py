import numpy as np
import pytest
import torch

from trec_semid.core.errors import ConfigError
from trec_semid.data.features import Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import ItemFeatures, SequenceMaker, Window, history_batch
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.layers.attention import TransformerConfig
from trec_semid.layers.quantize import pick_codewords
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.models.heads.beams import Beams
from trec_semid.models.item_tokens import ItemTokens, Listed
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.retriever import LossConfig
from trec_semid.models.retrievers.tiger import TigerConfig, TigerModel
from trec_semid.search.beam import decode_items

NUM_ITEMS, DIM, SIZES = 9, 8, (3, 3, 3)
STILL = TransformerConfig(num_layers=2, num_heads=2, dropout=0.0, init_std=0.3)
NO_FEATURES = ItemFeatures((), Sources({}, None))
ROWS = [[0, 1, 2, 3], [4, 5], [6, 7, 8, 1, 0], [2, 2, 3]]


def codes() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 4, (NUM_ITEMS, 3)).astype(np.int16)


def made() -> TigerModel:
    torch.manual_seed(0)
    tables = CodeTables([CodeTable(f"t_code_{r}", size + 1) for r, size in enumerate(SIZES)], DIM)
    items = ItemTokens(
        None, {}, LiveCodes(tables, torch.from_numpy(codes())), DIM, content_std=0.02, content_is_unit=True
    )
    config = TigerConfig(encoder=STILL, decoder=STILL)
    return TigerModel(items, config, LossConfig(item_weight=0.0, code_temperature=0.3), max_len=6).eval()


def ragged(rows: list[list[int]]) -> Ragged:
    lengths = np.array([len(row) for row in rows], np.int64)
    return Ragged(np.cumsum(lengths) - lengths, lengths, np.concatenate(rows).astype(np.int64))


def test_an_empty_history_is_read_alike_whatever_else_the_batch_names():
    model = made()
    with torch.no_grad():
        read = []
        for items in ([1, 2], [7, 8]):
            batch = history_batch(ragged([items, []]), np.arange(2), NO_FEATURES, 2)
            tokens = model.items(Listed(batch.items, None, None))
            memory, present = model.read(tokens, batch.places)
            read.append(memory[1][present[1]])
    assert len(read[0]) == 3
    torch.testing.assert_close(read[0], read[1], atol=0, rtol=0)


def test_the_loss_is_that_of_the_codes_the_beam_would_be_asked_for():
    model = made()
    windows = ragged(ROWS)
    maker = SequenceMaker(windows, NO_FEATURES, Window(1, True))
    batch = maker.make(np.arange(4), 4, np.random.default_rng(0))
    with torch.no_grad():
        losses, _ = model(Listed(batch.items, None, None), batch.places)
        for number, row in enumerate(ROWS):
            # One history at a time, code by code: neither padding nor teacher forcing changes anything.
            alone = history_batch(ragged([row[:-1]]), np.arange(1), NO_FEATURES, 1)
            ask = model.next_log_probs(model.items(Listed(alone.items, None, None)), alone.places)
            wanted = torch.from_numpy(codes()[row[-1]]).long()
            nothing = torch.zeros(1, 1, dtype=torch.int64)
            said = [
                ask(r, Beams(wanted[None, None, :r], nothing, nothing.float(), nothing))[0, 0, wanted[r]]
                for r in range(3)
            ]
            assert losses["codes"][number].item() == pytest.approx(-float(sum(said)) / 3, rel=1e-4)


def test_a_wide_beam_returns_all_items_by_their_probability():
    model, trie = made(), TupleTrie.build(codes(), SIZES)
    histories = ragged([[0, 1], [5], [3, 3, 8]])
    batch = history_batch(histories, np.arange(3), NO_FEATURES, 3)
    with torch.no_grad():
        tokens = model.items(Listed(batch.items, None, None))
        found = decode_items(trie, 3, model.next_log_probs(tokens, batch.places), width=20, num_items=9)
        for user in range(3):
            alone = history_batch(histories, np.array([user]), NO_FEATURES, 1)
            windows = ragged([[*histories.take(np.array([user]))[0].tolist(), item] for item in range(9)])
            maker = SequenceMaker(windows, NO_FEATURES, Window(1, True), listed=np.arange(9))
            whole = maker.make(np.arange(9), 9, np.random.default_rng(0))
            scores = -3 * model(Listed(whole.items, None, None), whole.places)[0]["codes"]
            assert len(alone.rows) == 1
            order = sorted(range(9), key=lambda item: (-round(scores[item].item(), 4), item))
            assert found.items[user].tolist() == order
            torch.testing.assert_close(found.scores[user], scores[order], atol=1e-4, rtol=1e-4)


def test_items_of_more_than_codes_are_refused():
    tables = CodeTables([CodeTable("t_code_0", 4)], DIM)
    items = ItemTokens(
        None,
        {"text": 3},
        LiveCodes(tables, torch.zeros(2, 1).short()),
        DIM,
        content_std=0.02,
        content_is_unit=True,
    )
    with pytest.raises(ConfigError, match=r"codes alone"):
        TigerModel(items, TigerConfig(), LossConfig(), max_len=3)


def test_what_the_decoder_is_told_of_a_target_has_no_gradient_to_the_choice_of_its_codes():
    model = made()
    batch = SequenceMaker(ragged(ROWS), NO_FEATURES, Window(1, True)).make(
        np.arange(4), 4, np.random.default_rng(0)
    )
    listed = Listed(batch.items, None, None)
    plain = model.items(listed)
    assert plain.codes is not None
    assert plain.code_tables is not None
    choice = pick_codewords(plain.code_tables, plain.codes).detach().requires_grad_()
    model.items.forward = lambda *_: plain._replace(chosen=choice)
    losses, _ = model(listed, batch.places)
    losses["codes"].sum().backward(inputs=[choice])
    named = {item for row in ROWS for item in row[:-1]}
    assert choice.grad is not None
    taught = {int(item) for item, grad in zip(batch.items, choice.grad, strict=True) if grad.any()}
    assert taught == named
    assert {row[-1] for row in ROWS} - named  # some are targets alone
