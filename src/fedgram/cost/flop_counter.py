"""A counter of floating-point operations: torch's formulas, and those that torch's own counter does not know.

A matrix product of m x n by n x p is 2 m n p operations. Decompositions are counted by the formulas of Golub and Van
Loan, Matrix Computations (4th edition, 2013), whatever the machine's library does. What is done entry by entry counts
nothing, as torch has it; and so does an operator without a formula.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from fedgram.errors import FedgramError

__all__ = ["FlopCounter", "NotCountableError", "countable", "eigh_flops", "qr_flops", "svd_flops"]

_Shape = tuple[int, ...]


class NotCountableError(FedgramError, RuntimeError):
    """A network or a method whose operations can't be counted."""


@contextmanager
def countable(what: str) -> Iterator[None]:
    """Say of what goes wrong that operations can't be counted.

    Args:
        what: whose operations.

    Raises:
        NotCountableError: in the place of an error that is not fedgram's own.
    """
    try:
        yield
    except FedgramError:
        raise
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise NotCountableError(
            f"the operations of {what} can't be counted ({type(error).__name__}: {reason})"
        ) from error


class FlopCounter(TorchDispatchMode):
    """Counts what is called within its context, call by call.

    Torch's FlopCounterMode finds the same sums, by more work, since it tells modules apart.

    Attributes:
        calls: the operations of every call, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int | Fraction] = []
        self._formulas = _formulas()

    @property
    def total(self) -> Fraction:
        """The operations of all calls; a fraction, as some formulas have thirds."""
        return sum(map(Fraction, self.calls), Fraction(0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.calls.append(formula(*args, **(kwargs or {}), out_val=out))
        return out


def eigh_flops(n: int) -> int:
    """Return the operations of a symmetric eigendecomposition by tridiagonal QR (§8.3.3).

    Values alone would cost 4n³/3; but torch asks for vectors, too, where it is watched.
    """
    return 9 * n**3


def svd_flops(rows: int, cols: int) -> int:
    """Return the operations of a thin singular value decomposition (figure 8.6.1).

    The lesser of Golub and Reinsch's way and of that by a QR decomposition first, which pays for long matrices.
    """
    m, n = max(rows, cols), min(rows, cols)
    return min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3)


def qr_flops(rows: int, cols: int, with_q: bool = True) -> Fraction:
    """Return the operations of Householder's QR decomposition, thin, or of R alone (§5.2.2).

    To multiply the reflections out into the columns of Q costs as much again as R where rows >= cols (§5.1.6).
    """
    m, n = rows, cols
    if m >= n:
        return (2 if with_q else 1) * 2 * Fraction(n) ** 2 * (m - Fraction(n, 3))
    return 2 * Fraction(m) ** 2 * (n - Fraction(m, 3)) + (Fraction(4, 3) * m**3 if with_q else 0)


def _formulas() -> Mapping[Any, Callable[..., int | Fraction]]:
    """Return, for operators of torch, the operations of one call."""
    aten = torch.ops.aten
    own: dict[Any, Callable[..., int | Fraction]] = {
        aten._linalg_eigh: lambda A, *_rest, **_: _batch(A) * eigh_flops(A[-1]),
        aten._linalg_svd: _svd,
        aten.linalg_qr: lambda A, mode="reduced", **_: _batch(A) * qr_flops(A[-2], A[-1], mode != "r"),
        aten.linalg_cholesky_ex: lambda A, **_: _batch(A) * Fraction(A[-1] ** 3, 3),  # §4.2
        aten.linalg_inv_ex: lambda A, **_: _batch(A) * 2 * A[-1] ** 3,  # §3.2 and §3.1
        aten._linalg_solve_ex: _solve,
        aten.linalg_lstsq: _least_squares,
    }
    if torch.backends.mkldnn.is_available():  # see fedgram.backbone.frozen_linear
        own[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_rest, **_: 2 * prod(x) * weight[0]
    return {**flop_registry, **{operator: shape_wrapper(formula) for operator, formula in own.items()}}


def _batch(shape: _Shape) -> int:
    return prod(shape[:-2])


def _svd(A: _Shape, full: bool = False, *_rest: Any, **_: Any) -> int:
    m, n = max(A[-2:]), min(A[-2:])
    return _batch(A) * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3 if full and m > n else svd_flops(m, n))


def _solve(A: _Shape, B: _Shape, **_: Any) -> Fraction:
    """Gaussian elimination, 2n³/3, and two triangular systems for every right side, 2n² (§3.2, §3.1)."""
    n, sides = A[-1], 1 if len(B) < len(A) else B[-1]
    return _batch(A) * (Fraction(2, 3) * n**3 + 2 * n**2 * sides)


def _least_squares(A: _Shape, B: _Shape, *_rest: Any, **_: Any) -> Fraction:
    """By QR, 2n²(m - n/3), and for every right side Qᵀb, 4mn - 2n², and a triangular system, n² (§5.3.2)."""
    m, n = max(A[-2:]), min(A[-2:])
    return _batch(A) * (2 * Fraction(n) ** 2 * (m - Fraction(n, 3)) + B[-1] * (4 * m * n - n**2))
