"""Constraints for pip that hold every dependency at its lower bound in pyproject.toml.

    python scripts/oldest_versions.py > oldest.txt
    pip install -c oldest.txt -e '.[test]'

What has no lower bound, and what is needed by dependencies alone, is left to pip.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lower_bounds(project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names, without extras, and lower bounds of what a project and its extras need."""
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        specifier = requirement.partition(";")[0]
        name = re.match(r"[\w.-]+", specifier)
        bound = re.search(r">=\s*([\w.]+)", specifier)
        if name and bound:
            yield name[0], bound[1]


def main() -> None:
    """Print a line for each dependency that has a lower bound."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(set(lower_bounds(project))))


if __name__ == "__main__":
    main()
