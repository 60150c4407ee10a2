"""What the methods have in common that add products of LoRA's factors to the frozen weights, round after round.

Symbols: ``A: (r, d_in)`` and ``B: (d_out, r)``, q = r (d_in + d_out) numbers; ``residual: (d_out, d_in)`` the sum of
all that was added, with the scale; ``merged_A: (m r, d_in)`` and ``merged_B: (d_out, m r)`` the m newest products.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fedgram.methods.base import RoundInfo
from fedgram.methods.fields import Field, select
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layer, State, merge

__all__ = ["MergingMethod"]


class MergingMethod(LoRAMethod):
    """A method whose server adds a product of factors to the frozen weights in every round, or in some.

    The sum is kept in float32 beside weights of a lower precision, which would swallow it. A client was told a product
    when it was sent its factors, q numbers; one that missed some is sent the factors of each one after another, or the
    sum of all where that is fewer numbers. So the server keeps the newest products, as many as are fewer numbers.

    Attributes:
        merge_every: rounds from one product to the next.
    """

    fields: tuple[Field, ...] = (
        Field("A"),
        Field("B"),
        Field("residual", up=False, trained=False, shared=True),
        Field("merged_A", down=False, up=False, trained=False, shared=True),
        Field("merged_B", down=False, up=False, trained=False, shared=True),
    )
    catches_up: ClassVar[bool] = True
    merge_every: int = 1

    def with_nothing_merged(self, start: Layer) -> Layer:
        """Return the start of a layer with no residual, and a product of zeros as the only one."""
        A, B = torch.zeros_like(start["A"]), torch.zeros_like(start["B"])
        return {**start, "residual": A.new_zeros(B.shape[0], A.shape[1]), "merged_A": A, "merged_B": B}

    def missed_merges(self, client: int, info: RoundInfo) -> int:
        """Return how many products have been added since a client of the cohort was last sent something."""
        last = max(info.last[client], 1)  # what a round adds is told in the next
        return (info.number - 1) // self.merge_every - (last - 1) // self.merge_every

    def catch_up(self, layer: Layer, missed: int, present: bool, newest: bool = False) -> Layer:
        """Return what brings a client up to date: the factors of the products that it missed, or the sum of all.

        Args:
            layer: the server's.
            missed: how many products.
            present: whether the client needs the present A and B as well, which come last.
            newest: whether these are the factors of the newest product, which are sent once then.
        """
        A, B, residual = layer["A"], layer["B"], layer["residual"]
        q, alone = A.numel() + B.numel(), present and not newest
        if (missed + alone) * q > residual.numel() + present * q:
            return {"residual": residual, **({"A": A, "B": B} if present else {})}
        if not missed + alone:
            return {}
        rows = missed * len(A)
        return {
            "A": torch.cat([layer["merged_A"].narrow(0, len(layer["merged_A"]) - rows, rows), *[A] * alone]),
            "B": torch.cat([layer["merged_B"].narrow(1, len(layer["merged_A"]) - rows, rows), *[B] * alone], dim=1),
        }

    def start(self, server: State, held: State, payload: State, client: int, info: RoundInfo) -> State:
        """Return the present factors, which the client was sent, or knows of the seed or of what it was sent once."""
        present = select(server["adapter"], [f.name for f in self.fields if f.name in ("A", "B") and not f.shared])
        return merge(held, {"adapter": present, "head": payload["head"]})

    def add(self, layer: Layer, A: Tensor, B: Tensor, start: Tensor | None = None) -> Layer:
        """Return the fields of a layer once s (B A - start) is in the residual, summed in float64 and rounded once.

        Args:
            layer: the server's.
            A: as it is sent.
            B: as it is sent.
            start: a product that was a part of the weights already.
        """
        product = B.double() @ A.double()
        total = layer["residual"] + self.scale * (product if start is None else product - start)
        most = 1 + total.numel() // (A.numel() + B.numel())  # of more, the sum and the present pair are fewer numbers
        return {
            "residual": total.to(layer["residual"]),
            "merged_A": _newest(layer["merged_A"], A, 0, most),
            "merged_B": _newest(layer["merged_B"], B, 1, most),
        }


def _newest(old: Tensor, new: Tensor, axis: int, most: int) -> Tensor:
    """Return factors with one more, and the oldest left out where they are more than ``most``."""
    keep = min(old.shape[axis], (most - 1) * new.shape[axis])
    return torch.cat([old.narrow(axis, old.shape[axis] - keep, keep), new], dim=axis)
