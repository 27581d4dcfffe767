"""A retriever against the same arithmetic written out on plain tensors."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SequenceMaker,
    Window,
    history_batch,
    sampled_by_popularity,
)
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.layers.attention import TransformerConfig
from trec_semid.layers.quantize import pick_codewords
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.live_codes import ChosenCodes, LiveCodes
from trec_semid.models.methods import retriever_of
from trec_semid.models.next_item import NextItemModel
from trec_semid.models.retrieval_model import RetrieverWithLoss
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.heterrec import HeterrecConfig
from trec_semid.models.retrievers.rpg import RpgConfig
from trec_semid.models.retrievers.sasrec import SasrecConfig
from trec_semid.runtime.ranks import Ranks
from trec_semid.search.catalogue import build_catalogue
from trec_semid.search.exact import CatalogueScores
from trec_semid.tokenizers.inputs.contents import Standardised

NUM_ITEMS, DIM, SIZES, MAX_LEN = 9, 8, (3, 3), 6
FEATURES = ItemFeatures((Feature("item_id", "item", "t_item_id", NUM_ITEMS),), Sources({}, None))
STILL = TransformerConfig(num_layers=1, num_heads=2, dropout=0.0, init_std=0.3)
MODELS = {
    "sasrec": SasrecConfig(transformer=STILL, dropout=0.0),
    "rpg": RpgConfig(transformer=STILL, dropout=0.0),
    "heterrec": HeterrecConfig(tokens=STILL, items=STILL, dropout=0.0),
}
ALONE = Ranks(0, 1, 0, torch.device("cpu"))
ROWS = [[0, 1, 2, 3], [4, 5], [6, 7, 8, 1, 0], [2, 2, 3]]


def codes() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(2).integers(0, 4, (NUM_ITEMS, 2)), dtype=torch.int16)


def mean(vectors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(vectors).sum(0) / len(vectors)


def build(kind: str, **loss) -> NextItemModel:
    torch.manual_seed(0)
    spec = TableSpec("t_item_id", NUM_ITEMS, ("item_id",))
    sparse = PooledTables([spec], TablesConfig(dim=DIM), ["item_id"])
    tables = CodeTables([CodeTable(f"t_code_{r}", size + 1) for r, size in enumerate(SIZES)], DIM)
    items = ItemTokens(
        sparse, {"text": 5}, LiveCodes(tables, codes()), DIM, content_std=0.02, content_is_unit=True
    )
    frame = Frame(DIM, MAX_LEN, LossConfig(**{"code_weight": 1.0, **loss}), predicts_codes=True)
    model = retriever_of(MODELS[kind]).build(items, frame)
    assert isinstance(model, NextItemModel)
    return model


def content() -> Standardised:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_ITEMS, 5, generator=generator)
    present = torch.ones(NUM_ITEMS, 1, dtype=torch.bool)
    present[4] = False
    return Standardised(x, present)


def listed_of(rows: torch.Tensor) -> Listed:
    x, present = content()
    features = FEATURES.of(rows.numpy())
    return Listed(rows, keyed_jagged(*features), Standardised(x[rows], present[rows]))


def batch_of(*, lists_all: bool, num_targets: int = 1, sampled=None):
    lengths = np.array([len(row) for row in ROWS])
    windows = Ragged(np.cumsum(lengths) - lengths, lengths, np.concatenate(ROWS))
    maker = SequenceMaker(
        windows,
        FEATURES,
        Window(num_targets, False),
        listed=np.arange(NUM_ITEMS) if lists_all else None,
        sampled=sampled,
    )
    rows = np.arange(len(ROWS))
    return maker.make(rows, maker.num_places(rows), np.random.default_rng(0))


def tokens_by_hand(model: NextItemModel) -> torch.Tensor:
    """(N, F, D): ID, content, codes."""
    weights = dict(model.named_parameters())
    ids = weights["items.sparse.tables.embedding_bags.t_item_id.weight"]
    x, present = content()
    unit = x / math.sqrt(x.shape[1])
    mapped = unit @ weights["items.content.maps.0.weight"].T + weights["items.content.maps.0.bias"]
    text = torch.where(present, mapped, weights["items.content.absent"][0])
    rows = [
        weights[f"items.live.tables.rows.tables.embedding_bags.t_code_{r}.weight"][codes()[:, r].long()]
        for r in range(2)
    ]
    return torch.stack([ids, text, *rows], dim=1)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("lists_all", "is_cosine"), [(True, False), (False, False), (True, True)])
def test_losses_are_those_of_all_items_and_of_every_code_position(kind, lists_all, is_cosine):
    config = {"item_temperature": 0.5, "code_temperature": 0.2, "item_similarity_is_cosine": is_cosine}
    model = build(kind, **config).requires_grad_(False)
    batch = batch_of(lists_all=lists_all, num_targets=2)
    losses, _ = model(listed_of(batch.items), batch.places)
    tokens = tokens_by_hand(model)
    vectors = tokens.sum(1)[batch.items]
    at = 0
    for row in ROWS:
        # One history at a time, without anything that fills up: padding changes nothing.
        states = model.sequences(tokens[torch.tensor([row[:-1]])])[0]
        for place, state in enumerate(states):
            wanted = row[place + 1 : place + 3]
            scores = 2.0 * (cosine_similarity(vectors, state[None]) if is_cosine else vectors @ state)
            of_items = [cross_entropy(scores, (batch.items == item).nonzero()[0, 0]) for item in wanted]
            assert losses["items"][at].item() == pytest.approx(float(sum(of_items)) / len(wanted), rel=1e-4)
            queries = model.heads(state[None])[:, 0]
            of_codes = []
            for item in wanted:
                for r in range(2):
                    table = dict(model.named_parameters())[
                        f"items.live.tables.rows.tables.embedding_bags.t_code_{r}.weight"
                    ]
                    scores = 5.0 * normalize(table, dim=-1) @ queries[r]
                    of_codes.append(cross_entropy(scores, codes()[item, r].long()))
            assert losses["codes"][at].item() == pytest.approx(float(sum(of_codes)) / len(of_codes), rel=1e-4)
            at += 1
    assert at == len(losses["items"]) == batch.global_size


@pytest.mark.parametrize("kind", MODELS)
def test_a_state_does_not_read_what_comes_after_it(kind):
    model = build(kind).eval()
    tokens = tokens_by_hand(model)
    whole = model.sequences(tokens[torch.tensor([[1, 2, 3, 4, 5]])])
    part = model.sequences(tokens[torch.tensor([[1, 2, 3, 8, 8]])])
    torch.testing.assert_close(whole[:, :3], part[:, :3])
    assert not torch.allclose(whole[:, 4], part[:, 4])


def test_heterrec_tokens_see_their_own_item_whole():
    model = build("heterrec").eval()
    tokens = tokens_by_hand(model)
    other = tokens.clone()
    other[3, -1] += torch.randn(DIM)  # the last token of item 3 alone
    states = [model.sequences(each[torch.tensor([[1, 3, 2]])]) for each in (tokens, other)]
    torch.testing.assert_close(states[0][:, 0], states[1][:, 0])
    assert not torch.allclose(states[0][:, 1], states[1][:, 1])


def test_heterrec_sums_what_it_reads_and_averages_what_tokens_add():
    model = build("heterrec").eval().sequences
    tokens, inputs = torch.randn(NUM_ITEMS, 4, DIM), torch.tensor([[1, 3, 2], [4, 4, 8]])
    expected = []
    for row in inputs.tolist():
        read = [
            math.sqrt(DIM) * tokens[i, j] + model.types[j] + model.places.weight[t]
            for t, i in enumerate(row)
            for j in range(4)
        ]
        block = torch.arange(12) // 4
        added = model.over_tokens(torch.stack(read)[None], block[:, None] >= block)[0] - torch.stack(read)
        items = [sum(read[4 * t : 4 * t + 4]) + sum(added[4 * t : 4 * t + 4]) / 4 for t in range(3)]
        expected.append(model.over_items(torch.stack(items)[None])[0])
    torch.testing.assert_close(model(tokens[inputs]), torch.stack(expected))


@pytest.mark.parametrize(("kind", "scale", "pool"), [("sasrec", math.sqrt(DIM), sum), ("rpg", 1.0, mean)])
def test_the_item_transformers_read_an_items_tokens_in_one(kind, scale, pool):
    model = build(kind).eval().sequences
    tokens, inputs = torch.randn(NUM_ITEMS, 4, DIM), torch.tensor([[1, 3, 2], [4, 4, 8]])
    expected = []
    for row in inputs.tolist():
        read = [scale * pool(list(tokens[i])) + model.places.weight[t] for t, i in enumerate(row)]
        expected.append(model.transformer(torch.stack(read)[None])[0])
    torch.testing.assert_close(model(tokens[inputs]), torch.stack(expected))


@pytest.mark.parametrize("kind", MODELS)
def test_read_by_length_or_all_at_once_states_and_gradients_are_the_same(kind):
    model = build(kind).eval()
    histories = [[1], [4, 2, 3], [], [5, 5], [0, 1, 2, 3, 4, 6], [7, 8, 7, 0]]
    lengths = np.array([len(row) for row in histories])
    rows = Ragged(np.cumsum(lengths) - lengths, lengths, np.concatenate(histories).astype(np.int64))
    batch = history_batch(rows, np.arange(len(histories)), FEATURES, len(histories))
    assert len(batch.places.stretches) > 2
    found = []
    for is_split in (True, False):
        vectors = tokens_by_hand(model).detach()[batch.items].requires_grad_()
        if is_split:
            states = model.states(Tokens.of([vectors], None), batch.places)
        else:
            states = model.sequences(vectors[batch.places.inputs]).flatten(0, 1)[batch.places.predicting]
        weights = list(model.sequences.parameters())
        found.append([states, *torch.autograd.grad(states.square().sum(), [vectors, *weights])])
    for split, whole in zip(*found, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-4)


def test_as_a_target_an_item_teaches_the_rows_of_its_codes_and_not_their_choice():
    tables = torch.randn(3, 6, 4, requires_grad=True)
    chosen = torch.tensor([[0, 5, 2], [1, 1, 4]])
    soft = torch.randn(2, 3, 4, requires_grad=True)
    vectors = pick_codewords(tables, chosen) + soft - soft.detach()
    others = torch.randn(2, 2, 4, requires_grad=True)
    tokens = Tokens.of([others], ChosenCodes(vectors, chosen, tables, {"text": torch.zeros(2)}))
    for total in (tokens.total, tokens.at(torch.arange(2)).sum(1)):
        torch.testing.assert_close(tokens.as_targets(), total)
    tokens.as_targets().square().sum().backward(inputs=[tables, soft, others])
    assert soft.grad is None or not soft.grad.any()
    assert tables.grad is not None
    taught = tables.grad.any(2).nonzero().tolist()
    assert taught == [[0, 0], [0, 1], [1, 1], [1, 5], [2, 2], [2, 4]]
    assert others.grad is not None
    assert others.grad.any()


def test_a_target_s_choice_of_codes_has_a_gradient_where_that_is_asked_for():
    tables, chosen = torch.randn(3, 6, 4), torch.tensor([[0, 5, 2], [1, 1, 4]])
    soft = torch.randn(2, 3, 4, requires_grad=True)
    codes = ChosenCodes(pick_codewords(tables, chosen) + soft - soft.detach(), chosen, tables, {}, True)
    tokens = Tokens.of([torch.randn(2, 2, 4)], codes)
    (tokens.as_targets() * torch.arange(8.0).view(2, 4)).sum().backward()
    assert soft.grad is not None
    assert soft.grad.tolist() == torch.arange(8.0).view(2, 1, 4).expand(2, 3, 4).tolist()


@pytest.mark.parametrize(
    ("item_weight", "code_weight", "code_share", "is_cosine"),
    [(1, 1, 0.5, False), (1, 0, 1, False), (0, 1, 1, False), (1, 1, 0.5, True)],
)
def test_scores_of_the_catalogue_are_logits_and_log_probabilities(
    item_weight, code_weight, code_share, is_cosine
):
    loss = {"item_weight": item_weight, "code_weight": code_weight, "code_share": code_share}
    model = build("sasrec", **loss, item_similarity_is_cosine=is_cosine, item_temperature=0.25).eval()
    if not code_weight:
        model.heads = None
    with torch.no_grad():
        catalogue = build_catalogue(model, lambda a, b: listed_of(torch.arange(a, b)), NUM_ITEMS, ALONE)
        states = torch.randn(3, DIM, generator=torch.Generator().manual_seed(4))
        scores = CatalogueScores(catalogue, model.queries_of(states, catalogue.code_tables))
        found = torch.cat([scores.of(slice(0, 4)), scores.of(slice(4, 9))], dim=1)
        expected = torch.zeros(3, NUM_ITEMS)
        if item_weight:
            vectors = tokens_by_hand(model).sum(1)
            products = states @ vectors.T
            lengths = states.norm(dim=1)[:, None] * vectors.norm(dim=1) if is_cosine else 1.0
            expected += products / lengths / 0.25
        if model.heads is not None:
            log_probs = model.heads.log_probs(states, catalogue.code_tables)
            share = code_share if item_weight else 1.0
            for r in range(2):
                expected += share * log_probs[:, r, codes()[:, r].long()]
    torch.testing.assert_close(found, expected)


def test_sampled_losses_average_to_the_loss_over_all_items():
    model = build("sasrec", code_weight=0.0).eval()
    model.heads = None
    exact = model(listed_of(torch.arange(NUM_ITEMS)), batch_of(lists_all=True).places)[0]["items"]
    # Many draws with logQ stand for the whole catalogue, however unevenly they are drawn.
    drawn = sampled_by_popularity(np.arange(NUM_ITEMS) ** 2, 60_000, 1.0)
    batch = batch_of(lists_all=False, sampled=drawn)
    sampled = model(listed_of(batch.items), batch.places)[0]["items"]
    torch.testing.assert_close(sampled, exact, rtol=0.05, atol=0.02)


def test_parts_of_ranks_add_up_to_the_mean_over_the_global_batch():
    model = RetrieverWithLoss(build("sasrec", item_weight=2.0, code_weight=3.0).eval(), world_size=4)
    batch = batch_of(lists_all=True)
    output = model(listed_of(batch.items), batch.places, 40)
    losses, _ = model.retriever(listed_of(batch.items), batch.places)
    expected = 4 / 40 * (2.0 * losses["items"].sum() + 3.0 * losses["codes"].sum())
    assert output.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("num_targets", [1, 3])
def test_anchors_are_a_mean_over_places_of_a_mean_over_their_targets(num_targets):
    model = RetrieverWithLoss(build("sasrec").eval(), world_size=2, anchor_weights={"text": 0.5})
    batch = batch_of(lists_all=False, num_targets=num_targets)
    listed = listed_of(batch.items)
    losses, tokens = model.retriever(listed, batch.places)
    errors = torch.rand(len(batch.items))
    model.retriever.forward = lambda *_: (losses, tokens._replace(errors={"text": errors}))
    anchor = sum(mean([errors[t] for t in row if t >= 0]) for row in batch.places.targets.tolist())
    plain = losses["items"].sum() + losses["codes"].sum()
    found = model(listed, batch.places, 40).loss
    torch.testing.assert_close(found, 2 / 40 * (plain + 0.5 * anchor))
