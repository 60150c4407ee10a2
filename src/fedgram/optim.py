"""Stacked optimizers: one step of many clients at once, each exactly as if it trained alone.

Symbols:
    C: the clients that take the step; P: the trainable parameters of one client.
    ``params: (C, P)``, ``grads: (C, P)``: one row per client.
    ``lr: (C,)``: each client's learning rate η at this step.
    ``state``: the optimizer's memory; every tensor has a leading axis of clients.

A client that has finished its local steps leaves the block: the caller hands over prefixes (``params[:active]``, and
the same of every tensor of the state), which are views, and all changes are made in place through them. Hence the rows
of the others are not touched. Nothing here waits for the device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.errors import ConfigurationError

__all__ = ["DEFAULT_OPTIMIZER", "SGD", "AdamW", "ClientOptimizer", "DecayTarget", "Schedule", "Span", "clip_"]

Schedule = Literal["constant", "linear", "cosine"]
"""How the learning rate goes after its warm-up."""
Span = Literal["round", "run"]
"""What the schedule stretches over."""
DecayTarget = Literal["zero", "start"]
"""Where weight decay draws parameters to."""


def clip_(grads: Float[Tensor, "C P"], max_norm: float) -> None:
    """Scale down, in place, each client's gradient g where it is long: g ← g · min(1, max_norm / (‖g‖ + 1e-6)).

    The norm is that of the client's whole row; the formula is that of `torch.nn.utils.clip_grad_norm_`.

    Args:
        grads: (C, P), overwritten.
        max_norm: the largest norm allowed.

    >>> grads = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> clip_(grads, 1.0)
    >>> grads
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    norms = torch.linalg.vector_norm(grads, dim=1, keepdim=True)
    grads.mul_((max_norm / (norms + 1e-6)).clamp_(max=1.0))  # 1e-6 is torch's guard against a gradient of zero


class ClientOptimizer(ABC):
    """An optimizer of many clients at once, and the schedule of their learning rates.

    Args:
        lr: the learning rate, after the warm-up and before the decay.
        weight_decay: how strongly parameters are drawn to what decay_towards says; 0, the default of every optimizer
            here, is not at all (torch.optim.AdamW has 0.01 unless told otherwise).
        decay_towards: where weight decay draws parameters to: "zero", as torch.optim does; or "start", what a client
            would start from if the server still stood where the run began, so that the model is drawn to the
            pretrained one also where adapters do not start at ΔW = 0 (L2-SP, Li et al., arXiv 1802.01483).
        max_grad_norm: each client's gradient is scaled down to this norm; null for no clipping.
        schedule: the learning rate after the warm-up: "constant", or falling to zero as a line ("linear") or half a
            cosine ("cosine").
        warmup: the share of the span, 0 to 1, over which the learning rate rises in a line from zero. The very first
            step of the span then has a learning rate of zero.
        span: what the schedule stretches over: every "round" anew, or the whole "run".
        schedule_rounds: the number of rounds that a schedule over the run spans; trainer.rounds if not given. Set it to
            the most rounds that a run may come to, where it is to be extended later.
        keep_state: whether a client keeps the optimizer's moments, and its count of steps, until it takes part again;
            else they are fresh every round.

    Raises:
        ConfigurationError: a setting out of its range.
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        span: Span = "round",
        keep_state: bool = False,
        decay_towards: DecayTarget = "zero",
        schedule_rounds: int | None = None,
    ) -> None:
        _require(0 < lr < math.inf, "lr", "a positive number", lr, "SGD often wants 0.1 to 0.001, AdamW 1e-3 to 1e-5")
        _require(0 <= weight_decay < math.inf, "weight_decay", "a number >= 0", weight_decay, "0 turns it off")
        clips = max_grad_norm is None or 0 < max_grad_norm < math.inf
        _require(clips, "max_grad_norm", "a positive number or null", max_grad_norm, "null turns clipping off")
        known = schedule in ("constant", "linear", "cosine")
        _require(known, "schedule", "constant, linear or cosine", schedule, "constant is the plain choice")
        _require(0 <= warmup <= 1, "warmup", "a share of the span, 0 to 1", warmup, "a tenth of it is 0.1")
        _require(span in ("round", "run"), "span", "round or run", span, "round starts the schedule anew every round")
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.schedule = schedule
        self.warmup = warmup
        self.span = span
        _require(decay_towards in ("zero", "start"), "decay_towards", "zero or start", decay_towards, "zero is torch's")
        self.keep_state = keep_state
        self.decay_towards = decay_towards
        counts = schedule_rounds is None or schedule_rounds >= 1
        _require(counts, "schedule_rounds", "at least 1, or null", schedule_rounds, "null is trainer.rounds")
        fits = schedule_rounds is None or span == "run"
        _require(fits, "schedule_rounds", "left out where span is round", schedule_rounds, "set optimizer.span to run")
        self.schedule_rounds = schedule_rounds

    @property
    def needs_origin(self) -> bool:
        """Whether `update` must be given where parameters are drawn to."""
        return self.weight_decay > 0 and self.decay_towards == "start"

    @property
    def depends_on_rounds(self) -> bool:
        """Whether the learning rate of a round depends on how many rounds the schedule spans."""
        return self.span == "run" and (self.schedule != "constant" or self.warmup > 0)

    def span_of(self, number: int, rounds: int) -> tuple[float, float]:
        """Return where a round begins and ends in what the schedule spans, as shares of it.

        Args:
            number: of the round, from 1.
            rounds: of the run.
        """
        if self.span == "round":
            return 0.0, 1.0
        spanned = self.schedule_rounds or rounds
        return (number - 1) / spanned, number / spanned

    def check_rounds(self, rounds: int) -> None:
        """Refuse a run that is longer than a schedule at whose end the learning rate is zero.

        Raises:
            ConfigurationError: it is so.
        """
        spanned = self.schedule_rounds or rounds
        if rounds > spanned and self.schedule != "constant":
            raise ConfigurationError(
                f"trainer.rounds is {rounds}, but the learning rate falls to zero over optimizer.schedule_rounds = "
                f"{spanned}; set schedule_rounds to at least {rounds} from the start of a run, or rounds to at most "
                f"{spanned}"
            )

    def init(self, params: Float[Tensor, "C P"]) -> dict[str, Tensor]:
        """Return the memory of an optimizer that has made no step.

        Args:
            params: (C, P), of all clients of the block.

        Returns:
            ``step`` (C,) int64, the number of steps made; and (C, P) zeros for each of the optimizer's moments.
        """
        steps = torch.zeros(params.shape[0], dtype=torch.int64, device=params.device)
        return {"step": steps, **{name: torch.zeros_like(params) for name in self._moments()}}

    def learning_rate(self, progress: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """Return each client's learning rate, where progress p of the span lies behind it and w is the warm-up.

        η(p) = η · p/w for p < w; after that, with q = (p − w)/(1 − w), η · 1 ("constant"), η · (1 − q) ("linear") or
        η · (1 + cos πq)/2 ("cosine"). With p = step / steps these are the schedules of that name of Hugging Face.

        Args:
            progress: (C,), 0 <= p < 1.

        Returns:
            (C,) float64.

        >>> SGD(lr=1.0, schedule="linear", warmup=0.5).learning_rate(torch.tensor([0.0, 0.25, 0.5, 0.75]))
        tensor([0.0000, 0.5000, 1.0000, 0.5000], dtype=torch.float64)
        """
        progress = progress.double()
        factor = self._decay(progress)
        if self.warmup:
            factor = torch.where(progress < self.warmup, progress / self.warmup, factor)
        return self.lr * factor

    @torch.no_grad()
    def update(
        self,
        params: Float[Tensor, "C P"],
        grads: Float[Tensor, "C P"],
        state: Mapping[str, Tensor],
        lr: Float[Tensor, " C"],
        origin: Float[Tensor, "C P"] | None = None,
    ) -> None:
        """Make one step of every client given, in place.

        Args:
            params: (C, P), overwritten; usually a prefix of a larger tensor, as are those of the state.
            grads: (C, P), overwritten where clipping scales them down.
            state: what `init` returned, overwritten.
            lr: (C,), from `learning_rate`.
            origin: (C, P), where weight decay draws the parameters to; None for zero.
        """
        if self.max_grad_norm is not None:
            clip_(grads, self.max_grad_norm)
        state["step"].add_(1)
        self._step(params, grads, state, lr.double(), origin)

    def _decay(self, progress: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """Return what the schedule leaves of the learning rate after the warm-up, as a share."""
        if self.schedule == "constant" or self.warmup == 1:  # a warm-up over all of the span leaves nothing to decay in
            return torch.ones_like(progress)
        passed = (progress - self.warmup) / (1 - self.warmup)
        return 1 - passed if self.schedule == "linear" else (1 + torch.cos(math.pi * passed)) / 2

    @abstractmethod
    def _moments(self) -> tuple[str, ...]:
        """Return the names of the (C, P) tensors of the optimizer's memory."""

    @abstractmethod
    def _step(
        self,
        params: Float[Tensor, "C P"],
        grads: Float[Tensor, "C P"],
        state: Mapping[str, Tensor],
        lr: Float[Tensor, " C"],
        origin: Float[Tensor, "C P"] | None,
    ) -> None:
        """Make one step in place, with the gradients clipped and the steps counted."""


class AdamW(ClientOptimizer):
    """Adam with decoupled weight decay, as `torch.optim.AdamW` (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    The decay is 0 unless it is set, where torch's default is 0.01.

    θ ← θ − ηλ (θ − θ₀);  m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;
    θ ← θ − η / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε), with t the client's own count of steps.
    θ₀ is 0 unless decay_towards says otherwise.

    Args:
        lr: the learning rate, after the warm-up and before the decay.
        betas: the decay rates β₁ and β₂ of the first and second moment of the gradient.
        eps: ε, added to the denominator.
        common: the settings of `ClientOptimizer`.

    Raises:
        ConfigurationError: a setting out of its range.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        valid = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        _require(valid, "betas", "two numbers in [0, 1)", betas, "[0.9, 0.999] is usual")
        _require(0 < eps < math.inf, "eps", "a positive number", eps, "1e-8 is usual")
        self.betas = betas
        self.eps = eps

    def _moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _step(
        self,
        params: Float[Tensor, "C P"],
        grads: Float[Tensor, "C P"],
        state: Mapping[str, Tensor],
        lr: Float[Tensor, " C"],
        origin: Float[Tensor, "C P"] | None,
    ) -> None:
        beta1, beta2 = self.betas
        steps = state["step"].double()  # in float32, 1 − β₂ᵗ would lose three digits in the first steps
        if self.weight_decay and origin is None:
            params.mul_(_column(1 - lr * self.weight_decay, params))
        elif origin is not None:
            params.add_(
                (origin - params).mul_(_column(lr * self.weight_decay, params))
            )  # no change where they are equal
        mean = state["exp_avg"].lerp_(grads, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        denominator = square.sqrt().div_(_column((1 - beta2**steps).sqrt(), params)).add_(self.eps)
        params.sub_(mean.div(denominator).mul_(_column(lr / (1 - beta1**steps), params)))


class SGD(ClientOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` without dampening.

    g ← g + λ (θ − θ₀);  b ← μ b + g;  θ ← θ − η b, or θ ← θ − η (g + μ b) with Nesterov's momentum. θ₀ is 0 unless
    decay_towards says otherwise.

    Args:
        lr: the learning rate, after the warm-up and before the decay.
        momentum: μ, what stays of the last step's direction; 0 for none.
        nesterov: use Nesterov's momentum.
        common: the settings of `ClientOptimizer`; clipping comes before the decay.

    Raises:
        ConfigurationError: a setting out of its range, or Nesterov's momentum without momentum.
    """

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        _require(0 <= momentum < 1, "momentum", "a number in [0, 1)", momentum, "0.9 is usual, 0 turns it off")
        _require(momentum > 0 or not nesterov, "momentum", "more than 0 with nesterov", momentum, "set momentum to 0.9")
        self.momentum = momentum
        self.nesterov = nesterov

    def _moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def _step(
        self,
        params: Float[Tensor, "C P"],
        grads: Float[Tensor, "C P"],
        state: Mapping[str, Tensor],
        lr: Float[Tensor, " C"],
        origin: Float[Tensor, "C P"] | None,
    ) -> None:
        drawn = params if origin is None else params - origin
        direction = grads.add(drawn, alpha=self.weight_decay) if self.weight_decay else grads
        if self.momentum:
            # It starts at zero, so that a client's first step gives b = g, torch's special case.
            buffer = state["momentum_buffer"].mul_(self.momentum).add_(direction)
            direction = direction.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        params.sub_(direction * _column(lr, params))


DEFAULT_OPTIMIZER = AdamW
"""The clients' optimizer where none is named, in Python as on the command line."""


def _column(values: Float[Tensor, " C"], like: Tensor) -> Float[Tensor, "C 1"]:
    """Return one number per client as a column, in the type of the rows, which a float64 one would promote."""
    return values.to(like)[:, None]


def _require(holds: bool, setting: str, expected: str, got: object, remedy: str) -> None:
    """Raise for a setting that is out of its range.

    Raises:
        ConfigurationError: it does not hold, as for nan, of which no comparison does.
    """
    if not holds:
        raise ConfigurationError(f"optimizer.{setting} must be {expected}, got {got!r}; {remedy}")
