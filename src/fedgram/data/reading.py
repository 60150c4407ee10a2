"""Raw texts and labels, read from files or from a hub."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgram.errors import ConfigurationError, DataError
from fedgram.hub import remedy

__all__ = [
    "SPLITS",
    "RawSplit",
    "check_columns",
    "check_texts",
    "is_local",
    "may_be_unlabelled",
    "raw_split",
    "read_file",
    "read_hub",
    "read_source",
]

SPLITS: Mapping[str, Sequence[str]] = {"train": ("train",), "validation": ("validation",), "test": ("test",)}
"""The splits that are read, and what a source may call each of them."""
_READERS = {
    ".csv": "from_csv",
    ".tsv": "from_csv",
    ".json": "from_json",
    ".jsonl": "from_json",
    ".parquet": "from_parquet",
}
SUFFIXES = tuple(_READERS)


@dataclass(frozen=True)
class RawSplit:
    """The samples of one split as a source gives them.

    Args:
        texts: one or two lists of sentences, each ``(samples,)``.
        labels: ``(samples,)``, None where missing; None as a whole if the source has no labels.
        label_names: the names of labels 0, 1, ..., if the source knows them.
    """

    texts: tuple[list[str], ...]
    labels: list[Any] | None
    label_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts[0])


def is_local(path: str) -> bool:
    """Say whether a path leads to a file or folder, as far as one can tell, and not to a data set of the hub."""
    place = Path(path).expanduser()
    return place.exists() or place.suffix in _READERS or path.startswith((".", "/", "~"))


def may_be_unlabelled(split: str) -> bool:
    """Say whether a split is a test split, or a further part of one such as ``test_mismatched``."""
    return split.partition("_")[0] == "test"


def read_source(
    path: str,
    config_name: str | None,
    text: Sequence[str],
    cache: Path,
    splits: Mapping[str, Sequence[str]] = SPLITS,
) -> dict[str, Any]:
    """Read the splits, as far as there are such, from wherever a path leads.

    Args:
        path: a file (the train split), a folder with files such as ``train.csv`` and ``validation.csv``, or the name
            of a data set on the hub.
        config_name: the configuration of the hub's data set.
        text: columns that hold text.
        cache: where the readers may keep what they read.
        splits: what the source may call each split.

    Returns:
        a ``datasets.Dataset`` for each split.

    Raises:
        ConfigurationError: if a file or folder is given with ``config_name``.
        DataError: if there is no such source, or it cannot be read.
    """
    place, local = Path(path).expanduser(), is_local(path)
    if local and config_name is not None:
        raise ConfigurationError(
            f"config_name {config_name!r} is for a data set of the hub, but {path} is local; drop it"
        )
    if place.is_dir():
        return {name: read_file(file, text, cache) for name, file in _files_of(place, splits).items()}
    return {"train": read_file(place, text, cache)} if local else read_hub(path, config_name, splits)


def _files_of(folder: Path, splits: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find the file of each split in a folder."""
    found = {
        name: [file for stem in stems for suffix in _READERS if (file := folder / (stem + suffix)).is_file()]
        for name, stems in splits.items()
    }
    for name, files in found.items():
        if len(files) > 1:
            raise DataError(
                f"{folder} has several files for the {name} split: {', '.join(f.name for f in files)}; keep one"
            )
    if not found["train"]:
        raise DataError(f"{folder} has no file for the train split; expected train with one of {', '.join(_READERS)}")
    return {name: files[0] for name, files in found.items() if files}


def read_file(path: Path, text: Sequence[str], cache: Path) -> Any:
    """Read a .csv, .tsv, .json, .jsonl or .parquet file as a ``datasets.Dataset``.

    In CSV and TSV files (with a header, and ``"`` around fields that hold a separator) texts are taken literally, so
    that ``NA`` and ``007`` stay what they are, and only empty fields are missing.

    Args:
        path: the file.
        text: columns that hold text.
        cache: the folder below which ``datasets`` keeps its copy.

    Raises:
        DataError: if the file is absent, malformed, or of another kind.
    """
    if not path.is_file():
        raise DataError(f"there is no data file {path}; correct the path, or give a data set of the hub")
    if path.suffix not in _READERS:
        raise DataError(f"cannot read {path}: expected a file that ends in one of {', '.join(_READERS)}; convert it")
    from datasets import Dataset

    if not path.stat().st_size:
        raise DataError(f"{path} is empty; {_remedy(path)}")
    try:
        with warnings.catch_warnings(), _without_progress_bars():
            # pandas only warns of rows that are longer than the header, and cuts them.
            warnings.filterwarnings("error", message="Length of header or names")
            # Not load_dataset: it calls the hub to count its uses, which takes seconds where there is no network.
            read = getattr(Dataset, _READERS[path.suffix])
            return read(str(path), cache_dir=str(_kept(path, cache)), **_options(path.suffix, text))
    except Exception as error:
        raise DataError(f"cannot read {path}: {_reason(error)}; {_remedy(path)}") from error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep a bar per file, gone in a moment, off the terminal."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _options(suffix: str, text: Sequence[str]) -> dict[str, Any]:
    if suffix == ".parquet":
        return {"batch_size": 1000}  # the default is the number of rows, which fails on a file without any
    if suffix in (".json", ".jsonl"):
        return {}
    literal = {"converters": dict.fromkeys(text, str), "keep_default_na": False, "na_values": [""]}
    return literal | {"sep": "\t" if suffix == ".tsv" else ",", "index_col": False}


def _kept(path: Path, cache: Path) -> Path:
    """Return a place named by content: by itself, datasets trusts time stamps, which an altered file may share."""
    with path.open("rb") as file:
        return cache / "files" / hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(path: Path) -> str:
    return f"expected a well-formed {path.suffix} file with at least one sample: correct it, or leave the split out"


def read_hub(name: str, config_name: str | None = None, splits: Mapping[str, Sequence[str]] = SPLITS) -> dict[str, Any]:
    """Read the splits, as far as there are such, of a data set of the hub.

    Raises:
        DataError: if the data set, its configuration or the network is missing.
    """
    from datasets import config, load_dataset

    wanted = f"{name!r}" + (f" ({config_name})" if config_name else "")
    from_cache = remedy(config.HF_DATASETS_CACHE)
    try:
        with _quiet() if from_cache else nullcontext():
            found = load_dataset(name, config_name)
    except Exception as error:
        needed = from_cache or "see to its name, config_name and the network"
        raise DataError(
            f"cannot load the data set {wanted} from the hub: {_reason(error)}; {needed},"
            " or give a local file or folder"
        ) from error
    if "train" not in found:
        raise DataError(f"the data set {wanted} has no train split, only {', '.join(found)}; save it as local files")
    present = {split: [name for name in names if name in found] for split, names in splits.items()}
    return {split: found[names[0]] for split, names in present.items() if names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal that the cache is used where nothing else can be."""
    from datasets import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong at the bottom."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    message = (str(root).strip() or type(root).__name__).splitlines()[0].rstrip(".")
    return "it has no samples" if "corresponds to no data" in message else message


def raw_split(dataset: Any, text: Sequence[str], label: str, split: str) -> RawSplit:
    """Take the columns of texts and labels out of a ``datasets.Dataset``.

    Args:
        dataset: the data set.
        text: the names of one or two columns.
        label: the name of the column of labels; only a test split may be without it.
        split: the name of the split, for messages.

    Raises:
        DataError: if a column or a text is missing, or the split is empty.
    """
    labelled = label in dataset.column_names
    needed = [*text] if may_be_unlabelled(split) else [*text, label]
    check_columns(dataset, needed, split, "rename them, or set text and label to columns among them")
    names = getattr(dataset.features[label], "names", None) if labelled else None
    texts = tuple(check_texts(dataset[column][:], column, split) for column in text)
    return RawSplit(texts, list(dataset[label][:]) if labelled else None, None if names is None else tuple(names))


def check_columns(dataset: Any, needed: Sequence[str], split: str, remedy: str) -> None:
    """Refuse a split without samples, or without columns that it must have.

    Args:
        dataset: the split, a ``datasets.Dataset``.
        needed: the names of the columns.
        split: its name, for messages.
        remedy: what to do where columns are missing.

    Raises:
        DataError: if there is no sample, or no such column.
    """
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"the {split} split has no column {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, dataset.column_names))}: {remedy}"
        )
    if not len(dataset):
        raise DataError(f"the {split} split is empty; give it samples, or leave it out")


def check_texts(values: list[Any], column: str, split: str) -> list[str]:
    """Return the values of a column, of which each must be a string.

    Raises:
        DataError: if one is not; with its row.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str):
            came = "is missing" if value is None else f"is {value!r}, not a string"
            raise DataError(
                f"{split} split, row {row} (counted from 0): {column!r} {came}; fill it in or remove the row"
            )
    return list(values)
