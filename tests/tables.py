"""What stands in the tables of a run's folder."""

import csv
from pathlib import Path


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in table]


def without_ranks(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out times and all that depends on the number of ranks."""
    of_ranks = ("collective_megabytes", "step_imbalance")
    return [{k: v for k, v in row.items() if k not in of_ranks} for row in without_times(table)]
