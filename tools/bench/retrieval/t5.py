"""The peer: Hugging Face's T5 over codes, as TIGER has it, of the same width and depth.

Token 0 fills up and starts a decoder, token 1 + r * (K + 1) + c is code c of position r. The encoder reads
the codes of a history, the decoder says those of the next item. These benchmarks have a folder of their own
because `transformers` imports `tokenizers`, which a script beside `tools/bench/tokenizers.py` would take for
that one.
"""

import argparse
import importlib.util
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from contest import evaluating
from given import Given
from torch import Tensor
from torch.nn.functional import log_softmax

from trec_semid.data.retrieval.batches import SequenceBatch
from trec_semid.models.heads.beams import Beams, NextLogProbs

MISSING = "T5: not installed (pip install 'transformers>=5')"


def is_installed() -> bool:
    """Return whether the peer can be imported."""
    return importlib.util.find_spec("transformers") is not None


class T5:
    """A `T5ForConditionalGeneration` with random weights: a step or a search takes as long with any."""

    def __init__(self, given: Given) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        options = given.options
        self._stride, self._num_positions = options.codebook + 1, options.positions
        firsts = 1 + self._stride * np.arange(options.positions)
        self._tokens = torch.from_numpy(given.codes.astype(np.int64) + firsts)
        torch.manual_seed(0)
        self.model: Any = T5ForConditionalGeneration(_config(T5Config, options))
        self._optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self._allowed = _by_prefix(self._tokens)

    def read(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Return what the encoder reads of a batch's histories."""
        rows, lengths = batch.items[batch.places.inputs], batch.places.lengths
        present = torch.arange(rows.shape[1]) < lengths[:, None]
        tokens = self._tokens[rows].masked_fill(~present.unsqueeze(2), 0)
        mask = present.unsqueeze(2).expand_as(tokens)
        return {"input_ids": tokens.flatten(1), "attention_mask": mask.flatten(1).long()}

    def train(self, batch: SequenceBatch) -> None:
        """Train on a batch whose rows predict one item each."""
        self.model.train()
        labels = self._tokens[batch.items[batch.places.targets[:, 0]]]
        loss = self.model(**self.read(batch), labels=labels).loss
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        loss.item()

    def generate(self, batch: SequenceBatch, width: int, *, is_held: bool = True) -> Tensor:
        """Return (B, width, R) codes, held to tuples that exist or not."""
        found = evaluating(self.model).generate(
            **self.read(batch),
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            min_new_tokens=self._num_positions,
            max_new_tokens=self._num_positions,
            prefix_allowed_tokens_fn=self._allowed_after if is_held else None,
        )
        tokens = found[:, 1:].view(len(batch.rows), width, -1) - 1
        return tokens - self._stride * torch.arange(self._num_positions)

    def _allowed_after(self, batch_id: int, said: Tensor) -> list[int]:
        return self._allowed[tuple(said.tolist())]

    def next_log_probs(self, batch: SequenceBatch) -> NextLogProbs:
        """Return what our beam search asks, from this very model without a cache: slow, and independent."""
        model = evaluating(self.model)
        read = self.read(batch)
        memory = model.encoder(**read).last_hidden_state

        def ask(position: int, beams: Beams) -> Tensor:
            width = beams.scores.shape[1]
            firsts = 1 + self._stride * torch.arange(position)
            said = torch.nn.functional.pad((beams.codes + firsts).flatten(0, 1), (1, 0))
            logits = model(
                encoder_outputs=(memory.repeat_interleave(width, 0),),
                attention_mask=read["attention_mask"].repeat_interleave(width, 0),
                decoder_input_ids=said,
            ).logits[:, -1]
            first = 1 + self._stride * position
            own = log_softmax(logits, -1)[:, first : first + self._stride]
            return own.view(-1, width, self._stride)

        return ask


def _config(kind: Any, options: argparse.Namespace) -> Any:
    """Return half of the blocks in the encoder and half in the decoder."""
    return kind(
        vocab_size=1 + options.positions * (options.codebook + 1),
        d_model=options.dim,
        d_kv=options.dim // options.heads,
        d_ff=4 * options.dim,
        num_layers=options.blocks // 2,
        num_decoder_layers=options.blocks // 2,
        num_heads=options.heads,
        dropout_rate=0.2,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=0,
    )


def _by_prefix(tokens: Tensor) -> dict[tuple[int, ...], list[int]]:
    """Return which tokens may follow what has been said, the start included: a trie as a dictionary."""
    following: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for row in tokens.tolist():
        for place, token in enumerate(row):
            following[(0, *row[:place])].add(token)
    return {said: sorted(after) for said, after in following.items()}
