import pytest

import precision


def test_curves_hold_the_rounds_that_were_measured(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,train_loss,val_loss\n1,0.7,\n2,0.6,0.65\n")
    assert precision.curves(path) == {"train_loss": {1: 0.7, 2: 0.6}, "val_loss": {2: 0.65}}


def test_bfloat16_is_compared_with_float32_of_the_same_seed():
    full = [{1: 1.0}, {1: 3.0}]
    half = [{1: 1.5}, {1: 2.0}]
    [figures] = precision.compare(full, half)
    assert figures == {"round": 1, "mean": 2.0, "spread": pytest.approx(2**0.5), "shift": -0.25, "largest": 1.0}


def test_the_tables_say_in_how_many_rounds_bfloat16_stays_within_the_spread(monkeypatch, capsys):
    losses = {"32-true": [0.5, 0.7], "bf16-true": [0.5, 0.8]}

    def train(arguments, seed, kind):
        assert arguments.more == ["--trainer.clients=4"]
        return {"train_loss": {1: losses[kind][seed], 2: 10 * losses["32-true"][seed]}, "val_loss": {2: 1.0 + seed}}

    monkeypatch.setattr(precision, "train", train)
    precision.main(["--seeds", "2", "--trainer.clients=4"])
    shown = capsys.readouterr().out
    assert "| 1 | 0.6000 | 0.1414 | +0.0500 | 0.1000 |" in shown
    assert "within the spread in 2 of 2 rounds" in shown
    assert "| 2 | 1.5000 | 0.7071 | +0.0000 | 0.0000 |" in shown


def test_one_seed_has_no_spread():
    with pytest.raises(SystemExit, match="at least 2, got 1"):
        precision.main(["--seeds", "1"])
