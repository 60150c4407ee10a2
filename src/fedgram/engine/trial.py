"""What the plain backbone answers to some rows, and whether it answers the same in batches and with adapters in it.

A backbone is tried before anything is put into it, on one row at a time and without padding: its answers are the truth
that fedgram must return. Not every model returns it in a batch: FNet mixes padding in, Nystromformer takes means over
it, BigBird's sparse attention depends on the longest row. Such a backbone runs one row at a time.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork, together
from fedgram.errors import ConfigurationError
from fedgram.models.base import FederatedTask, Outputs

__all__ = ["Trial", "agree", "line", "rounding", "rows_to_try", "try_adapted"]

log = logging.getLogger(__name__)

_FEW, _MANY = 3, 7
"""Rows that a large backbone, and a small one, is tried on."""
_LEAST = 1e-6
"""Models keep parts in single precision also where all else is in double, which a batch rounds otherwise."""
_LARGE = 50_000_000
"""Parameters from which on a backbone is large: a row takes it a good part of a second."""


@dataclass(frozen=True)
class Trial:
    """Rows, and what the plain backbone answers to each by itself.

    Attributes:
        table: the rows, of all lengths that there are.
        answers: its outputs, with -inf where a row has no token.
        tolerance: by which share of the largest a number may be off, for rounding.
    """

    table: TokenTable
    answers: Outputs
    tolerance: float

    @classmethod
    def of(
        cls,
        task: FederatedTask,
        tables: Iterable[TokenTable],
        device: torch.device,
        precision: str,
        autocast: Callable[[], AbstractContextManager],
    ) -> "Trial":
        """Ask a task's network, which has no adapters yet.

        Args:
            task: with the network, on the device.
            tables: all samples that may come.
            device: where it computes.
            precision: of the backbone, as the trainer's.
            autocast: makes the context of a forward pass.

        Raises:
            ConfigurationError: it has no answer to a row, or another one the second time.
        """
        small = sum(parameter.numel() for parameter in task.parameters()) < _LARGE
        table = rows_to_try(tables, _MANY if small else _FEW)
        plain = ClientNetwork(task, {}, device, torch.float32, autocast, task.pad_id)
        order = np.arange(len(table))[::-1]  # the longest first: the next ones show whether it has changed anything
        answers = {int(row): _answer(plain, table, int(row)) for row in order}
        trial = cls(table, _joined([answers[row] for row in range(len(table))]), max(rounding(task, precision), _LEAST))
        if not agree(answers[int(order[0])], _answer(plain, table, int(order[0])), trial.tolerance):
            raise ConfigurationError(
                f"{task.backbone!r} answers otherwise when a text of {table.lengths[-1]} tokens is asked for again: it "
                "draws at random (Reformer does without a hash_seed), or depends on what came before (BigBird does, "
                "but with attention_type original_full); change its config.json, or give another backbone"
            )
        return trial

    @property
    def rows(self) -> np.ndarray:
        """All rows."""
        return np.arange(len(self.table))

    def agrees(self, network: ClientNetwork, expected: Outputs, rows: np.ndarray) -> bool:
        """Return whether a network answers some rows in one batch as it should each by itself."""
        with torch.inference_mode():
            found = network.run(self.table, rows)[0]
        width = max(tensor.shape[-1] for tensor in found.values())
        return agree({key: tensor[rows, :width] for key, tensor in expected.items()}, found, self.tolerance)


def try_adapted(network: ClientNetwork, trial: Trial, keeps_start: bool) -> None:
    """Choose whether a network with adapters runs in batches, or one row at a time.

    Args:
        network: with its client layers.
        trial: of the network without them.
        keeps_start: whether the model that training starts with computes what the plain one does.

    Raises:
        ConfigurationError: it does not do so even one row at a time.
    """
    network.load_one(network.initial_state())
    expected, longest = trial.answers, trial.rows[-1:]
    if not keeps_start:
        network.one_by_one = True
        with torch.inference_mode():
            expected = network.run(trial.table, trial.rows)[0]
        network.one_by_one = False
    network.masks_all = _differs(network, trial, expected, longest) is not None
    if (reason := _differs(network, trial, expected, trial.rows)) is None:
        return
    network.one_by_one = True
    if (alone := _differs(network, trial, expected, trial.rows)) is not None:
        raise ConfigurationError(
            f"{network.task.backbone!r} with adapters on {_names(network)} does not answer as without them before any "
            f"training ({alone}): it uses these layers in a way of its own, and needs others in "
            "method.target_modules, or the method's adapter starts elsewhere, and should set keeps_start to False"
        )
    log.warning("%r: %s, so its texts are computed one at a time, which is slower", network.task.backbone, reason)


def _differs(network: ClientNetwork, trial: Trial, expected: Outputs, rows: np.ndarray) -> str | None:
    """Return what is wrong with a network's answers in a batch; None where nothing is."""
    try:
        same = trial.agrees(network, expected, rows)
    except Exception as error:  # noqa: BLE001 (models refuse what they can't do in ways of their own)
        return f"it fails on a batch of texts ({line(error)})"
    return None if same else "what it answers to a text depends on padding, or on the others in a batch"


def _names(network: ClientNetwork) -> str:
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name, a in network.layers.items() if a.part == "adapter"}))


def _answer(network: ClientNetwork, table: TokenTable, row: int) -> Outputs:
    """Return the answer to a row by itself, with a mask as Transformers' tokenizers make it."""
    batch = table.batch(np.array([row]), network.pad_id)
    del batch["labels"]
    try:
        with torch.inference_mode(), network.autocast():
            outputs = network.task.outputs({key: tensor.to(network.device) for key, tensor in batch.items()})
    except Exception as error:
        raise ConfigurationError(
            f"{network.task.backbone!r} fails on a text of {table.lengths[row]} tokens ({line(error)}); other lengths "
            "may work, or give another backbone"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in outputs.values()):
        dtype = str(next(network.task.parameters()).dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"{network.task.backbone!r} answers nan or inf to a text of {table.lengths[row]} tokens: its numbers are "
            f"too large for {dtype}, or its weights are damaged; set model.dtype to bfloat16 or float32"
        )
    return outputs


def line(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _joined(answers: list[Outputs]) -> Outputs:
    return {key: together([answer[key] for answer in answers]) for key in answers[0]}


def rows_to_try(tables: Iterable[TokenTable], most: int) -> TokenTable:
    """Return a table of rows from the shortest to the longest, and lengths evenly between, out of all tables."""
    known = list(tables)
    lengths = np.concatenate([table.lengths for table in known])
    order = np.argsort(lengths, kind="stable")
    steps = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)
    starts = np.cumsum([0, *map(len, known)])
    chosen = order[np.unique(steps)]
    owners = np.searchsorted(starts, chosen, side="right") - 1
    return _gathered([(known[owner], int(row - starts[owner])) for owner, row in zip(owners, chosen, strict=True)])


def _gathered(rows: list[tuple[TokenTable, int]]) -> TokenTable:
    """Return a table of single rows of others."""
    spans = [slice(int(table.offsets[row]), int(table.offsets[row + 1])) for table, row in rows]
    ids = np.concatenate([table.ids[span] for (table, _), span in zip(rows, spans, strict=True)])
    types = [table.type_ids[span] for (table, _), span in zip(rows, spans, strict=True) if table.type_ids is not None]
    labels = np.stack([table.labels[row] for table, row in rows])
    offsets = np.cumsum([0, *(span.stop - span.start for span in spans)])
    return TokenTable(ids, np.concatenate(types) if types else None, offsets, labels)


def rounding(task: FederatedTask, precision: str) -> float:
    """Return by which share of the largest a number may be off that a backbone of this precision computes."""
    if precision.startswith("bf16") or task.weights_dtype.itemsize < 4:
        return 5e-2
    return 1e-9 if precision == "64-true" else 1e-3


def agree(one: Outputs, other: Outputs, tolerance: float) -> bool:
    """Return whether outputs differ by no more than rounding; padding may be -inf in both."""

    def close(first: Tensor, second: Tensor) -> bool:
        known = first[first.isfinite()]
        if not known.numel():  # it has overflowed everywhere, which is nothing to compare with
            return False
        largest = float(known.abs().max())
        return torch.allclose(first.double(), second.double(), rtol=0, atol=tolerance * largest)

    return all(close(tensor, other[key]) for key, tensor in one.items())
