"""Whether training in bfloat16 follows the loss of training in float32, up to what another seed changes.

    python benchmarks/precision.py --seeds 5

trains the quickstart (a real model on real sentences) with every seed in both precisions. The frozen weights are
bfloat16 then; adapters, head and optimizer stay float32.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from report import add_options, publish, say, table

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
PRECISIONS = ("32-true", "bf16-true")
LOSSES = {"train_loss": "training loss, mean over the clients", "val_loss": "validation loss"}

Curve = Mapping[int, float]
"""A loss by round."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line; what it does not know goes to ``fedgram fit``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--config", type=Path, default=CONFIG)
    add_options(parser)
    arguments, arguments.more = parser.parse_known_args(words)
    return arguments


def train(arguments: argparse.Namespace, seed: int, precision: str) -> dict[str, dict[int, float]]:
    """Return the losses of one run by round."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "trainer.seed": seed,
            "trainer.precision": precision,
            "trainer.rounds": arguments.rounds,
            "trainer.evaluate_at_start": False,
            "trainer.default_root_dir": folder,
            "trainer.progress_bar": False,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "fedgram", "fit", "--config", str(arguments.config), *options, *arguments.more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return curves(next(Path(folder).rglob("metrics.csv")))


def curves(path: Path) -> dict[str, dict[int, float]]:
    """Return the losses in a run's metrics.csv by round, where they were measured."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: {int(row["round"]): float(row[name]) for row in rows if row.get(name)} for name in LOSSES}


def compare(full: Sequence[Curve], half: Sequence[Curve]) -> list[dict[str, float]]:
    """Return, by round, float32's mean and spread over the seeds, and how far bfloat16 is with the same seed.

    Args:
        full: float32's curves, one a seed.
        half: bfloat16's, in the same order.
    """
    figures = []
    for number in sorted(full[0]):
        own = [curve[number] for curve in full]
        apart = [b[number] - a[number] for a, b in zip(full, half, strict=True)]
        figures.append(
            {
                "round": number,
                "mean": statistics.mean(own),
                "spread": statistics.stdev(own),
                "shift": statistics.mean(apart),
                "largest": max(map(abs, apart)),
            }
        )
    return figures


def lines_of(figures: Mapping[str, Sequence[Mapping[str, float]]], seeds: int) -> list[str]:
    """Return the tables, and in a sentence each whether bfloat16 stays within the spread."""
    lines = []
    head = ["round", "float32, mean", "spread (standard deviation)", "bfloat16 less float32, mean", "largest of a seed"]
    for name, by_round in figures.items():
        cells = [
            [int(f["round"]), f"{f['mean']:.4f}", f"{f['spread']:.4f}", f"{f['shift']:+.4f}", f"{f['largest']:.4f}"]
            for f in by_round
        ]
        within = sum(f["largest"] <= f["spread"] for f in by_round)
        verdict = f"The largest is within the spread in {within} of {len(by_round)} rounds."
        lines += [f"{LOSSES[name].capitalize()}, {seeds} seeds:", "", *table(head, cells), "", verdict, ""]
    return lines[:-1]


def main(words: Sequence[str] | None = None) -> None:
    """Train with every seed in both precisions and publish the tables."""
    arguments = parse(words)
    if arguments.seeds < 2:
        raise SystemExit(f"--seeds must be at least 2, got {arguments.seeds}: one seed has no spread")
    runs: dict[str, list[dict[str, dict[int, float]]]] = {precision: [] for precision in PRECISIONS}
    for seed in range(arguments.seeds):
        for precision in PRECISIONS:
            runs[precision].append(train(arguments, seed, precision))
            say(f"seed {seed}, {precision}: {runs[precision][-1]}")
    full, half = (runs[precision] for precision in PRECISIONS)
    figures = {name: compare([run[name] for run in full], [run[name] for run in half]) for name in LOSSES}
    publish(arguments, "precision", lines_of(figures, arguments.seeds), {"by_round": figures, "runs": runs})


if __name__ == "__main__":
    main()
