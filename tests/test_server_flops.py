"""The server's operations, against formulas on paper and against counts at full size."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from fedgram.adapters import HeadLinear
from fedgram.cost import server_flops as module
from fedgram.cost.flop_counter import NotCountableError, qr_flops, svd_flops
from fedgram.cost.server_flops import aggregation, server_flops
from fedgram.methods import (
    FeDeRA,
    FedExLoRA,
    FedIT,
    FedSALoRA,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    FLoRG,
    HetLoRA,
)
from fedgram.seeding import torch_generator
from methods.test_harness import METHODS

N, R = 5, 2
IN, OUT = 48, 32


def layers_of(method, sizes, head=()):
    with torch.random.fork_rng():
        adapters = {f"q{i}": method.adapter(nn.Linear(*size), torch_generator(0, "q")) for i, size in enumerate(sizes)}
        return adapters | {f"head{i}": HeadLinear(nn.Linear(*size)) for i, size in enumerate(head)}


def low_rank_svd(rows_u, rows_v, m):
    """Of U V with m columns and rows: two thin QR decompositions, their R's product, its SVD, and both sides back."""
    qr = qr_flops(rows_u, m) + qr_flops(rows_v, m)
    return qr + 2 * m**3 + svd_flops(m, m) + 2 * (rows_u + rows_v) * m**2


K, M = min(IN, OUT), N * R
POLAR = 2 * R * K * M + svd_flops(R, M) + 2 * R * R * M + 2 * R * M * K
BY_HAND = {
    "FedIT": (FedIT(rank=R), 2 * N * R * (IN + OUT)),
    "FFALoRA": (FFALoRA(rank=R), 2 * N * R * OUT),
    "FedSALoRA": (FedSALoRA(rank=R), 2 * N * R * IN),
    "FeDeRA": (FeDeRA(rank=R), 2 * N * R * (IN + OUT)),
    "FeDeRA-round": (FeDeRA(rank=R, when="round"), low_rank_svd(OUT, IN, M)),
    # The means; C √w B and C √w A, with C of (N-1) x N; and the residual U V.
    "FedExLoRA": (
        FedExLoRA(rank=R),
        2 * N * R * (IN + OUT) + 2 * (N - 1) * N * R * (IN + OUT) + 2 * OUT * (N - 1) * R * IN,
    ),
    "FLoRA": (FLoRA(rank=R), 2 * OUT * M * IN),  # the stack, multiplied out
    "FlexLoRA": (FlexLoRA(rank=R), low_rank_svd(OUT, IN, M)),
    # The norm of every client's product by two QR decompositions and a product of r x r; and the means.
    "HetLoRA": (
        HetLoRA(rank=R),
        N * (qr_flops(OUT, R, with_q=False) + qr_flops(IN, R, with_q=False) + 2 * R**3) + 2 * N * R * (IN + OUT),
    ),
    "FLoRG-average": (FLoRG(rank=R, projection="average"), 2 * N * R * K),
    # A Zᵀ, its polar factor by an SVD of r x N r, and that times Z.
    "FLoRG": (FLoRG(rank=R), POLAR),
    # AₙᵀAₙ of every client and their mean, the eigenvectors of Q; Ã has N r rows, and the rest is as before.
    "FLoRG-eigh": (FLoRG(rank=R, solver="eigh"), N * 2 * R * K**2 + 2 * N * K**2 + 9 * K**3 + POLAR),
    "FLoRG-none-eigh": (
        FLoRG(rank=R, solver="eigh", projection="none"),
        N * 2 * R * K**2 + 2 * N * K**2 + 9 * K**3,
    ),
    "FLoRG-top_r": (FLoRG(rank=R, projection="top_r"), svd_flops(M, K)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_aggregation_by_hand(name):
    method, expected = BY_HAND[name]
    assert aggregation(method, IN, OUT, N, N).flops == expected


@pytest.mark.quick_cases(30)
@pytest.mark.parametrize("size", [(120, 120), (180, 60), (60, 180), (144, 96)])
@pytest.mark.parametrize("name", METHODS)
def test_small_layers_tell_what_large_ones_cost(name, size, monkeypatch):
    method = METHODS[name].make()
    direct = module._counted(method, *size, 4, 4)
    sizes = []
    counted = module._counted
    monkeypatch.setattr(module, "_counted", lambda *args: sizes.append(args[1:3]) or counted(*args))
    assert aggregation(method, *size, 4, 4) == direct
    assert max(sizes) < size


def test_where_the_polynomial_does_not_hold_the_layer_itself_is_counted(monkeypatch):
    """As where the cheaper way to a decomposition changes with the size."""
    calls = []

    def count(method, d_in, d_out, clients, cohort):
        calls.append(d_in)
        return module.Aggregation(Fraction(min(d_in**3, 40 * d_in**2)), {("adapter", "A"): (2, d_in)})

    monkeypatch.setattr(module, "_counted", count)
    assert aggregation(FedIT(rank=1), 500, 500, 9, 9).flops == 40 * 500**2
    assert calls == [20, 21, 22, 23, 43, 500]


def test_a_layer_smaller_than_what_all_clients_send_is_counted_itself():
    """Q has no more than full rank: Ã has 6 rows, and not 5 x 2 = 10."""
    eigh = 5 * 2 * 2 * 6**2 + 2 * 5 * 6**2 + 9 * 6**3
    align = 2 * 2 * 6 * 6 + svd_flops(2, 6) + 2 * 2 * 2 * 6 + 2 * 2 * 6 * 6
    assert aggregation(FLoRG(rank=2, solver="eigh"), 6, 6, 5, 5).flops == eigh + align


def test_a_round_is_the_sum_over_layers_and_the_heads_mean():
    sizes, head = [(IN, OUT), (OUT, IN), (IN, OUT), (6, 6)], [(12, 12), (12, 3)]
    for method in (FLoRG(rank=R), FedExLoRA(rank=R)):
        expected = sum(aggregation(method, *size, N, N).flops for size in sizes)
        assert server_flops(method, layers_of(method, sizes, head), N, N) == expected + 2 * N * (12**2 + 12 + 36 + 3)
    for policy in ("frozen", "local"):
        method = FLoRG(rank=R, head=policy)
        assert server_flops(method, layers_of(method, sizes), N, N) == sum(
            aggregation(method, *s, N, N).flops for s in sizes
        )


def test_the_shapes_of_what_the_server_holds_afterwards_are_told():
    found = aggregation(FedExLoRA(rank=4, residual="factored"), 3072, 1024, 20, 20)
    assert found.shapes == {
        ("adapter", "A"): (4, 3072),
        ("adapter", "B"): (1024, 4),
        ("adapter", "residual"): (1024, 3072),
        ("adapter", "U"): (1, 76, 1024),
        ("adapter", "V"): (1, 76, 3072),
    }


def test_no_generator_is_touched():
    before = torch.get_rng_state()
    aggregation(FLoRG(rank=2), 64, 64, 3, 3)
    assert torch.equal(torch.get_rng_state(), before)


class Unusual(FedIT):
    def aggregate(self, layers, uploads, info):
        raise RuntimeError("not on random uploads")


def test_a_server_that_can_not_be_run_on_random_uploads_is_an_error():
    method = Unusual(rank=2)
    with pytest.raises(NotCountableError, match=r"the server of Unusual can't be counted .*not on random uploads"):
        server_flops(method, layers_of(method, [(8, 8)]), 3, 3)
