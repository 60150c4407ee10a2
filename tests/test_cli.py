"""The command line as a user meets it. Most tests call `main` in this process; a few start the real program."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tables
from fedgram import FederatedTrainer, FLoRG, TextClassification, TextClassificationData
from fedgram.cli.main import COMMANDS


def summary(run: str = "data-FLoRG", version: int = 0) -> dict:
    return json.loads(Path("runs", run, f"version_{version}", "summary.json").read_text())


@pytest.mark.parametrize("program", [["-m", "fedgram"], ["-c", "from fedgram.cli import main; main()"]])
def test_help_is_quick_and_complete(program):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(command in result.stdout for command in COMMANDS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_import_is_light():
    code = "import sys, fedgram; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(fedgram):
    from importlib.metadata import version

    assert fedgram("--version") == (0, f"fedgram {version('fedgram')}\n", "")


def test_fit_trains_and_says_what_came_of_it(fedgram, config):
    code, out, _ = fedgram("fit", "--config", config)
    assert code == 0
    assert "FLoRG" in out
    assert "tensorboard" not in out  # the config turns loggers off
    assert summary()["rounds"] == 2
    assert "tensorboard --logdir runs" in fedgram("fit", "--config", config, "--trainer.loggers", "true")[1]


def test_defaults_are_those_of_python(fedgram, config, tiny_backbone, tiny_data, tmp_path):
    fedgram("fit", "--config", config)
    data = TextClassificationData(str(tiny_data), batch_size=3, cache_dir=str(tmp_path / "cache"))
    trainer = FederatedTrainer(rounds=2, clients=4, local_steps=2, accelerator="cpu", loggers=False)
    by_python = trainer.fit(TextClassification(tiny_backbone), data, FLoRG(rank=2))
    assert by_python["settings_fingerprint"] == summary()["settings_fingerprint"]
    assert by_python["state_hash"] == summary()["state_hash"]


def test_short_class_names_and_overrides(fedgram, config):
    assert fedgram("fit", "--config", config, "--method", "FedIT", "--method.rank", 3, "--trainer.seed", 7)[0] == 0
    settings = summary("data-FedIT")["settings"]
    assert (settings["method"], settings["method.rank"], settings["trainer.seed"]) == ("FedIT", 3, 7)


def test_the_saved_config_repeats_the_run(fedgram, config):
    arguments = ["--trainer.participation", 3, "--data.partition", "Dirichlet", "--data.partition.rho", 0.7]
    assert fedgram("fit", "--config", config, *arguments)[0] == 0
    saved = Path("runs/data-FLoRG/version_0/config.yaml")
    settings = yaml.safe_load(saved.read_text())["trainer"]
    assert isinstance(settings["clients_per_block"], int)
    assert isinstance(settings["threads"], int)
    assert fedgram("fit", "--config", saved)[0] == 0
    assert summary(version=1)["state_hash"] == summary(version=0)["state_hash"]
    again = yaml.safe_load(Path("runs/data-FLoRG/version_1/config.yaml").read_text())
    assert again == yaml.safe_load(saved.read_text())


def test_the_printed_config_is_a_config(fedgram, config, tmp_path):
    code, out, _ = fedgram("fit", "--config", config, "--method.alpha", 8, "--print_config")
    assert code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(out)
    assert yaml.safe_load(out)["method"]["init_args"]["alpha"] == 8
    assert fedgram("fit", "--config", printed)[0] == 0


def test_resume_last_equals_one_go(fedgram, config):
    assert fedgram("fit", "--config", config, "--trainer.rounds", 4, "--trainer.name", "whole")[0] == 0
    assert fedgram("fit", "--config", config)[0] == 0
    assert fedgram("fit", "--config", config, "--trainer.rounds", 4, "--ckpt_path", "last")[0] == 0
    assert summary()["state_hash"] == summary("whole")["state_hash"]
    assert summary()["rounds"] == 4
    assert yaml.safe_load(Path("runs/data-FLoRG/version_0/config.yaml").read_text())["ckpt_path"] is None


def test_validate_test_and_predict(fedgram, config):
    fedgram("fit", "--config", config)
    for command in ("validate", "test"):
        code, out, _ = fedgram(command, "--config", config, "--ckpt_path", "last")
        assert code == 0
        assert dict(line.split() for line in out.splitlines()).keys() == {"loss", "accuracy", "macro_f1"}
    saved = Path("runs/data-FLoRG/version_0/config.yaml")
    code, out, _ = fedgram("predict", "--config", saved, "--ckpt_path", "best", "--output", "p.csv")
    assert (code, Path("p.csv").read_text().count("\n")) == (0, 17)


def test_where_there_is_no_test_split_the_error_names_what_needs_none(fedgram, config, tiny_data):
    (tiny_data / "test.csv").unlink()
    for command in ("test", "predict"):
        code, _, err = fedgram(command, "--config", config, "--ckpt_path", "none")
        assert code == 1
        assert "add its file to the data; fedgram validate, and predict --split validation, need none" in err
    assert fedgram("predict", "--config", config, "--ckpt_path", "none", "--split", "validation")[0] == 0


def test_glue_by_its_short_name(fedgram, config, tmp_path):
    folder = tmp_path / "rte"
    folder.mkdir()
    for split, count in {"train": 20, "validation": 6}.items():
        rows = "".join(f"the film was good,the film is {'fine' if i % 2 else 'bad'},{i % 2}\n" for i in range(count))
        (folder / f"{split}.csv").write_text(f"sentence1,sentence2,label\n{rows}")
    (folder / "test.csv").write_text("sentence1,sentence2,label\nthe plot was dull,the cast is poor,-1\n")
    arguments = {
        "--data": "GLUE",
        "--data.task": "rte",
        "--data.path": folder,
        "--data.cache_dir": tmp_path / "cache",
        "--model.metrics": "[matthews_correlation, accuracy]",
    }
    flat = [part for pair in arguments.items() for part in pair]
    code, out, err = fedgram("fit", "--config", config, *flat)
    assert (code, "rte, 2 rounds" in out) == (0, True)
    assert list(summary("rte-FLoRG")["final"]) == ["loss", "matthews_correlation", "accuracy"]
    assert "matthews_correlation" in err
    saved = Path("runs/rte-FLoRG/version_0/config.yaml")
    assert yaml.safe_load(saved.read_text())["data"]["init_args"]["task"] == "rte"
    code, out, _ = fedgram("validate", "--config", saved, "--ckpt_path", "best")
    assert [len(line.split()) for line in out.splitlines()] == [2, 2, 2]
    assert fedgram("predict", "--config", saved, "--ckpt_path", "last", "--output", "p.csv")[0] == 0
    assert {row["label"] for row in tables.rows(Path(), "p.csv")} <= {"entailment", "not_entailment"}
    code, _, err = fedgram("fit", "--config", config, *flat, "--data.task", "snli")
    assert (code, err.count("\n")) == (2, 1)
    assert "data.task: expected one of cola, sst2," in err


def test_help_of_a_method_teaches(fedgram):
    code, out, _ = fedgram("fit", "--method.help", "FLoRG")
    assert code == 0
    assert "Gram" in out
    for option in (
        "rank",
        "alpha",
        "solver",
        "projection",
        "basis",
        "init_std",
        "preserve_start",
        "target_modules",
        "head",
    ):
        assert f"--method.{option}" in out


def test_help_of_fit_explains_every_setting(fedgram):
    code, out, _ = fedgram("fit", "--help")
    assert code == 0
    text = " ".join(out.split())
    for words in ("how many rounds to run", "by memory", "TensorBoard in the run's folder", '"last" for the newest'):
        assert words in text


def test_compare_prints_one_row_per_method(fedgram, config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    fedgram("fit", "--config", config)
    fedgram("fit", "--config", config, "--method", "FedIT")
    code, out, _ = fedgram("compare", "runs")
    assert code == 0
    for run in ("data-FLoRG", "data-FedIT"):
        facts = summary(run)
        (row,) = [line for line in out.splitlines() if line.startswith(facts["method"])]
        assert f"{100 * facts['final']['accuracy']:.2f}" in row
        assert f"{facts['parameters_up']:,}" in row


def test_a_method_of_your_own_beside_your_config(fedgram, config):
    Path("my_method.py").write_text(
        "from fedgram.methods import FedIT\n\n\nclass Mine(FedIT):\n    '''FedIT under another name.'''\n"
    )
    assert fedgram("fit", "--config", config, "--method", "my_method.Mine")[0] == 0
    assert summary("data-Mine")["method"] == "Mine"


BAD = [
    (["--trainer.roundz", "3"], "no option 'trainer.roundz'; did you mean trainer.rounds"),
    (["--method.rnk", "3"], "method has no option 'rnk'; did you mean rank?"),
    (["--method", "NoSuch"], "method: there is no class 'NoSuch'"),
    (["--model", "NoSuchTask"], "model: there is no class 'NoSuchTask'"),
    (["--data", "NoSuchData"], "data: there is no class 'NoSuchData'"),
    (["--method.projection", "foo"], "method.projection: expected one of procrustes, top_r, "),
    (["--data.partition.rho", "3"], "this data.partition has no option 'rho', Dirichlet has: choose that"),
    (["--trainer.rounds", "x"], "trainer.rounds: expected a whole number, got 'x'"),
    (["--trainer.participation", "0"], "trainer.participation must be a share of the clients in (0, 1]"),
    (["--trainer.clients_per_block", "9"], "trainer.clients_per_block must be at most the 4 clients"),
    (["--method.rank", "99"], "method.rank must be at most min(d_in, d_out) = 16"),
    (["--data.text", "nope"], "no column 'nope'; it has 'text', 'label'"),
    (["--data.num_labels", "1", "--data.label", "text"], "label"),
    (["--data.path", "no/such.csv"], "no/such.csv"),
    (["--model.backbone", "no/such"], "model.backbone: 'no/such' is no folder or reachable hub model"),
    (["--model.backbone", "package:no_such/model"], "no_such"),
    (["--ckpt_path", "last"], "no run in runs/data-FLoRG has such a checkpoint"),
    (["--optimizer.lr", "-1"], "lr"),
    (["--config", "nope.yaml"], "nope.yaml"),
    (["--trainer.default_root_dir", "/dev/null/no"], "trainer.default_root_dir: can't write /dev/null/no"),
    (["--model.metrics", "[precision]"], "model.metrics must name one or more of accuracy, f1, macro_f1"),
    (["--model.metrics", "[pearson]"], "model.metrics: 'pearson' is not for 2 labels; use accuracy or f1"),
    (["--data.num_labels", "1", "--data.label_quantiles", "0"], "label_quantiles must be at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(fedgram, config, arguments, said):
    code, out, err = fedgram("fit", "--config", config, *arguments)
    lines = err.splitlines()
    assert code in (1, 2)
    assert len(lines) == 1
    assert lines[0].startswith("fedgram: error: ")
    assert said in lines[0]
    assert out == ""
    assert not list(Path().glob("runs/*/*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{class_path: FLoRG, init_args: {rnak: 2}}", "method has no option 'rnak'; did you mean rank?"),
        ("FLoRG\ntrainer: {roundz: 1}", "no option 'trainer.roundz'"),
        ("FLoRG\ndebug: true", "no option 'debug'"),
        ("[", "config.yaml, line 12, column 1: is no valid YAML: did not find expected node content"),
    ],
)
def test_a_bad_config_is_one_line(fedgram, config, text, said):
    settings = yaml.safe_load(config.read_text())
    del settings["method"], settings["trainer"]
    config.write_text(yaml.safe_dump(settings) + f"method: {text}\n")
    code, _, err = fedgram("fit", "--config", config)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_an_unknown_command_is_one_line(fedgram):
    code, _, err = fedgram("fitt")
    assert code == 2
    assert "fitt" in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(fedgram, config):
    from fedgram.errors import ConfigurationError

    with pytest.raises(ConfigurationError):
        fedgram("fit", "--config", config, "--trainer.participation", "0", "--debug")


def test_a_checkpoint_of_another_method_is_refused(fedgram, config):
    fedgram("fit", "--config", config)
    last = "runs/data-FLoRG/version_0/checkpoints/round_000002.safetensors"
    code, _, err = fedgram("fit", "--config", config, "--method", "FedIT", "--ckpt_path", last)
    assert code == 1
    assert "method: 'FLoRG' there, 'FedIT' here" in err
    assert not Path("runs/data-FedIT").exists()


def test_a_truncated_checkpoint_is_one_line_and_stays(fedgram, config):
    fedgram("fit", "--config", config)
    for path in Path("runs/data-FLoRG/version_0/checkpoints").glob("round_*"):
        path.write_bytes(path.read_bytes()[:-50])
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    code, _, err = fedgram("fit", "--config", config, "--trainer.rounds", 3, "--ckpt_path", "last")
    assert code == 1
    assert "is damaged" in err
    assert err.count("is damaged") == 2  # a warning of the newest, and the error
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


def test_slurms_early_signal_does_not_kill_a_program_that_just_starts(monkeypatch):
    starts = "import os, signal; from fedgram.cli import main; main(); os.kill(os.getpid(), signal.SIGUSR1)"
    command = [sys.executable, "-c", starts, "--version"]
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGUSR1
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
