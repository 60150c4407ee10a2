"""The oracle is torch: one torch.optim optimizer, clip_grad_norm_ and LambdaLR per client, run one after another."""

import doctest
import math

import jsonargparse
import pytest
import torch

from fedgram import optim
from fedgram.errors import ConfigurationError
from fedgram.optim import SGD, AdamW, ClientOptimizer, clip_

STEPS = (7, 4, 4, 1)  # of each client; the longest first, so that those still training are a prefix
P = 10
SPLIT = (6, 4)  # torch clips over a list of tensors: a client's row is cut into two


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def start():
    return normal(len(STEPS), P)


@pytest.fixture
def target():
    return normal(len(STEPS), P, seed=1)


def gradient(params, target):
    """Of a quartic, so that it depends on where the client stands, and is long enough to be clipped at times."""
    return (params - target) ** 3 + 0.1 * (params - target)


def stacked(optimizer, start, target, steps=STEPS):
    """All clients at once, as a block trains them. Returns the parameters and the state."""
    params = start.clone()
    state = optimizer.init(params)
    for step in range(steps[0]):
        active = sum(own > step for own in steps)
        view = params[:active]
        rate = optimizer.learning_rate(torch.tensor([step / own for own in steps[:active]], dtype=torch.float64))
        optimizer.update(view, gradient(view, target[:active]), {k: v[:active] for k, v in state.items()}, rate)
    return params, state


def alone(make, factor, max_norm, start, target, steps):
    """One client, with torch's own tools."""
    parts = [torch.nn.Parameter(part.clone()) for part in start.split(SPLIT)]
    optimizer = make(parts)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, steps))
    for _ in range(steps):
        for part, goal in zip(parts, target.split(SPLIT), strict=True):
            part.grad = gradient(part.detach(), goal)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parts, max_norm)
        optimizer.step()
        scheduler.step()
    return torch.cat([part.detach() for part in parts])


def one_by_one(make, start, target, factor=lambda step, steps: 1.0, max_norm=None):
    return torch.stack([alone(make, factor, max_norm, *row) for row in zip(start, target, STEPS, strict=True)])


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


ADAMW = [
    {},
    {"weight_decay": 0.3},
    {"betas": (0.5, 0.8), "eps": 1e-2, "weight_decay": 0.1},
    {"betas": (0.0, 0.0)},
]
SGDS = [
    {},
    {"weight_decay": 0.3},
    {"momentum": 0.9},
    {"momentum": 0.7, "weight_decay": 0.2},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2},
]


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(optim)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize("max_norm", [None, 0.5, 3.0])
@pytest.mark.parametrize("kwargs", ADAMW)
def test_adamw_is_torchs_for_every_client(start, target, kwargs, max_norm):
    params, state = stacked(AdamW(lr=0.05, max_grad_norm=max_norm, **kwargs), start, target)
    torch_kwargs = {"weight_decay": 0.0, **kwargs}
    expected = one_by_one(lambda p: torch.optim.AdamW(p, lr=0.05, **torch_kwargs), start, target, max_norm=max_norm)
    same(params, expected)
    assert state["step"].tolist() == list(STEPS)


@pytest.mark.parametrize("max_norm", [None, 0.5, 3.0])
@pytest.mark.parametrize("kwargs", SGDS)
def test_sgd_is_torchs_for_every_client(start, target, kwargs, max_norm):
    params, state = stacked(SGD(lr=0.02, max_grad_norm=max_norm, **kwargs), start, target)
    expected = one_by_one(lambda p: torch.optim.SGD(p, lr=0.02, **kwargs), start, target, max_norm=max_norm)
    same(params, expected)
    assert state["step"].tolist() == list(STEPS)


def hugging_face(schedule, warmup):
    """The multipliers of transformers' get_{constant,linear,cosine}_schedule_with_warmup, for whole warm-up steps."""

    def factor(step, steps):
        warm = warmup * steps
        if step < warm:
            return step / max(1.0, warm)
        share = (step - warm) / max(1.0, steps - warm)
        return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[schedule]

    return factor


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5])
def test_schedules_are_those_of_lambda_lr(schedule, warmup):
    optimizer = AdamW(lr=0.2, schedule=schedule, warmup=warmup)
    rates = optimizer.learning_rate(torch.arange(10, dtype=torch.float64) / 10)
    same(rates, torch.tensor([0.2 * hugging_face(schedule, warmup)(s, 10) for s in range(10)], dtype=torch.float64))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_scheduled_training_is_torchs(start, target, schedule):
    """Every client goes through its own schedule: those with fewer steps decay sooner."""
    settings = {"schedule": schedule, "warmup": 0.25, "max_grad_norm": 1.0}

    def factor(step, steps):  # not hugging_face: its max(1, warm-up steps) differs for a warm-up below one step
        p = step / steps
        decay = {"constant": 1.0, "linear": (1 - p) / 0.75, "cosine": 0.5 + 0.5 * math.cos(math.pi * (p - 0.25) / 0.75)}
        return p / 0.25 if p < 0.25 else decay[schedule]

    params, _ = stacked(AdamW(lr=0.05, weight_decay=0.1, **settings), start, target)
    expected = one_by_one(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1), start, target, factor, 1.0)
    same(params, expected)
    params, _ = stacked(SGD(lr=0.02, momentum=0.9, **settings), start, target)
    same(params, one_by_one(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), start, target, factor, 1.0))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_over_all_of_the_span_never_divides_by_zero(schedule):
    rates = AdamW(lr=2.0, schedule=schedule, warmup=1.0).learning_rate(torch.tensor([0.0, 0.25, 1.0]))
    assert rates.tolist() == [0.0, 0.5, 2.0]


def test_the_decay_ends_at_zero():
    end = torch.tensor([1.0])
    assert SGD(lr=2.0, schedule="linear").learning_rate(end).item() == 0
    assert SGD(lr=2.0, schedule="cosine").learning_rate(end).item() == 0
    assert SGD(lr=2.0).learning_rate(end).item() == 2


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(weight_decay=0.1, max_grad_norm=1.0), SGD(0.1, momentum=0.9, weight_decay=0.1, max_grad_norm=1.0)],
)
def test_finished_clients_keep_every_bit(optimizer, start, target):
    params = start.clone()
    state = optimizer.init(params)
    for _ in range(2):
        optimizer.update(params, gradient(params, target), state, torch.full((4,), 0.01))
    before = params.clone(), {k: v.clone() for k, v in state.items()}
    grads = gradient(params, target)
    whole = grads.clone()
    optimizer.update(params[:2], grads[:2], {k: v[:2] for k, v in state.items()}, torch.full((2,), 0.01))
    for now, then in [(params, before[0]), *((state[k], before[1][k]) for k in state)]:
        assert torch.equal(now[2:], then[2:])
        assert not (now[:2] == then[:2]).any()
    assert torch.equal(grads[2:], whole[2:])


@pytest.mark.parametrize(
    "optimizer", [AdamW(lr=0.05, max_grad_norm=1.0), SGD(lr=0.02, momentum=0.9, max_grad_norm=1.0)]
)
def test_the_others_do_not_matter(optimizer, start, target):
    """A client ends up the same whoever is trained beside it, even one that diverges."""
    together, _ = stacked(optimizer, start, target)
    start[0], target[0] = math.inf, math.nan
    beside_nan, _ = stacked(optimizer, start, target)
    same(beside_nan[1:], together[1:])
    assert beside_nan[0].isnan().all()


def test_clip_is_torchs():
    grads = normal(3, P) * torch.tensor([[1e-3], [1.0], [1e3]], dtype=torch.float64)
    grads = torch.cat([grads, torch.zeros(1, P, dtype=torch.float64)])
    parts = [torch.nn.Parameter(row) for row in torch.zeros_like(grads)]
    for part, row in zip(parts, grads, strict=True):
        part.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([part], 1.0)
    clip_(grads, 1.0)
    torch.testing.assert_close(grads, torch.stack([part.grad for part in parts]), rtol=1e-14, atol=0)


def test_float32_parameters_stay_float32(start, target):
    """A float64 rate, as `learning_rate` returns, must not promote them, and torch's float32 run is matched."""
    params, state = stacked(AdamW(lr=0.05), start.float(), target.float())
    expected = one_by_one(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0), start.float(), target.float())
    assert params.dtype == state["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(params, expected, rtol=1e-5, atol=1e-6)


def test_parameters_that_require_gradients_can_be_updated(start):
    params = start.clone().requires_grad_()
    optimizer = SGD(lr=0.1)
    optimizer.update(params, torch.ones_like(start), optimizer.init(params), torch.full((4,), 0.5))
    same(params.detach(), start - 0.5)


def test_the_state_has_what_the_optimizer_needs(start):
    assert set(AdamW().init(start)) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(SGD(0.1).init(start)) == {"step"}
    state = SGD(0.1, momentum=0.9).init(start)
    assert set(state) == {"step", "momentum_buffer"}
    assert state["step"].dtype == torch.int64
    assert state["step"].tolist() == [0] * 4
    assert torch.equal(state["momentum_buffer"], torch.zeros_like(start))


ERRORS = [
    (AdamW, {"lr": 0.0}, "lr"),
    (AdamW, {"lr": -1e-3}, "lr"),
    (AdamW, {"lr": math.nan}, "lr"),
    (SGD, {"lr": math.inf}, "lr"),
    (AdamW, {"betas": (1.0, 0.999)}, "betas"),
    (AdamW, {"betas": (0.9, -0.1)}, "betas"),
    (AdamW, {"betas": (0.9,)}, "betas"),
    (AdamW, {"eps": 0.0}, "eps"),
    (AdamW, {"eps": math.inf}, "eps"),
    (AdamW, {"weight_decay": -0.1}, "weight_decay"),
    (SGD, {"lr": 0.1, "weight_decay": math.inf}, "weight_decay"),
    (AdamW, {"max_grad_norm": 0.0}, "max_grad_norm"),
    (SGD, {"lr": 0.1, "max_grad_norm": -1.0}, "max_grad_norm"),
    (AdamW, {"max_grad_norm": math.inf}, "max_grad_norm"),
    (AdamW, {"schedule": "step"}, "schedule"),
    (AdamW, {"warmup": 1.1}, "warmup"),
    (AdamW, {"warmup": -0.1}, "warmup"),
    (AdamW, {"span": "epoch"}, "span"),
    (SGD, {"lr": 0.1, "momentum": 1.0}, "momentum"),
    (SGD, {"lr": 0.1, "momentum": -0.1}, "momentum"),
    (SGD, {"lr": 0.1, "nesterov": True}, "momentum"),
]


@pytest.mark.parametrize(("kind", "settings", "named"), ERRORS)
def test_settings_out_of_range_are_refused(kind, settings, named):
    got = settings.get(named, 0.0)
    with pytest.raises(ConfigurationError) as error:
        kind(**settings)
    message = str(error.value)
    assert message.startswith(f"optimizer.{named} must be ")
    assert f"got {got!r}; " in message  # and a remedy after it
    assert not message.endswith("; ")


@pytest.mark.parametrize("kwargs", [{"warmup": 0.0}, {"warmup": 1.0}, {"weight_decay": 0.0}, {"betas": (0.0, 0.0)}])
def test_the_ends_of_the_ranges_are_allowed(kwargs):
    assert vars(AdamW(**kwargs)).items() >= kwargs.items()


def test_the_command_line_builds_them():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClientOptimizer, "optimizer")
    arguments = ["--optimizer", "fedgram.optim.SGD", "--optimizer.lr", "1e-3", "--optimizer.momentum", "0.9"]
    sgd = parser.instantiate_classes(parser.parse_args(arguments)).optimizer
    assert (type(sgd), sgd.lr, sgd.momentum, sgd.max_grad_norm) == (SGD, 1e-3, 0.9, None)
    config = '{"class_path": "fedgram.optim.AdamW", "init_args": {"betas": [0.8, 0.99], "schedule": "cosine"}}'
    adamw = parser.instantiate_classes(parser.parse_args(["--optimizer", config])).optimizer
    assert (type(adamw), tuple(adamw.betas), adamw.schedule) == (AdamW, (0.8, 0.99), "cosine")


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_every_setting_has_a_help_text(kind):
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(kind, "optimizer")
    helped = {action.dest.removeprefix("optimizer."): action.help for action in parser._actions}
    settings = set(vars(kind(lr=0.1)))
    assert settings <= set(helped)
    assert all(helped[name] for name in settings)
