"""Names of classes stand in pictures as they were written, whatever characters they have."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.pictures import all_pictures
from fedgram.data.partition_picture import draw, draw_file, write_table
from fedgram.lettering import LONGEST, add_legend, lettered
from made_runs import write_run

NAMES = {
    "$": "$",
    "$a$ or $b_2$": "$a$ or $b_2$",
    r"\frac{1": r"\frac{1",
    "_hidden": "_hidden",
    "__": "__",
    "100 %": "100 %",
    "{x}^2": "{x}^2",
    "two\nlines\tand tab": "two\\nlines\\tand tab",
    "bell\x07": "bell\\x07",
    "naïve Ωμέγα да": "naïve Ωμέγα да",
    "电影": "\\u7535\\u5f71",  # the font that comes with matplotlib has no Chinese
    "🎬": "\\U0001f3ac",
    "": "",
}


def drawn(figure):
    """The pixels of a figure; a warning, as of a character that is missing, is an error."""
    file = io.BytesIO()
    figure.savefig(file, format="raw", dpi=50)
    return file.getvalue()


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("many", [False, True], ids=["bars", "shares"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_written(name, many):
    table = np.array([[3, 1, 2], [4, 2, 2]])[np.arange(60 if many else 2) % 2]
    figure = draw(table, [name, "other", "third"])
    axes = figure.axes[0]
    texts = axes.get_xticklabels() if many else axes.get_legend().get_texts()
    assert texts[0].get_text() == NAMES[name]
    assert drawn(figure) != drawn(draw(table, ["x", "other", "third"]))


@pytest.mark.parametrize("one", ["_m", "$m$", "电m"])
def test_names_that_differ_give_other_pictures(one):
    table = np.array([[3, 1], [4, 2]])
    assert drawn(draw(table, [one, "x"])) != drawn(draw(table, [one.replace("m", "n"), "x"]))


def test_settings_of_ones_own_for_formulas_change_nothing():
    table = np.array([[3, 1], [4, 2]])
    plain = drawn(draw(table, ["$5_0", "50 %"]))
    with matplotlib.rc_context({"text.parse_math": True}):
        assert drawn(draw(table, ["$5_0", "50 %"])) == plain


def test_of_a_long_name_the_middle_is_left_out():
    name = "a" * 500 + "z"
    shown = lettered(name, LONGEST)
    assert len(shown) <= LONGEST
    assert shown.startswith("aaa")
    assert shown.endswith("...aaaaaaaaaaaaaaaaaaaaaaaaaaaz")
    assert lettered(name) == name
    assert lettered("b" * LONGEST, LONGEST) == "b" * LONGEST


def test_a_font_of_ones_own_is_asked_for_its_letters():
    with matplotlib.rc_context({"font.family": ["cmr10", "DejaVu Sans"]}):
        assert lettered("да") == "да"
    with matplotlib.rc_context({"font.family": ["cmr10"]}):
        assert lettered("да") == "\\u0434\\u0430"


def test_a_legend_names_its_handles_in_order():
    figure = Figure()
    lines = figure.subplots().plot(np.eye(3))
    legend = add_legend(figure, lines, ["_b", "$a", "c"], title="what")
    assert [text.get_text() for text in legend.get_texts()] == ["_b", "$a", "c"]
    assert legend.get_title().get_text() == "what"


def test_tables_with_such_names_are_drawn_again(tmp_path):
    table = np.arange(26).reshape(2, 13)[:, :8]
    names = list(NAMES)[:8]
    write_table(tmp_path / "t.csv", table, names)
    assert drawn(draw_file(tmp_path / "t.csv")) == drawn(draw(table, names))


def test_comparisons_show_such_names(tmp_path):
    for seed, task in enumerate(["$cheap$", "_电影"]):
        for method in ("_Mine", "FedIT"):
            write_run(tmp_path / str(seed), method, task=task, settings={"model.backbone": "my_$model$"})
    groups = group_runs(read_runs([tmp_path]), ["task"])
    pictures = {picture.name: picture.figure for picture in all_pictures(groups, by=["task"])}
    for figure in pictures.values():
        drawn(figure)
    (legend,) = pictures["curves"].legends
    assert "_Mine" in [text.get_text() for text in legend.get_texts()]
    titles = {axes.get_title(loc="left") for axes in pictures["curves"].axes}
    assert any("$cheap$" in title for title in titles)
    assert any("_\\u7535\\u5f71" in title for title in titles)
