import doctest

import numpy as np
import pytest
import torch

from adapters.plain import B, C, R, T, draw, make_linear
from fedgram.adapters import ExpertsAdapter, LoraAdapter
from fedgram.adapters import experts as module
from fedgram.adapters.experts import gates
from fedgram.backbone.padding_free import Packing, showing
from fedgram.errors import ConfigurationError

M = 3


def experts(clients=C, d_in=11, d_out=7, number=M):
    shapes = {
        "A": (R, d_in),
        "B": (d_out, R),
        "As": (number - 1, R, d_in),
        "Bs": (number - 1, d_out, R),
        "R": (2 * number - 1, d_in),
    }
    return {field: draw(clients, *shape, seed=i) for i, (field, shape) in enumerate(shapes.items())}


def added(x, own, slots, renormalise=False):
    """ΔW x of one token, by a slot after the other; ``slots`` says of which expert each is."""
    As, Bs = (np.concatenate([own[f][None], own[f + "s"]]) for f in ("A", "B"))
    odds = np.exp(own["R"] @ x)
    odds /= odds.sum()
    chosen = np.argsort(-odds)[: len(As)]
    assert any(slots[p] == 0 for p in chosen)
    weights = odds / odds[chosen].sum() if renormalise else odds
    return sum(weights[p] * Bs[slots[p]] @ (As[slots[p]] @ x) for p in chosen)


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert not result.failed


def slots_of(number):
    return [0] * number + list(range(1, number))


def by_loops(x, tensors, scale, renormalise=False):
    """x: (C, n, d_in) -> s ΔW x, client after client and token after token."""
    clients = [{f: t[c].detach().numpy() for f, t in tensors.items()} for c in range(len(x))]
    slots = slots_of(len(clients[0]["As"]) + 1)
    rows = [
        [scale * added(token, own, slots, renormalise) for token in part.numpy()]
        for part, own in zip(x, clients, strict=True)
    ]
    return [torch.from_numpy(np.stack(part)) for part in rows]


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("d_in", "d_out"), [(11, 7), (7, 11), (6, 6)])
def test_every_token_has_the_experts_that_its_client_s_router_chooses(renormalise, kind, d_in, d_out):
    linear, _ = make_linear(d_in, d_out, kind)
    adapter, own = ExpertsAdapter(linear, R, 0.3, {}, renormalise), experts(d_in=d_in, d_out=d_out)
    adapter.load(own)
    x = draw(C * B, T, d_in, seed=9)
    expected = linear(x) + torch.cat(by_loops(x.reshape(C, B * T, d_in), own, 0.3, renormalise)).reshape(C * B, T, -1)
    torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-10)


def packing_of_unequal_clients():
    """Three clients of two samples each, of 1 to 5 tokens, in a batch of five columns."""
    lengths = torch.tensor([5, 3, 1, 2, 4, 4])
    return Packing.of((torch.arange(T) < lengths[:, None]).long(), C)


def test_packed_tokens_go_to_their_own_client():
    linear, _ = make_linear()
    adapter, own = ExpertsAdapter(linear, R, 0.3, {}), experts()
    adapter.load(own)
    packing = packing_of_unequal_clients()
    assert len(set(packing.per_client)) > 1
    x = packing.pack(draw(C * B, T, 11, seed=9))
    parts = x[0].split(packing.per_client)
    single = [{f: t[c : c + 1] for f, t in own.items()} for c in range(C)]
    expected = torch.cat([by_loops(part[None], one, 0.3)[0] for part, one in zip(parts, single, strict=True)])
    with showing(packing):
        torch.testing.assert_close(adapter(x)[0], linear(x)[0] + expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_a_block_are_those_of_each_client_alone(packed):
    linear, _ = make_linear()
    packing, x = packing_of_unequal_clients(), draw(C * B, T, 11, seed=9)
    together = {f: t.requires_grad_() for f, t in experts().items()}
    adapter = ExpertsAdapter(linear, R, 0.3, {})
    adapter.load(together)
    if packed:
        rows = packing.pack(x)
        with showing(packing):
            adapter(rows).square().sum().backward()
        parts = [part[None] for part in rows[0].split(packing.per_client)]
    else:
        adapter(x).square().sum().backward()
        parts = list(x.chunk(C))
    for c, part in enumerate(parts):
        alone = {f: t[c : c + 1].detach().requires_grad_() for f, t in together.items()}
        adapter.load(alone)
        adapter(part).square().sum().backward()
        for field, tensor in alone.items():
            assert tensor.grad.any()
            torch.testing.assert_close(together[field].grad[c], tensor.grad[0], rtol=0, atol=1e-10)


def test_a_client_that_does_not_route_is_plain_lora_beside_others_that_do():
    linear, _ = make_linear()
    adapter, own = ExpertsAdapter(linear, R, 0.3, {}), experts()
    x = draw(C * B, T, 11, seed=9)
    adapter.load(own)
    routed = adapter(x).chunk(C)
    own["routes"] = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    own = {f: t.requires_grad_(f != "routes") for f, t in own.items()}
    adapter.load(own)
    mixed = adapter(x).chunk(C)
    lora = LoraAdapter(linear, R, 0.3, {})
    lora.load({"A": own["A"], "B": own["B"]})
    plain = lora(x).chunk(C)
    for c, expected in enumerate((routed[0], plain[1], routed[2])):
        torch.testing.assert_close(mixed[c], expected, rtol=0, atol=1e-12)
    assert (plain[0] - routed[0]).abs().max() > 1e-3
    mixed[1].sum().backward()
    assert not own["R"].grad.any()
    assert not own["As"].grad.any()


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_only_expert_is_plain_lora(renormalise):
    linear, _ = make_linear()
    adapter, own = ExpertsAdapter(linear, R, 0.3, {}, renormalise), experts(number=1)
    lora, x = LoraAdapter(linear, R, 0.3, {}), draw(C * B, T, 11, seed=9)
    adapter.load(own)
    lora.load({"A": own["A"], "B": own["B"]})
    torch.testing.assert_close(adapter(x), lora(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("experts", [1, 2, 4, 7])
def test_a_client_s_own_expert_is_always_among_the_chosen(experts):
    logits = 5 * draw(10_000, 2 * experts - 1)
    odds = logits.softmax(-1)
    for renormalise in (False, True):
        g = gates(logits, renormalise)
        assert g.shape == (10_000, experts)
        assert (g[:, 0] > 0).all()
        assert (g >= 0).all()
        total = g.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total) if renormalise else odds.topk(experts).values.sum(-1))
    if experts > 1:
        assert (g[:, 1:] > 0).any(dim=0).all()
        assert (g[:, 1:] == 0).any(dim=0).all()


def test_the_order_of_the_slots_is_of_no_account():
    """The published code has the other experts' slots among the first, and the client's own behind them."""
    own = {f: t[0].numpy() for f, t in experts(1).items()}
    x, slots = draw(11, seed=9).numpy(), np.array(slots_of(M))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(slots))
        other = own | {"R": own["R"][order]}
        np.testing.assert_allclose(added(x, other, slots[order]), added(x, own, slots), rtol=0, atol=1e-12)
    adapter = ExpertsAdapter(make_linear()[0], R, 1.0, {})
    adapter.load({f: torch.from_numpy(t)[None] for f, t in own.items()})
    token = torch.from_numpy(x)[None, None]
    expected = added(x, own, slots)
    np.testing.assert_allclose((adapter(token) - adapter.base(token)).numpy().ravel(), expected, rtol=0, atol=1e-10)


def test_routed_layers_are_not_merged_and_others_are():
    adapter = ExpertsAdapter(make_linear()[0], R, 0.3, {})
    own = experts(1)
    adapter.load(own)
    adapter.merge(10**6)
    assert not list(adapter.held_once())
    adapter.load({"A": own["A"], "B": own["B"]})
    adapter.merge(10**6)
    assert len(list(adapter.held_once())) == 1


def test_experts_keep_their_precision_beside_a_backbone_in_half_precision():
    linear, _ = make_linear(dtype=torch.bfloat16)
    adapter = ExpertsAdapter(linear, R, 0.3, {})
    own = {f: t.float() for f, t in experts().items()}
    adapter.load(own)
    x = draw(C * B, T, 11, seed=9).bfloat16()
    low = torch.cat(by_loops(x.double().reshape(C, B * T, 11), own, 0.3)).reshape(C * B, T, -1)
    torch.testing.assert_close(adapter(x), linear(x) + low.bfloat16(), rtol=0, atol=0.02)
    assert adapter(x).dtype == torch.bfloat16


def test_rows_that_clients_share_are_an_error():
    adapter = ExpertsAdapter(make_linear()[0], R, 0.3, {})
    adapter.load(experts())
    with pytest.raises(ConfigurationError, match=r"got 1 rows for 3 clients.*trainer\.clients_per_block to 1"):
        adapter(draw(1, T, 11))
