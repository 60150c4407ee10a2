import csv
from itertools import combinations
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.colours import style_of
from fedgram.comparison.panels import save_picture, svg_of
from fedgram.comparison.pictures import (
    all_pictures,
    draw_communication,
    draw_curves,
    draw_diagnostics,
    draw_partition,
    draw_setting,
    draw_training_loss,
    write_pictures,
)
from fedgram.errors import DataError
from made_runs import write_run

MAIN = ("FLoRG", "FedIT", "FeDeRA", "FFALoRA", "FedSALoRA", "FedExLoRA")
VARIANTS = tuple(
    f"FLoRG-{name}" for name in ("none", "average", "top_r", "top_r_aligned", "kaiming", "svd", "identity")
)


@pytest.fixture
def groups(tmp_path):
    """Reads what was written below the test's folder."""
    return lambda *by: group_runs(read_runs([tmp_path]), by)


def line(axes, label):
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def labels(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def legend_title(figure):
    return figure.legends[0].get_title().get_text()


def bands(axes):
    """The lower and the upper edge of each band, by its place on the horizontal axis."""
    edges = []
    for band in axes.collections:
        points = {}
        for x, y in band.get_paths()[0].vertices:
            points.setdefault(round(float(x), 9), []).append(y)
        edges.append({x: (min(ys), max(ys)) for x, ys in points.items()})
    return edges


def seeds_drawn(axes):
    """The points of seeds, as pairs, of all lines together."""
    return [
        tuple(np.round(point, 9).tolist())
        for line in axes.get_lines()
        if line.get_marker() == "." and line.get_linestyle() == "None"
        for point in line.get_xydata()
    ]


def assert_nothing_is_cut_off(figure):
    """What belongs to axes and legends is on the page, and they do not cover one another."""
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    page = figure.bbox.padded(1)
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in boxes:
        assert page.x0 < box.x0 < box.x1 < page.x1
        assert page.y0 < box.y0 < box.y1 < page.y1
    for one, other in combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other)


def test_a_line_is_the_mean_over_seeds_by_round_and_by_what_was_sent(tmp_path, groups):
    for seed, last in enumerate((0.6, 0.8)):
        write_run(tmp_path, seed=seed, accuracy=(0.5, None, last), parameters={"up": 250_000, "down": 500_000})
    by_round, by_megabytes = draw_curves(groups()).axes
    assert line(by_round, "FLoRG").get_xydata().tolist() == [[0, 50], [2, pytest.approx(70)]]
    assert line(by_megabytes, "FLoRG").get_xydata().tolist() == [[0, 50], [6, pytest.approx(70)]]
    assert by_round.get_xlabel() == "round"
    assert by_round.get_ylabel() == "accuracy (%) on task"
    assert by_megabytes.get_xlabel() == "MB sent up and down, all clients"


def test_a_band_is_the_interval_by_students_t_and_the_legend_says_so(tmp_path, groups):
    for seed, last in enumerate((0.6, 0.7, 0.8)):
        write_run(tmp_path, seed=seed, accuracy=(0.5, last))
    figure = draw_curves(groups())
    for axes, end in zip(figure.axes, (1, 0.012), strict=True):
        (band,) = bands(axes)
        half = 4.302652729911275 * 10 / np.sqrt(3)  # Student's t of 2 degrees of freedom at 0.975
        x = max(band)
        assert band[x] == pytest.approx((70 - half, 70 + half))
        assert x == pytest.approx(end if axes is figure.axes[0] else 12)
    assert legend_title(figure) == "mean of 3 seeds (points), 95 % interval (t)"


def test_limits_hold_every_seed_whatever_the_interval_is(tmp_path, groups):
    for seed, last in enumerate((0.6, 0.8)):
        write_run(tmp_path, seed=seed, accuracy=(0.5, last))
    low, high = draw_curves(groups()).axes[0].get_ylim()
    assert 45 < low < 50
    assert 80 < high < 85


def test_one_seed_is_a_line_without_a_band(tmp_path, groups):
    write_run(tmp_path)
    figure = draw_curves(groups())
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1]
    assert [bands(axes) for axes in figure.axes] == [[], []]
    assert legend_title(figure) == "one seed"


def test_groups_of_several_sizes_are_told(tmp_path, groups):
    for method, seeds in (("FLoRG", 3), ("FedIT", 1)):
        for seed in range(seeds):
            write_run(tmp_path, method, seed, accuracy=(0.5, 0.6 + seed / 10))
    figure = draw_curves(groups())
    assert legend_title(figure) == "mean of 1 to 3 seeds (points), 95 % interval (t)"
    assert len(bands(figure.axes[0])) == 1


@pytest.mark.parametrize(("rounds", "most"), [(1, 2), (10, 11), (11, 12), (100, 12), (1000, 12)])
def test_few_evaluated_rounds_all_have_markers_and_many_do_not_run_into_one_another(tmp_path, groups, rounds, most):
    write_run(tmp_path, accuracy=[0.5] * (rounds + 1))
    drawn = line(draw_curves(groups()).axes[0], "FLoRG")
    marked = drawn.get_xdata()[:: drawn.get_markevery()]
    assert drawn.get_marker() == "o"
    assert most / 2 < len(marked) <= most


def test_rounds_that_only_some_seeds_evaluated_are_left_out(tmp_path, groups):
    write_run(tmp_path, seed=0, accuracy=(0.5, 0.6, 0.7, 0.8))
    write_run(tmp_path, seed=1, accuracy=(0.5, None, 0.9, 0.8))
    assert line(draw_curves(groups()).axes[0], "FLoRG").get_xydata().tolist() == [[0, 50], [2, 80], [3, 80]]


def test_one_evaluated_round_is_a_point_on_axes_that_start_with_training(tmp_path, groups):
    write_run(tmp_path, accuracy=(None, None, 0.7), parameters={"up": 250_000, "down": 500_000})
    by_round, by_megabytes = draw_curves(groups()).axes
    assert by_round.get_xlim() == pytest.approx((-0.08, 2.08))
    assert by_megabytes.get_xlim() == pytest.approx((-0.24, 6.24))
    assert by_round.get_ylim() == pytest.approx((68.6, 71.4))
    assert all(number == round(number) for number in by_round.get_xticks())


def test_losses_and_correlations_are_no_shares(tmp_path, groups):
    write_run(tmp_path, accuracy=(0.25, 0.75))
    axes = draw_curves(groups(), "loss").axes[0]
    assert axes.get_ylabel() == "loss on task"
    assert line(axes, "FLoRG").get_ydata().tolist() == [0.75, 0.25]


def test_a_metric_that_no_run_has_is_an_error_that_names_those_there_are(tmp_path, groups):
    write_run(tmp_path)
    with pytest.raises(DataError, match=r"no run has f1 to draw by round or megabytes; metrics here: accuracy, loss"):
        draw_curves(groups(), "f1")


def test_a_group_without_the_metric_is_left_out(tmp_path, groups):
    write_run(tmp_path, "FLoRG")
    write_run(tmp_path, "FedIT", accuracy=(None, None))
    figure = draw_curves(groups(), "accuracy")
    assert labels(figure) == ["FLoRG"]


def test_costs_that_differ_much_are_on_a_log_scale_without_the_start(tmp_path, groups):
    write_run(tmp_path, "FLoRG", parameters={"up": 1000, "down": 1000})
    write_run(tmp_path, "FedExLoRA", parameters={"up": 1000, "down": 100_000})
    by_round, by_megabytes = draw_curves(groups()).axes
    assert by_round.get_xscale() == "linear"
    assert by_megabytes.get_xscale() == "log"
    assert line(by_round, "FLoRG").get_xdata().tolist() == [0, 1, 2]
    assert line(by_megabytes, "FLoRG").get_xdata() == pytest.approx([8, 16])
    assert line(by_megabytes, "FedExLoRA").get_xdata() == pytest.approx([404, 808])
    assert by_megabytes.get_xlabel() == "kB sent up and down, all clients"


def test_flops_are_drawn_where_runs_counted_them(tmp_path, groups):
    write_run(tmp_path, "FLoRG")
    write_run(tmp_path, "FedIT", flops=False)
    figure = draw_curves(groups(), against=["client_flops"])
    (axes,) = figure.axes
    assert labels(figure) == ["FLoRG"]
    assert line(axes, "FLoRG").get_xdata().tolist() == [0, 3, 6]
    assert axes.get_xlabel() == "GFLOP computed, all clients"


def test_older_runs_have_no_picture_of_flops(tmp_path, groups):
    write_run(tmp_path, flops=False)
    assert [picture.name for picture in all_pictures(groups())] == ["curves", "training_loss", "communication"]


def test_a_method_looks_the_same_in_every_picture_and_whatever_it_is_compared_with(tmp_path):
    drift = {"drift": [None, 0.1, 0.2]}
    for method in MAIN:
        write_run(tmp_path / "all", method, columns=drift)
    write_run(tmp_path / "one", "FedSALoRA", columns=drift)
    for folder in ("all", "one"):
        groups = group_runs(read_runs([tmp_path / folder]))
        for figure in (draw_curves(groups), draw_diagnostics(groups)):
            for axes in figure.axes:
                drawn = line(axes, "FedSALoRA")
                assert drawn.get_color() == style_of("FedSALoRA")["color"]
                assert drawn.get_marker() == style_of("FedSALoRA")["marker"]
        bar = draw_communication(groups).axes[0].patches[[g.method for g in groups].index("FedSALoRA")]
        assert to_hex(bar.get_facecolor()).upper() == style_of("FedSALoRA")["color"]


def test_groups_of_one_method_are_told_apart(tmp_path, groups):
    for rate in range(1, 20):
        write_run(tmp_path, settings={"optimizer.lr": rate})
    figure = draw_curves(groups())
    assert labels(figure) == [f"FLoRG (lr {rate})" for rate in range(1, 20)]
    drawn = figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_fillstyle()) for line in drawn}) == 19
    assert drawn[0].get_color() == style_of("FLoRG")["color"]
    assert {line.get_marker() for line in drawn} == {style_of("FLoRG")["marker"]}


def test_models_of_clients_are_starred_and_the_star_is_explained(tmp_path, groups):
    write_run(tmp_path, "FLoRG")
    write_run(tmp_path, "FedSALoRA", personal_evaluation="own")
    figure = draw_curves(groups())
    assert sorted(labels(figure)) == ["FLoRG", "FedSALoRA*"]
    assert legend_title(figure) == "one seed\n*: models of clients, each on its own share"
    assert "*: models of clients, each on its own share" in all_pictures(groups())[0].caption


def test_slices_have_a_row_each_with_a_title_and_one_legend(tmp_path, groups):
    for rank in (2, 8):
        for method in ("FLoRG", "FedIT"):
            write_run(tmp_path, method, settings={"method.rank": rank}, accuracy=(0.5, rank / 10))
    figure = draw_curves(groups("rank"), by=["method.rank"])
    assert len(figure.axes) == 4
    assert [axes.get_title("left") for axes in figure.axes] == ["rank 2", "", "rank 8", ""]
    assert [line(axes, "FLoRG").get_ydata()[-1] for axes in figure.axes] == pytest.approx([20, 20, 80, 80])
    assert sorted(labels(figure)) == ["FLoRG", "FedIT"]


def test_the_training_loss_is_drawn_by_round_as_the_mean_over_seeds_with_its_interval(tmp_path, groups):
    for rank in (2, 8):
        for seed, losses in enumerate(((0.75, 0.5), (0.25, 0.5), (0.5, 0.5))):
            columns = {"train_loss": [None, *(rank * loss for loss in losses)]}
            write_run(tmp_path, seed=seed, columns=columns, settings={"method.rank": rank})
    write_run(tmp_path, "FedIT", columns={"train_loss": [None, None, 3.0]}, settings={"method.rank": 8})
    figure = draw_training_loss(groups("rank"), ["rank"])
    low, high = figure.axes
    assert line(low, "FLoRG").get_xydata().tolist() == [[1, 1], [2, 1]]
    assert line(high, "FLoRG").get_xydata().tolist() == [[1, 4], [2, 4]]
    assert line(high, "FedIT").get_xydata().tolist() == [[2, 3]]
    (band,) = bands(low)
    half = 0.5 * 4.302652729911275 / np.sqrt(3)  # s of 0.5, 1 and 1.5; Student's t of 2 degrees
    assert band == {1: pytest.approx((1 - half, 1 + half)), 2: pytest.approx((1, 1))}
    assert [axes.get_title("left") for axes in figure.axes] == ["rank 2", "rank 8"]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("round", "training loss")}


def test_runs_without_a_training_loss_have_no_picture_of_it(tmp_path, groups):
    write_run(tmp_path, columns={"train_loss": [None, None, None]})
    assert draw_training_loss(groups()) is None
    assert "training_loss" not in [picture.name for picture in all_pictures(groups())]


def test_errors_are_drawn_by_round_on_a_log_scale_as_geometric_means(tmp_path, groups):
    for seed, scale in enumerate((1, 2, 4)):
        columns = {"aggregation_error": [None, 0.01 * scale, 0.1 * scale], "drift": [None, 0.5, 0.5]}
        write_run(tmp_path, seed=seed, columns=columns)
    error, drift = draw_diagnostics(groups()).axes
    assert error.get_yscale() == drift.get_yscale() == "log"
    assert line(error, "FLoRG").get_xdata().tolist() == [1, 2]
    assert line(error, "FLoRG").get_ydata() == pytest.approx([0.02, 0.2])
    (band,) = bands(error)
    half = np.log(2) * 4.302652729911275 / np.sqrt(3)  # s of log 1, log 2 and log 4; Student's t of 2 degrees
    assert band[1] == pytest.approx((0.02 / np.exp(half), 0.02 * np.exp(half)))
    assert error.get_ylim()[0] == pytest.approx(0.01, rel=0.3)
    assert drift.get_ylabel().startswith("drift")


def test_what_only_rounding_misses_is_named_and_not_drawn(tmp_path, groups):
    write_run(tmp_path, "FLoRG", columns={"aggregation_error": [None, 0.1, 0.2]})
    write_run(tmp_path, "FedExLoRA", columns={"aggregation_error": [None, 2e-8, 0.0]})
    write_run(tmp_path, "FedSALoRA")
    figure = draw_diagnostics(groups())
    (axes,) = figure.axes
    assert labels(figure) == ["FLoRG"]
    assert [drawn.get_label() for drawn in axes.get_lines()] == ["FLoRG"]
    assert axes.get_xlabel() == "round\nbelow 1e-06: FedExLoRA"


def test_without_diagnostics_there_is_no_picture_of_them(tmp_path, groups):
    write_run(tmp_path)
    write_run(tmp_path, "FFALoRA", columns={"aggregation_error": [None, 0.0, 0.0]})
    assert draw_diagnostics(groups()) is None


def settings_axes(figure):
    """Of each axes the ticks, and by label the places, means and half lengths of error bars."""
    found = []
    for axes in figure.axes:
        curves = {}
        for container in axes.containers:
            data, _, (bars,) = container.lines
            halves = [np.ptp(segment[:, 1]) / 2 if len(segment) else None for segment in bars.get_segments()]
            curves[container.get_label()] = (np.round(data.get_xdata()).tolist(), data.get_ydata(), halves)
        found.append(([tick.get_text() for tick in axes.get_xticklabels()], curves))
    return found


def test_a_metric_by_a_setting_has_a_point_with_an_error_bar_for_each_value(tmp_path, groups):
    for rho in (1.0, 0.1):
        for seed, step in enumerate((-0.1, 0, 0.1)):
            write_run(tmp_path, seed=seed, accuracy=(0.5, 0.4 + rho / 10 + step), settings={"data.partition.rho": rho})
    write_run(tmp_path, "FedIT", accuracy=(0.5, 0.9), settings={"data.partition.rho": 0.1})
    figure = draw_setting(groups("rho"), None, ["rho"], "rho")
    ((ticks, curves),) = settings_axes(figure)
    assert ticks == ["0.1", "1"]
    half = 4.302652729911275 * 10 / np.sqrt(3)
    assert curves["FLoRG"][0] == [0, 1]
    assert curves["FLoRG"][1] == pytest.approx([41, 50])
    assert curves["FLoRG"][2] == pytest.approx([half, half])
    assert curves["FedIT"] == ([0], pytest.approx([90]), [None])
    assert figure.axes[0].get_xlabel() == "rho"
    assert legend_title(figure) == "mean of 1 to 3 seeds (points), 95 % interval (t)"


def test_points_of_several_methods_stand_beside_one_another(tmp_path, groups):
    for rank in (2, 4):
        for method in (*MAIN, *VARIANTS):
            write_run(tmp_path, method, settings={"method.rank": rank})
    axes = draw_setting(groups("rank"), None, ["rank"], "rank").axes[0]
    places = sorted(container.lines[0].get_xdata()[0] for container in axes.containers)
    assert len(set(places)) == len(MAIN) + len(VARIANTS)
    assert -0.5 < places[0] < 0 < places[-1] < 0.5
    assert np.mean(places) == pytest.approx(0, abs=1e-9)


def test_values_of_another_setting_have_a_row_each(tmp_path, groups):
    for rank in (2, 4):
        for task in ("rte", "mrpc"):
            write_run(tmp_path, settings={"method.rank": rank}, task=task)
    figure = draw_setting(groups("rank", "task"), None, ["rank", "task"], "rank")
    assert [axes.get_title("left") for axes in figure.axes] == ["task mrpc", "task rte"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%) on mrpc", "accuracy (%) on rte"]
    by_task = draw_setting(groups("rank", "task"), None, ["rank", "task"], "task")
    assert [ticks for ticks, _ in settings_axes(by_task)] == [["mrpc", "rte"]] * 2
    joins = [figure.axes[0].containers[0].lines[0].get_linestyle() for figure in (figure, by_task)]
    assert joins == ["-", "None"]
    assert [axes.get_ylabel() for axes in by_task.axes] == ["accuracy (%)"] * 2


def test_a_setting_of_one_value_is_no_picture(tmp_path, groups):
    write_run(tmp_path)
    assert draw_setting(groups("rank"), None, ["rank"], "rank") is None


def write_communication(folder, up, down):
    with (folder / "communication.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["round", "direction", "part", "clients", "parameters", "bytes"])
        for number in (1, 2):
            for direction, parts in (("up", up), ("down", down)):
                rows.writerows([number, direction, part, 20, size // 4, size] for part, size in parts.items())


def bars(axes):
    """The left end and the width of each bar, and what stands beside them."""
    return [(bar.get_x(), bar.get_width()) for bar in axes.patches], [text.get_text() for text in axes.texts]


def test_communication_is_per_round_with_adapters_and_head_apart(tmp_path, groups):
    parameters = {"up": 1_000_000, "down": 2_000_000}
    for seed in (0, 1):
        folder = write_run(tmp_path, "FLoRG", seed, parameters=parameters)
        write_communication(folder, {"adapter": 3_000_000, "head": 1_000_000}, {"adapter": 8_000_000})
    write_run(tmp_path, "FedIT", parameters=parameters)
    figure = draw_communication(groups())
    up, down = figure.axes
    assert bars(up) == ([(0, 3), (0, 4), (3, 1), (4, 0)], ["4", "4"])
    assert bars(down) == ([(0, 8), (0, 8), (8, 0), (8, 0)], ["8", "8"])
    assert [tick.get_text() for tick in up.get_yticklabels()] == ["FLoRG", "FedIT"]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "MB up per round, all clients",
        "MB down per round, all clients",
    ]
    assert up.get_xlim() == down.get_xlim()
    assert labels(figure) == ["of it the head"]


def test_slices_that_send_the_same_share_a_row(tmp_path, groups):
    for rank in (2, 4):
        for rho in (0.1, 1.0):
            settings = {"method.rank": rank, "data.partition.rho": rho}
            write_run(tmp_path, settings=settings, parameters={"up": rank * 100, "down": rank * 100})
    figure = draw_communication(groups("rank", "rho"), ["rank", "rho"])
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["rank 2, rho 0.1; rank 2, rho 1", "", "rank 4, rho 0.1; rank 4, rho 1", ""]


def test_communication_is_left_out_where_no_round_was_finished(tmp_path, groups):
    write_run(tmp_path, accuracy=(0.5,))
    assert draw_communication(groups()) is None


def test_the_partition_is_drawn_from_its_table(tmp_path, groups):
    folder = write_run(tmp_path)
    assert draw_partition(groups()[0].runs[0]) is None
    (folder / "partition.csv").write_text("client,samples,bad,good\n0,4,3,1\n1,2,0,2\n")
    axes = draw_partition(groups()[0].runs[0]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [3, 0, 1, 2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["bad", "good"]


def test_each_partition_is_shown_once(tmp_path, groups):
    for rho, sizes in ((0.1, "0,4,3,1"), (0.5, "0,4,2,2"), (1.0, "0,4,2,2")):
        folder = write_run(tmp_path, settings={"data.partition.rho": rho})
        (folder / "partition.csv").write_text(f"client,samples,bad,good\n{sizes}\n")
    shown = {p.name: p.caption for p in all_pictures(groups("rho"), by=["rho"]) if p.name.startswith("partition")}
    titles = [p.figure.axes[0].get_title("left") for p in all_pictures(groups("rho"), by=["rho"])]
    assert titles[-2:] == ["rho 0.1, seed 0", "rho 0.5, seed 0"]
    assert shown == {
        "partition": "The samples of each label that each client holds (rho 0.1, seed 0).",
        "partition_2": "The samples of each label that each client holds (rho 0.5, seed 0).",
    }


def write_several(folder, methods, seeds=2, **more):
    for method in methods:
        for seed in range(seeds):
            columns = {
                "aggregation_error": [None, 2e-8, 2e-8] if "FedEx" in method else [None, 0.2 + seed, 0.1],
                "drift": [None, 0.3, 0.1],
            }
            write_run(folder, method, seed, accuracy=(0.5, 0.6, 0.7 + seed / 100), columns=columns, **more)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("methods", "is_beside"),
    [(MAIN[:1], False), (MAIN, False), ((*MAIN, *VARIANTS[:1]), True), ((*MAIN, *VARIANTS), True)],
)
def test_the_legend_covers_nothing_and_nothing_is_cut_off(tmp_path, groups, methods, is_beside):
    write_several(tmp_path, methods, personal_evaluation="own")
    pictures = all_pictures(groups())
    assert [picture.name for picture in pictures] == [
        "curves",
        "training_loss",
        "compute",
        "aggregation",
        "communication",
    ]
    for picture in pictures:
        assert_nothing_is_cut_off(picture.figure)
    curves = pictures[0].figure
    renderer = curves.canvas.get_renderer()
    last = curves.axes[-1].get_window_extent(renderer)
    assert (curves.legends[0].get_window_extent(renderer).x0 > last.x1) == is_beside
    assert (curves.legends[0].get_window_extent(renderer).y1 < last.y0) != is_beside


@pytest.mark.slow
def test_many_slices_and_long_names_are_not_cut_off(tmp_path, groups):
    for rank in (2, 16):
        for rate in (0.1, 0.0123456):
            for weights in ("samples", "uniform"):
                settings = {"method.rank": rank, "optimizer.lr": rate, "trainer.client_weights": weights}
                write_several(tmp_path, ("FLoRG-top_r_aligned", "FedExLoRA-factored"), settings=settings)
    pictures = all_pictures(groups("rank"), by=["rank"])
    assert pictures[0].name == "by_rank"
    for picture in pictures:
        assert_nothing_is_cut_off(picture.figure)


def test_pictures_are_written_as_png_and_svg(tmp_path, groups):
    write_several(tmp_path, MAIN)
    written = write_pictures(groups(), tmp_path / "new" / "pictures")
    names = ["curves", "training_loss", "compute", "aggregation", "communication"]
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            with Image.open(path) as image:
                image.verify()
                assert image.width >= 690


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_equal_pictures_are_equal_files_whatever_the_users_settings(tmp_path, groups, ending):
    write_several(tmp_path, MAIN[:2])
    save_picture(draw_curves(groups()), tmp_path / f"one{ending}")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "other", "axes.grid": True}):
        save_picture(draw_curves(groups()), tmp_path / f"other{ending}")
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"other{ending}").read_bytes()


def test_an_unknown_kind_of_picture_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"must end in one of \.png, \.svg, \.pdf"):
        save_picture(Figure(), tmp_path / "picture.xyz")


def test_an_svg_element_stands_alone_and_tells_no_date(tmp_path, groups):
    write_run(tmp_path)
    text = svg_of(draw_curves(groups()))
    assert text.startswith("<svg")
    assert "metadata" not in text
    assert ElementTree.fromstring(text).get("viewBox")


def test_runs_that_were_never_evaluated_have_the_other_pictures(tmp_path, groups):
    write_run(tmp_path, accuracy=(None, None), columns={"drift": [None, 0.5]})
    assert [picture.name for picture in all_pictures(groups())] == ["training_loss", "aggregation", "communication"]


def test_seeds_are_points_under_the_band_and_two_have_no_band(tmp_path, groups):
    for seed, last in enumerate((0.6, 0.7, 0.8)):
        write_run(tmp_path, "FLoRG", seed, accuracy=(0.5, last))
    for seed, last in enumerate((0.4, 0.3)):
        write_run(tmp_path, "FedIT", seed, accuracy=(0.5, last))
    by_round = draw_curves(groups()).axes[0]
    assert sorted(seeds_drawn(by_round)) == [
        *[(0, 50)] * 5,
        *[(1, last) for last in (30, 40, 60, 70, 80)],
    ]
    (band,) = by_round.collections
    points = [line for line in by_round.get_lines() if line.get_marker() == "."]
    assert all(line.get_zorder() < band.get_zorder() for line in points)
    assert {line.get_color() for line in points} == {style_of(method)["color"] for method in ("FLoRG", "FedIT")}
    low, high = by_round.get_ylim()
    assert low < 30 < 80 < high


def test_two_seeds_are_said_to_be_points_alone(tmp_path, groups):
    for seed in (0, 1):
        write_run(tmp_path, seed=seed)
    assert legend_title(draw_curves(groups())) == "mean of 2 seeds (points)"
    assert "Means over 2 seeds, which are the points." in all_pictures(groups())[0].caption
    for seed in (0, 1, 2):
        write_run(tmp_path, "FedIT", seed)
    caption = all_pictures(groups())[0].caption
    assert "95 % intervals by Student's t, where there are 3 or more: these may reach beyond the panel" in caption


def test_points_of_a_long_run_stand_at_the_markers(tmp_path, groups):
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, accuracy=[0.5] * 101)
    assert len(seeds_drawn(draw_curves(groups()).axes[0])) <= 2 * 12


def test_points_stand_beside_the_error_bars_of_their_method(tmp_path, groups):
    for rank in (2, 4):
        for seed in range(2 if rank == 2 else 3):
            write_run(tmp_path, seed=seed, accuracy=(0.5, (rank + seed) / 10), settings={"method.rank": rank})
    axes = draw_setting(groups("rank"), None, ["rank"], "rank").axes[0]
    points = [point for point in seeds_drawn(axes) if not np.isnan(point[1])]
    assert sorted(points) == [(0, 20), (0, 30), (1, 40), (1, 50), (1, 60)]
