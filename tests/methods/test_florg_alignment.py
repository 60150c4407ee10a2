"""What tells FLoRG's projections apart in whole runs, as docs/methods.md has it."""

import pytest
import torch

from fedgram import SGD, AdamW
from fedgram.methods import FLoRG
from test_trainer import fit  # noqa: F401 (a fixture)


def products(fit, projection, optimizer, solver="polar"):  # noqa: F811
    """A run's AᵀA, layer by layer, and its final evaluation."""
    method = FLoRG(rank=2, init_std=0.3, projection=projection, solver=solver)
    summary, trainer = fit(method=method, optimizer=optimizer, rounds=3, precision="64-true")
    layers = trainer.federation.state.adapter.values()
    return [layer["A"].mT @ layer["A"] for layer in layers], summary["final"]


@pytest.mark.parametrize("solver", ["polar", "eigh"])
def test_none_is_top_r_bit_by_bit_with_fresh_moments(fit, solver):  # noqa: F811
    (one, scores), (other, others) = (products(fit, p, AdamW(lr=0.05), solver) for p in ("none", "top_r"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert scores == others


def test_alignment_is_what_tells_top_r_aligned_from_top_r_under_adam_alone(fit):  # noqa: F811
    for optimizer, differ in ((AdamW(lr=0.05), True), (SGD(lr=0.5), False)):
        (aligned, _), (plain, _) = (products(fit, p, optimizer) for p in ("top_r_aligned", "top_r"))
        distances = [float((a - b).norm() / b.norm()) for a, b in zip(aligned, plain, strict=True)]
        assert max(distances) > 1e-2 if differ else max(distances) < 1e-10
