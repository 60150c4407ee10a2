"""Tokenised samples as flat arrays: how they are made, batched, kept on disk and found again."""

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch

from fedgram.errors import ConfigurationError, DataError

__all__ = ["TokenTable", "cached", "tokenise", "tokenizer_state"]

logger = logging.getLogger(__name__)

_ARRAYS = {"ids": (np.int32,), "type_ids": (np.uint8,), "offsets": (np.int64,), "labels": (np.int64, np.float64)}
_DIGEST = "digest.json"
"""The file beside a table's arrays that tells of damage."""
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
    SyntaxError,
    TokenError,
)
"""What reading damaged files comes to; the last two are of the header of an array, which is a literal of Python."""
_EXTRA = "extra-"
"""What the files of a table's extra arrays begin with."""
# Large enough that the tokenizer's threads are busy, small enough that its Python lists stay at some tens of megabytes.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Tokenised samples, laid end to end.

    Sample ``i`` is ``ids[offsets[i] : offsets[i + 1]]``. The arrays may be memory-mapped.

    Args:
        ids: token ids, int32 ``(tokens,)``.
        type_ids: which of two sentences a token belongs to, uint8 ``(tokens,)``; None where the model takes none.
        offsets: where each sample starts and ends, int64 ``(samples + 1,)``.
        labels: classes, int64 ``(samples,)``, -1 where unlabelled; or targets of a regression, float64, NaN there; or
            several classes of each sample, such as where an answer starts and ends, int64 ``(samples, n)``.
        extra: what else the task wants to know of samples or tokens, by name: vectors of integers of any length. It is
            kept and fingerprinted, but is in no batch.
    """

    ids: np.ndarray
    type_ids: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kinds in _ARRAYS.items():
            array = self._arrays().get(name)
            if array is None:
                continue
            vector = array.ndim == 1 or (name == "labels" and array.ndim == 2)
            if not vector or array.dtype not in kinds:
                allowed = " or ".join(np.dtype(kind).name for kind in kinds)
                raise DataError(
                    f"{name} of a token table must be a vector of {allowed}, got {array.dtype} {array.shape}"
                )
        tokens = int(self.offsets[-1]) if len(self.offsets) else -1
        types = len(self.ids) if self.type_ids is None else len(self.type_ids)
        if len(self.offsets) != len(self.labels) + 1 or not tokens == len(self.ids) == types:
            raise DataError(
                f"a token table of {len(self.labels)} labels, {len(self.ids)} ids and {types} type ids needs"
                f" {len(self.labels) + 1} offsets up to {len(self.ids)}, got {len(self.offsets)} up to {tokens}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sample, int64 ``(samples,)``."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the numbers of tokens of some samples, int64 ``(n,)``, without a look at the others."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def batch(self, rows: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
        """Gather samples into one batch, padded on the right to the longest of them.

        A row of -1 is a filler, which evens out clients of unequal size and whose loss has weight 0: one pad token
        that is attended to (attention over nothing is NaN), with label 0.

        Args:
            rows: indices of samples, int64 ``(n,)``.
            pad_id: the id of the padding token.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the table has them, ``token_type_ids``: int64 ``(n, T)``;
            ``labels``: int64 ``(n,)`` or ``(n, k)``, or float32 for a regression.

        Raises:
            DataError: if a row is neither -1 nor the index of a sample.

        >>> table = TokenTable(np.array([5, 6, 7], np.int32), None, np.array([0, 1, 3]), np.array([1, 0]))
        >>> table.batch(np.array([0, 1]), pad_id=9)["input_ids"].tolist()
        [[5, 9], [6, 7]]
        """
        self._check_rows(rows)
        filler = rows < 0
        samples = np.where(filler, 0, rows)
        starts, lengths = self.offsets[samples], np.where(filler, 0, self.lengths_of(samples))
        real, source = _gather_plan(starts, lengths)
        batch = {
            "input_ids": _gather(self.ids, source, real, pad_id),
            "attention_mask": torch.from_numpy((real | _first_column(filler, real.shape[1])).astype(np.int64)),
            "labels": self._labels_of(samples, filler),
        }
        if self.type_ids is not None:
            batch["token_type_ids"] = _gather(self.type_ids, source, real, 0)
        return batch

    def fingerprint(self) -> str:
        """Return the SHA-256 of the arrays, with their names, types and shapes; it is computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, array in self._arrays().items():
            digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, folder: Path, key: str = "") -> None:
        """Write the arrays as .npy files, and a digest, into a folder, which is made if need be.

        Args:
            folder: where to.
            key: what the table is known by, which the digest covers as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self._arrays().items():
            np.save(folder / f"{name}.npy", array)
        (folder / _DIGEST).write_text(json.dumps({"sha256": self._digest_with(key)}))

    @classmethod
    def load(cls, folder: Path, key: str = "") -> "TokenTable":
        """Memory-map a table that `save` wrote.

        Raises:
            DataError: if a file is missing or damaged, or the table was saved under another key.
        """
        try:
            expected = json.loads(_regular(folder / _DIGEST).read_text())["sha256"]
            files = {path.stem: _regular(path) for path in sorted(folder.glob("*.npy"))}
            arrays = {name: np.lib.format.open_memmap(path, mode="r") for name, path in files.items()}
            extra = {name.removeprefix(_EXTRA): array for name, array in arrays.items() if name.startswith(_EXTRA)}
            table = cls(arrays["ids"], arrays.get("type_ids"), arrays["offsets"], arrays["labels"], extra)
        except _DAMAGED as error:
            raise DataError(
                f"{folder} holds no readable token table ({error!r}); delete it to have it made anew"
            ) from error
        if table._digest_with(key) != expected:
            raise DataError(
                f"the token table in {folder} is damaged or another's (its hash differs); delete it to have it made"
                " anew"
            )
        return table

    def _digest_with(self, key: str) -> str:
        return hashlib.sha256(f"{key}:{self.fingerprint()}".encode()).hexdigest()

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"ids": self.ids, "type_ids": self.type_ids, "offsets": self.offsets, "labels": self.labels}
        present = {name: array for name, array in arrays.items() if array is not None}
        return present | {_EXTRA + name: array for name, array in sorted(self.extra.items())}

    def _check_rows(self, rows: np.ndarray) -> None:
        if len(rows) and not -1 <= rows.min() <= rows.max() < len(self):
            raise DataError(
                f"rows of a batch must lie in 0..{len(self) - 1}, or be -1 for a filler; got {rows.min()}..{rows.max()}"
            )

    def _labels_of(self, samples: np.ndarray, filler: np.ndarray) -> torch.Tensor:
        # float32, since a loss in the models' own precision refuses a float64 target.
        kind = np.float32 if self.labels.dtype == np.float64 else np.int64
        unknown = filler.reshape(-1, *[1] * (self.labels.ndim - 1))
        return torch.from_numpy(np.where(unknown, 0, self.labels[samples]).astype(kind))


def _regular(path: Path) -> Path:
    """Return a path if a file is there, and not what can't be mapped, such as a pipe, whose opening may wait."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


def _gather_plan(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells of the batch hold a token, bool ``(n, T)``, and where each token lies, int64 ``(n, T)``."""
    columns = np.arange(max(1, lengths.max(initial=0)))
    real = columns < lengths[:, None]
    return real, np.where(real, starts[:, None] + columns, 0)


def _gather(values: np.ndarray, source: np.ndarray, real: np.ndarray, padding: int) -> torch.Tensor:
    return torch.from_numpy(np.where(real, values[source], padding).astype(np.int64))


def _first_column(rows: np.ndarray, width: int) -> np.ndarray:
    return rows[:, None] & (np.arange(width) == 0)


def tokenise(
    columns: Sequence[Sequence[str]],
    labels: np.ndarray,
    tokenizer: Any,
    max_length: int,
    name_row: Callable[[int], str] = lambda row: f"row {row + 1} (counted from 1)",
) -> TokenTable:
    """Tokenise sentences, or pairs of sentences, truncated to a length.

    Args:
        columns: one or two lists of texts, each of the length of ``labels``.
        labels: int64 or float64 ``(samples,)``.
        tokenizer: a tokenizer of transformers.
        max_length: the most tokens of a sample, special tokens included.
        name_row: what a message calls the sample at an index.

    Raises:
        ConfigurationError: if ``max_length`` leaves no room for a token, or is more than the model takes.
        DataError: if a sample has no token at all.
    """
    check_max_length(tokenizer, max_length, len(columns))
    parts = [
        _tokenise_chunk([list(column[start : start + _CHUNK]) for column in columns], tokenizer, max_length)
        for start in range(0, len(labels), _CHUNK)
    ]
    lengths = np.concatenate([np.zeros(1, np.int64), *(part[2] for part in parts)])
    if len(labels) and lengths[1:].min() == 0:
        raise DataError(
            f"{name_row(int(lengths[1:].argmin()))} has no token;"
            " drop empty texts, or use a tokenizer that adds special tokens"
        )
    ids = np.concatenate([np.zeros(0, np.int32), *(part[0] for part in parts)])
    types = [part[1] for part in parts if part[1] is not None]
    return TokenTable(ids, np.concatenate(types) if types else None, np.cumsum(lengths), labels)


def _tokenise_chunk(
    columns: list[list[str]], tokenizer: Any, max_length: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return token ids, type ids (if the tokenizer has them) and lengths of some samples."""
    encoding = tokenizer(
        *columns, truncation=True, max_length=max_length, padding=False, return_attention_mask=False, verbose=False
    )
    lengths = np.array([len(ids) for ids in encoding["input_ids"]], np.int64)
    ids = np.fromiter(chain.from_iterable(encoding["input_ids"]), np.int32, lengths.sum())
    if "token_type_ids" not in encoding:
        return ids, None, lengths
    return ids, np.fromiter(chain.from_iterable(encoding["token_type_ids"]), np.uint8, lengths.sum()), lengths


def check_max_length(tokenizer: Any, max_length: int, sentences: int) -> None:
    """Refuse a length that cannot hold a token of each sentence, or that the model has no positions for."""
    special = int(tokenizer.num_special_tokens_to_add(pair=sentences == 2))
    if max_length < special + sentences:
        raise ConfigurationError(
            f"max_length must be at least {special + sentences} for this tokenizer: {special} special tokens and one"
            f" of each of the {sentences} sentences; got {max_length}"
        )
    if max_length > tokenizer.model_max_length:
        raise ConfigurationError(
            f"max_length is {max_length}, but the model takes {tokenizer.model_max_length} tokens at most;"
            f" set max_length to {tokenizer.model_max_length} or less"
        )


def tokenizer_state(tokenizer: Any) -> str:
    """Describe all that decides how a tokenizer cuts a text, as a string that is equal for equal tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else _slow_state(tokenizer)
    # Left behind by the calls that the tokenizer served before; each of our calls sets them itself.
    state.pop("truncation", None)
    state.pop("padding", None)
    state["settings"] = {
        name: getattr(tokenizer, name, None)
        for name in ("model_input_names", "model_max_length", "truncation_side", "special_tokens_map")
    }
    return json.dumps([type(tokenizer).__name__, state], sort_keys=True, default=str)


def _slow_state(tokenizer: Any) -> dict[str, Any]:
    # Paths tell where a tokenizer came from, not what it does.
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if not name.endswith(("path", "file"))}
    return {"vocabulary": tokenizer.get_vocab(), "init": settings}


def cached(folder: Path, key: str, make: Callable[[], TokenTable]) -> TokenTable:
    """Return the table kept under a key, making and keeping it if it is absent or damaged.

    The entry appears under its name in one step, so that processes on any number of hosts may ask for it at once.

    Args:
        folder: the cache.
        key: the name of the entry.
        make: makes the table.

    Raises:
        DataError: if the cache cannot be written.
    """
    entry = folder / key
    try:
        return TokenTable.load(entry, key)
    except DataError as error:
        if os.path.lexists(entry):
            logger.warning("a cache entry is made anew: %s", error)
    table = make()
    try:
        _publish(table, entry)
    except OSError as error:
        raise DataError(
            f"cannot write the cache {folder} ({error.strerror or error}); set cache_dir, or FEDGRAM_CACHE, to a folder"
            " with space that you may write to"
        ) from error
    try:
        return TokenTable.load(entry, key)
    except DataError as error:
        logger.warning("the table just made is used from memory: %s", error)
        return table


def _publish(table: TokenTable, entry: Path) -> None:
    """Write a table beside its place in the cache, then move it there."""
    temporary = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    try:
        table.save(temporary, entry.name)
        _move_in(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_in(temporary: Path, entry: Path) -> None:
    try:
        temporary.replace(entry)
        return
    except OSError:
        if not entry.exists():
            raise
    try:
        TokenTable.load(entry, entry.name)  # another process was faster: its table is the same
    except DataError:
        damaged = temporary.with_name(f"{temporary.name}.damaged")
        entry.replace(damaged)
        temporary.replace(entry)
        shutil.rmtree(damaged, ignore_errors=True) if damaged.is_dir() else damaged.unlink()
