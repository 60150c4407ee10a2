"""Gaussian mixtures of a client's samples, class by class, and how far those of two clients are apart.

Symbols: G components of a class, D numbers of a sample's vector, c classes of a client. All is NumPy in float64.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import torch

from fedgram.seeding import derive
from fedgram.state import Layer

__all__ = [
    "Mixture",
    "component_costs",
    "describe_classes",
    "distances",
    "fit_mixture",
    "read_classes",
    "transport_costs",
]

_REGULARISATION = 1e-5
"""Added to variances, as CE-LoRA's code has it: what a component of one sample has alone."""
_TOGETHER = 200
"""Transport problems of one linear program: their overhead is shared, and its matrix stays small."""

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Masses (g,) and (h,), both of sum 1, and costs (g, h)."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians with diagonal covariances.

    Attributes:
        weights: (G,), of sum 1.
        means: (G, D).
        variances: (G, D).
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray


def fit_mixture(samples: np.ndarray, components: int, seed: int, *indices: int) -> Mixture:
    """Fit a mixture to samples (n, D), by expectation and maximisation from a k-means start.

    Args:
        samples: (n, D).
        components: the most that it shall have; samples that differ are as many at least.
        seed: of the run.
        indices: what tells the mixtures of a run apart.
    """
    distinct = len(np.unique(samples, axis=0))
    if distinct == 1:
        return Mixture(np.ones(1), samples[:1], np.full((1, samples.shape[1]), _REGULARISATION))
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    model = GaussianMixture(
        min(components, distinct),
        covariance_type="diag",
        reg_covar=_REGULARISATION,
        max_iter=200,
        random_state=derive(seed, "mixtures", *indices) % 2**32,
    )
    # One thread: sums of several come in any order, and a client's mixture must not depend on who simulates it.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 200 iterations it is as good as it need be
        model.fit(samples)
    return Mixture(model.weights_, model.means_, model.covariances_)


def describe_classes(samples: np.ndarray, classes: np.ndarray, components: int, seed: int, client: int) -> Layer:
    """Return a mixture of each class of a client's samples, in the form in which it is sent.

    Args:
        samples: (n, D).
        classes: (n,).
        components: the most of a mixture.
        seed: of the run.
        client: whose.

    Returns:
        ``weights: (m,)``, ``means: (m, D)`` and ``variances: (m, D)`` of all mixtures, float32; the number of
        ``samples`` of each class, and of the ``components`` of its mixture, int64 (c,). Names of classes are not told.
    """
    found, counts = np.unique(classes, return_counts=True)
    mixtures = [fit_mixture(samples[classes == label], components, seed, client, int(label)) for label in found]
    parts = {
        name: np.concatenate([getattr(mixture, name) for mixture in mixtures])
        for name in ("weights", "means", "variances")
    }
    sent = {name: torch.from_numpy(part.astype(np.float32)) for name, part in parts.items()}
    sizes = torch.tensor([len(mixture.weights) for mixture in mixtures])
    return {**sent, "samples": torch.from_numpy(counts), "components": sizes}


def read_classes(sent: Layer) -> tuple[np.ndarray, list[Mixture]]:
    """Return the shares (c,) of a client's classes, and a mixture of each: undoes `describe_classes`."""
    counts, sizes = sent["samples"].double(), sent["components"].tolist()
    parts = (sent[name].double().split(sizes) for name in ("weights", "means", "variances"))
    mixtures = [Mixture(w.numpy(), m.numpy(), v.numpy()) for w, m, v in zip(*parts, strict=True)]
    return (counts / counts.sum()).numpy(), mixtures


def component_costs(one: Mixture, other: Mixture) -> np.ndarray:
    """Return W₂² between the components of two mixtures, (G, H): ‖m - m'‖² + ‖√Σ - √Σ'‖², exact as Σ are diagonal."""
    own, theirs = (np.concatenate([each.means, np.sqrt(each.variances)], axis=1) for each in (one, other))
    return ((own[:, None] - theirs[None]) ** 2).sum(axis=2)


def transport_costs(problems: Sequence[Problem]) -> np.ndarray:
    """Return the least cost of moving one distribution into another, of each of several discrete problems, exactly.

    Each is the linear program of least Σ Pᵢⱼ Cᵢⱼ over P >= 0 with row sums a and column sums b.

    >>> transport_costs([(np.array([1.0]), np.array([0.25, 0.75]), np.array([[0.0, 4.0]]))])
    array([3.])
    """
    found = np.zeros(len(problems))
    hard = []
    for place, (a, b, cost) in enumerate(problems):
        if min(cost.shape) == 1:  # there is one plan alone
            found[place] = a @ cost @ b
        else:
            hard.append(place)
    remaining = iter(hard)
    while group := list(islice(remaining, _TOGETHER)):
        found[group] = _solve([problems[place] for place in group])
    return found


def _solve(problems: Sequence[Problem]) -> list[float]:
    """Solve several problems as one program, of which each is a block."""
    from scipy.optimize import linprog
    from scipy.sparse import csc_array

    rows = [_sums(*cost.shape) for _, _, cost in problems]
    firsts = np.cumsum([0, *(sum(cost.shape) for _, _, cost in problems)])
    where = np.concatenate([own + first for own, first in zip(rows, firsts[:-1], strict=True)])
    matrix = csc_array((np.ones(where.size), where.ravel(), 2 * np.arange(len(where) + 1)), (firsts[-1], len(where)))
    masses = np.concatenate([np.concatenate([a / a.sum(), b / b.sum()]) for a, b, _ in problems])
    costs = [cost.ravel() for _, _, cost in problems]
    scale = max(float(np.concatenate(costs).max()), np.finfo(float).tiny)  # the solver's tolerances are absolute
    plan = linprog(np.concatenate(costs) / scale, A_eq=matrix, b_eq=masses, method="highs").x
    ends = np.cumsum([len(cost) for cost in costs])
    return [float(part @ cost) for part, cost in zip(np.split(plan, ends[:-1]), costs, strict=True)]


def _sums(g: int, h: int) -> np.ndarray:
    """Return in which of the g row sums and h column sums each entry of a plan is, int64 (g h, 2)."""
    return np.stack([np.repeat(np.arange(g), h), g + np.tile(np.arange(h), g)], axis=1)


def distances(clients: Sequence[tuple[np.ndarray, Sequence[Mixture]]]) -> np.ndarray:
    """Return how far the data of clients are apart, (N, N), by optimal transport in two stages.

    Two classes are as far apart as it costs to move the components of one mixture into those of the other, and two
    clients as it costs to move the classes of one, by their shares of its samples, into those of the other.

    Args:
        clients: of each the shares (c,) of its classes, and a mixture of each class.
    """
    pairs = list(combinations(range(len(clients)), 2))
    problems = (problem for k, j in pairs for problem in _class_problems(clients[k][1], clients[j][1]))
    classes = iter(transport_costs(list(problems)))
    result = np.zeros((len(clients), len(clients)))
    found = transport_costs([_client_problem(clients[k], clients[j], classes) for k, j in pairs])
    for (k, j), distance in zip(pairs, found, strict=True):
        result[k, j] = result[j, k] = max(distance, 0.0)
    return result


def _class_problems(own: Sequence[Mixture], others: Sequence[Mixture]) -> Iterator[Problem]:
    for one in own:
        for other in others:
            yield one.weights, other.weights, component_costs(one, other)


def _client_problem(
    one: tuple[np.ndarray, Sequence[Mixture]], other: tuple[np.ndarray, Sequence[Mixture]], classes: Iterator[float]
) -> Problem:
    """Return the problem of two clients; the distances of their classes come in turn."""
    shape = len(one[1]), len(other[1])
    return one[0], other[0], np.array(list(islice(classes, shape[0] * shape[1]))).reshape(shape)
