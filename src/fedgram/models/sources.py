"""Where a backbone comes from: the hub, a folder, a Python package, a GGUF file, or a shape that fedgram knows."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fedgram.data.packages import package_path
from fedgram.errors import ConfigurationError
from fedgram.hub import is_hub_name

__all__ = ["Source", "find_source", "folder_of", "is_shape", "known_shapes", "shape_of"]

_SHAPE = "shape:"
_SHAPES = Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class Source:
    """What Transformers loads a configuration, a tokenizer and weights from.

    Attributes:
        place: a folder, or the name of a model on the hub.
        gguf_file: the one file there that holds all three, if they are in one.
    """

    place: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """What `from_pretrained` wants to know besides the place."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def find_source(reference: str) -> Source:
    """Find what a setting refers to.

    Args:
        reference: a hub name, a folder, ``package:NAME/FOLDER``, ``shape:NAME``, or a GGUF file in any of the first
            three, such as ``package:NAME/model.gguf``.

    Raises:
        ConfigurationError: a shape that is not known, or a GGUF file without the packages that read one.
        DataError: a package that is not installed or has no such file.
    """
    if is_shape(reference):
        return Source(str(_shape_folder(reference)))
    place = str(package_path(reference)) if reference.startswith("package:") else reference
    if not place.endswith(".gguf"):
        return Source(place)
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"{reference!r} is a GGUF file, and the package {' and '.join(missing)} is missing that reads one; remedy: "
            "pip install 'fedgram[gguf]'"
        )
    return Source(str(Path(place).parent), Path(place).name)


def folder_of(source: Source) -> Path:
    """Return the folder that a model was loaded from: of one of the hub, that in its cache."""
    from huggingface_hub import try_to_load_from_cache

    if not is_hub_name(source.place):
        return Path(source.place)
    found = try_to_load_from_cache(source.place, source.gguf_file or "config.json")
    return Path(found).parent if isinstance(found, str) else Path(source.place)


def is_shape(reference: str) -> bool:
    """Say whether a reference is to a shape, which has a configuration, but no weights and no tokenizer.

    >>> is_shape("shape:roberta-large"), is_shape("roberta-large")
    (True, False)
    """
    return reference.startswith(_SHAPE)


def shape_of(reference: str) -> str | None:
    """Return the reference to the shape of a model of the hub, if that shape comes with fedgram.

    >>> shape_of("FacebookAI/roberta-large"), shape_of("meta-llama/Llama-3.2-3B"), shape_of("bert-base-uncased")
    ('shape:roberta-large', 'shape:llama-3.2-3b', None)
    """
    name = reference.rpartition("/")[2].lower()
    return _SHAPE + name if name in known_shapes() else None


def known_shapes() -> list[str]:
    """Return the names of the shapes that come with fedgram."""
    return sorted(path.parent.name for path in _SHAPES.glob("*/config.json"))


def _shape_folder(reference: str) -> Path:
    name = reference.removeprefix(_SHAPE)
    if name not in known_shapes():
        known = ", ".join(_SHAPE + shape for shape in known_shapes())
        raise ConfigurationError(f"there is no {reference!r}; known are {known}")
    return _SHAPES / name
