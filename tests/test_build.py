"""What options of a command name, made without running it."""

import json
from pathlib import Path

from fedgram.cli.lightning import build


def test_what_was_built_is_what_the_command_runs(fedgram, config):
    code, _, err = fedgram("fit", "--config", config, "--method", "FedIT", "--method.rank", 1, "--trainer.name", "told")
    assert code == 0, err
    built = build(["--config", str(config), "--method", "FedIT", "--method.rank", "1", "--trainer.name", "built"])
    assert not Path("runs/built").exists()
    summary = built.trainer.fit(**built.arguments)
    told = json.loads(Path("runs/told/version_0/summary.json").read_text())
    assert (summary["method"], summary["state_hash"]) == ("FedIT", told["state_hash"])
    configs = [Path("runs", name, "version_0", "config.yaml").read_text() for name in ("told", "built")]
    assert configs[1] == configs[0].replace("name: told", "name: built")


def test_options_of_one_call_are_not_those_of_the_next(config):
    options = ["--config", str(config)]
    first = build([*options, "--method", "FeDeRA", "--method.when", "round", "--trainer.seed", "7", "--ckpt_path", "x"])
    assert (first.arguments["method"].when, first.trainer.seed, first.arguments["ckpt_path"]) == ("round", 7, "x")
    second = build(options)
    assert type(second.arguments["method"]).__name__ == "FLoRG"
    assert (second.trainer.seed, second.arguments["ckpt_path"]) == (0, None)
    assert second.arguments["method"] is not build(options).arguments["method"]
