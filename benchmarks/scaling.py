"""What more ranks bring: measured on two, and a model that extrapolates from measured parts to many.

    python benchmarks/scaling.py                          # measures on this machine
    python benchmarks/scaling.py --parts figures.json     # extrapolates from parts measured elsewhere, such as on GPUs

The model, with N clients in a round, R ranks, layers of smaller side k and rank r, knows the two ways of FLoRG's
server step. "factors": all ranks gather the clients' matrices, N r k numbers a layer, and align (`solver: polar`).
"gram": every rank forms the k x k Gram matrices of its own clients, all are summed in 64-bit integers, and every rank
takes the eigenvectors (`solver: eigh`; `polar` as well, where N r k numbers are more bytes than k² integers). Every
rank takes the same server step itself: more ranks make local training shorter, and nothing else. Left out are
evaluation, and the figures about an aggregation, for which the factors are gathered in any case.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from report import add_options, best_seconds, paired_ratio, publish, say, table

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SIZES = (8, 2**10, 2**14, 2**18, 2**20, 2**22, 2**23)
"""Bytes of a message; the last is a Gram matrix of k = 1024."""
Way = Literal["factors", "gram"]
WAYS: tuple[Way, ...] = ("factors", "gram")


@dataclass(frozen=True)
class Link:
    """A network: a message of n bytes takes alpha + n beta seconds.

    Attributes:
        alpha: s, before the first byte.
        beta: s a byte.
    """

    alpha: float
    beta: float


@dataclass(frozen=True)
class Parts:
    """What is measured on one kind of machine.

    Attributes:
        step: s of one local step of one client, in the blocks that a rank trains.
        align: s of aligning, a number of the stacked factors (of N r k in a layer).
        gram: s of forming one client's Gram matrix and adding it exactly, an entry (of k²).
        eigh: s of factoring a Gram matrix by its eigenvectors, over k³.
        reduce: of all_reduce.
        gather: of all_gather.
    """

    step: float
    align: float
    gram: float
    eigh: float
    reduce: Link
    gather: Link

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> "Parts":
        """Return the parts in a mapping, as `asdict` makes it.

        Raises:
            SystemExit: one is missing, or there is one more.
        """
        try:
            links = {name: Link(**figures[name]) for name in ("reduce", "gather")}
            return cls(**{**figures, **links})
        except (KeyError, TypeError) as error:
            names = "step, align, gram, eigh, and alpha and beta of reduce and of gather"
            raise SystemExit(f"expected {names} in the parts, got {dict(figures)} ({error})") from None


@dataclass(frozen=True)
class Setting:
    """What is trained on how many ranks.

    Attributes:
        ranks: R, devices.
        cohort: N, clients of a round.
        steps: local steps of a client.
        layers: adapted ones.
        k: smaller side of a layer.
        r: rank.
        block: clients that a rank trains together.
        width: bytes of a number that is sent.
    """

    ranks: int
    cohort: int
    steps: int = 10
    layers: int = 48
    k: int = 1024
    r: int = 4
    block: int = 1
    width: int = 4

    @property
    def busiest(self) -> int:
        """The most clients that a rank has: blocks are dealt as evenly as they go."""
        blocks = math.ceil(self.cohort / self.block)
        return min(self.cohort, math.ceil(blocks / self.ranks) * self.block)


def train_seconds(parts: Parts, setting: Setting) -> float:
    """Return the time of local training: that of the busiest rank.

    >>> parts = Parts(0.5, 0, 0, 0, Link(0, 0), Link(0, 0))
    >>> train_seconds(parts, Setting(ranks=8, cohort=20, steps=10))  # three clients on some rank
    15.0
    """
    return setting.busiest * setting.steps * parts.step


def all_reduce_seconds(link: Link, ranks: int, size: float) -> float:
    """Return the time of summing `size` bytes over the ranks: 2 log₂R messages, 2 (R-1)/R of the bytes.

    Reduce-scatter by halving, then all-gather by doubling (Rabenseifner, 2004), which no algorithm beats in bytes.

    >>> all_reduce_seconds(Link(1.0, 0.5), 4, 8)
    10.0
    """
    return 2 * _rounds(ranks) * link.alpha + all_reduce_bytes(ranks, size) * link.beta


def all_reduce_bytes(ranks: int, size: float) -> float:
    """Return the bytes that a rank sends in `all_reduce_seconds`."""
    return 2 * (ranks - 1) / ranks * size


def all_gather_seconds(link: Link, ranks: int, size: float) -> float:
    """Return the time of collecting `size` bytes of each rank on every one, by doubling: log₂R messages.

    >>> all_gather_seconds(Link(1.0, 0.5), 4, 8)
    14.0
    """
    return _rounds(ranks) * link.alpha + all_gather_bytes(ranks, size) * link.beta


def all_gather_bytes(ranks: int, size: float) -> float:
    """Return the bytes that a rank sends in `all_gather_seconds`, which are those that it receives."""
    return (ranks - 1) * size


def _rounds(ranks: int) -> int:
    return math.ceil(math.log2(ranks))


def messages(setting: Setting, way: Way) -> tuple[list[float], list[float]]:
    """Return the sizes in bytes of a layer's all_reduces and all_gathers (see `fedgram.distributed.collectives`).

    A sum first agrees on a scale; a gather first agrees on the most rows that a rank has, to which all others are
    padded, and says whose rows they are.
    """
    if way == "gram":
        return [8, 8 * setting.k**2], []
    return [8], [setting.busiest * setting.r * setting.k * setting.width, 8 * setting.busiest]


def exchange_seconds(parts: Parts, setting: Setting, way: Way) -> float:
    """Return the time of the server step's collectives, over all layers; nothing on one rank."""
    if setting.ranks == 1:
        return 0.0
    reduced, gathered = messages(setting, way)
    each = sum(all_reduce_seconds(parts.reduce, setting.ranks, size) for size in reduced)
    each += sum(all_gather_seconds(parts.gather, setting.ranks, size) for size in gathered)
    return setting.layers * each


def exchange_bytes(setting: Setting, way: Way) -> float:
    """Return the bytes that a rank sends in the server step's collectives."""
    if setting.ranks == 1:
        return 0.0
    reduced, gathered = messages(setting, way)
    each = sum(all_reduce_bytes(setting.ranks, size) for size in reduced)
    each += sum(all_gather_bytes(setting.ranks, size) for size in gathered)
    return setting.layers * each


def server_seconds(parts: Parts, setting: Setting, way: Way) -> float:
    """Return the time of the server step's arithmetic, which every rank does.

    >>> parts = Parts(0, align=1e-3, gram=1e-2, eigh=1e-1, reduce=Link(0, 0), gather=Link(0, 0))
    >>> setting = Setting(ranks=2, cohort=4, layers=3, k=10, r=2)
    >>> server_seconds(parts, setting, "factors")  # 3 layers of 4 · 2 · 10 numbers
    0.24
    >>> server_seconds(parts, setting, "gram")  # 3 layers: 2 clients of 100 entries each, and 1000 for the eigenvectors
    306.0
    """
    if way == "factors":
        return setting.layers * setting.cohort * setting.r * setting.k * parts.align
    return setting.layers * (setting.busiest * setting.k**2 * parts.gram + setting.k**3 * parts.eigh)


def aggregation_seconds(parts: Parts, setting: Setting, way: Way) -> float:
    """Return what a round takes beside local training."""
    return exchange_seconds(parts, setting, way) + server_seconds(parts, setting, way)


def round_seconds(parts: Parts, setting: Setting, way: Way) -> float:
    """Return the time of a round: local training, exchange, server step."""
    return train_seconds(parts, setting) + aggregation_seconds(parts, setting, way)


def crossover(parts: Parts, setting: Setting, most: int = 2**24) -> int | None:
    """Return from which cohort on the Gram matrices take less time than the factors; None if not up to `most`.

    By doubling: what is returned is a power of two times the number of ranks.
    """
    cohort = setting.ranks
    while cohort <= most:
        there = replace(setting, cohort=cohort)
        if aggregation_seconds(parts, there, "gram") < aggregation_seconds(parts, there, "factors"):
            return cohort
        cohort *= 2
    return None


def fit_link(times: Mapping[int, float], count: int) -> Link:
    """Return alpha and beta of measured times on two ranks, where n bytes take ``count`` alpha + n beta.

    Alpha is from the shortest message and beta from the longest, which are where each of them matters.

    >>> fit_link({8: 2.0, 1008: 502.0}, 2)
    Link(alpha=1.0, beta=0.5)
    """
    shortest, longest = min(times), max(times)
    beta = max(0.0, times[longest] - times[shortest]) / (longest - shortest)
    return Link(times[shortest] / count, beta)


# --- measured here ----------------------------------------------------------------------------------------------------


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", type=Path, help="JSON of the parts (see Parts), or of this script's --json")
    parser.add_argument("--passes", type=int, default=3, help="of training on one and on two ranks, in turn")
    parser.add_argument("--rounds", type=int, default=4, help="of each; the first does not count")
    parser.add_argument("--threads", type=int, default=2, help="in all")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what is trained")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024], help="of the extrapolation")
    parser.add_argument("--cohorts", type=int, nargs="+", default=[20, 1024, 10240], help="of the extrapolation")
    add_options(parser)
    parser.add_argument("--talk", type=Path, help=argparse.SUPPRESS)  # what a rank of `measure_messages` is called with
    return parser.parse_args(words)


def train(arguments: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """Train on so many ranks, which share the threads, and return seconds a round and client-steps of a round."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "accelerator": "cpu",
            "devices": ranks,
            "threads": max(1, arguments.threads // ranks),
            "rounds": arguments.rounds,
            "evaluate_every": arguments.rounds,
            "evaluate_at_start": False,
            "default_root_dir": folder,
            "progress_bar": False,
        }
        options = [f"--trainer.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "fedgram", "fit", "--config", str(arguments.config), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=own_environment())
        return training_figures(next(Path(folder).rglob("metrics.csv")))


def own_environment() -> dict[str, str]:
    """Return the environment without a number of threads: the trainer sets it."""
    return {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def training_figures(path: Path) -> dict[str, Any]:
    """Return from metrics.csv the median of training and aggregation, s a round, without the first."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["round"]) > 1]
    local = [float(row["seconds_local"]) for row in rows]
    whole = [float(row["seconds_local"]) + float(row["seconds_server"]) for row in rows]
    return {"local": statistics.median(local), "whole": statistics.median(whole)}


def measure_messages(target: Path) -> None:
    """Be one of two ranks: time sums and gathers, and have rank 0 write them."""
    import torch
    from lightning.fabric import Fabric

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    times: dict[str, dict[int, float]] = {"all_reduce": {}, "all_gather": {}}
    for size in SIZES:
        repeats = 30 if size < 2**18 else 8
        integers = torch.ones(size // 8, dtype=torch.int64)
        times["all_reduce"][size] = best_seconds(lambda t=integers: fabric.all_reduce(t, reduce_op="sum"), repeats)
        times["all_gather"][size] = best_seconds(lambda t=integers: fabric.all_gather(t), repeats)
    if fabric.global_rank == 0:
        target.write_text(json.dumps(times))


def measured_messages() -> dict[str, dict[int, float]]:
    """Return the seconds of all_reduce and all_gather on two processes, by the bytes of a rank."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "times.json"
        command = [sys.executable, "-W", "ignore", __file__, "--talk", str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own_environment())
        times = json.loads(target.read_text())
    return {name: {int(size): seconds for size, seconds in by_size.items()} for name, by_size in times.items()}


def measured_server(setting: Setting) -> dict[str, float]:
    """Return the parts of the server step, of one layer on one rank: align, gram, eigh."""
    import torch

    from fedgram.distributed.collectives import Ranks
    from fedgram.numerics import linalg
    from server_step import Case, make_round, seconds_of, step

    k, r, N = setting.k, setting.r, setting.cohort
    server, sent = make_round(Case(k, r, N), torch.float32, layers=setting.layers)
    align = best_seconds(lambda: step("polar", server, sent)) / setting.layers
    name = next(iter(server))
    factors = [layers[name]["A"] for layers in sent]
    empty = torch.empty(k, k)
    summed = seconds_of(lambda: Ranks().sum(lambda: (linalg.gram(A) for A in factors), N, empty))
    Q = linalg.gram(torch.cat(factors))
    return {
        "align": align / (N * r * k),
        "gram": summed / (N * k**2),
        "eigh": seconds_of(lambda: linalg.gram_factor(Q)) / k**3,
    }


def client_steps(config: Path) -> int:
    """Return the client-steps of a round of a configuration of full participation."""
    import yaml

    trainer = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]
    return int(trainer["clients"]) * int(trainer["local_steps"])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all that is measured here."""
    by_ranks: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for number in range(arguments.passes):
        for ranks in (1, 2) if number % 2 == 0 else (2, 1):
            by_ranks[ranks].append(train(arguments, ranks))
            say(f"pass {number + 1}, {ranks} ranks: {by_ranks[ranks][-1]}")
    times = measured_messages()
    local = statistics.median(run["local"] for run in by_ranks[1])
    parts = Parts(
        step=local / client_steps(arguments.config),
        reduce=fit_link(times["all_reduce"], 2),
        gather=fit_link(times["all_gather"], 1),
        **measured_server(Setting(1, 20)),
    )
    return {"training": by_ranks, "messages": times, "parts": asdict(parts)}


# --- told -------------------------------------------------------------------------------------------------------------


def measured_lines(figures: Mapping[str, Any], threads: int) -> list[str]:
    """Return the tables of what was measured."""
    seconds = {ranks: [run["whole"] for run in runs] for ranks, runs in figures["training"].items()}
    ratio = paired_ratio(seconds[1], seconds[2])
    cells = [
        [f"1 rank of {threads} threads", f"{statistics.median(seconds[1]):.2f}", "100 %"],
        [f"2 ranks of {threads // 2}", f"{statistics.median(seconds[2]):.2f}", f"{100 * ratio:.0f} %"],
    ]
    times = figures["messages"]
    messages_head = ["bytes of a rank", "all_reduce, ms", "all_gather, ms"]
    sizes = [
        [f"{size:,}", *(f"{1e3 * times[name][size]:.2f}" for name in ("all_reduce", "all_gather"))]
        for size in times["all_reduce"]
    ]
    return [
        f"The quickstart, training and aggregation, {len(seconds[1])} passes in turn, medians:",
        "",
        *table(["", "s a round", "speed"], cells),
        "",
        "Messages between two processes of this machine (gloo):",
        "",
        *table(messages_head, sizes),
    ]


def model_lines(parts: Parts, ranks: Sequence[int], cohorts: Sequence[int]) -> list[str]:
    """Return the table of the extrapolation, and where which way is faster."""
    shape = Setting(1, 1)
    head = ["devices", "clients a round", "local training, s"]
    head += [f"{way}: {what}" for way in WAYS for what in ("exchange and server step, s", "MB sent by a device")]
    cells = []
    for count in ranks:
        for cohort in cohorts:
            setting = replace(shape, ranks=count, cohort=cohort)
            row = [f"{count:,}", f"{cohort:,}", f"{train_seconds(parts, setting):.3g}"]
            for way in WAYS:
                seconds, size = aggregation_seconds(parts, setting, way), exchange_bytes(setting, way)
                row += [f"{seconds:.3g}", f"{size / 1e6:,.0f}"]
            cells.append(row)
    return [
        f"Extrapolated to devices with these parts: a client-step {1e3 * parts.step:.3g} ms; of a layer with k = "
        f"{shape.k:,} and rank {shape.r}, aligning {1e3 * parts.align * shape.k * shape.r:.2g} ms a client, forming "
        f"and adding a Gram matrix {1e3 * parts.gram * shape.k**2:.2g} ms a client, its eigenvectors "
        f"{1e3 * parts.eigh * shape.k**3:.3g} ms; all_reduce {_link(parts.reduce)}, all_gather {_link(parts.gather)}. "
        f"{shape.layers} layers, {shape.steps} local steps:",
        "",
        *table(head, cells),
        "",
        *[winner(parts, replace(shape, ranks=count)) for count in ranks],
    ]


def _link(link: Link) -> str:
    rate = f"{1e-9 / link.beta:.3g} GB/s" if link.beta else "no time a byte"
    return f"{1e6 * link.alpha:.3g} µs and {rate}"


def winner(parts: Parts, setting: Setting) -> str:
    """Return in a sentence where which way of the server step is faster."""
    cohort, devices = crossover(parts, setting), f"- {setting.ranks:,} devices: "
    if cohort is None:
        return devices + "the factors and `polar` are faster with any cohort."
    if cohort == setting.ranks:
        return devices + f"the Gram matrices and `eigh` are faster with {cohort:,} clients a round already."
    return devices + f"the factors and `polar` are faster up to about {cohort // 2:,} clients a round."


def read_parts(path: Path) -> Parts:
    """Return the parts in a JSON file: bare, or among the figures that this script saved."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    return Parts.of(figures["scaling"]["parts"] if "scaling" in figures else figures)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, or read the parts, extrapolate, and publish the tables."""
    arguments = parse(words)
    if arguments.talk:
        measure_messages(arguments.talk)
        return
    figures = {"parts": asdict(read_parts(arguments.parts))} if arguments.parts else measure(arguments)
    lines = [] if arguments.parts else [*measured_lines(figures, arguments.threads), ""]
    parts = Parts.of(figures["parts"])
    publish(arguments, "scaling", [*lines, *model_lines(parts, arguments.ranks, arguments.cohorts)], figures)


if __name__ == "__main__":
    main()
