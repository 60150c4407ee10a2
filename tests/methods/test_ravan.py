import numpy as np
import pytest
import torch
from torch import nn

from adapters.plain import B, C, T, dense_forward, draw, make_linear
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import RAVAN, RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerState
from helpers import rng, unequal_weights
from test_trainer import fit, rows  # noqa: F401 (a fixture)

H, R = 3, 2


def make_adapter(d_in=11, d_out=7, kind="linear", **settings):
    linear, weight = make_linear(d_in, d_out, kind)
    method = RAVAN(rank=R, heads=H, **settings)
    return method, method.adapter(linear, torch_generator(0, "q")), weight


def delta(adapter, heads, scales):
    A, B_ = adapter.A.double().numpy(), adapter.B.double().numpy()
    return adapter.scale * sum(s * B_[i] @ h @ A[i] for i, (s, h) in enumerate(zip(scales, heads, strict=True)))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("d_in", "d_out"), [(11, 7), (7, 11), (6, 6)])
def test_forward_adds_the_sum_over_the_heads(kind, d_in, d_out):
    _, adapter, weight = make_adapter(d_in, d_out, kind)
    heads, scales = draw(C, H, R, R, seed=1), draw(C, H, seed=2)
    adapter.load({"H": heads, "s": scales})
    deltas = [torch.from_numpy(delta(adapter, h.numpy(), s.numpy())) for h, s in zip(heads, scales, strict=True)]
    x = draw(C * B, T, d_in, seed=3)
    torch.testing.assert_close(adapter(x), dense_forward(x, weight, adapter.base.bias, deltas), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d_in", "d_out"), [(11, 7), (7, 11), (6, 6)])
def test_the_bases_of_all_heads_are_orthonormal_together_and_come_from_the_seed(d_in, d_out):
    adapters = [make_adapter(d_in, d_out)[1] for _ in range(2)]
    for base in ("A", "B"):
        assert torch.equal(getattr(adapters[0], base), getattr(adapters[1], base))
    A, columns = adapters[0].A.flatten(0, 1), adapters[0].B.mT.flatten(0, 1)
    for together in (A, columns):
        torch.testing.assert_close(together @ together.mT, torch.eye(H * R), rtol=0, atol=1e-6)


def test_normal_bases_have_rows_of_length_one_on_average_and_may_be_more_than_the_layer_is_wide():
    method = RAVAN(rank=4, heads=200, bases="normal")
    adapter = method.adapter(nn.utils.skip_init(nn.Linear, 11, 7), torch_generator(0, "q"))
    assert adapter.A.square().sum(-1).mean() == pytest.approx(1, rel=0.05)
    assert adapter.B.square().sum(-2).mean() == pytest.approx(1, rel=0.05)


def test_training_starts_at_the_pretrained_function_and_all_heads_can_leave_it():
    """H = 0 is no saddle: with A and B fixed and s = 1 its gradient is that of the loss."""
    _, adapter, _ = make_adapter()
    own = {f: t.double().unsqueeze(0).requires_grad_() for f, t in adapter.initial().items()}
    adapter.load(own)
    x = draw(2, T, 11, seed=3)
    assert torch.equal(adapter(x), adapter.base(x))
    (gradient,) = torch.autograd.grad(adapter(x).square().sum(), own["H"])
    assert (gradient.flatten(2).norm(dim=-1) > 1e-3).all()


def test_delta_w_has_the_rank_of_all_heads_together():
    _, adapter, _ = make_adapter(11, 9)
    adapter.load({"H": draw(1, H, R, R, seed=1), "s": torch.ones(1, H, dtype=torch.float64)})
    down, up = adapter.factors()
    assert torch.linalg.matrix_rank(up[0].mT @ down[0]) == H * R


def test_the_mean_of_what_is_sent_is_the_mean_of_the_clients_models():
    method, adapter, _ = make_adapter()
    random, weights = rng(1), unequal_weights(4, rng(2))
    trained = [{"H": random.normal(size=(H, R, R)), "s": random.normal(size=H)} for _ in range(4)]
    ideal = sum(w * delta(adapter, own["H"], own["s"]) for w, own in zip(weights, trained, strict=True))
    server = {"q": {f: t.double() for f, t in adapter.initial().items()}}
    state = ServerState(ModelState(server))
    ends = [ModelState({"q": {f: torch.from_numpy(t) for f, t in own.items()}}) for own in trained]
    ctx, sent = RoundContext(1, 0, dict.fromkeys(range(4), 0), 4), {}
    for c, end in enumerate(ends):
        own = method.context(state, c, ctx)
        start = begin(method, state, method.model(state), NOTHING, own)[1]
        sent[c] = method.upload(start, end, own).adapter
    assert {f: t.shape for f, t in sent[0]["q"].items()} == {"H": (H, R, R)}
    after = method.aggregate(server, Uploads(sent, dict(enumerate(weights.tolist())), Ranks()), ctx)["q"]
    assert torch.equal(after["s"], torch.ones(H, dtype=torch.float64))
    np.testing.assert_allclose(delta(adapter, after["H"].numpy(), after["s"].numpy()), ideal, atol=1e-13)
    # To average H and s apart would be another model.
    apart = [sum(w * own[f] for w, own in zip(weights, trained, strict=True)) for f in ("H", "s")]
    assert np.abs(delta(adapter, *apart) - ideal).max() > 1e-2


def test_every_round_starts_at_scales_of_one_and_clients_keep_nothing(fit):  # noqa: F811
    _, trainer = fit(method=RAVAN(rank=R, heads=H), rounds=3)
    stands = load(trainer.folder.checkpoint("last"))
    assert not stands.clients
    assert all(torch.equal(layer["s"], torch.ones(H)) for layer in stands.state.adapter.values())
    assert all(layer["H"].any() for layer in stands.state.adapter.values())
    adapters = [row for row in rows(trainer.folder.path, "communication.csv") if row["part"] == "adapter"]
    # Three rounds of five clients, four layers; in the first nothing goes down.
    assert {d: sum(int(row["parameters"]) for row in adapters if row["direction"] == d) for d in ("up", "down")} == {
        "up": 3 * 5 * 4 * H * R * R,
        "down": 2 * 5 * 4 * H * R * R,
    }
    assert not RAVAN().personal


def test_what_cannot_be_is_an_error_that_says_why():
    with pytest.raises(ConfigurationError, match=r"method\.heads must be at least 1, got 0"):
        RAVAN(heads=0)
    with pytest.raises(ConfigurationError, match=r"method\.bases .*orthogonal.*normal.*svd"):
        RAVAN(bases="svd")
    with pytest.raises(ConfigurationError, match=r"at most min\(d_in, d_out\) = 7 .* got 4 \* 2; .*bases: normal"):
        RAVAN(rank=2).check_sides("query", nn.utils.skip_init(nn.Linear, 11, 7))
    assert [RAVAN().name, RAVAN(bases="normal").name] == ["RAVAN", "RAVAN-normal"]
