"""What a model says of a split, the same on any number of ranks."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgram.data import FederatedData
from fedgram.data.tokens import TokenTable
from fedgram.distributed.collectives import Ranks
from fedgram.engine.network import ClientNetwork
from fedgram.errors import located
from fedgram.federation.clients import Models
from fedgram.finite import remedy, spoilt_outputs
from fedgram.models.base import Outputs
from fedgram.runs.folder import is_loss
from fedgram.settings import PersonalEvaluation
from fedgram.state import ModelState

__all__ = ["evaluate", "infer", "log_undefined"]

log = logging.getLogger(__name__)


def infer(
    network: ClientNetwork,
    answering: Sequence[tuple[ModelState, np.ndarray]],
    table: TokenTable,
    batch_size: int,
    ranks: Ranks,
) -> Outputs:
    """Return the outputs for all samples, in the order of the data, on the CPU of every rank.

    Each sample is answered by the model that it stands beside in ``answering``. The batches hold samples of like
    length and do not depend on the ranks, which take them in turn. No sample is padded on or counted twice, so that
    metrics are exact. Outputs that have a column for every token are filled up with -inf to the longest sample.

    Raises:
        TrainingError: on every rank, if an output is not finite.
    """
    batches = [
        (model, batch) for model, (_, rows) in enumerate(answering) for batch in _batches(table, rows, batch_size)
    ]
    own = batches[ranks.rank :: ranks.size]
    results = []
    with ranks.apart("evaluation"):
        # A rank without a batch learns the form of the outputs from the first.
        for model, of_model in groupby(own or batches[:1], key=itemgetter(0)):
            state, rows = answering[model]
            # All tokens, and not those of this rank: how a model computes must not depend on the ranks.
            with network.merged(state, int(table.lengths[rows].sum())), torch.inference_mode():
                for _, batch in of_model:
                    ranks.heed()
                    results.append(network.run(table, batch)[0])
    ids = np.concatenate([batch for _, batch in own]).tolist() if own else []

    def collect(key: str) -> Tensor:
        width = int(ranks.maximum(max(float(piece[key].shape[-1]) for piece in results)))
        rows = torch.cat([_widened(piece[key], width) for piece in results])[: len(ids)]
        return ranks.gather(rows, range(len(table)), ids).cpu()

    outputs = {key: collect(key) for key in results[0]}
    problem = spoilt_outputs(outputs, table.lengths)
    ranks.stop_on(None if problem is None else f"{problem}; {remedy(network.task)}")
    return outputs


def evaluate(
    network: ClientNetwork,
    models: Models,
    data: FederatedData,
    split: str,
    ranks: Ranks,
    personal_evaluation: PersonalEvaluation = "own",
) -> dict[str, float]:
    """Return the mean loss and the task's metrics over a labelled split, and over its further parts with a suffix.

    Args:
        network: the backbone with its client layers.
        models: the server's model, and the clients' where they keep parts of their own.
        data: the data.
        split: validation or test.
        ranks: the processes that share the work.
        personal_evaluation: of models of clients: "own" has each answer its client's share of the split, dealt as the
            training data is, and scores the answers as one; "all" has each answer the whole split, and takes the mean
            of the scores over clients.

    Returns:
        The metrics; one that is undefined, such as a correlation with what is all alike, is nan.

    Raises:
        TrainingError: on every rank, if an output or a loss is not finite.
    """
    metrics: dict[str, float] = {}
    for suffix, part in data.parts(split).items():
        with located(f"{part} split"):
            if models.personal and personal_evaluation == "all":
                found = _mean_scores(network, models, data, part, ranks)
            else:
                found = _scores(network, models.answering(data, part), data, part, ranks)
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    return metrics


def log_undefined(names: Sequence[str], split: str) -> None:
    """Warn of metrics that have no value."""
    log.warning(
        "%s of the %s split: undefined, given as nan, since all predictions or all labels are equal",
        ", ".join(names),
        split,
    )


def _mean_scores(
    network: ClientNetwork, models: Models, data: FederatedData, split: str, ranks: Ranks
) -> dict[str, float]:
    """Return the mean over clients of what each one's model scores on the whole split, the server's asked once."""
    everything = np.arange(len(data.split(split)))

    def scores(state: ModelState) -> dict[str, float]:
        return _scores(network, [(state, everything)], data, split, ranks)

    keeping = models.keeping
    own = [scores(models.of(client)) for client in keeping.tolist()]
    others = scores(models.server) if len(own) < len(models.shards) else own[0]
    found = {}
    for name, value in others.items():
        values = np.full(len(models.shards), value)
        values[keeping] = [each[name] for each in own]
        found[name] = float(values.mean())
    return found


def _scores(
    network: ClientNetwork,
    answering: Sequence[tuple[ModelState, np.ndarray]],
    data: FederatedData,
    split: str,
    ranks: Ranks,
) -> dict[str, float]:
    table = data.split(split)
    outputs = infer(network, answering, table, data.eval_batch_size, ranks)
    losses = network.task.sample_losses(outputs, torch.tensor(table.labels))
    found = {"loss": float(losses.double().mean()), **network.task.evaluate(outputs, data, split)}
    # A metric that is nan is undefined; a loss is always defined, and no measure is infinite.
    bad = [name for name, value in found.items() if math.isinf(value) or (is_loss(name) and math.isnan(value))]
    ranks.stop_on(f"{bad[0]} is {found[bad[0]]}; {remedy(network.task)}" if bad else None)
    return found


def _batches(table: TokenTable, rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut samples into batches of like lengths."""
    order = rows[np.argsort(table.lengths_of(rows), kind="stable")]
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _widened(rows: Tensor, width: int) -> Tensor:
    return functional.pad(rows, (0, width - rows.shape[-1]), value=-torch.inf)
