"""The arithmetic limit of a workload: how fast it would be if a machine did nothing but the matrix products it needs.

The operations are counted, by torch's counter, in one real forward and backward pass of one unpadded sequence with the
backbone frozen; nothing is counted below the lowest adapter's output or for frozen weights, as nobody needs it. The
rate is measured: that of the products of these shapes, here and now, by the library that is fastest.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fedgram.backbone import frozen_linear as frozen
from report import best_seconds

__all__ = ["Product", "Shapes", "classifier", "linear_shapes", "product_rate", "steps_per_second", "training_flops"]

Shapes = Mapping[tuple[int, int], int]
"""How many Linear layers there are of each shape (d_out, d_in)."""

Product = Callable[[Tensor, Tensor], Tensor]
"""Takes x (n, d_in) and W (d_out, d_in)."""

ROWS = (256, 1024, 4096)
"""Tokens in one product; the limit takes the number that this machine likes best."""

SECONDS = 0.5
"""For one product: a CPU without bfloat16 instructions takes a second or more for one that others make in 20 ms."""


def classifier(folder: Path) -> nn.Module:
    """Return a classifier of a pretrained model's shape, with random weights."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, num_labels=2)
    # "eager" does attention in plain products, which the counter sees.
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


def add_adapters(model: nn.Module, targets: Iterable[str], rank: int) -> None:
    """Freeze a model and put LoRA on the Linear layers whose names end like one of the targets."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets:
            A = nn.Parameter(torch.zeros(rank, module.in_features))
            B = nn.Parameter(torch.zeros(module.out_features, rank))
            module.register_forward_hook(partial(_adapted, A, B))


def _adapted(A: Tensor, B: Tensor, module: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
    del module
    return out + given[0] @ A.mT @ B.mT


def training_flops(model: nn.Module, lengths: np.ndarray) -> float:
    """Return the operations of one forward and backward pass over sequences of these lengths, without padding.

    A sequence of L tokens costs a + b L + c L²: three lengths are counted, the rest follows.
    """
    points = [8, 32, 64]
    coefficients = np.polyfit(points, [_counted(model, length) for length in points], 2)
    return float(np.polyval(coefficients, lengths).sum())


def _counted(model: nn.Module, length: int) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.int64)).logits.sum().backward()
    return counter.get_total_flops()


def linear_shapes(model: nn.Module) -> Shapes:
    """Return the shapes of the Linear layers that every token goes through: those that several blocks have."""
    counts = Counter((m.out_features, m.in_features) for m in model.modules() if isinstance(m, nn.Linear))
    deep = {shape: count for shape, count in counts.items() if count > 1}
    return deep or counts


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return frozen.linear(x, weight, None)


def product_rate(shapes: Shapes, dtype: torch.dtype, product: Product, rows: Iterable[int] = ROWS) -> float:
    """Return operations a second of the layers' products, forward and for the gradient of their input.

    Args:
        shapes: the layers'.
        dtype: the numbers'.
        product: computes ``x Wᵀ``.
        rows: tokens in one product; the fastest counts.
    """
    return max(_rate(shapes, dtype, product, count) for count in rows)


def _rate(shapes: Shapes, dtype: torch.dtype, product: Product, rows: int) -> float:
    seconds = operations = 0.0
    for (d_out, d_in), layers in shapes.items():
        x, gradient, weight = (torch.randn(shape).to(dtype) for shape in ((rows, d_in), (rows, d_out), (d_out, d_in)))
        seconds += layers * best_seconds(lambda x=x, w=weight: product(x, w), 10, within=SECONDS)
        seconds += layers * best_seconds(lambda g=gradient, w=weight.mT: product(g, w), 10, within=SECONDS)
        operations += layers * 4 * rows * d_out * d_in
    return operations / seconds


def steps_per_second(
    folder: Path, lengths: np.ndarray, steps: int, threads: int, targets: Iterable[str], rank: int
) -> dict[str, float]:
    """Return the limit of a workload on this machine, in client-steps a second.

    Args:
        folder: the pretrained model's, of which only the configuration is read.
        lengths: of all sequences of a round, in tokens.
        steps: client-steps of a round.
        threads: as many as the contestants have.
        targets: ends of the names of the adapted layers.
        rank: of the adapters.

    Returns:
        ``gflop_per_step``, and for float32 and bfloat16 the rate in GFLOP/s, that of ``nn.Linear``, and the limit.
    """
    torch.set_num_threads(threads)
    model = classifier(folder)
    shapes = linear_shapes(model)
    add_adapters(model, targets, rank)
    per_step = training_flops(model, lengths) / steps
    figures = {"gflop_per_step": per_step / 1e9}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        usual, ours = (product_rate(shapes, dtype, product) for product in (functional.linear, _linear))
        rate = max(usual, ours)
        figures |= {f"{name}_gflops": rate / 1e9, f"{name}_linear_gflops": usual / 1e9, name: rate / per_step}
    return figures
