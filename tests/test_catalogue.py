"""``fedgram methods``: the list of all methods."""

import inspect
import re
import statistics
from pathlib import Path

import pytest

from fedgram.cli.methods import entries
from fedgram.cost import every_method
from fedgram.methods import FedIT, FLoRG, FRLoRA
from fedgram.methods.known import known_methods
from fedgram.sweep import read_sweep


def test_every_method_says_what_the_list_tells():
    for kind in known_methods():
        assert re.fullmatch(r"\d{4}\.\d{5}", kind.paper.arxiv) or kind is FRLoRA, kind  # which is at OpenReview alone
        assert 2020 < kind.paper.year <= 2026
        assert kind.paper.authors
        assert kind.paper.venue
        assert 3 < len(kind.travels) < 80, kind
        assert (kind.__doc__ or "").count(kind.paper.arxiv), kind


def test_kinds_are_called_what_their_runs_are_called():
    made = every_method(FedIT(rank=2))
    assert [entry.name for entry in entries()] == list(made)
    for name, method in made.items():
        assert name in (method.name, "FLoRG-eigh"), name  # whose numbers are those of the other solver


def test_the_list_begins_with_the_main_method():
    assert known_methods()[0] is FLoRG


def test_it_prints_every_method_at_once(fedgram, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, err = fedgram("methods")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for entry in entries():
        (row,) = [line for line in lines if line.startswith(f"{entry.name} ")]
        assert entry.paper in row
        assert entry.arxiv in row
    assert "down" not in lines[0]


def test_for_a_backbone_it_tells_what_one_client_sends(fedgram, config):
    code, out, _ = fedgram("methods", "--config", config, "--method.rank", 1)
    assert code == 0
    assert re.search(r"^FLoRG .* yes +64 +64$", out, re.MULTILINE)  # A of 1 x 16 in four layers
    assert re.search(r"^FedIT .* yes +128 +128$", out, re.MULTILINE)
    assert re.search(rf"^FedExLoRA .* 128 +{128 + 4 * 16 * 16:,}$", out, re.MULTILINE)


@pytest.mark.slow
def test_markdown(fedgram, config):
    code, out, _ = fedgram("methods", "--markdown", "--config", config, "--method.rank", 1)
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ["| method | paper | arXiv | travels | exact | ranks | up | down |",
                         "|---|---|---|---|---|---|---:|---:|"]  # fmt: skip
    assert "| FLoRG | Meng et al., 2026 | 2602.17095 | A both ways | - | yes | 64 | 64 |" in lines


def test_what_is_wrong_is_one_line(fedgram, config):
    code, _, err = fedgram("methods", "--config", config, "--method.rank", 99)
    assert (code, err.count("\n")) == (1, 1)
    assert "rank must be at most" in err
    code, _, err = fedgram("methods", "--nonsense", "1")
    assert (code, err.count("\n")) == (2, 1)


DOCUMENT = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
TABLE = {
    cells[1]: cells for line in DOCUMENT.splitlines() if len(cells := [cell.strip() for cell in line.split("|")]) == 8
}


@pytest.mark.parametrize("kind", known_methods(), ids=lambda kind: kind.__name__)
def test_every_method_has_a_row_and_a_paragraph_that_say_what_it_says(kind):
    assert kind.__name__ in TABLE, f"{kind.__name__} needs a row in the table of docs/methods.md"
    _, _, paper, _, exact, ranks, about, _ = TABLE[kind.__name__]
    assert kind.paper.arxiv in paper
    assert str(kind.paper.year) in paper or kind.paper.venue.split()[0] in paper
    assert (exact == "yes") == kind.exact
    assert (ranks != "-") == kind.heterogeneous
    assert len(about) > 10
    wanted = f"**{kind.__name__}**"
    assert f"\n{wanted}" in DOCUMENT, f"docs/methods.md needs a paragraph that begins with {wanted}"


def test_every_method_stands_in_the_sweep_of_all():
    sweep = read_sweep(Path(__file__).parents[1] / "configs/sweeps/methods.yaml")
    classes = {str(point.overrides.get("method", "FLoRG")).rpartition(".")[2] for point in sweep.points}
    missing = {kind.__name__ for kind in known_methods()} ^ classes
    assert not missing, f"the axis method of configs/sweeps/methods.yaml must have each method, and no other: {missing}"


def test_a_method_is_a_short_file():
    files = {Path(inspect.getfile(kind)) for kind in known_methods()}
    lengths = [len(path.read_text().splitlines()) for path in files]
    assert statistics.median(lengths) < 120
