import pytest
import torch

from trec_semid.core.errors import ConfigError
from trec_semid.layers.attention import TransformerConfig
from trec_semid.layers.decoder import Decoder

CONFIG = TransformerConfig(num_layers=2, num_heads=2, dropout=0.0, init_std=0.3)


def made() -> tuple[Decoder, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    present = torch.tensor([[True] * 5, [True, True, False, False, False], [True] * 4 + [False]])
    return Decoder(8, CONFIG).eval(), torch.randn(3, 5, 8), present


def test_steps_with_a_cache_equal_teacher_forcing():
    decoder, memory, present = made()
    read, x = decoder.read(memory, present), torch.randn(3, 4, 8)
    whole, cache, steps = decoder(x, read), None, []
    for place in range(4):
        out, cache = decoder.step(x[:, place : place + 1], read, cache)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_beams_that_go_on_from_parents_equal_their_own_prefixes_from_the_start():
    decoder, memory, present = made()
    read = decoder.read(memory, present)
    first, second = torch.randn(3, 2, 8), torch.randn(3, 3, 8)
    parents = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1]])
    _, cache = decoder.step(first, read, None)
    found, _ = decoder.step(second, read, cache.of_parents(parents))
    for row in range(3):
        for beam in range(3):
            prefix = torch.stack([first[row, parents[row, beam]], second[row, beam]])[None]
            one = decoder.read(memory[row : row + 1], present[row : row + 1])
            torch.testing.assert_close(found[row, beam], decoder(prefix, one)[0, -1])


def test_absent_memory_is_not_read():
    decoder, memory, present = made()
    x = torch.randn(3, 2, 8)
    other = torch.where(present.unsqueeze(2), memory, 7.0)
    torch.testing.assert_close(
        decoder(x, decoder.read(other, present)), decoder(x, decoder.read(memory, present))
    )


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"3 heads do not divide width 8"):
        Decoder(8, TransformerConfig(num_heads=3))
