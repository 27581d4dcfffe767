import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import ConfigError
from trec_semid.tokenizers.inputs.contents import Contents
from trec_semid.tokenizers.mmq import Mmq, MmqConfig, MmqFitConfig

NUM_ITEMS, SIZE = 300, 8
QUICK = MmqFitConfig(epochs=8, batch_size=64)
SMALL = MmqConfig(codebook_size=SIZE, latent_dim=12, decoder_widths=(32,), fit=QUICK)
PLANTED = plant(NUM_ITEMS, 8, missing=0.25, noise=0.3).catalogue


def build(**changes: object) -> Mmq:
    torch.manual_seed(0)
    return Mmq(SMALL.model_copy(update=changes), DIMS)


def fitted(**changes: object) -> Mmq:
    mmq = build(**changes)
    for _ in mmq.fit(PLANTED, np.arange(NUM_ITEMS), 0):
        pass
    return mmq


@pytest.fixture(scope="module", params=["euclidean", "cosine"])
def learned(request: pytest.FixtureRequest) -> Mmq:
    return fitted(similarity=request.param, expert_hidden_dim=6 if request.param == "cosine" else None)


def by_hand(mmq: Mmq, contents: Contents, row: int) -> tuple[list[int], float, float]:
    """Follow the class's equations for one item; return its codes, its error, and what it is drawn by."""
    s, present = mmq.standardiser, dict(zip(DIMS, contents.present[row].tolist(), strict=True))
    e = torch.cat([normalize(part[row], dim=0) for part in contents.vectors])
    known = torch.cat([torch.full((dim,), present[name]) for name, dim in DIMS.items()])
    x = torch.where(known, (e - s.mean) / s.std, 0.0)
    parts = {"shared": x, **dict(zip(DIMS, x.split(list(DIMS.values())), strict=True))}
    left, f, pulled, codes, met = torch.zeros(12), torch.zeros(12), 0.0, list[int](), dict[str, int]()
    for position, read in enumerate(mmq.reads):
        number, part = met.get(read, 0), parts[read]
        met[read] = number + 1
        if not present.get(read, True):
            codes.append(SIZE)
            continue
        group = mmq._groups.index(read)
        first = mmq.experts[group]
        z = part / len(part) ** 0.5 @ first.weight[number] + first.bias[number]
        if mmq.mmq_config.expert_hidden_dim:
            second = mmq.second[group]
            hidden = torch.relu(part / len(part) ** 0.5 @ second.weight[number] + second.bias[number])
            z = z + hidden @ second.last_weight[number] + second.last_bias[number]
        left = left + z
        book = mmq.codebooks[position]
        if mmq.similarity == "cosine":
            code = int(torch.cosine_similarity(left.unsqueeze(0), book).argmax())
        else:
            code = int((left - book).square().sum(1).argmin())
        codes.append(code)
        left, f = left - book[code], f + book[code]
        pulled += float(left.square().sum()) / float(mmq.unit)
    guess = mmq.linear(f) + mmq.decoder(f * (12 / mmq.unit) ** 0.5)
    return codes, float(((x - guess) * s.std)[known].square().sum()), pulled


@torch.no_grad()
def test_codes_and_losses_equal_the_equations_worked_out_item_by_item(learned: Mmq):
    contents = PLANTED.batch(np.arange(40))
    assert not contents.present.all()
    objective = learned.objective(contents, quantized=True)
    items = [by_hand(learned, contents, row) for row in range(40)]
    assert objective.codes.tolist() == [codes for codes, _, _ in items]
    assert learned.encode(contents).tolist() == objective.codes.tolist()
    for place, name in ((1, "reconstruction"), (2, "quantization")):
        assert float(objective.terms[name]) == pytest.approx(sum(item[place] for item in items), rel=1e-4)
    weighted = objective.terms["reconstruction"] + 0.1 * objective.terms["quantization"]
    torch.testing.assert_close(objective.items, weighted)


def test_gradients_pass_straight_through_the_sum_and_none_reaches_a_codeword(learned: Mmq):
    contents = PLANTED.batch(np.arange(50))
    learned.zero_grad()
    learned.objective(contents, quantized=True).items.backward()
    weights = [p for name, p in learned.named_parameters() if name != "codebooks"]
    found = [weight.grad for weight in weights]
    assert learned.codebooks.grad is None
    x, present = learned.standardiser(contents), learned.at_positions(contents.present)
    z = learned._experts(x, contents.present)
    chosen = torch.stack(
        [
            b[c.clamp(max=SIZE - 1)]
            for b, c in zip(learned.codebooks.detach(), learned.encode(contents).T, strict=True)
        ],
        1,
    )
    chosen = chosen * present.unsqueeze(2)
    f = z.sum(1) + (chosen.sum(1) - z.sum(1)).detach()
    loss = learned.standardiser.errors(x, learned._decode(f), contents.present).sum()
    carried = (z - chosen).cumsum(1)  # u_r - q_r: all experts so far, less all codewords so far
    loss = loss + 0.1 * (carried.square().sum(2) * present).sum() / learned.unit
    for one, other in zip(found, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_it_starts_from_principal_directions_and_clusters_of_what_is_left():
    mmq = build(latent_dim=5, fit=QUICK.model_copy(update={"learning_rate": 1e-12, "epochs": 1}), decay=0.999)
    list(mmq.fit(PLANTED, np.arange(NUM_ITEMS), 0))
    mmq.requires_grad_(False)
    contents = PLANTED.batch(np.arange(NUM_ITEMS))
    e = (mmq.standardiser(contents) * mmq.standardiser.std).double()
    singular = torch.linalg.svdvals(e)
    # What five principal directions leave is the rest of the singular values, Eckart and Young.
    everything = torch.ones_like(contents.present)
    x = mmq.standardiser(contents)
    left = mmq.standardiser.errors(x, mmq._decode(mmq._experts(x, everything).sum(1)), everything).sum()
    assert float(left) == pytest.approx(float(singular[5:].square().sum()), rel=1e-3)
    views, codes = mmq.view(contents), mmq.encode(contents)
    for r, book in enumerate(mmq.codebooks[:2]):
        for code in codes[:, r].unique():
            members = views.latents[codes[:, r] == code, r]
            torch.testing.assert_close(members.mean(0), book[code], atol=0.02, rtol=0.1)


def test_codewords_that_remember_nothing_are_the_means_of_a_step():
    still = QUICK.model_copy(update={"learning_rate": 1e-12, "epochs": 1, "batch_size": NUM_ITEMS})
    mmq, before = build(fit=still, decay=1e-9), list[Tensor]()
    objective = mmq.objective

    def remembered(*args: object, **kwargs: object) -> object:
        before.append(mmq.codebooks.detach().clone())
        return objective(*args, **kwargs)

    mmq.objective = remembered
    list(mmq.fit(PLANTED, np.arange(NUM_ITEMS), 0))
    contents, after = PLANTED.batch(np.arange(NUM_ITEMS)), mmq.codebooks.detach().clone()
    with torch.no_grad():
        mmq.codebooks.copy_(before[0])
        views, codes = mmq.view(contents), mmq.encode(contents)
    for r in range(codes.shape[1]):
        for code in codes[:, r][codes[:, r] < SIZE].unique():
            members = views.latents[codes[:, r] == code, r].detach()
            torch.testing.assert_close(after[r, code], members.mean(0), atol=1e-4, rtol=1e-3)


def test_fitting_rebuilds_better_than_its_start_and_codes_alone_say_everything(learned: Mmq):
    start = fitted(
        similarity=learned.similarity, fit=QUICK.model_copy(update={"epochs": 1, "learning_rate": 1e-12})
    )
    contents, others = PLANTED.batch(np.arange(NUM_ITEMS)), PLANTED.batch(np.arange(NUM_ITEMS)[::-1].copy())
    codes = learned.encode(contents)
    assert torch.equal(learned.reconstruct(contents, codes), learned.reconstruct(others, codes))

    def error(mmq: Mmq) -> float:
        x, rebuilt = mmq.standardiser(contents), mmq.reconstruct(contents, mmq.encode(contents))
        return float(mmq.standardiser.errors(x, rebuilt, contents.present).sum())

    assert error(learned) < 0.99 * error(start)


def test_temperatures_are_in_the_spread_of_each_position(learned: Mmq):
    if learned.similarity == "cosine":
        assert learned.temperatures(0.5).tolist() == [0.5] * 6
        return
    with torch.no_grad():
        views = learned.view(PLANTED.batch(np.arange(NUM_ITEMS)))
    for r, temperature in enumerate(learned.temperatures().tolist()):
        own = views.latents[views.present[:, r], r]
        assert temperature == pytest.approx(0.1 * float(own.var(0, correction=0).sum()), rel=0.05)


def test_positions_are_read_in_the_order_that_is_asked_for():
    assert build().position_names == ("shared_0", "shared_1", "text_0", "vision_0", "text_1", "vision_1")
    mmq = build(positions=("shared", "vision", "shared", "text", "vision"))
    assert mmq.position_names == ("shared_0", "vision_0", "shared_1", "text_0", "vision_1")
    assert mmq.stages == ((0,), (1,), (2,), (3,), (4,))
    present = torch.tensor([[True, False], [False, True]])
    assert mmq.at_positions(present).int().tolist() == [[1, 0, 1, 1, 0], [1, 1, 1, 0, 1]]


@pytest.mark.parametrize(
    ("positions", "problem"),
    [
        (("text", "shared"), "the first is 'text': it has to be 'shared'"),
        (
            ("shared", "txt"),
            r"positions: no 'txt'; did you mean 'text'\?.* There are: shared, each, text, vision",
        ),
        ((), "the first is nothing"),
    ],
)
def test_positions_that_cannot_be_are_refused(positions: tuple[str, ...], problem: str):
    with pytest.raises(ConfigError, match=problem):
        build(positions=positions)
