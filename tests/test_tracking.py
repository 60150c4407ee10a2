"""What a run's loggers are told, read back from TensorBoard's own files."""

import re
import shutil
import time

import pytest
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.summary.writer.record_writer import RecordWriter

from fedgram import FedExLoRA, FedIT, FLoRG
from fedgram.callbacks import Callback
from fedgram.federation.rounds import Federation
from tables import rows
from test_trainer import fit  # noqa: F401


class StoppedError(Exception):
    pass


@pytest.fixture
def stop(monkeypatch):
    """Has one run stop after it has logged a round, before it has saved a checkpoint of it, as a kill may."""

    def at(number):
        def checkpoint(federation, row):
            if federation.progress.finished == number:
                monkeypatch.setattr(Federation, "checkpoint", save)
                raise StoppedError
            save(federation, row)

        save = Federation.checkpoint
        monkeypatch.setattr(Federation, "checkpoint", checkpoint)

    return at


def events(folder):
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def steps(board, tag):
    return [event.step for event in board.Scalars(tag)]


def told(board, tag):
    """What the HPARAMS tab is told under a tag."""
    content = board.summary_metadata[tag].plugin_data.content
    parse = {
        metadata.EXPERIMENT_TAG: metadata.parse_experiment_plugin_data,
        metadata.SESSION_START_INFO_TAG: metadata.parse_session_start_info_plugin_data,
        metadata.SESSION_END_INFO_TAG: metadata.parse_session_end_info_plugin_data,
    }
    return parse[tag](content)


def layout(board):
    (event,) = board.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    return category.title, {chart.title: list(chart.multiline.tag) for chart in category.chart}


def test_metrics_stand_against_rounds_and_against_bytes_however_few_they_are(fit):  # noqa: F811
    _, trainer = fit(loggers=True)
    board = events(trainer.folder.path)
    assert steps(board, "accuracy") == [0, 1, 2, 3]
    values = [event.value for event in board.Scalars("accuracy")]
    assert values == pytest.approx([float(row["accuracy"]) for row in rows(trainer.folder.path)])
    assert [event.value for event in board.Scalars("by_bytes/accuracy")] == values
    sent = dict.fromkeys(("0", "1", "2", "3"), 0)
    for row in rows(trainer.folder.path, "communication.csv"):
        sent[row["round"]] += int(row["bytes"])
    expected = [sum(list(sent.values())[: number + 1]) for number in range(4)]
    assert steps(board, "by_bytes/accuracy") == expected
    assert 0 < expected[1] < 500_000  # whole megabytes would have been 0
    assert "aggregation_error/bert.encoder.layer.0.attention.self.query" in board.Tags()["scalars"]
    assert board.Tags()["images"] == ["partition"]


def test_every_chart_of_the_layout_has_one_curve_of_every_run(fit):  # noqa: F811
    boards = [events(fit(method=method, loggers=True)[1].folder.path) for method in (FLoRG(rank=2), FedIT(rank=2))]
    (title, charts), other = map(layout, boards)
    assert (title, charts) == other  # so that TensorBoard draws both runs on the same charts
    assert title == "methods side by side"
    assert list(charts)[:5] == [
        "accuracy, by round",
        "accuracy, by bytes sent up and down",
        "aggregation error, by round",
        "megabytes sent up, by round",
        "megabytes sent down, by round",
    ]
    for board in boards:
        scalars = board.Tags()["scalars"]
        for (pattern,) in charts.values():
            assert len([tag for tag in scalars if re.match(pattern, tag)]) == 1, pattern
    assert [tag for tag in scalars if re.match(charts["accuracy, by round"][0], tag)] == ["accuracy"]


def test_settings_of_every_type_and_final_metrics_are_in_the_hparams_table(fit):  # noqa: F811
    method = FLoRG(rank=2, target_modules=["query"])
    summary, trainer = fit(method=method, loggers=True)
    board = events(trainer.folder.path)
    settings = told(board, metadata.SESSION_START_INFO_TAG).hparams
    assert settings["method"].string_value == "FLoRG"
    assert settings["task"].string_value == "data"
    assert settings["method.rank"].number_value == 2
    assert settings["trainer.rounds"].number_value == 3
    assert settings["trainer.packing"].bool_value is True
    assert settings["method.target_modules"].string_value == '["query"]'
    assert "trainer.local_epochs" not in settings  # None: an empty cell
    table = told(board, metadata.EXPERIMENT_TAG)
    assert set(settings) <= {info.name for info in table.hparam_infos}
    shown = {info.name for info in table.hparam_infos if info.differs}
    assert shown == {"method", "method.rank", "optimizer.lr", "data.partition.rho", "trainer.seed"}
    final = summary["final"] | {f"megabytes_{way}": summary[f"bytes_{way}"] / 1e6 for way in ("up", "down")}
    assert table.metric_infos[0].display_name == "accuracy"
    assert {info.name.tag for info in table.metric_infos} == {f"final/{name}" for name in final}
    for name, value in final.items():
        (event,) = board.Scalars(f"final/{name}")
        assert (event.step, event.value) == (3, pytest.approx(value))
    assert told(board, metadata.SESSION_END_INFO_TAG).status == STATUS_SUCCESS


def test_whichever_run_is_asked_the_table_has_the_options_of_all_methods(fit):  # noqa: F811
    tables = []
    for method in (FLoRG(rank=2), FedExLoRA(rank=2)):
        _, trainer = fit(method=method, rounds=1, loggers=True)
        table = told(events(trainer.folder.path), metadata.EXPERIMENT_TAG)
        tables.append({info.name: info.type for info in table.hparam_infos})
    assert tables[0].keys() == tables[1].keys()
    assert {"method.projection", "method.residual", "method.when", "optimizer.momentum"} <= tables[0].keys()


@pytest.mark.parametrize(
    ("name", "path"), [(None, ""), ("two-florg-seed=1", ""), ("trial", "FLoRG"), ("FLoRG/trial", "FLoRG")]
)
def test_the_method_is_in_what_tensorboard_calls_the_run(fit, name, path):  # noqa: F811
    _, trainer = fit(rounds=1, loggers=True, name=name)
    (file,) = trainer.folder.path.rglob("events.out.tfevents.*")
    assert file.parent == trainer.folder.path / path


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["FLoRG", "trial"])
def test_a_run_that_goes_on_has_every_point_once(fit, stop, name):  # noqa: F811
    whole = events(fit(rounds=5, loggers=True, name="whole-FLoRG")[1].folder.path)
    stop(3)
    with pytest.raises(StoppedError):
        fit(rounds=5, loggers=True, name=name)
    _, trainer = fit(rounds=5, loggers=True, name=name, ckpt_path="last")
    (folder,) = {file.parent for file in trainer.folder.path.rglob("events.out.tfevents.*")}
    board = events(folder)
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    assert board.Tags() == whole.Tags()
    for tag in whole.Tags()["scalars"]:
        assert steps(board, tag) == steps(whole, tag), tag
    assert [e.value for e in board.Scalars("accuracy")] == [e.value for e in whole.Scalars("accuracy")]
    assert len(board.Images("partition")) == 1
    assert layout(board) == layout(whole)
    assert told(board, metadata.SESSION_END_INFO_TAG).status == STATUS_SUCCESS


def test_a_run_that_gets_more_rounds_ends_once(fit):  # noqa: F811
    fit(rounds=2, loggers=True)
    summary, trainer = fit(rounds=4, loggers=True, ckpt_path="last")
    board = events(trainer.folder.path)
    assert steps(board, "accuracy") == [0, 1, 2, 3, 4]
    assert steps(board, "final/accuracy") == [4]
    assert board.Scalars("final/accuracy")[0].value == pytest.approx(summary["final"]["accuracy"])
    assert told(board, metadata.SESSION_START_INFO_TAG).hparams["trainer.rounds"].number_value == 4


def test_what_a_kill_has_left_half_written_is_dropped(fit, stop, tmp_path):  # noqa: F811
    stop(2)
    with pytest.raises(StoppedError):
        fit(rounds=3, loggers=True, name="FLoRG")
    (file,) = (tmp_path / "runs" / "FLoRG" / "version_0").glob("events.out.tfevents.*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    fit(rounds=3, loggers=True, name="FLoRG", ckpt_path="last")
    assert steps(events(file.parent), "accuracy") == [0, 1, 2, 3]


def test_a_run_that_was_stopped_has_its_rounds_and_its_settings_and_no_end(fit, stop, tmp_path):  # noqa: F811
    stop(2)
    with pytest.raises(StoppedError):
        fit(rounds=3, loggers=True, name="FLoRG")
    board = events(tmp_path / "runs" / "FLoRG" / "version_0")
    assert steps(board, "accuracy") == [0, 1, 2]
    assert told(board, metadata.SESSION_START_INFO_TAG).hparams["method"].string_value == "FLoRG"
    assert layout(board)[0] == "methods side by side"
    assert metadata.SESSION_END_INFO_TAG not in board.summary_metadata
    assert not [tag for tag in board.Tags()["scalars"] if tag.startswith("final/")]


def test_a_round_that_counts_is_on_the_disk_whatever_becomes_of_the_process(fit, tmp_path, monkeypatch):  # noqa: F811
    class Copy(Callback):
        def on_round_end(self, trainer, row):
            shutil.copytree(trainer.folder.path, tmp_path / "copies" / str(row["round"]))

    def write(self, data):
        time.sleep(0.01)  # events are written by a thread, which may be behind
        at_once(self, data)

    at_once = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", write)
    fit(rounds=2, loggers=True, callbacks=[Copy()])
    for number in range(3):
        board = events(tmp_path / "copies" / str(number))
        assert len(steps(board, "by_bytes/accuracy")) == number + 1
        assert steps(board, "accuracy") == list(range(number + 1))


def test_without_validation_data_the_rest_is_told(fit, tiny_data):  # noqa: F811
    (tiny_data / "validation.csv").unlink()
    _, trainer = fit(loggers=True)
    board = events(trainer.folder.path)
    assert steps(board, "train_loss") == [1, 2, 3]
    assert "aggregation error, by round" in layout(board)[1]
    assert not [title for title in layout(board)[1] if title.startswith("accuracy")]
    metrics = {info.display_name for info in told(board, metadata.EXPERIMENT_TAG).metric_infos}
    assert metrics == {"megabytes_up", "megabytes_down"}


class Recorder(Logger):
    """A logger that is not TensorBoard's, as those of Weights & Biases and the like are."""

    name, version = "recorder", 0

    def __init__(self):
        self.calls = []

    def log_hyperparams(self, params):
        self.calls.append(("settings", params["method"]))

    def log_metrics(self, metrics, step=None):
        self.calls.append(("metrics", step, "accuracy" in metrics, [key for key in metrics if "bytes/" in key]))

    def finalize(self, status):
        self.calls.append(("over", status))


def test_any_lightning_logger_will_do(fit, tmp_path):  # noqa: F811
    recorder = Recorder()
    fit(rounds=1, loggers=[CSVLogger(tmp_path / "csv", name="", version=""), recorder])
    assert len([row for row in rows(tmp_path / "csv") if row.get("accuracy")]) == 2
    assert recorder.calls == [
        ("settings", "FLoRG"),
        ("metrics", 0, True, []),
        ("metrics", 1, True, []),
        ("over", "success"),
    ]
