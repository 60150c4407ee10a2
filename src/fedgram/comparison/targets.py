"""What it took runs until a metric first reached a target."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedgram.comparison.runs import Group, Run
from fedgram.runs.folder import is_loss

__all__ = ["COSTS", "ToTarget", "cost_to_target", "group_cost_to_target"]

COSTS = (
    "round",
    "parameters_up",
    "parameters_down",
    "parameters_both",
    "megabytes_up",
    "megabytes_down",
    "megabytes_both",
    "client_flops",
)
"""What is counted: over all clients, from the first round to the one that reached the target."""
_ROUNDING = 1e-6
"""By how much metrics, which are of 32 bits, may miss a target that they reach: 7 of 10 is 0.69999999."""


@dataclass(frozen=True)
class ToTarget:
    """What it took the runs of a group.

    Attributes:
        means: of each of `COSTS` over the seeds; nan where the runs do not tell, and, since a mean over the lucky ones
            alone would flatter, where a seed did not reach the target.
        reached: how many seeds reached it.
        seeds: of how many.
    """

    means: Mapping[str, float]
    reached: int
    seeds: int


def cost_to_target(run: Run, metric: str, target: float) -> dict[str, float] | None:
    """Return each of `COSTS` at a run's first evaluated round with a metric of at least a target; None without one.

    A loss must be at most the target. Rounds between two evaluations do not count, as nobody knows what they reached.
    """
    rows, values = run.history(metric)
    there = rows[values <= target + _ROUNDING] if is_loss(metric) else rows[values >= target - _ROUNDING]
    if not len(there):
        return None
    columns = {key: values[there[0]] for key, values in run.rounds.items()}
    for what in ("parameters", "megabytes"):
        columns[f"{what}_both"] = columns.get(f"{what}_up", np.nan) + columns.get(f"{what}_down", np.nan)
    return {key: float(columns.get(key, np.nan)) for key in COSTS}


def group_cost_to_target(group: Group, metric: str, target: float) -> ToTarget:
    """Return what it took the runs of a group, on average over seeds."""
    found = [cost_to_target(run, metric, target) for run in group.runs]
    reached = [costs for costs in found if costs is not None]
    whole = len(reached) == len(found)
    means = {key: float(np.mean([costs[key] for costs in reached])) if whole else np.nan for key in COSTS}
    return ToTarget(means, len(reached), len(found))
