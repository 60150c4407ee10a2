"""LoRA-FAIR: the server corrects the mean of B (Bian et al., ICCV 2025, arXiv 2411.14961).

Symbols: ``Ā: (r, d_in)`` and ``B̄: (d_out, r)`` the means; T = Σ wₙ BₙAₙ, what their product should be; ``ΔB`` the
correction; ``H = T Āᵀ: (d_out, r)`` and ``G = Ā Āᵀ: (r, r)``, through which alone it depends on T and Ā.
"""

import math
from operator import itemgetter
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import fill_up
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import mean_product, product_norm
from fedgram.seeding import torch_generator
from fedgram.state import Layer, Layers

__all__ = ["LoRAFAIR"]

Mode = Literal["cosine", "l2"]
Init = Literal["zero", "xavier"]


class LoRAFAIR(LoRAMethod):
    """A and B are averaged, and B̄ is corrected towards Σ wₙ BₙAₙ before both are sent (arXiv 2411.14961).

    ΔB minimises S(T, (B̄ + ΔB) Ā) + λ ‖ΔB‖², and clients go on from Ā and B̄ + ΔB. With mode "cosine", S = 1 - cos of
    the two matrices as vectors, by plain gradient descent; the paper prints cos in a minimum, and code derived from the
    authors' takes it column by column. With mode "l2", S is the squared distance, and ΔB = (T - B̄ Ā) Āᵀ (G + λ I)⁻¹.

    The cosine does not see lengths, which brings two traps. A random start of ΔB, far larger than B̄ in early rounds,
    is pulled back by λ alone, and that of the paper is weak: so ΔB starts at zero. And its gradient goes as 1/‖B̄ Ā‖:
    at an lr of .01 the steps overshoot where ‖B̄ Ā‖ is well below 1, and lengthen B many times over. So ΔB is counted
    in units of ‖B̄ Ā‖ here. Both can be had as they were. Clients of a lower rank take part with the server's own rows
    and columns in what they lack; ranks that nobody of the cohort has stay what they were.

    Args:
        mode: "cosine", the paper's, or "l2", which is solved exactly and has no steps.
        lam: λ, what a correction costs: .01 in the paper; 1 in code derived from the authors', by which nearly nothing
            is corrected.
        steps: of the descent on the cosine, 1000 in code derived from the authors'.
        lr: its learning rate, .01 in that code; the paper names none for the server.
        init: where the descent starts: "zero"; or "xavier", uniform in ±√(6/(d_out + r)), as in code derived from the
            authors'.
        relative: count ΔB in units of ‖B̄ Ā‖ in the descent, so that small and large updates are corrected alike; false
            counts it as it is, as in the paper.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    paper = Paper("Bian et al.", 2024, "ICCV 2025", "2411.14961")
    heterogeneous = True
    travels = "A and B both ways"
    variants = {"LoRAFAIR": {}, "LoRAFAIR-l2": {"mode": "l2"}}  # noqa: RUF012

    def __init__(
        self,
        *,
        mode: Mode = "cosine",
        lam: float = 0.01,
        steps: int = 1000,
        lr: float = 0.01,
        init: Init = "zero",
        relative: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require_choice("method.mode", mode, Mode)
        require_choice("method.init", init, Init)
        if not 0 <= lam < math.inf:
            raise ConfigurationError(f"method.lam must not be negative, got {lam}; 0 holds no correction back")
        if steps < 1 or not 0 < lr < math.inf:
            raise ConfigurationError(f"method.steps and method.lr must be positive, got {steps} and {lr}")
        self.mode = mode
        self.lam = lam
        self.steps = steps
        self.lr = lr
        self.init = init
        self.relative = relative

    @property
    def name(self) -> str:
        if self.mode == "l2":
            return super().name + "-l2"
        return super().name + ("" if self.init == "zero" else "-xavier") + ("" if self.relative else "-absolute")

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        whole = layers
        layers, uploads = self.held_by_cohort(layers, uploads, ctx)
        means = {
            name: {field: uploads.mean(name, itemgetter(field), old) for field, old in layer.items()}
            for name, layer in layers.items()
        }
        targets = {name: _target(name, mean, uploads) for name, mean in means.items()}
        if self.mode == "l2":
            corrections = {name: self._by_least_squares(mean, targets[name]) for name, mean in means.items()}
        else:
            lengths = {name: _length(name, layer, uploads) for name, layer in layers.items()}
            corrections = self._by_descent(means, targets, lengths, ctx)
        corrected = {name: {"A": mean["A"], "B": mean["B"] + corrections[name]} for name, mean in means.items()}
        after = {name: {f: corrected[name][f].to(old) for f, old in layer.items()} for name, layer in layers.items()}
        return fill_up(after, self.fields, self.rank, whole)

    def _by_least_squares(self, mean: Layer, H: Float[Tensor, "d_out r"]) -> Float[Tensor, "d_out r"]:
        """Return ΔB = (H - B̄ G) (G + λ I)⁻¹; without λ, the least ΔB of those that are as good."""
        G = mean["A"] @ mean["A"].mT
        held = G + self.lam * torch.eye(len(G)).to(G)
        rounding = torch.finfo(G.dtype).eps * max(mean["A"].shape)
        return (H - mean["B"] @ G) @ torch.linalg.pinv(held, hermitian=True, rtol=rounding)

    def _by_descent(self, means: Layers, targets: Layer, lengths: Layer, ctx: RoundContext) -> Layer:
        """Return ΔB of every layer, by descent in the columns of K = [B̄, H], and of ΔB's start where that is not zero.

        B̄ + ΔB = K C from the first step to the last, as the gradient is a combination of columns of H and of B̄ + ΔB. So
        a step costs as little for a layer of any size, and all layers, L, go together.
        """
        Ks = {name: self._columns(name, mean["B"], targets[name], ctx) for name, mean in means.items()}
        S = torch.stack([K.mT @ K for K in Ks.values()])
        G = torch.stack([mean["A"] @ mean["A"].mT for mean in means.values()])
        length = torch.stack(list(lengths.values()))
        if self.relative:
            unit = (S[:, : G.shape[1], : G.shape[1]] * G).sum((1, 2)).sqrt()  # ‖B̄ Ā‖
            unit = torch.where(unit > 0, unit, 1.0)
            S, length = S / unit[:, None, None] ** 2, length / unit
        moved = self._descend(S, G, length)
        return {name: K @ C for (name, K), C in zip(Ks.items(), moved, strict=True)}

    def _columns(
        self, name: str, B: Float[Tensor, "d_out r"], H: Float[Tensor, "d_out r"], ctx: RoundContext
    ) -> Float[Tensor, "d_out m"]:
        if self.init == "zero":
            return torch.cat([B, H], dim=1)
        bound = (6 / sum(B.shape)) ** 0.5
        generator = torch_generator(ctx.seed, f"correction of {name}", ctx.number)
        start = torch.empty(B.shape, dtype=B.dtype).uniform_(-bound, bound, generator=generator)
        return torch.cat([B, H, start.to(B)], dim=1)

    def _descend(
        self, S: Float[Tensor, "L m m"], G: Float[Tensor, "L r r"], length: Float[Tensor, " L"]
    ) -> Float[Tensor, "L m r"]:
        """Return D with ΔB = K D after all steps, of S = KᵀK and ‖T‖.

        With X = (B̄ + ΔB) Ā, ⟨T, X⟩ = ⟨H, B̄ + ΔB⟩ and ‖X‖² = ⟨(B̄ + ΔB) G, B̄ + ΔB⟩, the gradient of the loss is
        -H / (‖T‖ ‖X‖) + cos(T, X) (B̄ + ΔB) G / ‖X‖² + 2 λ ΔB. Where T or X is zero there is no cosine, and no gradient.
        """
        r = G.shape[1]
        blocks = torch.eye(S.shape[1], dtype=S.dtype, device=S.device).split(r, dim=1)
        of_B, of_H = blocks[:2]
        D = torch.zeros_like(S[:, :, :r]) + (blocks[2] if len(blocks) > 2 else 0)
        for _ in range(self.steps):
            C = of_B + D
            CG = C @ G
            norm = ((S @ C) * CG).sum((1, 2)).clamp(min=0).sqrt()
            product = (S[:, :, r : 2 * r] * C).sum((1, 2))
            known = norm * length > 0
            first = torch.where(known, 1 / (length * norm), 0.0)[:, None, None]
            second = torch.where(known, product / (length * norm**3), 0.0)[:, None, None]
            D = D - self.lr * (second * CG - first * of_H + 2 * self.lam * D)
        return D


def _target(name: str, mean: Layer, uploads: Uploads) -> Float[Tensor, "d_out r"]:
    """Return H = Σ wₙ Bₙ (Aₙ Āᵀ): an all_reduce."""
    return uploads.mean(name, lambda sent: sent["B"].double() @ (sent["A"].double() @ mean["A"].mT), mean["B"])


def _length(name: str, layer: Layer, uploads: Uploads) -> Float[Tensor, ""]:
    """Return ‖T‖."""
    Bs, As = (uploads.stack(name, field, layer[field]) for field in ("B", "A"))
    return product_norm(*mean_product(Bs, As, uploads.weights))
