"""FedLoRU, and its variants for clients that differ in their data or in what they can compute.

Park, Klabjan: Communication-Efficient Federated Low-Rank Update Algorithm and its Connection to Implicit Regularization
(arXiv 2409.12371). Symbols: ``A: (r, d_in)`` and ``B: (d_out, r)``, which the paper calls B and A; τ `merge_every`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedgram.adapters import (
    Adapter,
    LoraAdapter,
    LoraPairAdapter,
    NestedLoraAdapter,
    lora_pair_start,
    lora_start,
    nested_start,
    outer_factors,
    random_rows,
)
from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Paper, Phase
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, fill_up
from fedgram.methods.merging import MergingMethod
from fedgram.seeding import torch_generator
from fedgram.settings import check
from fedgram.state import Layer, Layers, ModelState, Payload, ServerState

__all__ = ["FedLoRU", "MFedLoRU", "PFedLoRU"]

Mode = Literal["reset", "keep"]


class FedLoRU(MergingMethod):
    """A and B are averaged, and every τ rounds their product is added to the frozen weights (arXiv 2409.12371).

    Ā = Σ wₙ Aₙ and B̄ = Σ wₙ Bₙ; and after rounds τ, 2τ, …: W ← W + s B̄Ā. The paper has the product sent to all clients
    at that time; here a client that was not there gets it when it next takes part. The model is W with all that was
    added and with the present factors: what was trained since the last multiple of τ, which the last line of the
    paper's algorithm leaves out, is in it. That clients get W is not counted: they have the pretrained model.

    Args:
        merge_every: τ, rounds from one product to the next.
        mode: what becomes of the factors that were added. "reset": they start anew, A random and B zero, so that the
            model stays what it was. "keep": they stay, as the paper's algorithm is printed, and count twice: the model
            jumps by s B̄Ā whenever they are added. The published code can do either.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Park, Klabjan", 2024, "arXiv", "2409.12371")
    travels = "A and B both ways"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"FedLoRU": {}, "FedLoRU-keep": {"mode": "keep"}}

    def __init__(self, *, merge_every: int = 5, mode: Mode = "reset", **common: Any) -> None:
        super().__init__(**common)
        check("method.merge_every", merge_every, at_least=1)
        require_choice("method.mode", mode, Mode)
        self.merge_every = merge_every
        self.mode = mode

    @property
    def name(self) -> str:
        return super().name + ("" if self.mode == "reset" else "-keep")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = self.with_nothing_merged(lora_start(linear, self.rank, generator))
        return LoraAdapter(linear, self.rank, self.scale, start)

    def redrawn(self, number: int) -> frozenset[str]:
        return frozenset("AB" if self._merges(number) and self.mode == "reset" else ())

    def redraw(self, name: str, layer: Layer, number: int, seed: int) -> Layer:
        """Return the factors that training goes on from once others were added: A random, B zero."""
        A, generator = layer["A"], torch_generator(seed, f"next factors of {name}", number)
        return {"A": random_rows(A.shape[0], A.shape[1], generator).to(A), "B": torch.zeros_like(layer["B"])}

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return what the client lacks; A and B not, where they are the factors of the newest product as well."""
        payload = super().download(server, ctx)
        if self.mode == "reset" or not self._merges(ctx.round.number - 1):
            return payload
        missed = self.missed_changes(ctx.last_round, ctx.round.number)
        count = next(number for field, number in missed.items() if field.name == "residual")
        layers = payload.adapter.items()
        return replace(payload, adapter={name: _fewer(sent, server.adapter[name], count) for name, sent in layers})

    def derived(self, held: Layer, sent: Layer) -> Mapping[str, Callable[[], Tensor]]:
        twins = {f: lambda f=f: sent[f"merged_{f}"][-1] for f in ("A", "B")}
        known = self.mode == "keep" and "merged_A" in sent and "A" not in sent
        return {**super().derived(held, sent), **(twins if known else {})}

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return self._after(average(layers, uploads, {"A", "B"}), ctx)

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        return server.with_adapter(self._after(server.adapter, ctx))

    def _merges(self, number: int) -> bool:
        """Return whether a round adds the product to the frozen weights."""
        return number % self.merge_every == 0

    def _after(self, means: Layers, ctx: RoundContext) -> Layers:
        """Return the server's layers after a round, of the means of A and B."""
        if not self._merges(ctx.number):
            return means
        return {name: self._merged(name, layer, ctx) for name, layer in means.items()}

    def _merged(self, name: str, layer: Layer, ctx: RoundContext) -> Layer:
        """Return a layer with its product in the residual."""
        merged = {**layer, **self.add(layer, layer["A"], layer["B"])}
        return merged if self.mode == "keep" else merged | self.redraw(name, layer, ctx.number, ctx.seed)


def _fewer(sent: Layer, layer: Layer, count: int) -> Layer:
    """Return the newest products of a layer instead of what is to be sent, where they are no more numbers."""
    products = {field: layer[field][-count:] for field in ("merged_A", "merged_B")}
    if len(layer["merged_A"]) < count or _numbers(products) > _numbers(sent):
        return sent
    return products


def _numbers(layer: Layer) -> int:
    return sum(tensor.numel() for tensor in layer.values())


class PFedLoRU(FedLoRU):
    """FedLoRU with a pair of factors that stays with its client: a reconstruction of pFedLoRU (arXiv 2409.12371).

    ΔWₙ = s B A + s' Uₙ Lₙ. In each round a client first trains its own pair, L and U, with A and B held, and then A and
    B with its own held; A and B alone are sent, averaged and added to W. That there is a second pair the paper's
    abstract says; how and in which order the two are trained, and their scales, are not verified, and no code is known.

    Args:
        merge_every: τ, rounds from one product to the next.
        mode: what becomes of A and B once they were added: "reset" or "keep" (see FedLoRU).
        personal_rank: of L and U; by default r.
        personal_scale: s' in front of U L; by default s.
        personal_share: of the local steps of a round in which L and U are trained, between 0 and 1, rounded to whole
            steps. A run in which no client has a step of it, such as half of one, is refused.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pFedLoRU": {}}
    fields = (*FedLoRU.fields, Field("L", down=False, up=False), Field("U", down=False, up=False))

    def __init__(
        self,
        *,
        merge_every: int = 5,
        mode: Mode = "reset",
        personal_rank: int | None = None,
        personal_scale: float | None = None,
        personal_share: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(merge_every=merge_every, mode=mode, **common)
        if personal_rank is not None:
            check("method.personal_rank", personal_rank, at_least=1)
        if not 0 < personal_share < 1:
            raise ConfigurationError(
                f"method.personal_share must lie between 0 and 1, so that both pairs are trained, got {personal_share}"
            )
        if personal_scale is not None and not 0 < personal_scale < math.inf:
            raise ConfigurationError(f"method.personal_scale must be positive, or left out, got {personal_scale}")
        self.personal_rank = personal_rank
        self.personal_scale = personal_scale
        self.personal_share = personal_share

    @property
    def name(self) -> str:
        return super().name.replace("P", "p", 1)

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = lora_pair_start(linear, self.rank, self.personal_rank or self.rank, generator)
        second = 1.0 if self.personal_scale is None else self.personal_scale / self.scale
        return LoraPairAdapter(linear, self.rank, self.scale, self.with_nothing_merged(start), (1.0, second))

    def phases(self, number: int) -> tuple[Phase, ...]:
        """Return the client's own pair, and then the shared one."""
        return (
            Phase(frozenset({"L", "U"}), self.personal_share, "personal"),
            Phase(frozenset({"A", "B"}), 1 - self.personal_share, "shared"),
        )


class MFedLoRU(FedLoRU):
    """FedLoRU for clients that train less than A and B: a reconstruction of mFedLoRU (arXiv 2409.12371).

    ΔWₙ = s (B + a Bdₙ Buₙ) (A + a Adₙ Auₙ): A and B are held, and the nested factors, of a rank r' below r, are trained
    and sent, r' (d_in + d_out + 2r) numbers. They start anew in each round, Au and Bu random, Ad and Bd zero. The
    server makes Aₙ = A + a Adₙ Auₙ and Bₙ = B + a Bdₙ Buₙ of them, and goes on as in FedLoRU. The paper's abstract says
    that low-rank updates are hierarchical; the form of the nested factors and their start are not verified, and no code
    is known.

    Args:
        merge_every: τ, rounds from one product to the next.
        mode: what becomes of A and B once they were added: "reset" or "keep" (see FedLoRU).
        inner_rank: r', the rank of the nested factors, at most r; by default half of r. `client_ranks`, which are ranks
            of the nested factors here, takes its place.
        inner_scale: a, in front of the nested products.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    heterogeneous = True
    travels = "nested factors up; A and B down"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mFedLoRU": {}}
    fields = (
        *(Field(f, up=False, trained=False, shared=True) for f in ("A", "B")),
        *FedLoRU.fields[2:],
        Field("Ad", down=False, fresh=True, rank_axis=1),
        Field("Au", down=False, fresh=True, rank_axis=0),
        Field("Bd", down=False, fresh=True, rank_axis=1),
        Field("Bu", down=False, fresh=True, rank_axis=0),
    )

    def __init__(
        self,
        *,
        merge_every: int = 5,
        mode: Mode = "reset",
        inner_rank: int | None = None,
        inner_scale: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(merge_every=merge_every, mode=mode, **common)
        if inner_rank is not None and not 1 <= inner_rank <= self.rank:
            raise ConfigurationError(
                f"method.inner_rank must lie between 1 and method.rank = {self.rank}, got {inner_rank}"
            )
        if inner_rank is not None and self.client_ranks is not None:
            raise ConfigurationError("method.client_ranks are inner ranks here; leave method.inner_rank out")
        if not 0 < inner_scale < math.inf:
            raise ConfigurationError(f"method.inner_scale must be positive, got {inner_scale}")
        self.inner_rank = inner_rank
        self.inner_scale = inner_scale

    @property
    def name(self) -> str:
        return super().name.replace("M", "m", 1)

    @property
    def widest(self) -> int:
        """The largest rank that nested factors may have, to which others are filled up."""
        return self.rank if self.client_ranks is not None else self.inner_rank or max(1, self.rank // 2)

    def dealt_rank(self, client: int, ctx: RoundContext) -> int:
        """Return the rank of a client's nested factors."""
        return self.widest if self.client_ranks is None else super().dealt_rank(client, ctx)

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        outer = lora_start(linear, self.rank, generator)
        start = self.with_nothing_merged(outer) | nested_start(outer["A"], outer["B"], self.widest, generator)
        return NestedLoraAdapter(linear, self.rank, self.scale, start, self.inner_scale)

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return nested factors whose products are zero; the seed gives all clients the same."""
        fresh = {name: layer | self._fresh(name, layer, ctx.round) for name, layer in held.adapter.items()}
        return super().start(replace(held, adapter=fresh), payload, ctx)

    def _fresh(self, name: str, layer: Layer, ctx: RoundContext) -> Layer:
        generator = torch_generator(ctx.seed, f"nested factors of {name}", ctx.number)
        drawn = nested_start(layer["A"], layer["B"], self.widest, generator)
        return {field: tensor.to(layer["A"]) for field, tensor in drawn.items()}

    def pad(self, start: ModelState, server: ServerState, ctx: RoundContext) -> ModelState:
        return replace(start, adapter=fill_up(start.adapter, self.fields, self.widest))

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return A + a Ad Au and B + a Bd Bu, which need no filling up."""
        known = server.adapter
        made = {name: self._outer(known[name], sent) for name, sent in payload.adapter.items()}
        return replace(payload, adapter=made)

    def _outer(self, layer: Layer, sent: Layer) -> Layer:
        wide = {f: t.double() for f, t in {"A": layer["A"], "B": layer["B"], **sent}.items()}
        A, B = outer_factors(wide, self.inner_scale)
        return {"A": A.to(layer["A"]), "B": B.to(layer["B"])}
