"""The head that a checkpoint brings: whether it fits the task, and which of its rows stands for which class.

A checkpoint that was fine-tuned for classification has a head with a row for each of its classes, whose names its
config.json lists as ``id2label``. The rows are put into the order of the data's classes where the names agree; a head
that fits the task in no order is drawn from the seed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedgram.backbone.base_model import base_name
from fedgram.data.classes import places_of
from fedgram.errors import ConfigurationError
from fedgram.models.loading import key_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["HeadStart", "RowMatch", "fit_head", "match_rows", "names_of_rows"]

log = logging.getLogger(__name__)

_LISTED = 8
"""The most names of weights or classes that a message lists."""


@dataclass(frozen=True)
class RowMatch:
    """Which row of a trained head stands for each class of the data.

    Attributes:
        rows: the head's row of each class; None where the names do not agree.
        note: what a reader of the log should know of it; empty where the names agree in the data's own order.
    """

    rows: tuple[int, ...] | None
    note: str = ""


@dataclass(frozen=True)
class HeadStart:
    """Where the weights of the head come from.

    Attributes:
        loaded: the head's weights that the checkpoint has and that are used.
        drawn: the head's weights, or a pooler's, that were drawn from the seed.
        left_out: weights of the checkpoint that the network has no place for, such as another task's head.
        misfit: why the checkpoint's trained head is not used as it is; empty where it is, or where there is none.
        note: how the rows were matched to classes, where that is worth a line.
    """

    loaded: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    misfit: str = ""
    note: str = ""

    def report(self, backbone: str, frozen: bool) -> None:
        """Log what of the head is the checkpoint's and what was drawn, where that is not as one would expect.

        Args:
            backbone: as it was given, for the message.
            frozen: whether the head stays as it is, so that random weights would decide every answer.

        Raises:
            ConfigurationError: if the head is to stay frozen and the checkpoint's trained one does not fit.
        """
        if self.misfit and frozen:
            raise ConfigurationError(
                f"method.head is frozen, but the trained head of {backbone!r} does not fit the data: {self.misfit};"
                " set method.head to averaged or local to train a new one, or give data of the head's own classes"
            )
        if self.misfit:
            log.warning(
                "the head is drawn anew, as the trained one of %r does not fit the data: %s; %s",
                backbone,
                self.misfit,
                self._origins(),
            )
        elif self.drawn and frozen:
            log.warning("the head is frozen at random weights, as %r has none for it: %s", backbone, self._origins())
        elif self.drawn and self.loaded:  # a trained head on a pooler that is random
            log.warning("the head of %r is not loaded as a whole: %s", backbone, self._origins())
        if self.note:
            log.warning("%r: %s", backbone, self.note)

    def _origins(self) -> str:
        parts = {"drawn from the seed": self.drawn, "loaded": self.loaded, "left out": self.left_out}
        return "; ".join(f"{what} {_listed(names)}" for what, names in parts.items() if names)


def fit_head(
    network: Any, report: Mapping[str, Any], own: "PretrainedConfig", task: str, classes: Sequence[str] | None
) -> HeadStart:
    """Put the rows of a trained head into the order of the data's classes, or draw them where they fit in none.

    To be called where torch's global generator may be used (see `fedgram.seeding.isolated`).

    Args:
        network: the network with the checkpoint's weights; its output layer is changed in place.
        report: what `from_pretrained` returns beside it: the missing, mismatched and unexpected keys.
        own: the checkpoint's own configuration.
        task: what Transformers calls the task in the names of its classes, such as SequenceClassification.
        classes: the names of the data's classes, in order; None for a head whose rows have no names.

    Raises:
        ConfigurationError: if rows would have to be moved or drawn in a head whose output layer is not linear.
    """
    mismatched, missing = ({key_of(key) for key in report[kind]} for kind in ("mismatched_keys", "missing_keys"))
    random = mismatched | missing
    head = _head_parameters(network)
    start = HeadStart(
        tuple(name for name in head if name not in random),
        tuple(name for name, _ in network.named_parameters() if name in random),
        tuple(sorted(report["unexpected_keys"])),
    )
    if not mismatched.intersection(head) and not start.loaded:
        trained = [name for name in own.architectures or [] if task in name]
        misfit = f"its config.json says {trained[0]}, but none of the head's weights are there" if trained else ""
        return replace(start, misfit=misfit)  # as a rule none: the usual backbone, which was trained for no such task
    misfit = _misfit(own, task, network.config.num_labels, [name for name in head if name in random], mismatched)
    match = RowMatch(None) if misfit or classes is None else match_rows(names_of_rows(own), classes)
    if not misfit and classes is not None and match.rows is None:
        misfit = match.note
    if misfit:
        return _drawn_anew(network, replace(start, misfit=misfit))
    if match.rows is not None:
        _reorder(_output_layer(network), match.rows)
    return replace(start, note=match.note)


def names_of_rows(config: "PretrainedConfig") -> list[str]:
    """Return the names of a head's rows by a configuration; LABEL_0, LABEL_1, ... where it has none.

    The names of ``id2label`` are taken, or those of ``label2id`` where only that has any.
    """
    rows = range(len(config.id2label))
    names = [str(config.id2label[row]) for row in rows]
    backwards = {int(row): str(name) for name, row in (config.label2id or {}).items()}
    if _are_placeholders(names) and sorted(backwards) == list(rows):
        return [backwards[row] for row in rows]
    return names


def match_rows(head: Sequence[str], classes: Sequence[str]) -> RowMatch:
    """Find the row of a trained head that stands for each class of the data.

    Names agree in whatever order, case and surrounding spaces; where two of a side differ in these alone, they must
    agree to the letter. Where one side has no names (a head with LABEL_0, LABEL_1, ..., or classes that are numbered
    from 0), row i stands for class i.

    Args:
        head: the names of the head's rows.
        classes: the names of the data's classes, as many.

    >>> match_rows(["NEGATIVE", "POSITIVE"], ["positive", "negative"]).rows
    (1, 0)
    >>> match_rows(["good", "bad"], ["yes", "no"]).rows is None
    True
    """
    if (places := places_of(classes, head)) is not None:
        rows = tuple(places)
        moved = rows != tuple(range(len(rows)))
        note = f"the rows of the trained head, {_listed(head)}, are taken in the data's order, {_listed(classes)}"
        return RowMatch(rows, note if moved else "")
    if _are_placeholders(head) or list(classes) == [str(row) for row in range(len(classes))]:
        pairs = ", ".join(f"{name!r} is {row!r}" for name, row in zip(classes, head, strict=True))
        return RowMatch(
            tuple(range(len(classes))),
            "the rows of the trained head are taken for the classes of the data by their numbers, as"
            f" {'its config.json' if _are_placeholders(head) else 'the data'} has no names: {_shortened(pairs)}",
        )
    return RowMatch(
        None, f"its classes are {_listed(head)} by id2label of its config.json, the data's {_listed(classes)}"
    )


def _misfit(own: "PretrainedConfig", task: str, rows: int, lacking: Sequence[str], mismatched: set[str]) -> str:
    """Return why a trained head can't be used whatever its classes are called; nothing where it can."""
    if mismatched.intersection(lacking):
        named = "" if _are_placeholders(names_of_rows(own)) else f" ({_listed(names_of_rows(own))})"
        if own.num_labels != rows:
            return f"it has {own.num_labels} rows{named}, and {rows} {'is' if rows == 1 else 'are'} needed"
        return f"its weights {_listed(sorted(mismatched))} have other shapes than its config.json says"
    if lacking:
        return f"the checkpoint lacks some of its weights: {_listed(lacking)}"
    trained = own.architectures or []
    if trained and not any(task in name for name in trained):
        return f"it was trained in another task, as {' and '.join(trained)}"
    return ""


def _head_parameters(network: nn.Module) -> list[str]:
    """Return the names of the head's parameters: those beside the base model, or of the output layer inside of it."""
    base = f"{base_name(network)}."
    names = [name for name, _ in network.named_parameters() if not name.startswith(base)]
    if names:
        return names
    output = _output_layer(network)
    return [name for name, parameter in network.named_parameters() if any(parameter is p for p in output.parameters())]


def _output_layer(network: Any) -> nn.Linear:
    """Return the layer with a row for each class: the last one of that size, of those beside the base model if any."""
    base, rows = f"{base_name(network)}.", network.config.num_labels
    linears = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == rows}
    outside = [module for name, module in linears.items() if not name.startswith(base)]
    found = outside or list(linears.values())
    if not found:
        raise ConfigurationError(
            f"the head of a {type(network).__name__} has no linear layer of {rows} rows, so that its trained weights"
            " can't be matched to the data's classes; give a backbone without a trained head"
        )
    return found[-1]


@torch.no_grad()
def _reorder(output: nn.Linear, rows: Sequence[int]) -> None:
    """Sort the rows of a layer in place."""
    for parameter in output.parameters():
        parameter.copy_(parameter[list(rows)].clone())


@torch.no_grad()
def _drawn_anew(network: Any, start: HeadStart) -> HeadStart:
    """Draw the output layer where the checkpoint's is in the network; what is before it in the head is kept."""
    output = _output_layer(network)
    own = {id(parameter) for parameter in output.parameters()}
    names = [name for name, parameter in network.named_parameters() if id(parameter) in own]
    if set(names) <= set(start.drawn):
        return start
    # A new layer, since Transformers leaves alone the weights that it has marked as loaded.
    fresh = nn.Linear(output.in_features, output.out_features, output.bias is not None, dtype=output.weight.dtype)
    network._init_weights(fresh)
    for old, new in zip(output.parameters(), fresh.parameters(), strict=True):
        old.copy_(new)
    drawn = dict.fromkeys((*start.drawn, *names))
    return replace(start, drawn=tuple(drawn), loaded=tuple(name for name in start.loaded if name not in drawn))


def _are_placeholders(names: Sequence[str]) -> bool:
    """Whether names are those that Transformers gives to classes without any."""
    return [name.strip().casefold() for name in names] == [f"label_{row}" for row in range(len(names))]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
