"""FedLEASE's adapter: several LoRA experts on one layer, of which a router chooses some for every token.

Symbols (FedLEASE, §4): M experts; ``A: (r, d_in)`` and ``B: (d_out, r)`` the client's own; ``As: (M-1, r, d_in)`` and
``Bs: (M-1, d_out, r)`` the others; ``R: (2M-1, d_in)`` the router.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import tokens_of_clients, tokens_per_client
from fedgram.adapters.lora import LoraAdapter
from fedgram.backbone.padding_free import present
from fedgram.state import Layer

__all__ = ["ExpertsAdapter", "gates"]


class ExpertsAdapter(LoraAdapter):
    """ΔW x = s Σₑ gₑ(x) Bₑ Aₑ x over M experts, with `gates` of R x; plain LoRA where a client has no router.

    Clients of one block have tensors of one form; one that does not route yet, whose model is plain LoRA, has zeros in
    the place of experts and router, and ``routes: ()``, which is 1 by default, is 0.

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        start: A and B that the server starts with.
        renormalise: whether the weights of the chosen slots are divided by their sum.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, start: Layer, renormalise: bool = False) -> None:
        super().__init__(base, rank, scale, start)
        self.renormalise = renormalise

    def merge(self, tokens: int) -> None:
        """Prepare for many tokens, if the layer does the same with each."""
        if "R" not in self.clients:
            super().merge(tokens)

    def add(
        self, y: Float[Tensor, "rows ... d_out"], x: Float[Tensor, "rows ... d_in"]
    ) -> Float[Tensor, "rows ... d_out"]:
        if "R" not in self.clients:
            return super().add(y, x)
        return y + self._routed(x.to(self.clients["R"].dtype)).reshape(y.shape).to(y.dtype)

    def _routed(self, x: Float[Tensor, "rows ... d_in"]) -> Tensor:
        """Return ΔW x of the tokens of all clients, in their order."""
        own = _together(self.clients)
        if present() is None:
            return self._mixture(tokens_of_clients(x, len(own["R"])), own)
        sizes = tokens_per_client(x, len(own["R"]))  # each client has its own number of tokens
        parts = x.reshape(-1, x.shape[-1]).split(list(sizes))
        ones = ({field: tensor[c : c + 1] for field, tensor in own.items()} for c in range(len(parts)))
        return torch.cat([self._mixture(part.unsqueeze(0), one) for part, one in zip(parts, ones, strict=True)], dim=1)

    def _mixture(self, tokens: Float[Tensor, "C n d_in"], own: Layer) -> Float[Tensor, "C n d_out"]:
        """Return s Σₑ gₑ Bₑ Aₑ x; no product is larger than those of a LoRA of rank M r."""
        g = gates(torch.bmm(tokens, own["R"].mT), self.renormalise)
        if "routes" in own:
            g = torch.where(own["routes"][:, None, None] > 0, g, torch.eye(1, g.shape[-1]).to(g))
        hidden = torch.bmm(tokens, own["down"].mT) * g.repeat_interleave(self.rank, dim=-1)
        return torch.bmm(self.scale * hidden, own["up"])


def _together(tensors: Layer) -> Layer:
    """Return the factors of all experts, one under the other, the client's own first; and what else there is."""
    down = torch.cat([tensors["A"].unsqueeze(1), tensors["As"]], dim=1).flatten(1, 2)
    up = torch.cat([tensors["B"].unsqueeze(1), tensors["Bs"]], dim=1).mT.flatten(1, 2)
    return {"down": down, "up": up, **{field: tensors[field] for field in ("R", "routes") if field in tensors}}


def gates(logits: Float[Tensor, "... 2M-1"], renormalise: bool) -> Float[Tensor, "... M"]:
    """Return the weight of each expert for each token, the client's own first.

    Of 2M-1 slots the first M are the client's own expert, and each other one is another expert. With ω = softmax of the
    logits, the M largest are chosen. Only M-1 slots are not the client's own, so that its own is always among them.

    Args:
        logits: of the slots.
        renormalise: whether the chosen weights are divided by their sum.

    >>> gates(torch.tensor([0.0, -20.0, 0.0]), renormalise=True)
    tensor([0.5000, 0.5000])
    """
    experts = (logits.shape[-1] + 1) // 2
    top = logits.softmax(dim=-1).topk(experts, dim=-1)
    weights = top.values / top.values.sum(dim=-1, keepdim=True) if renormalise else top.values
    chosen = torch.zeros_like(logits).scatter(-1, top.indices, weights)
    return torch.cat([chosen[..., :experts].sum(dim=-1, keepdim=True), chosen[..., experts:]], dim=-1)
