import hashlib
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.paths import join, list_folder
from trec_semid.data.encoders.cache import (
    VectorCache,
    folder_checksum,
    identity_of,
    keys_of,
    open_cache,
)
from trec_semid.runtime.logs import working


class Encoder:
    """Says a vector of each input that only its content decides, and counts."""

    def __init__(self, fail_on=None):
        self.seen, self.fail_on = [], fail_on

    def __call__(self, inputs):
        if self.fail_on in inputs:
            raise KeyboardInterrupt
        self.seen += inputs
        return np.stack([vector_of(content) for content in inputs])


def vector_of(content):
    return np.frombuffer(hashlib.blake2b(content).digest()[:12], np.uint8).astype(np.float32)


def ask(cache, inputs, encoder):
    with working("encoding", len(inputs)) as work:
        vectors = cache.vectors_of(inputs, encoder, work)
    np.testing.assert_array_equal(vectors, np.stack([vector_of(content) for content in inputs]))
    return vectors


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=2), min_size=1, max_size=12), min_size=1, max_size=5))
def test_any_order_and_overlap_of_requests_gives_what_encoding_gives(requests):
    uri = f"memory://cache-{hashlib.sha256(repr(requests).encode()).hexdigest()}"
    encoder = Encoder()
    for inputs in requests:
        ask(VectorCache(uri), inputs, encoder)
    assert sorted(encoder.seen) == sorted({content for inputs in requests for content in inputs})


def test_equal_inputs_of_a_request_are_encoded_once(tmp_path):
    encoder = Encoder()
    ask(VectorCache(str(tmp_path)), [b"a", b"b", b"a", b"a"], encoder)
    assert sorted(encoder.seen) == [b"a", b"b"]


def test_an_interrupted_encode_goes_on_after_its_last_part(tmp_path):
    uri = str(tmp_path)
    cache = VectorCache(uri)
    first = Encoder(fail_on=b"e")
    ask(cache, [b"a", b"b"], first)
    with pytest.raises(KeyboardInterrupt):
        ask(cache, [b"d", b"e"], first)
    second = Encoder()
    again = VectorCache(uri)
    assert len(again) == 2
    ask(again, [b"a", b"b"], second)
    ask(again, [b"d", b"e"], second)
    assert sorted(second.seen) == [b"d", b"e"]
    assert [name for name in list_folder(uri) if not name.endswith(".part")] == []


def test_one_known_among_new_inputs_keeps_its_place(tmp_path):
    ask(VectorCache(str(tmp_path)), [b"x", b"y", b"z"], Encoder())
    encoder = Encoder()
    ask(VectorCache(str(tmp_path)), [b"n", b"z", b"m", b"x", b"n"], encoder)
    assert sorted(encoder.seen) == [b"m", b"n"]


@pytest.mark.parametrize("cut", [10, 150, -4])
def test_a_damaged_part_is_told_and_encoded_again(tmp_path, caplog, monkeypatch, cut):
    monkeypatch.setattr(logging.getLogger("trec_semid"), "propagate", True)
    ask(VectorCache(str(tmp_path)), [b"x", b"y"], Encoder())
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:cut])
    encoder = Encoder()
    cache = VectorCache(str(tmp_path))
    assert "is damaged" in caplog.text
    ask(cache, [b"x", b"y"], encoder)
    assert sorted(encoder.seen) == [b"x", b"y"]
    assert len(VectorCache(str(tmp_path))) == 2


def test_inputs_whose_half_keys_meet_are_told_apart(tmp_path):
    cache = VectorCache(str(tmp_path))
    ask(cache, [b"x"], Encoder())
    again = VectorCache(str(tmp_path))
    again._keys = again._keys.copy()
    again._keys[0, 1] ^= np.uint64(1)  # as if another input had the same first 64 bits
    encoder = Encoder()
    ask(again, [b"x"], encoder)
    assert encoder.seen == [b"x"]


def test_other_settings_or_weights_make_another_identity(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"1")
    before = folder_checksum(str(tmp_path))
    assert folder_checksum(str(tmp_path)) == before
    (tmp_path / "a" / "weights").write_bytes(b"2")
    changed = folder_checksum(str(tmp_path))
    (tmp_path / "a" / "weights").rename(tmp_path / "a" / "other")
    assert len({before, changed, folder_checksum(str(tmp_path))}) == 3
    assert identity_of(weights="1", length=8) != identity_of(weights="1", length=9)
    assert identity_of(weights="1", length=8) == identity_of(length=8, weights="1")


def test_encoders_do_not_meet_in_one_cache_and_none_leaves_nothing(tmp_path):
    uri = join(str(tmp_path), "cache")
    for identity in ("a" * 64, "b" * 64):
        encoder = Encoder()
        with open_cache(uri, identity) as cache:
            ask(cache, [b"x"], encoder)
        assert encoder.seen == [b"x"]
    with open_cache(None, "a" * 64) as cache:
        ask(cache, [b"x"], Encoder())
        scratch = cache.uri
    assert list_folder(scratch) == []
    assert list_folder(uri) == ["a" * 16, "b" * 16]


def test_keys_are_the_first_128_bits_of_sha256():
    assert keys_of([b"abc"]).tobytes() == hashlib.sha256(b"abc").digest()[:16]
