import pytest
import torch

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods.server_optimizer import ServerOptimizer, add_mean_change
from fedgram.state import ModelState, ServerMemory, ServerState
from helpers import rng


def drawn(random, dtype=torch.float64):
    return ModelState(
        {"q": {"A": torch.from_numpy(random.normal(size=(2, 5))).to(dtype)}},
        {"out": {"weight": torch.from_numpy(random.normal(size=3)).to(dtype)}},
    )


def test_adam_is_torchs_with_the_mean_change_for_a_gradient_and_no_decay():
    random = rng(0)
    start = drawn(random)
    optimizer = ServerOptimizer("adam", 0.03)
    state = ServerState(start, optimizer.start(start))
    params = [start.adapter["q"]["A"].clone(), start.head["out"]["weight"].clone()]
    reference = torch.optim.AdamW([torch.nn.Parameter(p) for p in params], lr=0.03, weight_decay=0.0)
    for number in range(1, 6):
        averaged = drawn(random)
        own = reference.param_groups[0]["params"]
        for p, x in zip(own, (averaged.adapter["q"]["A"], averaged.head["out"]["weight"]), strict=True):
            p.grad = p.detach() - x
        reference.step()
        state = optimizer.step(state, ServerState(averaged, state.memory), number)
        torch.testing.assert_close(state.adapter["q"]["A"], own[0].detach(), rtol=0, atol=1e-14)
        torch.testing.assert_close(state.head["out"]["weight"], own[1].detach(), rtol=0, atol=1e-14)


def test_what_no_client_moves_stays_bit_by_bit():
    """With torch's weight decay it would not."""
    start = drawn(rng(1), torch.float32)
    optimizer = ServerOptimizer("adam", 0.03)
    state = ServerState(start, optimizer.start(start))
    after = optimizer.step(state, state, 1)
    assert torch.equal(after.adapter["q"]["A"], start.adapter["q"]["A"])


def test_a_step_leaves_the_state_before_it_as_it_was():
    start, other = drawn(rng(2)), drawn(rng(3))
    optimizer = ServerOptimizer("adam", 0.03)
    state = ServerState(start, optimizer.start(start))
    before = {name: {f: t.clone() for f, t in layer.items()} for name, layer in state.memory.layers.items()}
    A = start.adapter["q"]["A"].clone()
    after = optimizer.step(state, ServerState(other, state.memory), 1)
    assert torch.equal(state.adapter["q"]["A"], A)
    assert all(torch.equal(t, before[name][f]) for name, layer in state.memory.layers.items() for f, t in layer.items())
    assert after.memory.layers["q"]["A.exp_avg"].any()


def test_without_an_optimizer_nothing_is_remembered_and_the_average_is_taken():
    optimizer, start, averaged = ServerOptimizer(), drawn(rng(4)), ServerState(drawn(rng(5)))
    assert optimizer.start(start) == ServerMemory()
    assert optimizer.step(ServerState(start), averaged, 1) is averaged


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), float("nan")])
def test_a_learning_rate_must_be_positive(lr):
    with pytest.raises(ConfigurationError, match=r"method\.server_lr must be a positive number"):
        ServerOptimizer("adam", lr)


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ConfigurationError, match=r"method\.server_optimizer .*none, adam; got 'sgd'"):
        ServerOptimizer("sgd")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_change_is_the_mean_and_leaves_the_rest_bit_by_bit(dtype):
    random = rng(6)
    layers = {"q": {"A": torch.from_numpy(random.normal(size=(2, 5))).to(dtype)}}
    moved = torch.zeros(2, 5, dtype=dtype)
    moved[0] = 1.0
    weights = {1: 0.1, 4: 0.2, 9: 0.7}
    sent = {c: {"q": {"A": layers["q"]["A"] + c * moved}} for c in weights}
    after = add_mean_change(layers, Uploads(sent, weights, Ranks()))["q"]["A"]
    torch.testing.assert_close(after, layers["q"]["A"] + 7.2 * moved, rtol=1e-6, atol=1e-6)
    assert torch.equal(after[1], layers["q"]["A"][1])
    assert after.dtype == dtype
