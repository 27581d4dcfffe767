"""Attention whose heads are given, against a loop over places and questions."""

import torch

from trec_semid.layers.attention import block_causal_mask
from trec_semid.layers.interests.pooled_history import PooledHistory


def test_a_question_is_answered_by_a_mean_of_what_was_read_up_to_its_place():
    torch.manual_seed(0)
    layer = PooledHistory(4, 6, max_len=5).double()
    memory, asked = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 2, 6).double()
    answered = layer(asked, memory, block_causal_mask(3, 1))
    for row in range(2):
        for t in range(3):
            read = memory[row, : t + 1]
            keys = torch.tanh((read + layer.places[: t + 1]) @ layer.hidden.weight.T + layer.hidden.bias)
            for n in range(2):
                shares = torch.softmax(keys @ asked[row, t, n], 0)
                torch.testing.assert_close(answered[row, t, n], shares @ read)
    alone = layer(asked[:, 1:2], memory, block_causal_mask(3, 1)[1:2].expand(2, 1, 3))
    torch.testing.assert_close(alone, answered[:, 1:2])
