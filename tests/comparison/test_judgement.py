import csv
import json
import shlex
from dataclasses import asdict

import pytest

from fedgram.cli.compare import main
from fedgram.comparison import read_runs
from fedgram.comparison.judgement import Judgement, judged, lacking
from fedgram.errors import ConfigurationError, DataError, FedgramError
from fedgram.runs.results import Result
from made_runs import write_run


def write_result(folder, accuracy, split="test", number=2, samples=500, personal=None, digest="digest"):
    """Write what `fedgram test` keeps."""
    metrics = {"loss": 0.4, "accuracy": accuracy}
    result = Result(split, number, "best.safetensors", "task", metrics, {split: samples}, personal, digest)
    path = folder / "results" / f"{split}_round_{number:06d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(result)))
    return folder


@pytest.fixture
def compared(capsys, monkeypatch):
    """What a call prints."""
    monkeypatch.setenv("COLUMNS", "220")

    def call(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def runs(tmp_path):
    """Two methods with three seeds each, tested after their last round; the best was the first of two."""
    for seed in range(3):
        for method, last, tested in (("FLoRG", 0.7, 0.65), ("FedIT", 0.6, 0.75)):
            best = {"round": 1, "loss": 0.2, "accuracy": 0.8 + seed / 100}
            folder = write_run(tmp_path / "runs", method, seed, (0.5, 0.8, last + seed / 100), best=best)
            write_result(folder, tested + seed / 100)
            write_result(folder, tested + 0.1 + seed / 100, number=1)
    return tmp_path / "runs"


def row_of(out, name):
    (row,) = [line for line in out.splitlines() if line.startswith(name)]
    return " ".join(row.split())


def test_runs_are_judged_by_what_test_has_found_after_the_best_round_or_the_last(runs, compared):
    best, last = compared(runs, "--split", "test"), compared(runs, "--split", "test", "--at", "last")
    assert row_of(best, "FedIT").startswith("FedIT 3 86.00 ± 2.48 +10.00")
    assert row_of(last, "FedIT").startswith("FedIT 3 76.00 ± 2.48 +10.00")
    assert row_of(best, "FLoRG").startswith("FLoRG 3 76.00 ± 2.48 -10.00")
    assert best == compared(runs, "--split", "test", "--at", "best")
    assert "test accuracy %" in best
    assert "accuracy, in per cent: on the test split, after the round that was best on the validation split, " in best
    assert "accuracy, in per cent: on the test split, after the last round, mean over seeds" in last
    assert "one of the 500 evaluated samples is 0.2 points" in best
    assert "warning: no" not in best


def test_validation_stands_beside_it(runs, compared):
    keys = ("--columns", "method,before,validation,accuracy")
    assert row_of(compared(runs, "--split", "test", *keys), "FLoRG") == "FLoRG 50.00 81.00 76.00 ± 2.48"
    out = compared(runs, "--split", "test", "--at", "last", *keys)
    assert row_of(out, "FLoRG") == "FLoRG 50.00 71.00 66.00 ± 2.48"
    assert "validation accuracy %" in out


def test_the_validation_split_may_be_judged_after_the_best_round_too(runs, compared):
    assert row_of(compared(runs, "--at", "best"), "FLoRG").startswith("FLoRG 3 81.00 ± 2.48 +0.00")
    assert "in per cent: after the best round, mean" in compared(runs, "--split", "validation", "--at", "best")
    assert row_of(compared(runs), "FLoRG").startswith("FLoRG 3 71.00 ± 2.48 +10.00")


def test_every_form_of_the_table_says_of_what_it_is(runs, compared, tmp_path):
    files = {kind: tmp_path / f"t.{kind}" for kind in ("csv", "markdown", "latex", "report")}
    compared(runs, "--split", "test", *(text for kind, path in files.items() for text in (f"--{kind}", path)))
    with files["csv"].open() as lines:
        rows = {row["method"]: row for row in csv.DictReader(lines)}
    assert float(rows["FedIT"]["mean"]) == pytest.approx(0.86)
    assert (rows["FedIT"]["split"], rows["FedIT"]["at"]) == ("test", "best")
    assert float(rows["FedIT"]["validation"]) == pytest.approx(0.81)
    assert "test accuracy % ± 95 %" in files["markdown"].read_text()
    assert r"test accuracy \%" in files["latex"].read_text()
    page = files["report"].read_text()
    assert "on the test split, after the round that was best on the validation split" in page
    assert "By round and by what was sent on the validation split" in page


def test_a_run_without_a_result_has_a_dash_and_the_command_that_makes_it(runs, compared, tmp_path):
    folders = [write_run(tmp_path / "my runs", "FeDeRA", seed) for seed in range(2)]
    out = " ".join(compared(runs, tmp_path / "my runs", "--split", "test").split())
    assert "FeDeRA 0 - -" in out
    command = (
        f"fedgram test --config '{folders[0]}/config.yaml' --ckpt_path '{folders[0]}/checkpoints/best.safetensors'"
    )
    assert "warning: no result on the test split, after the round that was best on the validation split, for " in out
    assert f"{folders[0]}, {folders[1]}: {command} makes it, and likewise for the others" in out
    assert "no accuracy" not in out
    out = compared(tmp_path / "my runs", "--split", "test", "--at", "last", "--each")
    assert f"--ckpt_path '{folders[0]}' makes it" in " ".join(out.split())
    assert row_of(out, "task-FeDeRA/version_0").split()[:5] == ["task-FeDeRA/version_0", "0", "50.00", "70.00", "-"]


def test_a_mean_is_over_the_seeds_that_were_tested(runs, compared):
    write_run(runs, "FLoRG", 3)
    assert row_of(compared(runs, "--split", "test"), "FLoRG").startswith("FLoRG 3 76.00 ± 2.48 -10.00")


def test_results_on_other_samples_are_not_compared(runs, compared):
    write_result(write_run(runs, "FeDeRA"), 0.9, digest="other")
    with pytest.raises(DataError, match=r"can't be compared: they were judged on other samples; give folders"):
        compared(runs, "--split", "test")
    assert "judged on other samples" in compared(runs, "--split", "test", "--force")
    assert "samples;" not in compared(runs)


def test_runs_without_a_validation_split_are_tested_after_their_last_round(tmp_path, compared):
    folder = write_run(tmp_path, accuracy=(None, None, None), best={})
    write_result(folder, 0.6)
    assert row_of(compared(tmp_path, "--split", "test"), "FLoRG").startswith("FLoRG 1 60.00")
    assert "which had no validation split: use --at last" in compared(tmp_path, "--split", "test", "--at", "best")


def test_a_split_that_was_validated_later_is_read_likewise(tmp_path):
    folder = write_run(tmp_path, accuracy=(None, None, None), best={})
    write_result(folder, 0.6, split="validation")
    (run,) = judged(read_runs([tmp_path]), Judgement("validation", "last"))
    assert run.final("accuracy") == 0.6


def test_models_of_clients_are_marked_by_how_they_were_judged(tmp_path, compared):
    for method, personal in (("FedSALoRA", "all"), ("FedDPA", "own")):
        write_result(write_run(tmp_path, method, personal_evaluation="own"), 0.9, personal=personal)
    out = compared(tmp_path, "--split", "test")
    assert row_of(out, "FedSALoRA").startswith("FedSALoRA 1 90.00")
    assert row_of(out, "FedDPA").startswith("FedDPA* 1 90.00")


def test_a_metric_that_was_undefined_is_said_to_be(tmp_path, compared):
    folder = write_result(write_run(tmp_path), None)
    assert "accuracy is undefined on the test split, after the round" in " ".join(
        compared(tmp_path, "--split", "test").split()
    )
    assert row_of(compared(folder, "--split", "test"), "FLoRG").startswith("FLoRG 0 undefined")


def test_a_damaged_result_is_one_line_that_names_the_run(runs, compared):
    folder = runs / "task-FLoRG" / "version_1"
    (folder / "results" / "test_round_000001.json").write_text("{")
    with pytest.raises(DataError, match=r"task-FLoRG/version_1 is damaged"):
        compared(runs, "--split", "test")
    compared(runs, "--split", "test", "--at", "last")


@pytest.mark.parametrize("option", ["--split=test", "--at=best"])
def test_tables_of_the_paper_are_of_one_split(runs, compared, option):
    with pytest.raises(ConfigurationError, match="can't be given with --paper"):
        compared(runs, "--paper", "table1", option)


def test_an_unknown_split_is_refused(runs, compared):
    with pytest.raises(FedgramError, match="invalid choice: 'train'"):
        compared(runs, "--split", "train")


def test_nothing_lacks_by_default(runs):
    assert lacking(judged(read_runs([runs]), Judgement()), Judgement()) == []


def test_the_command_that_is_named_makes_what_was_missing(fedgram, config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert fedgram("fit", "--config", config, "--trainer.threads", 1, "--trainer.default_root_dir", "my runs")[0] == 0
    for at in ("best", "last"):
        _, before, _ = fedgram("compare", "my runs", "--split", "test", "--at", at)
        said = " ".join(before.split())
        command = said[said.index("fedgram test --config") : said.index(" makes it")]
        code, found, logged = fedgram(*shlex.split(command)[1:])
        assert code == 0
        assert "kept in my runs/data-FLoRG/version_0/results/test_round_00000" in " ".join(logged.split())
        _, after, _ = fedgram("compare", "my runs", "--split", "test", "--at", at)
        accuracy = float(found.split("accuracy")[1].split()[0])
        assert f"FLoRG 1 {100 * accuracy:.2f}" in row_of(after, "FLoRG")
        assert "makes it" not in after
