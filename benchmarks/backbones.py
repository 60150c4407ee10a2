"""Every family of Transformers' sequence classification under fedgram: right, refused in one line, or wrong.

    python benchmarks/backbones.py --write docs/backbones.md

What plain Transformers answers to each row by itself is the truth. A family is tried with a tiny random model:
fedgram's predictions for rows shorter and longer than those of training must be these answers, in any batch; a block of
clients must train each as if it were alone; and FLoRG, FedIT and FedExLoRA must train a round.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import families
from families import LABELS, PAD, VOCABULARY
from fedgram import IID, SGD, FederatedTrainer, FedExLoRA, FedIT, FLoRG, TextClassification
from fedgram.cost.fake_network import client_start
from fedgram.data.base import FederatedData
from fedgram.data.tokens import TokenTable
from fedgram.engine.block import train_block
from fedgram.engine.block_trial import try_blocks
from fedgram.errors import FedgramError
from fedgram.federation.evaluation import infer
from fedgram.federation.setup import assemble
from fedgram.methods import Method
from fedgram.state import flatten
from report import add_options, publish, table

EXACT = 1e-5
"""By what share of the largest logit an answer may differ from plain Transformers' in float32."""
SAME_TRAINING = 1e-3
"""By what share of the largest change the changes of a client in a block may differ from those that it has alone."""
METHODS = (FLoRG, FedIT, FedExLoRA)
TRAIN, SHORTER_AND_LONGER = (3, 5, 8, 12) * 6, (1, 2, 5, 9, 14, 22, 30)
"""Tokens of the training rows, and of those that are predicted beyond what the family needs at least."""


@dataclass(frozen=True)
class Verdict:
    """What came of a family.

    Attributes:
        family: its name in Transformers.
        runs: whether it trains and predicts; else it was refused in one line.
        rows: how its rows are computed: padding-free, padded, or one at a time.
        targets: the names of the adapted layers.
        reason: of the refusal, or why padding is not left out; empty where there is none to give.
        apart: how far predictions are from plain Transformers', as a share of the largest logit.
    """

    family: str
    runs: bool
    rows: str = ""
    targets: tuple[str, ...] = ()
    reason: str = ""
    apart: float = 0.0


class WrongError(AssertionError):
    """fedgram did something else than plain Transformers does, without a word."""


class Ids(TextClassification):
    """Classification of rows that are ids from the start: the tokenizer says only what there is."""

    def load_tokenizer(self) -> Any:
        return tokenizer()


def tokenizer() -> Any:
    """Return a tokenizer with as many words as the models have embeddings."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": PAD, "[UNK]": 1, **{f"word{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


class Rows(FederatedData):
    """Rows of ids, with labels in turn, to train on and to predict."""

    name = "rows"
    num_labels = LABELS
    label_names = tuple("abc")
    metrics = ("accuracy",)

    def __init__(self, train: Sequence[Sequence[int]], asked: Sequence[Sequence[int]], eval_batch_size: int) -> None:
        super().__init__(families.POSITIONS, 2, eval_batch_size, IID(), None)
        self.rows = {"train": train, "validation": asked, "test": asked}
        self.group_names = list(self.label_names)

    def load_tables(self) -> dict[str, TokenTable]:
        return {name: _table(rows) for name, rows in self.rows.items()}

    def groups(self, split: str) -> np.ndarray:
        return self.split(split).labels


def _table(rows: Sequence[Sequence[int]]) -> TokenTable:
    ids = np.concatenate(rows).astype(np.int32)
    return TokenTable(ids, None, np.cumsum([0, *map(len, rows)]), np.arange(len(rows)) % LABELS)


def judge(family: str, folder: Path, whole: bool = False) -> Verdict:
    """Try a family.

    Args:
        family: its name in Transformers.
        folder: an empty one.
        whole: have `fit` run a round with each method too, which takes some seconds.

    Raises:
        WrongError: an answer or a training is not what it should be.
        Exception: where something went wrong that fedgram does not explain.
    """
    least = families.LEAST.get(family, 1)
    rows = [
        families.rows_of([least - 1 + n for n in lengths], i) for i, lengths in enumerate((TRAIN, SHORTER_AND_LONGER))
    ]
    options = {"rank": 2, "target_modules": families.TARGETS.get(family)}
    options |= {"head": "frozen"} if family in families.FROZEN_HEADS else {}
    try:
        model = families.save(family, folder / "model")
    except ImportError as error:
        return Verdict(family, False, reason=" ".join(str(error).split()).partition(". ")[0])
    try:
        verdict = _predict(family, model, rows, folder, FedIT(**options))
        for method in METHODS:
            note = _train(family, model, rows, folder, method(**options))
            if whole:
                _trainer(folder).fit(Ids(model), Rows(*rows, 8), method(**options))
    except FedgramError as error:
        return Verdict(family, False, reason=str(error).replace(str(folder / "model"), family))
    return replace(verdict, reason=note)


def _predict(family: str, model: str, rows: list[Any], folder: Path, method: Method) -> Verdict:
    """Compare what fedgram and plain Transformers answer, in batches of all rows and of three."""
    expected = families.plain_logits(model, rows[1])
    largest = float(expected.abs().max())
    for size in (3, len(rows[1])):
        trainer, task, data = _trainer(folder), Ids(model), Rows(*rows, size)
        session = trainer.connect(data, method)
        network = assemble(session, task, data, method)
        asked = [(network.initial_state(), np.arange(len(rows[1])))]
        found = infer(network, asked, data.split("test"), size, session.ranks)["logits"]
        apart = float((found - expected).abs().max()) / largest
        if not apart < EXACT:
            raise WrongError(f"{family}: predictions are {apart:.1e} from plain Transformers' in batches of {size}")
    names = {name.rsplit(".", 1)[-1] for name, layer in network.layers.items() if layer.part == "adapter"}
    return Verdict(family, True, _way(network), tuple(sorted(names)), apart=apart)


def _way(network: Any) -> str:
    return "padding-free" if network.packs else "one at a time" if network.one_by_one else "padded"


def _trainer(folder: Path) -> FederatedTrainer:
    return FederatedTrainer(
        rounds=1,
        clients=4,
        local_steps=2,
        clients_per_block=4,
        accelerator="cpu",
        devices=1,
        loggers=False,
        progress_bar=False,
        default_root_dir=str(folder / "runs"),
    )


def _train(family: str, model: str, rows: list[Any], folder: Path, method: Method) -> str:
    """Train clients of unequal batches in a block and by themselves, which must give the same.

    Returns:
        Why clients are trained one at a time; empty where they are not.
    """
    data = Rows(*rows, 8)
    trainer = _trainer(folder)
    network = assemble(trainer.connect(data, method), Ids(model), data, method)
    blocks = try_blocks(network, data.split("train"))
    state, optimizer, table = network.initial_state(), SGD(lr=0.05), data.split("train")
    start = client_start(method, state, 4)
    network.share(state)
    batches = [[np.array([0, 5, 7]), np.array([2, 1, 3])], [np.array([4, 6])], [np.array([9, 8, 11])]]
    nothing: list[Any] = [None] * len(batches)
    together = nothing if blocks.alone else train_block(network, optimizer, [start] * 3, table, batches).states
    for own, steps in zip(together, batches, strict=True):
        alone = flatten(train_block(network, optimizer, [start], table, [steps]).states[0])
        change = max(float((tensor - flatten(start)[key]).abs().max()) for key, tensor in alone.items())
        found = alone if own is None else flatten(own)
        apart = max(float((found[key] - tensor).abs().max()) for key, tensor in alone.items())
        if not change > 0:
            raise WrongError(f"{family}: {method.name} has trained nothing")
        if not apart < SAME_TRAINING * change:
            raise WrongError(f"{family}: {method.name} trains clients of a block {apart / change:.1e} apart from alone")
    return f"clients one at a time: {blocks.alone}" if blocks.alone else ""


def report(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the table of docs/backbones.md."""
    heads = ["family", "runs", "rows", "adapted", "notes"]
    lines = [
        [f"`{v.family}`", "yes" if v.runs else "refused", v.rows, ", ".join(f"`{t}`" for t in v.targets), v.reason]
        for v in verdicts
    ]
    return table(heads, lines)


def main() -> None:
    """Try all families, and write the table."""
    parser = argparse.ArgumentParser(description="every family of sequence classification", allow_abbrev=False)
    parser.add_argument("--only", nargs="+", default=families.families())
    parser.add_argument("--fit", action="store_true", help="have fit run a round with each method too: an hour in all")
    add_options(parser)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    verdicts = []
    for family in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append(judge(family, Path(folder), arguments.fit))
    publish(arguments, "backbones", report(verdicts), [asdict(verdict) for verdict in verdicts])


if __name__ == "__main__":
    main()
