"""The numbers of FLoRG's paper, and which runs are of the same cell.

All of them stand in paper.json: the tables of C. Meng, M. Tang, V. W. S. Wong, "FLoRG: Federated Fine-tuning with
Low-rank Gram Matrices and Procrustes Alignment", arXiv 2602.17095. Figure 2 has curves and no numbers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgram.comparison.figures import is_share
from fedgram.comparison.runs import Group, Run, group_runs
from fedgram.comparison.targets import cost_to_target
from fedgram.errors import ConfigurationError, DataError

__all__ = [
    "Match",
    "PaperRow",
    "PaperTable",
    "check_matches",
    "group_for_paper",
    "load",
    "match",
    "measured_by_seed",
]

_FILE = Path(__file__).with_name("paper.json")
_NAMES = {
    "FeDeRA": ("FeDeRA-round", "FeDeRA"),
    "FFA-LoRA": ("FFALoRA",),
    "FedSA-LoRA": ("FedSALoRA",),
    "FedEx-LoRA": ("FedExLoRA", "FedExLoRA-factored"),
}
"""What runs call a method of the paper, if not the same; first what is as the paper tells it."""
_KEYS = ("task", "backbone", "rank", "rho", "participation")
"""What tells the cells of the paper apart, besides the method."""


@dataclass(frozen=True)
class PaperRow:
    """The paper's numbers that differ in the method alone.

    Attributes:
        backbone: the model, as the paper writes it.
        task: the task, as runs write it; None where the paper does not say.
        quantity: a metric, in per cent; or parameters_to_target, client_flops, server_flops or peak_megabytes.
        settings: those of rank, rho and participation that it is of.
        target: the accuracy to be reached, if it is about that; a share.
        values: the number of each method; None where the paper has a dash.
    """

    backbone: str
    task: str | None
    quantity: str
    settings: Mapping[str, float]
    target: float | None
    values: Mapping[str, float | None]

    @property
    def lowest_is_best(self) -> bool:
        """Whether it is a cost."""
        return not is_share(self.quantity)


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        name: such as table1.
        title: what it is about.
        along: the setting that it varies, if it does.
        methods: its methods, as the paper calls them.
        rows: its numbers.
        notes: what to know about them.
    """

    name: str
    title: str
    along: str | None
    methods: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]

    @property
    def is_of_metrics(self) -> bool:
        """Whether its numbers are metrics, or follow from them, and are no mere costs."""
        return all(paper_row.target is not None or is_share(paper_row.quantity) for paper_row in self.rows)


@dataclass(frozen=True, eq=False)
class Match:
    """Numbers of the paper, and the groups that are of the same cells.

    Attributes:
        paper_row: the numbers.
        backbone: that of the groups where it is none of the paper's, and otherwise empty.
        groups: by the paper's method, those of the first of its names first; a method that was not run has none.
    """

    paper_row: PaperRow
    backbone: str
    groups: Mapping[str, Sequence[Group]]

    def by_name(self, method: str) -> list[list[Group]]:
        """Return the groups of a method by what they call it, in the order of its names."""
        groups = self.groups[method]
        return [[group for group in groups if group.method == name] for name in dict.fromkeys(g.method for g in groups)]

    def chosen(self, method: str) -> Group | None:
        """Return the group that stands for a method: that of the first of its names; None where several have that.

        To take the best of several would be to choose on the split that the paper's numbers are of.
        """
        first = next(iter(self.by_name(method)), [])
        return first[0] if len(first) == 1 else None

    @property
    def ambiguous(self) -> list[list[Group]]:
        """Groups of which only one could stand in a cell."""
        return [twins for method in self.groups for twins in self.by_name(method) if len(twins) > 1]


def load(name: str) -> PaperTable:
    """Return a table of the paper.

    Raises:
        ConfigurationError: there is none of that name.
    """
    content = _content()
    if name not in content["tables"]:
        raise ConfigurationError(
            f"--paper {name}: there is no such table; there are {', '.join(content['tables'])}; Figure 2 is of "
            "training losses, which --pictures draws"
        )
    table = content["tables"][name]
    rows = tuple(_paper_row(row, table) for row in table["rows"])
    notes = [content["note"] if is_share(rows[0].quantity) else "", table.get("note", "")]
    return PaperTable(
        name, table["title"], table.get("along"), tuple(table["methods"]), rows, tuple(filter(None, notes))
    )


def _content() -> dict[str, Any]:
    return dict(json.loads(_FILE.read_text()))


def _paper_row(row: Mapping[str, Any], table: Mapping[str, Any]) -> PaperRow:
    settings = {key: row.get(key, value) for key, value in table["settings"].items()}
    quantity = row.get("quantity") or table["quantity"]
    values = dict(zip(table["methods"], row["values"], strict=True))
    return PaperRow(row["backbone"], row.get("task"), quantity, settings, row.get("target"), values)


def check_matches(table: PaperTable, matches: Sequence[Match], runs: Sequence[Run]) -> None:
    """Refuse runs of which none fits a table of the paper.

    Raises:
        DataError: with what the table is of, and what the runs are of.
    """
    if matches:
        return
    wanted = {"task": [paper_row.task for paper_row in table.rows]} | {
        key: [paper_row.settings[key] for paper_row in table.rows] for key in table.rows[0].settings
    }
    there = {key: [run.setting(key) for run in runs] for key in wanted}
    told = (
        ", ".join(f"{key} {'/'.join(dict.fromkeys(map(str, values)))}" for key, values in of.items() if any(values))
        for of in (wanted, there)
    )
    raise DataError("--paper {}: no run fits: it is of {}; the runs are of {}".format(table.name, *told))


def group_for_paper(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[Group]]:
    """Return the groups of some runs by what tells the cells of the paper apart, and the settings that this is."""
    by = tuple(key for key in _KEYS if any(run.setting(key) is not None for run in runs))
    return by, group_runs(runs, by)


def match(table: PaperTable, groups: Sequence[Group], by: Sequence[str]) -> list[Match]:
    """Return the numbers of a table that there are groups for, once for each backbone of groups.

    Groups of a backbone that the paper does not have stand beside the numbers of each that it has.

    Args:
        table: the table.
        groups: from `group_for_paper`.
        by: likewise.
    """
    known = {row["backbone"] for content in _content()["tables"].values() for row in content["rows"]}
    backbones = {group: _backbone(group, known) for group in groups}
    found = []
    for other in dict.fromkeys("" if name in known else name for name in backbones.values()):
        for paper_row in table.rows:
            wanted = other or paper_row.backbone
            fitting = [group for group in groups if backbones[group] == wanted and _fits(group, paper_row)]
            by_method = {method: _told_apart(_called(method, fitting), by) for method in table.methods}
            if any(by_method.values()):
                found.append(Match(paper_row, other, by_method))
    return found


def _backbone(group: Group, known: Iterable[str]) -> str:
    """Return the paper's name of a group's backbone, or if it is none of the paper's, its own."""
    own = str(group.runs[0].summary.get("backbone"))
    last = own.replace(":", "/").rpartition("/")[2].lower()  # of a folder, of a name on the hub, or of shape:NAME
    return next((name for name in known if name.lower() == last), own)


def _fits(group: Group, paper_row: PaperRow) -> bool:
    run = group.runs[0]
    is_task = paper_row.task is None or str(run.summary["task"]).lower() == paper_row.task
    return is_task and all(run.setting(key) == value for key, value in paper_row.settings.items())


def _called(method: str, groups: Sequence[Group]) -> list[Group]:
    return [group for name in _NAMES.get(method, (method,)) for group in groups if group.method == name]


def _told_apart(groups: Sequence[Group], by: Sequence[str]) -> list[Group]:
    """Add to the labels of groups of one cell the settings that they were grouped by and differ in, if any."""
    told = [index for index in range(len(by)) if len({group.at[index] for group in groups}) > 1]
    where = [", ".join(f"{by[index]} {group.at[index]}" for index in told) for group in groups]
    return [
        replace(group, label=f"{group.label} ({place})" if place else group.label)
        for group, place in zip(groups, where, strict=True)
    ]


def measured_by_seed(group: Group, paper_row: PaperRow) -> dict[int, float]:
    """Return what a group's runs have for the paper's numbers, in the paper's unit, by seed; nan where they do not."""
    return {run.seed: _measured(run, paper_row) for run in group.runs}


def _measured(run: Run, paper_row: PaperRow) -> float:
    rounds = run.figure("rounds") or np.nan
    if paper_row.quantity == "parameters_to_target" and paper_row.target is not None:
        costs = cost_to_target(run, "accuracy", paper_row.target)
        return np.nan if costs is None else costs["parameters_both"]
    if paper_row.quantity == "client_flops":
        return run.figure("client_flops") / (rounds * _cohort(run))
    if paper_row.quantity == "server_flops":
        return run.figure("server_flops") / rounds
    if paper_row.quantity == "peak_megabytes":
        return run.figure("peak_megabytes")
    return 100 * run.final(paper_row.quantity)


def _cohort(run: Run) -> int:
    """Return how many clients take part in a round."""
    from fedgram.cohort import cohort_size  # which imports torch

    return cohort_size(run.setting("trainer.participation"), run.setting("trainer.clients"))
