from fractions import Fraction

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedgram.backbone import frozen_linear as frozen
from fedgram.cost.flop_counter import FlopCounter, NotCountableError, countable, eigh_flops, qr_flops, svd_flops
from fedgram.errors import ConfigurationError


def count(function):
    with FlopCounter() as counter:
        function()
    return counter.total


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


SQUARE, LONG, WIDE = draw(6, 6) @ draw(6, 6).mT + torch.eye(6), draw(9, 4), draw(4, 9)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: LONG @ WIDE, 2 * 9 * 4 * 9),
        (lambda: torch.einsum("nij,njk->nik", draw(5, 2, 3), draw(5, 3, 4)), 2 * 5 * 2 * 3 * 4),
        (lambda: torch.addmm(draw(9), LONG, WIDE), 2 * 9 * 4 * 9),
        (lambda: LONG + 2 * LONG.exp(), 0),
        (lambda: torch.linalg.eigh(SQUARE), 9 * 6**3),
        (lambda: torch.linalg.svd(LONG, full_matrices=False), 6 * 9 * 4**2 + 20 * 4**3),
        (lambda: torch.linalg.svd(WIDE, full_matrices=False), 6 * 9 * 4**2 + 20 * 4**3),
        (lambda: torch.linalg.svd(draw(3, 4, 4), full_matrices=False), 3 * 22 * 4**3),
        (lambda: torch.linalg.svd(LONG), 4 * 9**2 * 4 + 8 * 9 * 4**2 + 9 * 4**3),
        (lambda: torch.linalg.qr(LONG), 4 * 9 * 4**2 - Fraction(4, 3) * 4**3),
        (lambda: torch.linalg.qr(LONG, mode="r"), 2 * 9 * 4**2 - Fraction(2, 3) * 4**3),
        (lambda: torch.linalg.qr(WIDE, mode="r"), 2 * 9 * 4**2 - Fraction(2, 3) * 4**3),
        (lambda: torch.linalg.cholesky(SQUARE), Fraction(6**3, 3)),
        (lambda: torch.linalg.inv(SQUARE), 2 * 6**3),
        (lambda: torch.linalg.solve(SQUARE, draw(6, 5)), Fraction(2, 3) * 6**3 + 2 * 6**2 * 5),
        (lambda: torch.linalg.solve(SQUARE, draw(6)), Fraction(2, 3) * 6**3 + 2 * 6**2),
        (lambda: torch.linalg.lstsq(LONG, draw(9, 2)), 2 * 4**2 * (9 - Fraction(4, 3)) + 2 * (4 * 9 * 4 - 4**2)),
    ],
)
def test_what_operations_count(function, expected):
    assert count(function) == expected


def test_sums_are_those_of_torchs_own_counter():
    network = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def step():
        network(draw(3, 5, 8)).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert count(step) == counter.get_total_flops() > 10_000


def test_products_by_onednn_count_as_others(monkeypatch):
    x, weight, bias = draw(2, 5, 3).requires_grad_(), draw(4, 3), draw(4)

    def step():
        torch.autograd.grad(frozen.linear(x, weight, bias).sum(), x)

    by_onednn = count(step)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert by_onednn == count(step) == 2 * 2 * 10 * 3 * 4


@pytest.mark.parametrize("n", [1, 2, 50])
def test_decompositions_of_square_matrices_cost_a_multiple_of_n_cubed(n):
    assert (eigh_flops(n), svd_flops(n, n), qr_flops(n, n)) == (9 * n**3, 22 * n**3, Fraction(8, 3) * n**3)


def test_the_cheaper_way_to_a_decomposition_of_a_long_matrix_is_by_qr_first():
    assert svd_flops(15, 10) == 14 * 15 * 100 + 8 * 1000 == 6 * 15 * 100 + 20 * 1000
    assert svd_flops(16, 10) == 6 * 16 * 100 + 20 * 1000
    assert svd_flops(14, 10) == 14 * 14 * 100 + 8 * 1000


def test_what_goes_wrong_is_told_with_whose_operations_can_not_be_counted():
    with pytest.raises(NotCountableError, match=r"the operations of Mine can't be counted \(KeyError: 'no'\)"):  # noqa: SIM117
        with countable("Mine"):
            raise KeyError("no")
    with pytest.raises(ConfigurationError, match="rank"), countable("Mine"):
        raise ConfigurationError("rank")
