import json
import re
from html.parser import HTMLParser

import pytest

import fedgram.comparison.report
from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.overview import View
from fedgram.comparison.pictures import all_pictures
from fedgram.comparison.report import write_report
from made_runs import write_run

NASTY = """<img src=x onerror="alert('1')">&amp;-->]]>$x_{$"""


class FakeTable:
    def __init__(self, text):
        self.text = text

    def html(self):
        return f'<table class="fake"><caption>{self.text}</caption><tbody><tr><td>90 %</td></tr></tbody></table>'


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and by the ids of tables their rows of cells."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.texts, self.open = [], {}, [], []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append((tag, attributes))
        if tag == "table":
            self.rows = self.tables.setdefault(attributes.get("id"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "td" in tags or "th" in tags:
            self.rows[-1][-1] += data
        if "style" not in tags:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def report(folder, tables=(), metric=None, by=(), warnings=()):
    groups = group_runs(read_runs([folder]), by)
    write_report(folder / "out" / "report.html", groups, tables, View(metric, by=tuple(by)), warnings)
    return (folder / "out" / "report.html").read_text()


@pytest.fixture
def without_pictures(monkeypatch):
    """Leaves out of a report what takes long to draw."""
    monkeypatch.setattr(fedgram.comparison.report, "all_pictures", lambda *_: [])


@pytest.mark.usefixtures("without_pictures")
def test_it_has_a_title_the_facts_the_tables_and_the_warnings(tmp_path):
    for method in ("FLoRG", "FedIT"):
        for seed in (0, 1):
            write_run(
                tmp_path, method, seed, task="rte", backbone="MiniLM", versions={"torch": "2.13", "python": "3.11"}
            )
    page = Page(report(tmp_path, [FakeTable("one"), FakeTable("two")], warnings=["few seeds", "small test set"]))
    assert "FLoRG, FedIT on rte" in page.text
    for fact in ("task rte", "backbone MiniLM", "clients 20", "seeds 0, 1", "partition Dirichlet (rho 0.5)"):
        assert fact in page.text
    assert "versions torch 2.13, python 3.11" in page.text
    assert [a["class"] for a in page.all("table") if "class" in a] == ["fake", "fake"]
    assert "one 90 % two 90 %" in page.text
    assert "few seeds small test set" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_many_methods_are_counted_in_the_title(tmp_path):
    for method in ("FLoRG", "FedIT", "FeDeRA", "FFALoRA", "FedSALoRA"):
        write_run(tmp_path, method)
    assert "<title>5 methods on task</title>" in report(tmp_path)


def test_it_has_every_picture_with_its_caption(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path, seed=seed, columns={"drift": [None, 0.1, 0.2]})
        (folder / "partition.csv").write_text("client,samples,bad,good\n0,4,3,1\n")
    expected = all_pictures(group_runs(read_runs([tmp_path])))
    text = report(tmp_path)
    page = Page(text)
    assert [a["id"] for a in page.all("figure")] == [picture.name for picture in expected]
    assert len(page.all("svg")) == len(expected) == 6
    for picture in expected:
        assert picture.caption in page.text
    assert "Means over 2 seeds, which are the points." in page.text


def test_it_refers_to_nothing_outside_and_runs_no_script(tmp_path):
    write_run(tmp_path)
    text = report(tmp_path)
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "img",
        "image",
        "base",
    }
    outside = {address for address in re.findall(r"\w+://[^\s\"'<>)]+", text) if "www.w3.org" not in address}
    assert not outside
    assert not re.findall(r"url\((?!#)", text)
    assert "@import" not in text
    assert "default-src 'none'" in next(a["content"] for a in page.all("meta") if "http-equiv" in a)


def test_ids_are_unique_and_what_they_are_asked_for_is_there(tmp_path):
    write_run(tmp_path, columns={"drift": [None, 0.1, 0.2], "aggregation_error": [None, 0.1, 0.2]})
    text = report(tmp_path)
    ids = re.findall(r'\bid="([^"]*)"', text)
    wanted = {*re.findall(r'href="#([^"]*)"', text), *re.findall(r"url\(#([^)]*)\)", text)}
    assert wanted
    assert len(ids) == len(set(ids))
    assert wanted <= set(ids)


def test_whatever_runs_say_is_escaped(tmp_path):
    write_run(
        tmp_path / '<b onclick="x">&',
        NASTY.replace("/", ""),
        task=NASTY,
        backbone=NASTY,
        settings={"method.note": NASTY, NASTY: 1, "method.rank": NASTY},
        git_commit=NASTY,
        versions={NASTY: NASTY},
        devices=[NASTY],
    )
    write_run(tmp_path, "FLoRG")
    (config,) = [*tmp_path.rglob("version_0")][:1]
    (config / "config.yaml").touch()
    text = report(tmp_path, by=["rank"], warnings=[NASTY])
    page = Page(text)
    assert not [a for tag, a in page.elements if "onclick" in a or "onerror" in a or tag in ("img", "b")]
    assert page.text.count(NASTY) > 8
    assert "onclick" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_settings_that_differ_stand_apart_from_those_that_all_share(tmp_path):
    write_run(tmp_path, "FLoRG", 0, settings={"optimizer.lr": 0.1, "method.projection": "none"})
    write_run(tmp_path, "FLoRG", 1, settings={"optimizer.lr": 0.1, "method.projection": "none"})
    write_run(tmp_path, "FedIT", 0, settings={"optimizer.lr": 0.01}, accuracy=(0.5, 0.6))
    page = Page(report(tmp_path))
    assert page.tables["differences"] == [
        ["method", "rounds", "optimizer.lr", "trainer.seed", "method.projection"],
        ["FLoRG", "2", "0.1", "0, 1", "none"],
        ["FedIT", "1", "0.01", "0", "-"],
    ]
    shared = dict(page.tables["shared"][1:])
    assert shared["trainer.clients"] == "20"
    assert shared["model.pretrained"] == "true"
    assert not {"optimizer.lr", "method"} & set(shared)
    assert f"{len(shared)} settings that all share" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_slices_are_named_with_their_settings(tmp_path):
    for rank in (2, 4):
        write_run(tmp_path, settings={"method.rank": rank})
    page = Page(report(tmp_path, by=["method.rank"]))
    assert page.tables["differences"] == [["method", "method.rank"], ["FLoRG, rank 2", "2"], ["FLoRG, rank 4", "4"]]


@pytest.mark.usefixtures("without_pictures")
def test_methods_without_a_difference_are_said_to_have_none(tmp_path):
    write_run(tmp_path, "FLoRG")
    write_run(tmp_path, "FedIT")
    page = Page(report(tmp_path))
    assert "differences" not in page.tables
    assert "The methods had all settings in common" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_every_run_has_the_command_that_repeats_it(tmp_path):
    folder = write_run(tmp_path / "my runs", seed=3)
    (folder / "config.yaml").touch()
    write_run(tmp_path, "FedIT", seed=4)
    page = Page(report(tmp_path))
    assert sorted(page.tables["runs"]) == [
        ["FLoRG", "3", f"fedgram fit --config '{folder}/config.yaml'"],
        ["FedIT", "4", "-"],
        ["method", "seed", "command"],
    ]


@pytest.mark.usefixtures("without_pictures")
def test_commits_and_versions_stand_beside_each_run_where_they_differ(tmp_path):
    write_run(tmp_path, seed=0, git_commit="0123456789" * 4, versions={"torch": "2.6"})
    write_run(tmp_path, seed=1, git_commit=None, versions={"torch": "2.13"})
    page = Page(report(tmp_path))
    assert page.tables["runs"] == [
        ["method", "seed", "command", "commit", "versions"],
        ["FLoRG", "0", "-", "012345678901", "torch 2.6"],
        ["FLoRG", "1", "-", "-", "torch 2.13"],
    ]
    assert "versions torch 2.6, torch 2.13" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_runs_of_older_versions_are_reported_too(tmp_path):
    folder = write_run(tmp_path, flops=False)
    summary = json.loads((folder / "summary.json").read_text())
    kept = {key: summary[key] for key in ("method", "task", "seed", "rounds", "final", "bytes_up", "bytes_down")}
    (folder / "summary.json").write_text(json.dumps(kept))
    page = Page(report(tmp_path))
    assert "FLoRG on task" in page.text
    assert "partition" not in page.text


@pytest.mark.slow
def test_equal_comparisons_are_equal_files(tmp_path):
    write_run(tmp_path, columns={"drift": [None, 0.1, 0.2]})
    assert report(tmp_path) == report(tmp_path)


@pytest.mark.parametrize("metric", [None, "loss"])
def test_the_metric_is_the_one_that_was_asked_for(tmp_path, metric):
    write_run(tmp_path)
    text = Page(report(tmp_path, metric=metric)).text
    assert f"metric {metric or 'accuracy'}" in text
    assert ("loss on task" in text) == (metric == "loss")
