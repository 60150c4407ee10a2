"""FLoRG's server step: the default solver against the paper's literal path, which forms Q and takes its eigenvectors.

    python benchmarks/server_step.py

Symbols as in `fedgram.numerics.linalg`: ``k``, the smaller side of a layer; ``r``, the rank; ``N``, the cohort's size.
The default is timed whole, over all layers and with the checks of what came in. The other paths go layer by layer and
take long: they are timed on one layer, times the number of layers.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import FLoRG, RoundContext
from fedgram.state import Layers
from report import add_options, best_seconds, publish, say, table

DRIFT = 0.3
"""How far clients move from the server's matrix, relative to its norm."""


@dataclass(frozen=True)
class Case:
    """The size of a server step."""

    k: int
    r: int
    N: int
    layers: int = 48


CASES = (
    Case(384, 4, 20, 12),
    Case(768, 4, 20, 24),
    Case(1024, 4, 20),
    Case(1024, 16, 20),
    Case(1024, 4, 100),
    Case(2048, 8, 20),
)
QUICK = (Case(64, 4, 5, 3),)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny case only, to see that it runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_options(parser)
    return parser.parse_args(words)


def make_round(
    case: Case, dtype: torch.dtype = torch.float64, layers: int | None = None
) -> tuple[Layers, list[Layers]]:
    """Return the server's matrices and what each client sends: the same matrices, moved at random."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(case.r, case.k, dtype=torch.float64, generator=generator)

    names = [f"layer{i}" for i in range(layers or case.layers)]
    server = {name: {"A": 0.02 * normal()} for name in names}
    sent = [{name: {"A": server[name]["A"] + DRIFT * 0.02 * normal()} for name in names} for _ in range(case.N)]
    return _cast(server, dtype), [_cast(layers, dtype) for layers in sent]


def _cast(layers: Layers, dtype: torch.dtype) -> Layers:
    return {name: {field: tensor.to(dtype) for field, tensor in layer.items()} for name, layer in layers.items()}


def step(solver: str, server: Layers, sent: Sequence[Layers]) -> Layers:
    """Take fedgram's server step, from the payloads to the next matrices."""
    weights = dict.fromkeys(range(len(sent)), 1 / len(sent))
    info = RoundContext(1, 0, dict.fromkeys(weights, 0))
    rank = next(iter(server.values()))["A"].shape[0]
    uploads = Uploads(dict(enumerate(sent)), weights, Ranks())
    return FLoRG(rank=rank, solver=solver).aggregate(server, uploads, info)  # type: ignore[arg-type]


def literal_step(server: Layers, sent: Sequence[Layers]) -> Layers:
    """Take the step as the paper writes it, in plain torch: eqs. (4)-(12), one layer after the other."""
    after = {}
    for name, layer in server.items():
        A = layer["A"].double()
        factors = [payload[name]["A"].double() for payload in sent]
        Q = sum(An.mT @ An for An in factors) / len(factors)
        values, vectors = torch.linalg.eigh(Q)
        kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps  # r' of them
        factor = values[kept].sqrt()[:, None] * vectors[:, kept].mT
        U, _, Vh = torch.linalg.svd(A @ factor.mT, full_matrices=False)
        after[name] = {"A": (U @ Vh @ factor).to(layer["A"])}
    return after


def seconds_of(function: Callable[[], object]) -> float:
    """Return the time of a call: of the first one if it takes a second, else the best of some."""
    start = time.perf_counter()
    function()
    once = time.perf_counter() - start
    return once if once > 1 else best_seconds(function, 3)


def difference(first: Layers, second: Layers) -> float:
    """Return the largest difference of the entries, relative to the largest entry."""
    pairs = [(first[name]["A"].double(), second[name]["A"].double()) for name in first]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def measure(case: Case) -> dict[str, float]:
    """Time the paths of one case and compare what they give."""
    server, sent = make_round(case, torch.float32)
    polar = best_seconds(lambda: step("polar", server, sent), 7)
    server, sent = make_round(case, torch.float32, layers=1)
    return {
        **vars(case),
        "polar": polar,
        "eigh": case.layers * seconds_of(lambda: step("eigh", server, sent)),
        "literal": case.layers * seconds_of(lambda: literal_step(server, sent)),
        **{f"difference_{name}": apart(case, dtype) for name, dtype in (("64", torch.float64), ("32", torch.float32))},
    }


def apart(case: Case, dtype: torch.dtype) -> float:
    """Return the difference of the default from both other paths on one layer, whichever is larger."""
    server, sent = make_round(case, dtype, layers=1)
    polar = step("polar", server, sent)
    return max(difference(polar, other) for other in (step("eigh", server, sent), literal_step(server, sent)))


def lines_of(figures: Sequence[dict[str, float]], threads: int) -> list[str]:
    """Return the table."""
    head = [
        *("k", "r", "N", "layers", "`polar`, ms", "`eigh`, s", "the paper's path in plain torch, s"),
        *("`eigh` : `polar`", "paper : `polar`", "largest relative difference, float64", "float32"),
    ]
    cells = [
        [
            *(f"{int(f[key]):,}" for key in ("k", "r", "N", "layers")),
            f"{1e3 * f['polar']:.1f}",
            f"{f['eigh']:.1f}",
            f"{f['literal']:.1f}",
            f"{f['eigh'] / f['polar']:,.0f}",
            f"{f['literal'] / f['polar']:,.0f}",
            f"{f['difference_64']:.0e}",
            f"{f['difference_32']:.0e}",
        ]
        for f in figures
    ]
    said = (
        f"{threads} threads. `polar` is timed on all layers, the two others on one, times the number of layers; each "
        "is the best of some calls."
    )
    return [*table(head, cells), "", said]


def main(words: Sequence[str] | None = None) -> None:
    """Time all cases and publish the table."""
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    figures = []
    for case in QUICK if arguments.quick else CASES:
        figures.append(measure(case))
        say(f"{case}: {figures[-1]}")
    publish(arguments, "server_step", lines_of(figures, arguments.threads), figures)


if __name__ == "__main__":
    main()
