"""``fedgram cost`` as a user meets it."""

import json
from pathlib import Path

import pytest
import yaml

from fedgram import FLoRG, trainer
from fedgram.cli import lightning as lightning_cli
from fedgram.cli.lightning import cost_of
from fedgram.cost import every_method


def test_it_tells_what_a_run_costs_and_leaves_nothing(fedgram, config):
    code, out, err = fedgram("cost", "--config", config, "--method.rank", 3)
    assert (code, err) == (0, "")
    assert "4 clients, 4 a round, 2 rounds, 2 local steps a client and round" in out
    assert f"{4 * 3 * 16}" in out
    assert not list(Path().iterdir())


def test_it_needs_neither_tokenizer_nor_data(fedgram, config, tiny_backbone, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((Path(tiny_backbone) / "config.json").read_bytes())
    given = ("--config", config, "--data.path", "no/such/data.csv")
    with_weights = fedgram("cost", *given)
    without = fedgram("cost", *given, "--model.backbone", alone)
    assert without[0] == with_weights[0] == 0
    assert without[1].splitlines()[1:] == with_weights[1].splitlines()[1:]


def test_every_method_with_each_of_its_forms_is_among_all():
    names = list(every_method(FLoRG(rank=1)))
    assert names[:2] == ["FLoRG", "FLoRG-eigh"]
    assert {"FedIT", "FeDeRA", "FeDeRA-round", "FFALoRA", "FedSALoRA", "FedExLoRA", "FedExLoRA-factored"} <= set(names)


def test_all_methods_as_json(fedgram, config, monkeypatch):
    """With the first and the last of all, which takes a tenth of the time."""

    def few(method):
        known = list(every_method(method).items())
        return dict([*known[:2], known[-1]])

    monkeypatch.setattr(trainer, "all_methods", few)
    code, out, _ = fedgram(
        "cost", "--config", config, "--method", "all", "--method.rank", 1, "--json", "out/costs.json"
    )
    assert code == 0
    told = json.loads(Path("out/costs.json").read_text())
    names = [cost["method"] for cost in told["costs"]]
    assert names == list(few(FLoRG(rank=1)))
    assert all(out.count(name) >= 3 for name in names)
    assert told["costs"][0]["up"]["adapter"] == 4 * 16


@pytest.mark.parametrize("asked", [["--method=all"], ["--method", "all"], ["--every_method", "true"]])
def test_all_methods_may_be_asked_for_in_several_ways(config, asked):
    given = lightning_cli.build(["--config", str(config), *asked, "--samples", "60", "--tokens", "8"], "cost").arguments
    assert given["every_method"] is True
    assert (given["method"].rank, given["samples"], given["tokens"]) == (2, 60, 8)  # the config's rank


def test_a_method_whose_name_begins_like_all_is_left_alone():
    assert lightning_cli._with_every_method(["--method", "allies.Mine"]) == ["--method", "allies.Mine"]
    assert lightning_cli._with_every_method([]) == []
    assert lightning_cli._with_every_method(["--trainer.name", "all"]) == ["--trainer.name", "all"]


def test_markdown(fedgram, config):
    code, out, _ = fedgram("cost", "--config", config, "--markdown")
    assert code == 0
    assert "\n| FLoRG | 128 | 34 | 128 | 0 | 128 | 34 |\n" in out


def test_a_shape_needs_nothing_but_its_name(fedgram, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = ["--method", "FedExLoRA", "--model", "TextClassification", "--model.backbone", "shape:roberta-large"]
    code, out, err = fedgram("cost", *options, "--data", "GLUE", "--data.task", "qnli", "--trainer.rounds", 2)
    assert (code, err) == (0, "")
    assert "50,724,864" in out
    assert "qnli: 2 labels, batches of 8 samples of 128 tokens, 104,743 training samples" in out
    assert max(map(len, out.splitlines())) <= 100


def test_every_paper_config_is_told_without_a_network(fedgram):
    root = Path(__file__).parents[2] / "configs"
    code, out, _ = fedgram("cost", "--config", root / "paper" / "opt_125m_squad.yaml", "--tokens", 64)
    assert code == 0
    assert "(by shape:opt-125m, which comes with fedgram)" in out


def test_python_gets_what_the_command_prints(fedgram, config):
    options = ["--config", str(config), "--tokens", "8", "--trainer.rounds", "5"]
    fedgram("cost", *options, "--json", "costs.json")
    assert json.loads(Path("costs.json").read_text()) == cost_of(options).as_dict()


def test_target_modules_of_the_config_are_heeded(config):
    text = yaml.safe_load(config.read_text())
    text["method"]["init_args"]["target_modules"] = ["query"]
    config.write_text(yaml.safe_dump(text))
    assert cost_of(["--config", str(config)]).costs[0].trained.adapter == 2 * 2 * 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "0"], "tokens must be at least 1, got 0"),
        (["--tokens", "65"], "tokens must be at most the 64 positions of "),
        (["--tokenz", "8"], "there is no option 'tokenz'"),
        (["--method.rank", "99"], "method.rank must be at most min(d_in, d_out) = 16"),
        (["--model.backbone", "no/such"], "model.backbone: 'no/such' is no folder or reachable hub model"),
        (["--method", "alle"], "method: there is no class 'alle'"),
    ],
)
def test_bad_input_is_one_line(fedgram, config, options, said):
    code, out, err = fedgram("cost", "--config", config, *options)
    assert code in (1, 2)
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
