import math

import torch

from trec_semid.models.content_mixture import MixedContent, MixtureSizes
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.live_codes import ChosenCodes
from trec_semid.tokenizers.inputs.contents import Standardised

SIZES = MixtureSizes(num_experts=3, hidden_dim=5)


def test_an_item_is_the_gated_sum_of_experts_over_its_content():
    torch.manual_seed(0)
    content = MixedContent({"text": 4, "image": 6}, 8, 0.02, SIZES)
    for weight in content.parameters():
        torch.nn.init.normal_(weight)
    contents = Standardised(torch.randn(7, 10), torch.rand(7, 2) > 0.3)
    tokens = content(contents)
    for item in range(7):
        for m, x in enumerate(contents.x[item].split([4, 6])):
            experts, gate, scaled = content.experts[m], content.gates[m], x / math.sqrt(len(x))
            shares = torch.softmax(gate.weight @ scaled + gate.bias, dim=0)
            total = torch.zeros(8)
            for e in range(3):
                hidden = torch.relu(scaled @ experts.weight[e] + experts.bias[e])
                total = total + shares[e] * (hidden @ experts.last_weight[e] + experts.last_bias[e])
            expected = total if contents.modalities[item, m] else content.absent[m]
            torch.testing.assert_close(tokens[item, m], expected)


def test_it_starts_as_rows_of_tables_do():
    torch.manual_seed(0)
    content = MixedContent({"text": 300}, 64, 0.02, MixtureSizes(num_experts=4, hidden_dim=128))
    tokens = content(Standardised(torch.randn(500, 300), torch.ones(500, 1, dtype=torch.bool)))
    assert 0.015 < tokens.std() < 0.025


def test_codes_that_are_not_read_are_no_tokens_but_stay_targets():
    codes, tables = torch.tensor([[0, 1], [2, 0]]), torch.randn(2, 3, 4)
    parts = [torch.randn(2, 1, 4)]
    read, unread = (
        Tokens.of(parts, ChosenCodes(None, codes, tables, {}), reads_codes=reads) for reads in (True, False)
    )
    assert (read.num_tokens, unread.num_tokens) == (3, 1)
    assert torch.equal(unread.total, parts[0][:, 0])
    assert torch.equal(unread.as_targets(), parts[0][:, 0])
    assert torch.equal(unread.at(torch.tensor([1])), parts[0][1:])
    assert unread.codes is codes
    assert read.at(torch.tensor([1])).shape == (1, 3, 4)
