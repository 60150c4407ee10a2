"""Estimates of costs as tables: on a terminal, and in Markdown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgram.cost.figures import Cost, Estimate, Setting
from fedgram.markdown import markdown_table

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["WIDTH", "bytes_of", "header", "markdown", "rich_tables", "short"]

_UNKNOWN = "-"
WIDTH = 100
"""Columns of a terminal that all tables fit into."""


@dataclass(frozen=True)
class _Column:
    """A column of a table: two lines of its head, and what it says of a cost."""

    over: str
    head: str
    cell: Callable[[Cost], str]


def short(number: float | None, unit: str = "") -> str:
    """Return a number in three digits and a letter; "-" for None.

    >>> short(1_269_000_000_000), short(999_999), short(12), short(None), short(3_117_000_000, "B")
    ('1.27 T', '1.00 M', '12', '-', '3.12 GB')
    """
    if number is None:
        return _UNKNOWN
    size, letter = float(number), ""
    for letter in ("", "k", "M", "G", "T", "P", "E"):
        if size < 999.5 or letter == "E":
            break
        size /= 1000
    digits = f"{size:.0f}" if not letter or size >= 99.95 else f"{size:.{1 if size >= 9.995 else 2}f}"
    return f"{digits} {letter}{unit}".rstrip()


def header(setting: Setting) -> list[str]:
    """Return what the costs are about, in some lines."""
    shape = f" (by {setting.shape}, which comes with fedgram)" if setting.shape else ""
    steps = "-" if setting.local_steps is None else f"{setting.local_steps:,}"
    samples = "" if setting.samples is None else f", {setting.samples:,} training samples"
    lines = [
        f"{setting.backbone}{shape}, {setting.precision}",
        f"{setting.data}: {setting.labels} labels, batches of {setting.batch_size} samples of {setting.tokens} tokens"
        f"{samples}",
        f"{setting.clients:,} clients, {setting.cohort:,} a round, {setting.rounds:,} rounds, {steps} local steps a "
        "client and round",
    ]
    if setting.local_steps is None:
        lines.append("how many local steps: not known before the data is read; give --samples or trainer.local_steps")
    return lines


def _pair(first: int, second: int) -> str:
    return f"{first:,}" if first == second else f"{first:,} / {second:,}"


def _adapters(cost: Cost, name: str) -> str:
    """Return the parameters of adapters that one client sends or is sent, the most where that is not known."""
    least, most = cost.bounds(name)
    return f"{most.adapter:,}" if least.adapter == most.adapter else f"≤ {most.adapter:,}"


def _bytes(cost: Cost, name: str) -> str:
    """Return the bytes that one client sends or is sent, the most where that is not known."""
    least, most = (short(size.bytes, "B") for size in cost.bounds(name))
    return most if least == most else f"≤ {most}"


def bytes_of(cost: Cost, name: str) -> str:
    """Return the bytes that are sent, by the name of the attribute; the least and the most where they differ."""
    least, most = (short(size.bytes, "B") for size in cost.bounds(name))
    return most if least == most else f"{least} - {most}"


_PARAMETERS = [
    _Column("trained:", "adapters", lambda cost: f"{cost.trained.adapter:,}"),
    _Column("", "head", lambda cost: f"{cost.trained.head:,}"),
    _Column("adapters:", "up", lambda cost: _adapters(cost, "up")),
    _Column("", "down, first", lambda cost: _adapters(cost, "down_first")),
    _Column("", "down, later", lambda cost: _adapters(cost, "down")),
    _Column("head:", "up / down", lambda cost: _pair(cost.up.head, cost.down.head)),
]
_BYTES = [
    _Column("one client:", "up", lambda cost: _bytes(cost, "up")),
    _Column("", "down, first", lambda cost: _bytes(cost, "down_first")),
    _Column("", "down, later", lambda cost: _bytes(cost, "down")),
    _Column("all clients:", "up", lambda cost: bytes_of(cost, "all_up")),
    _Column("", "down", lambda cost: bytes_of(cost, "all_down")),
]


def _computed(setting: Setting) -> list[_Column]:
    return [
        _Column("one client:", "step", lambda cost: short(cost.step_flops)),
        _Column("all clients:", "round", lambda cost: short(cost.round_flops)),
        _Column("", "all rounds", lambda cost: short(cost.all_flops)),
        _Column("server:", "round", lambda cost: short(cost.server_flops)),
        _Column("memory:", f"block of {setting.clients_per_block}", lambda cost: short(cost.memory.total, "B")),
        _Column("", "one more", lambda cost: short(cost.memory.per_client, "B")),
    ]


def _tables(setting: Setting) -> dict[str, list[_Column]]:
    return {
        "parameters of one client in a round": _PARAMETERS,
        "bytes of one client in a round, and of all in all rounds": _BYTES,
        "floating-point operations, and memory": _computed(setting),
    }


def _not_known(cost: Cost) -> str:
    """Return between what the traffic of a run lies, and what that depends on."""

    def between(name: str) -> str:
        least, most = cost.bounds(name)
        if least == most:
            return f"{most.parameters:,} parameters ({most.bytes:,} bytes)"
        return f"{least.parameters:,} to {most.parameters:,} parameters ({least.bytes:,} to {most.bytes:,} bytes)"

    return (
        f"{cost.method}: only training can tell {cost.unknown}; all clients send {between('all_up')} and are sent "
        f"{between('all_down')}"
    )


def _notes(estimate: Estimate) -> list[str]:
    """Return what is good to know of the figures."""
    setting = estimate.setting
    notes = [
        *(_not_known(cost) for cost in estimate.costs if cost.unknown),
        "first: round 1, for which all know the start from the seed; what is sent down answers uploads",
        "later: the mean of two rounds after it, to a client that has missed none",
        "operations: of matrix products, without those on padding; of the server also of decompositions and means",
        "memory: weights, and for each client of a block parameters, moments and activations",
    ]
    return [*notes, "trainer.clients_per_block is auto: a run chooses it"] if setting.auto else notes


def rich_tables(estimate: Estimate) -> "list[RenderableType]":
    """Return header, tables and notes for a terminal of at least `WIDTH` columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = [Text("\n".join(header(estimate.setting)))]
    for title, columns in _tables(estimate.setting).items():
        table = Table(
            box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1), pad_edge=False, show_edge=False
        )
        table.add_column("method", vertical="bottom", no_wrap=True)
        for column in columns:
            table.add_column(f"{column.over}\n{column.head}", justify="right", vertical="bottom", no_wrap=True)
        for cost in estimate.costs:
            table.add_row(cost.method, *(column.cell(cost) for column in columns))
        shown += [Text(""), table]
    return [*shown, Text(""), Text("\n".join(_notes(estimate)), style="dim")]


def markdown(estimate: Estimate) -> list[str]:
    """Return the same as the lines of a Markdown document."""
    lines = [*(f"{line}  " for line in header(estimate.setting))]
    for title, columns in _tables(estimate.setting).items():
        heads = [f"{column.over} {column.head}".strip() for column in columns]
        rows = [[cost.method, *(column.cell(cost) for column in columns)] for cost in estimate.costs]
        lines += ["", f"**{title[0].upper()}{title[1:]}**", "", *markdown_table(["method", *heads], rows, heads)]
    return [*lines, "", *(f"- {note}" for note in _notes(estimate))]
