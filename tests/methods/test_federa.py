import numpy as np
import pytest
import torch
from torch import nn

from adapters.plain import make_linear
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import FeDeRA, RoundContext
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerState
from helpers import INFO, rng


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("d_in", "d_out"), [(11, 7), (7, 11), (6, 6)])
def test_it_starts_with_the_best_part_of_the_weight_and_the_pretrained_function(kind, d_in, d_out):
    linear, weight = make_linear(d_in, d_out, kind, torch.float32)
    adapter = FeDeRA(rank=2, alpha=6.0).adapter(linear, torch_generator(0, "q"))
    start = adapter.initial()
    U, values, Vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    best = U[:, :2] * values[:2] @ Vh[:2]
    np.testing.assert_allclose(3.0 * (start["B"] @ start["A"]).numpy(), best, atol=1e-5)  # s B A, with s = 6 / 2
    np.testing.assert_allclose((start["A"] @ start["A"].mT).numpy(), np.diag(values[:2] / 3), atol=1e-5)
    np.testing.assert_allclose((start["B"].mT @ start["B"]).numpy(), np.diag(values[:2] / 3), atol=1e-5)
    adapter.load({field: start[field].unsqueeze(0) for field in ("A", "B")})
    x = torch.from_numpy(rng().normal(size=(4, 5, d_in))).float()
    torch.testing.assert_close(adapter(x), linear(x), rtol=0, atol=1e-5)
    adapter.load({"A": start["A"].unsqueeze(0), "B": start["B"].unsqueeze(0) * 0})
    torch.testing.assert_close(
        adapter(x), x @ (weight - torch.from_numpy(best).float()).mT + linear.bias, rtol=0, atol=1e-5
    )


def test_signs_are_fixed_by_a_rule():
    linear, _ = make_linear(11, 7, dtype=torch.float32)
    A = FeDeRA(rank=3).adapter(linear, torch_generator(0, "q")).initial()["A"]
    assert (A.gather(1, A.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_a_client_that_comes_late_makes_the_start_itself():
    method = FeDeRA(rank=2)
    with torch.random.fork_rng(devices=[]):
        server = {"q": method.adapter(nn.Linear(11, 7), torch_generator(0, "q")).initial()}
    later = RoundContext(4, 0, {0: 2, 1: 0})

    def sent(method, layers):
        state = ServerState(ModelState(layers))
        downs = [method.download(state, method.context(state, client, later)) for client in (0, 1)]
        return [set(down.adapter["q"]) for down in downs]

    assert sent(method, server) == [{"A", "B"}] * 2
    assert sent(FeDeRA(rank=2, when="round"), {"q": {f: server["q"][f] for f in "AB"}}) == [{"A", "B"}] * 2


def test_directions_without_a_singular_value_keep_a_row_to_learn_from():
    """B = 0 at the start of LoRA: a product of zeros must not put A to zero as well, where gradients vanish."""
    method = FeDeRA(rank=2, when="round")
    with torch.random.fork_rng(devices=[]):
        server = {"q": method.adapter(nn.Linear(11, 7), torch_generator(0, "q")).initial()}
    uploads = Uploads({0: server, 1: server}, {0: 0.5, 1: 0.5}, Ranks())
    after = method.aggregate(server, uploads, INFO)["q"]
    assert torch.equal(after["A"], server["q"]["A"])
    assert not after["B"].any()


def test_a_reading_that_there_is_not_is_an_error():
    with pytest.raises(Exception, match=r"method\.when .*init.*round.*never"):
        FeDeRA(when="never")
