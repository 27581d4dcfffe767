import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.jobs.ranking import rank_config, write_problem
from trec_semid.data.ranking.source import Asked
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.runtime.ranks import process_group
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.training.ranking.predict import evaluate, predict
from trec_semid.training.ranking.setup import build_model, read_inputs


@pytest.fixture
def setting(tmp_path):
    config = rank_config(write_problem(str(tmp_path)), "unused", model={"dropout": 0.5})
    inputs = read_inputs(config)
    model = build_model(config, inputs.data.features, world_size=1)
    model.ranker.sparse.tables.to_empty(device="cpu")
    initialise_tables(model, std=1.0, seed=0)
    return model, inputs.data


def test_scores_are_probabilities_without_dropout_whatever_the_batch_size(setting):
    model, data = setting
    with process_group() as ranks:
        whole = list(predict(model, data.evaluation("valid", "online", Asked(1000)), ranks))
        pieces = list(predict(model, data.evaluation("valid", "online", Asked(7)), ranks))
    batch = data.maker_of(data.rows("valid", "online")).make(np.arange(189), 189)
    expected = torch.sigmoid(model.ranker(keyed_jagged(*batch.features))).detach().numpy()
    np.testing.assert_allclose(whole[0].scores, expected, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([piece.scores for piece in pieces]), expected, rtol=1e-5)
    assert np.concatenate([piece.rows for piece in pieces]).tolist() == list(range(189))


def test_metrics_are_those_of_the_scores(setting):
    model, data = setting
    with process_group() as ranks:
        (scored,) = predict(model, data.evaluation("valid", "online", Asked(1000)), ranks)
        metrics, counts = evaluate(model, data.evaluation("valid", "online", Asked(50)), ranks)
    labels = data.rows("valid", "online").labels
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, scored.scores))
    assert counts["rows"] == 189
