"""A comparison as one HTML file, which needs nothing besides: no network, no scripts, no other file.

The page is report.html.jinja. Whatever a run or a user wrote is escaped there; tables and pictures come as markup.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from fedgram.comparison.columns import View
from fedgram.comparison.panels import svg_of
from fedgram.comparison.pictures import Picture, all_pictures, slice_name
from fedgram.comparison.runs import Group, Run
from fedgram.files import atomic_write

__all__ = ["write_report"]

_UNKNOWN = "-"
_MOST_NAMES = 4
"""Methods that a title names; of more it tells the number."""
_DIGEST = 12
"""Letters of a digest that tell it from others."""
_WIDE = 500
"""Points of width from which on a picture is not shrunk to a narrow screen, which scrolls it instead."""


class HtmlTable(Protocol):
    """What can be shown as a table."""

    def html(self) -> str:
        """Return it as HTML, with everything escaped."""


def write_report(
    path: Path,
    groups: Sequence[Group],
    tables: Sequence[HtmlTable],
    view: View,
    warnings: Sequence[str],
) -> None:
    """Write a page with tables, pictures, the settings that differ, and how to repeat each run.

    Args:
        path: the file.
        groups: what is compared, in at least one group.
        tables: the tables, as they are to be shown.
        view: what is asked of the comparison.
        warnings: what to know before believing it, a sentence each.
    """
    from markupsafe import Markup

    names = [", ".join(filter(None, (group.label, slice_name(view.by, group.at)))) for group in groups]
    differences, shared = _settings(groups)
    pictures = all_pictures(groups, view.metric, view.by, view.judgement)
    widest = max((picture.figure.get_figwidth() for picture in pictures), default=1.0)
    runs = [_repetition(name, run) for name, group in zip(names, groups, strict=True) for run in group.runs]
    page = _render(
        title=_title(groups),
        facts=_facts(groups, view),
        warnings=warnings,
        tables=[Markup(table.html()) for table in tables],  # which has escaped its cells
        pictures=[
            {"name": picture.name, "caption": picture.caption, "svg": Markup(_inline_svg(picture, widest))}  # our own
            for picture in pictures
        ],
        names=names,
        differences=differences,
        shared=shared,
        runs=runs,
        telling=[key for key in ("commit", "versions") if len({run[key] for run in runs}) > 1],
        version=version("fedgram"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page.encode())


def _render(**content: Any) -> str:
    """Return the page with some content, of which all is escaped but what is Markup."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(content)


def _title(groups: Sequence[Group]) -> str:
    methods = _distinct(group.method for group in groups)
    who = ", ".join(methods) if len(methods) <= _MOST_NAMES else f"{len(methods)} methods"
    return f"{who} on {', '.join(_distinct(_runs_tell(groups, 'task')))}"


def _facts(groups: Sequence[Group], view: View) -> list[tuple[str, str]]:
    """Return what was compared: names with what the runs say of them, all different answers."""
    keys = {
        "task": "task",
        "backbone": "backbone",
        "clients": "trainer.clients",
        "participation": "trainer.participation",
        "rounds": "rounds",
        "seeds": "seed",
    }
    told = {name: _distinct(_runs_tell(groups, key)) for name, key in keys.items()}
    told["partition"] = _distinct(_partition(run) for group in groups for run in group.runs)
    told["metric"] = _distinct(view.metric or run.metric for group in groups for run in group.runs)
    told["judged"] = [str(view.judgement)]
    told["devices"] = _distinct(d for group in groups for run in group.runs for d in run.summary.get("devices", []))
    told["versions"] = _distinct(_versions(run) for group in groups for run in group.runs)
    told["commit"] = _distinct(_commit(run) for group in groups for run in group.runs)
    return [(name, _joined(values)) for name, values in told.items() if values not in ([], [_UNKNOWN])]


def _joined(texts: Sequence[str]) -> str:
    return ("; " if any(", " in text for text in texts) else ", ").join(texts)


def _runs_tell(groups: Sequence[Group], key: str) -> Iterable[str]:
    return (_text(run.setting(key)) for group in groups for run in group.runs)


def _partition(run: Run) -> str:
    """Return how the data were dealt to clients, such as Dirichlet (rho 0.5, min_samples 1)."""
    settings = {k.rpartition(".")[2]: v for k, v in run.settings.items() if k.startswith("data.partition.")}
    told = ", ".join(f"{key} {_text(value)}" for key, value in settings.items())
    return f"{_text(run.setting('data.partition'))} ({told})" if told else _text(run.setting("data.partition"))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _text(value: Any) -> str:
    """Return a setting as people read it: of a digest the first letters."""
    if value is None:
        return _UNKNOWN
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:_DIGEST] if re.fullmatch("[0-9a-f]{32,}", text) else text


def _settings(groups: Sequence[Group]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the settings that differ between groups, with the text of each group, and those that all share."""
    runs = [run for group in groups for run in group.runs]
    keys = dict.fromkeys(["task", "backbone", "rounds", *(key for run in runs for key in run.settings)])
    keys.pop("method", None)  # which the label names
    told = {key: [_joined(_distinct(_runs_tell([group], key))) for group in groups] for key in keys}
    differences = {key: texts for key, texts in told.items() if len(set(texts)) > 1}
    return differences, {key: texts[0] for key, texts in told.items() if key not in differences}


def _repetition(name: str, run: Run) -> dict[str, str]:
    """Return how to repeat a run: its command, and the code that it ran with."""
    config = run.folder / "config.yaml"
    return {
        "name": name,
        "seed": str(run.seed),
        "command": f"fedgram fit --config {shlex.quote(str(config))}" if config.exists() else _UNKNOWN,
        "versions": _versions(run),
        "commit": _commit(run),
    }


def _versions(run: Run) -> str:
    versions = run.summary.get("versions") or {}
    return ", ".join(f"{package} {number}" for package, number in versions.items()) or _UNKNOWN


def _commit(run: Run) -> str:
    return _text(run.summary.get("git_commit"))


def _inline_svg(picture: Picture, widest: float) -> str:
    """Return a picture for a page that has others, from whose ids its own must differ.

    The widest, of so many inches, is as wide as the page, and the letters of all are of one size.
    """
    svg = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{picture.name}-", svg_of(picture.figure))
    width = picture.figure.get_figwidth()
    kind, share = "wide" if width * 72 > _WIDE else "narrow", f"--share: {100 * width / widest:.0f}%"
    return svg.replace("<svg ", f'<svg class="{kind}" style="{share}" aria-hidden="true" ', 1)
