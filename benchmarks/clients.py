"""What a run costs as the number of clients grows, over one data set and with one size of cohort.

    python benchmarks/clients.py --clients 1000 100000 1000000

Data and backbone are made on the spot: sequences of one length, and a random BERT so small that what is done for each
client would show. Every client trains on one sequence at a time, so that a client of one sample does what a client of a
thousand does. Each measurement is a whole run, with evaluation, tables and checkpoints, in a process of its own; they
take turns. The table comes last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import add_options, paired_ratio, publish, say, table

if TYPE_CHECKING:
    from fedgram.data import FederatedData

Measured = dict[str, Any]

_VALIDATION = 256
_WORDS = 1000
_MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Cost of a run against the number of clients.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--partitions", nargs="+", default=["IID", "Dirichlet"], choices=["IID", "Dirichlet"])
    parser.add_argument("--method", default="FLoRG", help="a class of fedgram's")
    parser.add_argument("--cohort", type=int, default=100, help="clients of a round")
    parser.add_argument("--rounds", type=int, default=25, help="of which the first is left out")
    parser.add_argument("--local-steps", type=int, default=2)
    parser.add_argument("--length", type=int, default=16, help="tokens of a sequence")
    parser.add_argument("--samples", type=int, help="training sequences; as many as the most clients if not given")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a run")
    parser.add_argument("--quick", action="store_true", help="a matter of seconds, to see that all works")
    add_options(parser)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # what a process of one measurement is called with
    given = parser.parse_args(arguments)
    if given.quick:
        given.clients, given.partitions, given.cohort, given.rounds, given.repeats = [10, 100], ["Dirichlet"], 4, 3, 1
    given.samples = given.samples or max(given.clients)
    return given


def make_material(folder: Path, given: argparse.Namespace) -> None:
    """Save a random backbone with its tokenizer, and the tables of random sequences."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from fedgram.data.tokens import TokenTable
    from fedgram.models.loading import quiet

    backbone = folder / "backbone"
    backbone.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(_WORDS))]
    (backbone / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(backbone / "vocab.txt")).save_pretrained(backbone)
    torch.manual_seed(0)
    with quiet():
        BertModel(BertConfig(vocab_size=len(words), **_MODEL)).save_pretrained(backbone)
    random = np.random.default_rng(0)
    for split, samples in {"train": given.samples, "validation": _VALIDATION}.items():
        ids = random.integers(5, len(words), samples * given.length, dtype=np.int32)
        offsets = np.arange(samples + 1, dtype=np.int64) * given.length
        labels = random.integers(0, 2, samples, dtype=np.int64)
        TokenTable(ids, np.zeros(len(ids), np.uint8), offsets, labels).save(folder / split)


def open_data(folder: Path, partition: str) -> "FederatedData":
    """Return the sequences as fedgram's data, from a folder that `make_material` filled."""
    import numpy as np

    import fedgram
    from fedgram.data import FederatedData
    from fedgram.data.tokens import TokenTable

    class Sequences(FederatedData):
        """Random sequences with random labels."""

        name = "sequences"
        num_labels, label_names, metrics = 2, ["0", "1"], ("accuracy",)

        def load_tables(self) -> dict[str, TokenTable]:
            self.group_names = self.label_names
            return {split: TokenTable.load(folder / split) for split in ("train", "validation")}

        def groups(self, split: str) -> np.ndarray:
            return np.asarray(self.tables[split].labels)

    return Sequences(_MODEL["max_position_embeddings"], 1, 64, getattr(fedgram, partition)(), None)


def peak_megabytes() -> float:
    """Return the largest memory of this process.

    The kernel's figure of its own, where there is one: that of ``getrusage`` begins with the memory of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(facts["VmHWM"].removesuffix("kB")) * 1024 / 1e6
    from resource import RUSAGE_SELF, getrusage

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems kilobytes
    return getrusage(RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(given: argparse.Namespace) -> Measured:
    """Run a federation in this process, and say what it took."""
    import fedgram
    from fedgram.callbacks import Callback

    starts: dict[int, float] = {}
    ends: list[float] = []

    class Clock(Callback):
        """Notes when rounds begin and end."""

        def on_round_start(self, trainer: Any, round_number: int, clients: int) -> None:
            starts[round_number] = time.time()

        def on_round_end(self, trainer: Any, row: Any) -> None:
            ends.append(time.time())

    (clients,), (partition,) = given.clients, given.partitions
    with tempfile.TemporaryDirectory() as folder:
        trainer = fedgram.FederatedTrainer(
            rounds=given.rounds,
            clients=clients,
            participation=given.cohort,
            local_steps=given.local_steps,
            clients_per_block=max(1, given.cohort // 4),
            threads=given.threads,
            accelerator="cpu",
            devices=1,
            loggers=True,
            progress_bar=False,
            callbacks=[Clock()],
            default_root_dir=folder,
        )
        trainer.fit(
            fedgram.TextClassification(str(given.run / "backbone")),
            open_data(given.run, partition),
            getattr(fedgram, given.method)(rank=4),
        )
        checkpoint = trainer.folder.checkpoint("last").stat().st_size
        files = {path.name: path.stat().st_size for path in sorted(trainer.folder.path.glob("*.*"))}
    return {
        "clients": clients,
        "partition": partition,
        "first_round_at": starts[1],
        "rounds": [end - before for before, end in pairwise(ends[1:])],
        "peak_megabytes": peak_megabytes(),
        "checkpoint_bytes": checkpoint,
        "files": files,
    }


def measure_apart(given: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    """Yield one measurement after another, each of a process of its own; all kinds take turns."""
    own = ("method", "cohort", "rounds", "local_steps", "length", "samples", "threads")
    settings = [text for key in own for text in (f"--{key.replace('_', '-')}", str(getattr(given, key)))]
    for repeat in range(given.repeats):
        for partition in given.partitions:
            for clients in given.clients:
                kind = ["--clients", str(clients), "--partitions", partition, "--run", str(folder)]
                command = [sys.executable, __file__, *settings, *kind]
                begin = time.time()
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                run = json.loads(done.stdout.splitlines()[-1])
                yield {**run, "repeat": repeat, "startup_seconds": run.pop("first_round_at") - begin}


def summarise(measured: Sequence[Measured]) -> list[Measured]:
    """Return a row for each kind of run: medians over its runs, and ratios to the fewest clients, pass by pass."""
    rows = []
    for kind in dict.fromkeys((run["partition"], run["clients"]) for run in measured):
        fewest = min(run["clients"] for run in measured if run["partition"] == kind[0])
        own, base = (_figures(measured, kind[0], clients) for clients in (kind[1], fewest))
        row = {"partition": kind[0], "clients": kind[1]}
        row |= {name: statistics.median(values) for name, values in own.items()}
        rows.append(row | {"ratios": {name: paired_ratio(own[name], base[name]) for name in own}})
    return rows


def _figures(measured: Sequence[Measured], partition: str, clients: int) -> dict[str, list[float]]:
    """Return the figures of all runs of one kind, by name."""
    runs = [run for run in measured if (run["partition"], run["clients"]) == (partition, clients)]
    return {
        "startup_seconds": [run["startup_seconds"] for run in runs],
        "round_seconds": [statistics.median(run["rounds"]) for run in runs],
        "peak_megabytes": [run["peak_megabytes"] for run in runs],
    }


def lines_of(rows: Sequence[Measured]) -> list[str]:
    """Return the rows as a Markdown table."""
    head = [
        "partition",
        "clients",
        "start-up, s",
        "s a round",
        "peak MB",
        "start-up, round and peak against the fewest",
    ]
    cells = [
        (
            row["partition"],
            f"{row['clients']:,}",
            f"{row['startup_seconds']:.1f}",
            f"{row['round_seconds']:.3f}",
            f"{row['peak_megabytes']:.0f}",
            ", ".join(f"{ratio:.2f}" for ratio in row["ratios"].values()),
        )
        for row in rows
    ]
    return table(head, cells)


def main() -> None:
    """Measure, and show the table last."""
    given = parse()
    if given.run is not None:
        say(json.dumps(measure(given)))
        return
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        make_material(Path(folder), given)
        for run in measure_apart(given, Path(folder)):
            say(f"{run['partition']}, {run['clients']:,} clients: first round after {run['startup_seconds']:.1f} s")
            measured.append(run)
    rows = summarise(measured)
    settings = {key: value for key, value in vars(given).items() if key not in ("json", "write", "run")}
    publish(given, "clients", lines_of(rows), {"settings": settings, "rows": rows, "runs": measured})


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
