"""The configs, sweeps and SLURM scripts that come with fedgram, by name.

In an installed package they lie beside its modules; in a clone they are the folders ``configs`` and ``scripts/slurm``,
which the wheel is made of.
"""

import difflib
from pathlib import Path

from fedgram.errors import UsageError

__all__ = ["configs", "find_config", "find_sweep", "slurm_scripts", "sweeps"]

_PACKAGE = Path(__file__).parent
_CLONE = _PACKAGE.parents[1]
_SUFFIXES = (".yaml", ".yml")
_SWEEPS = "sweeps/"


def _folder(installed: str, cloned: str) -> Path:
    beside = _PACKAGE / installed
    return beside if beside.is_dir() else _CLONE / cloned


def _by_name() -> dict[str, Path]:
    folder = _folder("configs", "configs")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def configs() -> dict[str, Path]:
    """Return the configs of fit that come with fedgram, by name, such as ``quickstart`` and ``paper/opt_125m_rte``."""
    return {name: path for name, path in _by_name().items() if not name.startswith(_SWEEPS)}


def sweeps() -> dict[str, Path]:
    """Return the sweeps that come with fedgram, by name, such as ``quickstart`` and ``paper_table1``."""
    return {name.removeprefix(_SWEEPS): path for name, path in _by_name().items() if name.startswith(_SWEEPS)}


def slurm_scripts() -> list[Path]:
    """Return the batch scripts that come with fedgram."""
    return sorted(_folder("slurm_scripts", "scripts/slurm").glob("*.sbatch"))


def find_config(text: str) -> str:
    """Return what ``--config`` shall read: a file, the packaged one of that name, or settings written out, as they are.

    Raises:
        UsageError: there is no such file, and no packaged config of that name.
    """
    if any(mark in text for mark in (":", "{", "\n")):  # settings, or a path of Windows
        return text
    return str(_find(Path(text), configs(), "config"))


def find_sweep(path: Path) -> Path:
    """Return the file of a sweep: the one that is named, or the packaged one of that name.

    Raises:
        UsageError: there is neither.
    """
    return _find(path, sweeps(), "sweep")


def _find(path: Path, known: dict[str, Path], kind: str) -> Path:
    try:
        is_there = path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a home of nobody: whoever reads it raises
        return path
    name = path.as_posix()
    if name in known and not path.is_file():
        return known[name]
    if is_there:
        return path
    raise UsageError(f"there is no {kind} {str(path)!r}{_hint(name, known)}")


def _hint(name: str, known: dict[str, Path]) -> str:
    """Return which ones there are: the one that is meant, those of the folder that is named, or all."""
    meant = name.removesuffix(".yaml").removeprefix("configs/").removeprefix(_SWEEPS)
    if meant in known:
        return f"; the one that comes with fedgram is called {meant}"
    close = difflib.get_close_matches(meant, known, n=1, cutoff=0.8)
    start = f"; did you mean {close[0]}? Those" if close else "; those"
    folder = meant.partition("/")[0] if "/" in meant else ""
    inside = [other for other in known if other.startswith(f"{folder}/")] if folder else []
    return f"{start} that come with fedgram are {', '.join(inside or _grouped(known))}"


def _grouped(known: dict[str, Path]) -> list[str]:
    """Return names, those of a folder as one.

    >>> _grouped(dict.fromkeys(["a", "b/c", "b/d", "b/e", "b/f"], Path()))
    ['a', 'b/c ... b/f (4)']
    """
    groups: dict[str, list[str]] = {}
    for name in known:
        groups.setdefault(name.rpartition("/")[0] or name, []).append(name)
    shown = [names if len(names) < 4 else [f"{names[0]} ... {names[-1]} ({len(names)})"] for names in groups.values()]
    return [name for names in shown for name in names]
