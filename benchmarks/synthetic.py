"""Random sequences, and a backbone without a tokenizer: workloads that need nothing but a seed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fedgram import TextClassification
from fedgram.data.base import FederatedData
from fedgram.data.partition import Partition
from fedgram.data.tokens import TokenTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["InTurn", "RandomBackbone", "Synthetic", "draw_lengths", "make_table"]

MEAN, SPREAD, SHORTEST = 50, 0.5, 8
"""Of the lengths, in tokens: the mean and the standard deviation of the logarithm of short texts, as in GLUE."""


def draw_lengths(samples: int, longest: int, generator: np.random.Generator) -> np.ndarray:
    """Return lengths in tokens, log-normal."""
    drawn = generator.lognormal(np.log(MEAN) - SPREAD**2 / 2, SPREAD, samples)
    return np.clip(np.rint(drawn), min(SHORTEST, longest), longest).astype(np.int64)


def make_table(lengths: np.ndarray, vocabulary: int, generator: np.random.Generator) -> TokenTable:
    """Return sequences of such lengths, of any token but the first hundred, where special ones are, with two labels."""
    first = min(100, vocabulary // 2)
    ids = generator.integers(first, vocabulary, int(lengths.sum()), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenTable(ids, None, offsets, generator.integers(0, 2, len(lengths)))


class InTurn(Partition):
    """Client c holds the c-th rows."""

    def owners(self, labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
        """Return the client of each row."""
        del seed
        return np.arange(len(labels)) * clients // len(labels)


class Synthetic(FederatedData):
    """Tables that are there already.

    Args:
        tables: the samples of each split.
        batch_size: sequences of one local step.
        eval_batch_size: sequences of one evaluation step.
    """

    name = "synthetic"
    num_labels, label_names, metrics = 2, ["0", "1"], ("accuracy",)

    def __init__(self, tables: dict[str, TokenTable], batch_size: int = 4, eval_batch_size: int = 64) -> None:
        longest = max(int(table.lengths.max()) for table in tables.values())
        super().__init__(longest, batch_size, eval_batch_size, InTurn(), None)
        self.ready = tables

    def load_tables(self) -> dict[str, TokenTable]:
        """Return the tables."""
        self.group_names = self.label_names
        return self.ready

    def groups(self, split: str) -> np.ndarray:
        """Return the labels."""
        return self.tables[split].labels


class NoTokenizer:
    """What fedgram asks of a tokenizer where the tokens are there already."""

    pad_token_id = 1
    unk_token_id = None

    def get_vocab(self) -> dict[str, int]:
        """Return the only token that has a name."""
        return {"<pad>": self.pad_token_id}


class RandomBackbone(TextClassification):
    """A classifier of a given shape, with weights drawn from the seed and no tokenizer."""

    def __init__(self, shape: str, **settings: Any) -> None:
        super().__init__(shape, pretrained=False, tokenizer="none", **settings)

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return a stand-in."""
        tokenizer: Any = NoTokenizer()
        return tokenizer
