"""Raw texts and labels, read from files or from a hub."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgram.data.columns import Columns, Place, check_columns, check_texts, may_be_unlabelled, notice
from fedgram.data.delimited import read_delimited
from fedgram.data.files import cannot_read, read_json, read_parquet, readable
from fedgram.errors import ConfigurationError, DataError
from fedgram.files import expand_home
from fedgram.hub import remedy

__all__ = [
    "SPLITS",
    "SUFFIXES",
    "RawSplit",
    "check_columns",
    "check_texts",
    "is_local",
    "raw_split",
    "read_file",
    "read_hub",
    "read_source",
]

log = logging.getLogger(__name__)

SPLITS: Mapping[str, Sequence[str]] = {
    "train": ("train",),
    "validation": ("validation", "dev", "val", "valid"),
    "test": ("test",),
}
"""The splits that are read, and what a source may call each of them."""
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
"""Of the files that are read."""


@dataclass(frozen=True)
class RawSplit:
    """The samples of one split as a source gives them.

    Args:
        texts: one or two lists of sentences, each ``(samples,)``.
        labels: ``(samples,)``, None where missing; None as a whole if the source has no labels.
        label_names: the names of labels 0, 1, ..., if the source knows them; labels may be such numbers, or the names.
        typed: whether the source tells numbers from text; of a CSV or TSV file all labels are text.
        place: where the samples come from, for messages.
        source: all columns that the source has.
    """

    texts: tuple[list[str], ...]
    labels: list[Any] | None
    label_names: tuple[str, ...] | None = None
    typed: bool = True
    place: Place | None = field(default=None, compare=False)
    source: Columns | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.texts[0])


def is_local(path: str) -> bool:
    """Say whether a path leads to a file or folder, as far as one can tell, and not to a data set of the hub."""
    place = expand_home(path)
    return place.exists() or place.suffix.lower() in SUFFIXES or path.startswith((".", "/", "~"))


def read_source(
    path: str,
    config_name: str | None,
    text: Sequence[str],
    splits: Mapping[str, Sequence[str]] = SPLITS,
) -> dict[str, Columns]:
    """Read the splits, as far as there are such, from wherever a path leads.

    Args:
        path: a file (the train split), a folder with files such as ``train.csv`` and ``validation.csv``, or the name
            of a data set on the hub.
        config_name: the configuration of the hub's data set.
        text: columns that hold text.
        splits: what the source may call each split.

    Raises:
        ConfigurationError: if a file or folder is given with ``config_name``.
        DataError: if there is no such source, or it cannot be read.
    """
    place, local = expand_home(path), is_local(path)
    if local and config_name is not None:
        raise ConfigurationError(
            f"config_name {config_name!r} is for a data set of the hub, but {path} is local; drop it"
        )
    if place.is_dir():
        return {name: read_file(file, text) for name, file in _files_of(place, splits).items()}
    return {"train": read_file(place, text)} if local else read_hub(path, config_name, splits)


def _files_of(folder: Path, splits: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find the file of each split in a folder."""
    with readable(folder):
        found = {
            name: [file for stem in stems for suffix in SUFFIXES if (file := folder / (stem + suffix)).is_file()]
            for name, stems in splits.items()
        }
    for name, files in found.items():
        if len(files) > 1:
            raise DataError(
                f"{folder} has several files for the {name} split: {', '.join(f.name for f in files)}; keep one"
            )
    if not found["train"]:
        raise DataError(f"{folder} has no file for the train split; expected train with one of {', '.join(SUFFIXES)}")
    chosen = {name: files[0] for name, files in found.items() if files}
    _mention_others(folder, chosen)
    return chosen


def _mention_others(folder: Path, files: Mapping[str, Path]) -> None:
    """Log which files of a folder look like data, and are not read."""
    read = set(files.values())
    others = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file not in read)
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        splits = ", ".join(f"{file.name} as {name}" for name, file in files.items())
        notice(
            f"{folder}: read are {splits}; not read: {shown}",
            logging.INFO if "validation" in files else logging.WARNING,
        )


def read_file(path: Path, text: Sequence[str]) -> Columns:
    """Read a .csv, .tsv, .json, .jsonl or .parquet file; the path is taken literally.

    Args:
        path: the file.
        text: columns that hold text.

    Raises:
        DataError: if the file is absent, malformed, or of another kind.
    """
    with readable(path):
        return _read_file(path, text)


def _read_file(path: Path, text: Sequence[str]) -> Columns:
    if not path.is_file():
        raise DataError(f"there is no data file {path}; correct the path, or give a data set of the hub")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"cannot read {path}: expected a file that ends in one of {', '.join(SUFFIXES)}; convert it")
    if not path.stat().st_size:
        raise cannot_read(path, "it is empty")
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_delimited(path, text)
    return read_parquet(path) if path.suffix.lower() == ".parquet" else read_json(path)


def read_hub(
    name: str, config_name: str | None = None, splits: Mapping[str, Sequence[str]] = SPLITS
) -> dict[str, Columns]:
    """Read the splits, as far as there are such, of a data set of the hub.

    What the cache of the library has of it is made anew where it is damaged.

    Raises:
        DataError: if the data set, its configuration or the network is missing, or the cache is damaged and can't be
            made anew.
    """
    from datasets import config
    from pyarrow import ArrowException

    wanted = f"{name!r}" + (f" ({config_name})" if config_name else "")
    from_cache = remedy(config.HF_DATASETS_CACHE)
    try:
        with _quiet() if from_cache else nullcontext(), _unlocked_if_read_only(Path(config.HF_DATASETS_CACHE)):
            try:
                found = _load_hub(name, config_name)
            except (ArrowException, OSError) as error:
                if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                    raise  # the system's or the network's, and not pyarrow's
                found = _load_anew(name, config_name, wanted, error)
    except DataError:
        raise
    except Exception as error:
        needed = from_cache or "see to its name, config_name and the network"
        raise DataError(
            f"cannot load the data set {wanted} from the hub: {_reason(error)}; {needed},"
            " or give a local file or folder"
        ) from error
    if "train" not in found:
        raise DataError(f"the data set {wanted} has no train split, only {', '.join(found)}; save it as local files")
    present = {split: [name for name in names if name in found] for split, names in splits.items()}
    return {split: _of_hub(found[names[0]]) for split, names in present.items() if names}


def _load_hub(name: str, config_name: str | None, **options: Any) -> Mapping[str, Any]:
    """Load a data set from the hub or its cache, and look through the numbers and texts of its splits once.

    Raises:
        ArrowException: a file of the cache is damaged.
        OSError: likewise; or the file can't be read, and the error has a number.
    """
    from datasets import load_dataset

    found = dict(load_dataset(name, config_name, **options))
    for dataset in found.values():
        dataset.data.table.validate(full=True)
    return found


def _load_anew(name: str, config_name: str | None, wanted: str, damage: Exception) -> Mapping[str, Any]:
    """Load a data set whose files in the cache are damaged once more from what was downloaded, or from the hub.

    Raises:
        DataError: it can't be loaded; the message names the folder of the cache.
    """
    from datasets import config

    try:
        found = _load_hub(name, config_name, download_mode="reuse_cache_if_exists")
    except Exception as error:
        folder = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
        raise DataError(
            f"the data set {wanted} is damaged in the cache of the datasets library ({_reason(damage)}), and can't be "
            f"loaded anew ({_reason(error)}); delete {folder} and start again where there is a network"
        ) from error
    log.warning(
        "the data set %s was damaged in the cache of the datasets library (%s): loaded anew", wanted, _reason(damage)
    )
    return found


def _of_hub(dataset: Any) -> Columns:
    """Return the columns of a ``datasets.Dataset``."""
    names = {name: getattr(feature, "names", None) for name, feature in dataset.features.items()}
    classes = {name: tuple(known) for name, known in names.items() if known is not None}
    return Columns(dataset.column_names, len(dataset), lambda name: list(dataset[name][:]), class_names=classes)


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


@contextmanager
def _unlocked_if_read_only(cache: Path) -> Iterator[None]:
    """Have a complete cache be read that nobody here may write to: `datasets` would lock it, with a file in it."""
    from datasets import builder

    if not cache.is_dir() or os.access(cache, os.W_OK):
        yield
        return
    lock = builder.FileLock
    builder.FileLock = lambda _: nullcontext()  # there is nothing to guard against: no process can write
    try:
        yield
    finally:
        builder.FileLock = lock


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong at the bottom."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    return (str(root).strip() or type(root).__name__).splitlines()[0].rstrip(".")


def raw_split(columns: Columns, text: Sequence[str], label: str, split: str) -> RawSplit:
    """Take the columns of texts and labels out of a source.

    Args:
        columns: the source.
        text: the names of one or two columns.
        label: the name of the column of labels; only a test split may be without it.
        split: the name of the split, for messages.

    Raises:
        DataError: if a column or a text is missing, or the split is empty.
    """
    needed = [*text] if may_be_unlabelled(split) else [*text, label]
    check_columns(columns, needed, split, "rename them, or set text and label to columns among them")
    place = columns.place(split)
    return RawSplit(
        tuple(check_texts(columns[column], column, place) for column in text),
        columns[label] if label in columns.column_names else None,
        columns.class_names.get(label),
        columns.typed,
        place,
        columns,
    )
