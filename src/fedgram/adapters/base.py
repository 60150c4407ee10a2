"""Linear layers that compute with tensors of their own for every client of a block.

A block of C clients goes through the backbone as one batch of C*b rows, client after client. A `ClientLayer` cuts that
batch back into clients and multiplies each part with its client's own small tensors; the frozen weight sees all rows
at once. Symbols: C clients, n tokens of one client, r rank, ``d_in`` and ``d_out`` the sizes of the layer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.backbone.frozen_linear import linear
from fedgram.backbone.padding_free import present
from fedgram.errors import ConfigurationError
from fedgram.state import Layer

__all__ = [
    "Adapter",
    "ClientLayer",
    "add_low_rank",
    "frozen_weight",
    "layer_sizes",
    "tokens_of_clients",
    "tokens_per_client",
]


def layer_sizes(linear: nn.Module) -> tuple[int, int]:
    """Return (d_in, d_out) of an ``nn.Linear``, or of GPT-2's ``Conv1D``, which keeps its weight transposed."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    d_in, d_out = linear.get_parameter("weight").shape
    return d_in, d_out


def frozen_weight(linear: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return the pretrained weight of an ``nn.Linear`` or a ``Conv1D``, in float32 on the CPU."""
    weight = linear.get_parameter("weight").detach().float().cpu()
    return weight if isinstance(linear, nn.Linear) else weight.mT


def tokens_per_client(x: Float[Tensor, "rows ... d_in"], clients: int) -> list[int]:
    """Return how many tokens of what a layer gets each client of a block has; they follow one another.

    Raises:
        ConfigurationError: the rows can't be cut into as many parts as there are clients, or are not the packed tokens.
    """
    packing, tokens = present(), math.prod(x.shape[:-1])
    if packing is not None and clients > 1:
        if tokens != sum(packing.per_client):
            raise ConfigurationError(
                f"an adapted layer got {tokens} tokens of a batch that has {sum(packing.per_client)} without padding; "
                "set trainer.packing to false"
            )
        return packing.per_client
    if clients == 1:
        return [tokens]
    if x.shape[0] % clients:
        raise ConfigurationError(
            f"an adapted layer got {x.shape[0]} rows for {clients} clients: the backbone computes something in it that "
            "samples share, as DeBERTa does with positions; set trainer.clients_per_block to 1, or other target_modules"
        )
    return [tokens // clients] * clients


def tokens_of_clients(x: Float[Tensor, "rows ... d_in"], clients: int) -> Float[Tensor, "C n d_in"]:
    """Cut the rows of a padded batch into those of each client, of which all have as many.

    Raises:
        ConfigurationError: they can't be cut into as many parts as there are clients.
    """
    return x.reshape(clients, tokens_per_client(x, clients)[0], x.shape[-1])


def add_low_rank(
    y: Float[Tensor, "rows ... d_out"],
    x: Float[Tensor, "rows ... d_in"],
    down: Float[Tensor, "C r d_in"],
    up: Float[Tensor, "C r d_out"],
    scale: float,
) -> Float[Tensor, "rows ... d_out"]:
    """Return ``y + scale * (x downᵀ) up``, every client with its own ``down`` and ``up``.

    ΔW = scale * upᵀ down is never multiplied out: a token costs r (d_in + d_out) operations. The adapters keep
    their own precision where the backbone runs in a lower one.

    Raises:
        ConfigurationError: the rows can't be cut into as many parts as there are clients.
    """
    clients = down.shape[0]
    if present() is not None:
        return _add_to_packed(y, x, down, up, scale, tokens_per_client(x, clients))
    tokens = tokens_of_clients(x, clients).to(down.dtype)
    hidden = torch.bmm(tokens, down.mT)
    if y.dtype != down.dtype:
        # The scale goes where there are r numbers for a token, and not d_out.
        return y + torch.bmm(scale * hidden, up).reshape(y.shape).to(y.dtype)
    return torch.baddbmm(y.reshape(clients, -1, y.shape[-1]), hidden, up, alpha=scale).reshape(y.shape)


def _add_to_packed(
    y: Float[Tensor, "... d_out"],
    x: Float[Tensor, "... d_in"],
    down: Float[Tensor, "C r d_in"],
    up: Float[Tensor, "C r d_out"],
    scale: float,
    sizes: Sequence[int],
) -> Float[Tensor, "... d_out"]:
    """Do the same where the tokens of clients, of which each has its own number, follow one another.

    They come as (1, N, d), or as (N, d) where a model makes one axis of rows and positions, as OPT does.
    """
    rows = y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    added: Tensor = _PackedLowRank.apply(*rows, down, up, scale, list(sizes))
    return added.view(y.shape)


class _PackedLowRank(torch.autograd.Function):
    """``y + s (x downᵀ) up`` of one client after the other, in one node.

    With h = x downᵀ and g = ∂y: ∂h = s g upᵀ, ∂x = ∂h down, ∂down = ∂hᵀ x, ∂up = s hᵀ g.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Float[Tensor, "N d_out"],
        x: Float[Tensor, "N d_in"],
        down: Float[Tensor, "C r d_in"],
        up: Float[Tensor, "C r d_out"],
        scale: float,
        sizes: list[int],
    ) -> Float[Tensor, "N d_out"]:
        out = y.to(down.dtype, copy=True)
        hidden = out.new_empty(x.shape[0], down.shape[1])
        parts = (rows.split(sizes) for rows in (out, x.to(down.dtype), hidden))
        for out_c, x_c, h_c, down_c, up_c in zip(*parts, down, up, strict=True):
            torch.mm(x_c, down_c.mT, out=h_c)
            out_c.addmm_(h_c, up_c, alpha=scale)
        ctx.save_for_backward(x, hidden, down, up)  # x in its own precision, which may be half of the adapter's
        ctx.scale, ctx.sizes = scale, sizes
        return out.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up = ctx.saved_tensors
        _, of_x, of_down, of_up, *_ = ctx.needs_input_grad
        g, wide = gradients[0].to(down.dtype), x.to(down.dtype)
        d_hidden, d_x, d_down, d_up = map(torch.empty_like, (hidden, wide, down, up))
        parts = (rows.split(ctx.sizes) for rows in (wide, hidden, g, d_hidden, d_x))
        for x_c, h_c, g_c, dh_c, dx_c, down_c, up_c, dd_c, du_c in zip(*parts, down, up, d_down, d_up, strict=True):
            torch.mm(g_c, up_c.mT, out=dh_c).mul_(ctx.scale)
            if of_x:
                torch.mm(dh_c, down_c, out=dx_c)
            if of_down:
                torch.mm(dh_c.mT, x_c, out=dd_c)
            if of_up:
                torch.mm(h_c.mT, g_c, out=du_c)
        return gradients[0], d_x.to(x.dtype) if of_x else None, d_down, d_up.mul_(ctx.scale), None, None


class ClientLayer(nn.Module, ABC):
    """A linear layer with tensors per client.

    Attributes:
        base: the layer of the pretrained model.
        clients: what `load` put there: tensors with a leading client axis, by field.
        shared: what `share` put there: tensors that all clients hold in common, without that axis.
        rows_axis: which axis of what the layer gets has the rows of the batch, or rows and positions as one: the first
            in most models, the second where a model has positions first, as Longformer and FSMT do.
        stand_in: what `weight` returns in the place of the pretrained weight, if anything: to find out who uses it.
    """

    part: ClassVar[str]

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.d_in, self.d_out = layer_sizes(base)
        self.clients: Layer = {}
        self.shared: Layer = {}
        self.rows_axis = 0
        self.stand_in: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The pretrained weight, for models that ask a layer for its type or shape, as T5 does.

        One that computes with it goes past the tensors of clients (see `fedgram.engine.block_trial`).
        """
        return self.base.get_parameter("weight") if self.stand_in is None else self.stand_in

    @property
    def bias(self) -> Tensor | None:
        """The pretrained bias, likewise; None where there is none."""
        return getattr(self.base, "bias", None)

    @property
    def in_features(self) -> int:
        """What ``nn.Linear`` calls d_in."""
        return self.d_in

    @property
    def out_features(self) -> int:
        """What ``nn.Linear`` calls d_out."""
        return self.d_out

    @abstractmethod
    def initial(self) -> Layer:
        """Return the tensors that the server starts with, without client axis, in float32 on the CPU."""

    def load(self, tensors: Layer) -> None:
        """Set the tensors that the next forward computes with, each of shape (C, ...)."""
        self.clients = tensors

    def share(self, tensors: Layer) -> None:
        """Set the tensors that all clients compute with."""
        self.shared = tensors

    def merge(self, tokens: int) -> None:
        """Prepare for a number of tokens that the one client that is loaded will see, without gradients."""

    def unmerge(self) -> None:
        """Undo `merge`, as `load` and `share` do too."""

    def held_once(self) -> Iterator[Tensor]:
        """Yield what is in memory once for all clients, besides parameters and buffers."""
        yield from self.shared.values()


class Adapter(ClientLayer):
    """A frozen linear layer W⁰ with a trainable low-rank part ΔW beside it: ``x -> W⁰ x + b + ΔW x``.

    A new kind of adapter says how it starts and what its two factors are (`expand`); one whose ΔW is not their product
    alone says how it is applied (`add`) and multiplied out (`added_to`). A shared field ``residual`` (d_out, d_in),
    which a server may add to the frozen weights, is a part of W⁰.

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s in ΔW = s upᵀ down.
        start: the tensors that the server starts with, without client axis, in float32.
        preserve_start: take the start's ΔW out of W⁰, so that the pretrained function is unchanged at the start where
            ΔW does not start at zero.
    """

    part = "adapter"

    def __init__(self, base: nn.Module, rank: int, scale: float, start: Layer, preserve_start: bool = False) -> None:
        super().__init__(base)
        self.rank = rank
        self.scale = scale
        self.start = start
        self.preserve_start = preserve_start
        self._start_factors: tuple[Tensor, Tensor] | None = None
        self._weight: Tensor | None = None  # W⁰, where a residual is a part of it
        self._merged: Tensor | None = None  # W⁰ + ΔW

    def initial(self) -> Layer:
        return {field: tensor.cpu().clone() for field, tensor in self.start.items()}

    @abstractmethod
    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        """Return ``down`` and ``up`` with ΔW = scale * upᵀ down, of tensors with a leading client axis."""

    def load(self, tensors: Layer) -> None:
        self.unmerge()
        super().load(tensors)
        like, known = next(iter(tensors.values())), self._start_factors
        if self.preserve_start and (known is None or known[0].dtype != like.dtype or known[0].device != like.device):
            down, up = self.expand({field: tensor.to(like).unsqueeze(0) for field, tensor in self.start.items()})
            self._start_factors = down, -up

    def share(self, tensors: Layer) -> None:
        self.unmerge()
        if tensors.get("residual") is not self.shared.get("residual"):
            self._weight = None
        super().share(tensors)

    @torch.no_grad()
    def merge(self, tokens: int) -> None:
        """Compute with one weight W⁰ + ΔW from here on, if that pays and the weight can hold it.

        To multiply ΔW out costs 2 r d_in d_out operations, and to apply it apart 2 r (d_in + d_out) for every token.
        """
        pays = tokens * (self.d_in + self.d_out) >= self.d_in * self.d_out
        if pays and self._resolves(next(iter(self.clients.values()))):
            self._merged = self.added_to(self._summed())
            self._weight = None  # one copy of the weights is enough

    def added_to(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """Return a weight with the ΔW of the one client that is loaded, multiplied out, added to it."""
        down, up = self.factors()
        return torch.addmm(weight, up[0].mT, down[0], alpha=self.scale)

    def add(
        self, y: Float[Tensor, "rows ... d_out"], x: Float[Tensor, "rows ... d_in"]
    ) -> Float[Tensor, "rows ... d_out"]:
        """Return y + ΔW x, with the ΔW of every client for its own rows."""
        down, up = self.factors()
        return add_low_rank(y, x, down, up, self.scale)

    def unmerge(self) -> None:
        self._merged = None

    def held_once(self) -> Iterator[Tensor]:
        yield from super().held_once()
        yield from (weight for weight in (self._weight, self._merged) if weight is not None)

    def factors(self) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        """Return ``down`` and ``up`` of every client that is loaded; a start that is preserved is taken back."""
        down, up = self.expand(self.clients)
        if self._start_factors is None:
            return down, up
        start_down, start_up = (factor.expand(down.shape[0], -1, -1) for factor in self._start_factors)
        return torch.cat([down, start_down], dim=1), torch.cat([up, start_up], dim=1)

    def _resolves(self, added: Tensor) -> bool:
        """Say whether the weights can hold what is added to them.

        In a lower precision than its own they can't: what a round changes is often less than their resolution.
        """
        same = self.base.get_parameter("weight").dtype == added.dtype
        return same and not torch.is_autocast_enabled(added.device.type)

    def _summed(self) -> Float[Tensor, "d_out d_in"]:
        """Return the pretrained weight and the residual as one matrix, which is kept where there is a residual."""
        own, residual = self.base.get_parameter("weight"), self.shared.get("residual")
        weight = own if isinstance(self.base, nn.Linear) else own.mT
        if residual is None:
            return weight
        if self._weight is None:
            with torch.inference_mode(False):  # it outlives an evaluation
                self._weight = weight + residual
        return self._weight

    def _times(self, weight: Tensor, x: Tensor) -> Tensor:
        return linear(x, weight, getattr(self.base, "bias", None))

    def frozen(self, x: Float[Tensor, "rows ... d_in"]) -> Float[Tensor, "rows ... d_out"]:
        """Return W⁰ x + b, where W⁰ is the pretrained weight and the residual, apart where the weight can't hold it."""
        residual = self.shared.get("residual")
        if residual is None:
            return self.base(x)
        if self._resolves(residual):
            return self._times(self._summed(), x)
        y = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            return y + linear(x.to(residual.dtype), residual, None).to(y.dtype)

    def forward(self, x: Float[Tensor, "rows ... d_in"]) -> Float[Tensor, "rows ... d_out"]:
        if self._merged is not None:
            return self._times(self._merged, x)
        y = self.frozen(x)
        # Not in autocast's half precision: what a step changes in FLoRG's A is less than its resolution.
        with torch.autocast(x.device.type, enabled=False):
            if self.rows_axis:
                return self.add(y.movedim(self.rows_axis, 0), x.movedim(self.rows_axis, 0)).movedim(0, self.rows_axis)
            return self.add(y, x)
