"""Weight decay towards the start: as separate loops of torch.optim, and for every method."""

import numpy as np
import pytest
import torch

from fedgram.engine.block import train_block
from fedgram.errors import ConfigurationError
from fedgram.methods import FeDeRA, FedIT, FLoRG, FSLoRA
from fedgram.optim import SGD, AdamW
from fedgram.state import flatten, split
from methods.still import World, change
from methods.test_nobody_moved import METHODS, ROUNDING
from test_block import make_network, train_alone
from test_trainer import fit  # noqa: F401 (a fixture)

STEPS = (6, 4, 4, 1)
P = 10
OPTIMIZERS = [
    (AdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
    (AdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1, "betas": (0.5, 0.8), "eps": 1e-2}),
    (SGD, torch.optim.SGD, {"lr": 0.02, "weight_decay": 0.3}),
    (SGD, torch.optim.SGD, {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9}),
    (SGD, torch.optim.SGD, {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.7, "nesterov": True}),
]


def gradient(params, target):
    return (params - target) ** 3 + 0.1 * (params - target)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(("ours", "torchs", "settings"), OPTIMIZERS)
def test_it_is_torchs_decay_of_how_far_a_client_is_from_its_start(ours, torchs, settings, max_norm):
    """Each client alone, with δ = θ - θ₀ for a parameter, which torch.optim draws to zero."""
    generator = torch.Generator().manual_seed(0)
    start, origin, target = torch.randn(3, len(STEPS), P, dtype=torch.float64, generator=generator)
    optimizer = ours(**settings, decay_towards="start", max_grad_norm=max_norm)
    assert optimizer.needs_origin
    params = start.clone()
    state = optimizer.init(params)
    for step in range(STEPS[0]):
        n = sum(own > step for own in STEPS)
        rate = optimizer.learning_rate(torch.zeros(n))
        known = {key: value[:n] for key, value in state.items()}
        optimizer.update(params[:n], gradient(params[:n], target[:n]), known, rate, origin[:n])
    for client, steps in enumerate(STEPS):
        delta = torch.nn.Parameter(start[client] - origin[client])
        alone = torchs([delta], **settings)
        for _ in range(steps):
            delta.grad = gradient(delta.detach() + origin[client], target[client])
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_([delta], max_norm)
            alone.step()
        torch.testing.assert_close(params[client], delta.detach() + origin[client], rtol=1e-12, atol=1e-12)


def drawn_to(origins, settings):
    """Makes torch's AdamW whose parameters are drawn to some tensors before each step."""

    class Drawn(torch.optim.AdamW):
        @torch.no_grad()
        def step(self):
            for param, origin in zip(self.param_groups[0]["params"], origins, strict=True):
                param.sub_(settings["lr"] * settings["weight_decay"] * (param - origin))
            super().step()

    return lambda params: Drawn(params, lr=settings["lr"], weight_decay=0.0)


@pytest.mark.parametrize("method", [FLoRG(rank=2, init_std=0.3), FeDeRA(rank=2)], ids=["FLoRG", "FeDeRA"])
def test_a_block_equals_training_each_client_alone(tiny_backbone, tiny_data, method):
    network, data = make_network(tiny_backbone, tiny_data, method)
    random, table = np.random.default_rng(0), data.split("train")
    batches = [[random.choice(60, 3, replace=False) for _ in range(n)] for n in (4, 3, 1)]

    def noisy():
        state = method.without_shared(network.initial_state())
        return state.map(lambda tensor: tensor + 0.2 * torch.from_numpy(random.normal(size=tuple(tensor.shape))))

    network.share(network.initial_state())
    starts, origins = [noisy() for _ in batches], [noisy() for _ in batches]
    settings = {"lr": 0.01, "weight_decay": 2.0}
    optimizer = AdamW(**settings, decay_towards="start")
    ends = train_block(
        network, optimizer, starts, table, batches, trained=method.trained_fields, origins=origins
    ).states
    for client, (start, origin) in enumerate(zip(starts, origins, strict=True)):
        trained = split(origin, method.trained_fields)[0]
        goals = [
            trained.parts[layer.part][name][field]
            for name, layer in network.layers.items()
            for field in trained.parts[layer.part][name]
        ]
        alone = train_alone(network, method, start, table, batches[client], drawn_to(goals, settings), None)
        assert len(alone) == len(goals)
        for key, tensor in alone.items():
            torch.testing.assert_close(flatten(ends[client])[key], tensor, rtol=0, atol=1e-10)


class GradientsOff(AdamW):
    """AdamW that weight decay alone moves."""

    def update(self, params, grads, *rest):
        super().update(params, torch.zeros_like(grads), *rest)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "method",
    [FLoRG(rank=2, init_std=0.3), FLoRG(rank=2, init_std=0.3, projection="top_r"), FeDeRA(rank=2)],
    ids=["FLoRG", "FLoRG-top_r", "FeDeRA"],
)
def test_without_gradients_the_model_stays_the_pretrained_one(fit, method):  # noqa: F811
    """By the other decay, 30 steps of 0.8 % each, a product of two factors loses 1 - 0.992⁶⁰ = 38 %."""
    lost = {}
    for towards in ("zero", "start"):
        optimizer = GradientsOff(lr=0.04, weight_decay=0.2, decay_towards=towards)
        summary, trainer = fit(method=method, optimizer=optimizer, rounds=2, local_steps=15, precision="64-true")
        for name, layer in trainer.federation.state.adapter.items():
            first = trainer.federation.held.adapter[name]
            now, then = (own["B"] @ own["A"] if "B" in own else own["A"].mT @ own["A"] for own in (layer, first))
            lost.setdefault(towards, []).append(float((now - then).norm() / then.norm()))
        drift = abs(summary["final"]["loss"] - summary["initial"]["loss"])
        assert (drift < 1e-12) == (towards == "start")
    assert lost["zero"] == pytest.approx([1 - 0.992**60] * len(lost["zero"]), rel=1e-6)
    assert max(lost["start"]) < 1e-12


class AwayAndBack(GradientsOff):
    """Moves all parameters in the first step of the run, and then goes all of the way to where decay draws them."""

    def update(self, params, *rest):
        if self.lr == 1.0:
            super().update(params, *rest)
        else:
            params.add_(0.5)
            self.lr = 1.0


@pytest.mark.parametrize(
    ("method", "exact"),
    [
        (FedIT(rank=2), True),
        (FeDeRA(rank=2), True),
        (FSLoRA(rank=2, sketch=1.0), True),
        (FLoRG(rank=2), False),  # a rotation of A has the same product
        (FLoRG(rank=2, projection="none"), False),
    ],
    ids=["FedIT", "FeDeRA", "FSLoRA", "FLoRG", "FLoRG-none"],
)
def test_the_start_is_that_of_the_run_and_not_of_the_round(fit, method, exact):  # noqa: F811
    optimizer = AwayAndBack(lr=0.5, weight_decay=1.0, decay_towards="start")
    _, trainer = fit(method=method, optimizer=optimizer, rounds=2, clients=1, local_steps=1, precision="64-true")
    state, held = flatten(trainer.federation.state.model), flatten(trainer.federation.held)
    for key, tensor in held.items():
        now, then = (
            (state[key], tensor)
            if exact or key.startswith("head")
            else (state[key].mT @ state[key], tensor.mT @ tensor)
        )
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_knows_its_start(name):
    """Clients that decay alone moves stay at the pretrained model, and what they train has a start of its form."""
    method = METHODS[name]()
    world = World(method, noise=0.0)
    before = world.functions(range(7))
    # A correction of B that starts at random, and Adam's steps of full size along rounding errors, move a model too.
    moves = getattr(method, "init", "") == "xavier" or getattr(method, "server_optimizer", "none") == "adam"
    for cohort in (range(6), (1, 4), (0, 3, 6)):
        world.round(cohort, decay=0.3)
        after = world.functions_after(cohort)
        assert moves or change({who: before[who] for who in after}, after) < ROUNDING
    world.round((0, 1, 2, 3), drift=0.3)
    world.round((1, 5), drift=0.3, decay=0.3)
    ctx = world.context((0, 1, 4, 6))
    for client in ctx.cohort:
        start, origin = (
            flatten(split(of(client, ctx), method.trained_fields)[0]) for of in (world.start, world.origin)
        )
        assert {key: tensor.shape for key, tensor in origin.items()} == {key: t.shape for key, t in start.items()}
        rank, axes = method.rank_of(world.server, client, ctx), {f.name: f.rank_axis for f in method.fields}
        for key, tensor in origin.items():  # what a client is filled up with is drawn to nothing
            axis = axes.get(key.split("|")[2])
            assert axis is None or not tensor.narrow(axis, rank, tensor.shape[axis] - rank).any(), key


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_the_target_is_zero_by_default_and_one_of_two(kind):
    assert kind(lr=0.1).decay_towards == "zero"
    assert not kind(lr=0.1, weight_decay=0.1).needs_origin
    assert not kind(lr=0.1, decay_towards="start").needs_origin  # without a decay
    with pytest.raises(ConfigurationError, match=r"optimizer\.decay_towards must be zero or start, got 'begin'"):
        kind(lr=0.1, decay_towards="begin")
