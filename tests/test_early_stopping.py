"""Runs that callbacks end early, and the figure that the best checkpoint is chosen by."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgram import AdamW
from fedgram.callbacks import Callback
from fedgram.cli.lightning import build
from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.caveats import caveats
from fedgram.comparison.overview import View
from fedgram.early_stopping import EarlyStopping
from fedgram.errors import CheckpointError, ConfigurationError
from fedgram.federation.ending import is_over
from fedgram.federation.progress import Progress
from fedgram.runs.checkpoint import load
from fedgram.runs.monitor import Monitor
from tables import rows, without_times
from test_trainer import fit  # noqa: F401
from thread_ranks import on_ranks

QUICKSTART = Path(__file__).parents[1] / "configs/quickstart.yaml"


class KilledError(Exception):
    pass


class Kill(Callback):
    """Kills a run when a hook is called of a round."""

    def __init__(self, hook, number):
        setattr(self, hook, lambda trainer, row: self.kill(row["round"] == number))

    @staticmethod
    def kill(is_time):
        if is_time:
            raise KilledError


class Stop(Callback):
    """Asks for the end of a run after a round."""

    def __init__(self, number):
        self.number = number

    def on_round_end(self, trainer, row):
        trainer.should_stop = row["round"] == self.number


def never_better(patience=2, **settings):
    """Return a callback for which no figure is ever better than the first one."""
    return EarlyStopping(patience=patience, min_delta=100, **settings)


def seen(trainer):
    return without_times(rows(trainer.folder.path)), rows(trainer.folder.path, "communication.csv")


def test_a_run_that_does_not_become_better_ends(fit, caplog):  # noqa: F811
    caplog.set_level(logging.INFO, "fedgram")
    summary, trainer = fit(rounds=9, callbacks=[never_better()])
    accuracy = summary["initial"]["accuracy"]
    why = f"accuracy has not become better than {accuracy:.6g} of round 0 for 2 evaluations (EarlyStopping)"
    assert (summary["rounds"], summary["planned_rounds"], summary["stopped"]) == (2, 9, why)
    assert summary["stopping"] == "EarlyStopping(monitor=None, mode=None, patience=2, min_delta=100)"
    assert [row["round"] for row in rows(trainer.folder.path)] == ["0", "1", "2"]
    assert f"ends after round 2 of 9: {why}; --ckpt_path last has it go on once" in caplog.text
    assert json.loads((trainer.folder.path / "summary.json").read_text())["stopped"] == why
    assert fit(rounds=1, callbacks=[never_better()])[0]["stopped"] is None


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("hook", ["on_round_logged", "on_round_end"])
def test_what_it_remembers_survives_kills(fit, hook):  # noqa: F811
    """Before a round's checkpoint and after it; also between the decision and the summary."""
    keys = {"rounds": 9, "evaluate_every": 3, "optimizer": AdamW(lr=0.1)}

    def callback():
        return EarlyStopping("train_loss", patience=2)

    whole, one = fit(name="whole", callbacks=[callback()], **keys)
    for number in range(1, whole["rounds"] + 1):
        place = "last" if number > 1 else None
        with pytest.raises(KilledError):
            fit(name="parts", callbacks=[callback(), Kill(hook, number)], ckpt_path=place, **keys)
    parts, two = fit(name="parts", callbacks=[callback()], ckpt_path="last", **keys)
    assert whole["rounds"] == 5  # it became better before it did not, and round 5 was none to evaluate
    assert rows(one.folder.path)[-1]["accuracy"] != ""
    same = ("state_hash", "stopped", "rounds", "final", "best")
    assert {key: parts[key] for key in same} == {key: whole[key] for key in same}
    assert seen(one) == seen(two)


def test_a_run_that_was_ended_goes_on_with_more_patience_alone(fit):  # noqa: F811
    first, trainer = fit(rounds=9, callbacks=[never_better()])
    for rounds in (9, 12):
        again, _ = fit(rounds=rounds, callbacks=[never_better()], ckpt_path="last")
        assert (again["rounds"], again["stopped"], again["state_hash"]) == (2, first["stopped"], first["state_hash"])
    assert fit(rounds=9, callbacks=[never_better(patience=3)], ckpt_path="last")[0]["rounds"] == 3
    assert fit(rounds=4, ckpt_path="last")[0]["stopped"] is None
    _, other = fit(rounds=4, name="whole")
    assert seen(other) == seen(trainer)


def test_a_callback_may_end_a_run_and_more_rounds_have_it_go_on(fit, caplog):  # noqa: F811
    caplog.set_level(logging.INFO, "fedgram")
    whole, one = fit(rounds=5, name="whole", evaluate_every=2)
    short, two = fit(rounds=4, name="parts", callbacks=[Stop(3)], evaluate_every=2)
    assert (short["rounds"], short["stopped"]) == (3, "a callback set trainer.should_stop")
    last = rows(two.folder.path)[-1]
    assert float(last["accuracy"]) == short["final"]["accuracy"]  # though round 3 was none to evaluate
    assert float(last["drift"]) > 0
    again, _ = fit(rounds=4, name="parts", ckpt_path="last", evaluate_every=2)
    assert (again["rounds"], again["stopped"], again["final"]) == (3, short["stopped"], short["final"])
    assert "of 4: a callback set trainer.should_stop; --trainer.rounds of more than 4 has it go on" in caplog.text
    longer, _ = fit(rounds=5, name="parts", ckpt_path="last", evaluate_every=2)
    assert (longer["stopped"], longer["state_hash"]) == (None, whole["state_hash"])
    assert [row for row in seen(one)[0] if row["round"] != "3"] == [row for row in seen(two)[0] if row["round"] != "3"]


def test_what_a_callback_wants_in_the_last_round_is_nothing_that_ends_early(fit):  # noqa: F811
    assert fit(rounds=2, callbacks=[Stop(2)])[0]["stopped"] is None
    assert fit(rounds=1, callbacks=[Stop(0)])[0]["rounds"] == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": 0}, "EarlyStopping.patience must be at least 1, got 0"),
        ({"min_delta": -0.1}, "EarlyStopping.min_delta must be a number of at least 0, got -0.1"),
        ({"min_delta": float("nan")}, "EarlyStopping.min_delta must be a number of at least 0, got nan"),
        ({"mode": "up"}, "EarlyStopping.mode must be one of max, min; got 'up'"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(ConfigurationError, match=f"^{said}$"):
        EarlyStopping(**settings)


def test_unknown_figures_are_refused_before_anything_is_written(fit, tmp_path, tiny_data):  # noqa: F811
    known = "one of accuracy, macro_f1, val_loss, train_loss; got"
    with pytest.raises(ConfigurationError, match=f"^EarlyStopping.monitor must be {known} 'f1'$"):
        fit(callbacks=[EarlyStopping("f1")])
    with pytest.raises(ConfigurationError, match=f"^trainer.monitor must be {known} 'val_accuracy'$"):
        fit(monitor="val_accuracy")
    (tiny_data / "validation.csv").unlink()
    said = "by default trainer.monitor, must be one of train_loss; got 'accuracy'; there is no validation split$"
    with pytest.raises(ConfigurationError, match=said):
        fit(callbacks=[EarlyStopping()])
    assert not (tmp_path / "runs").exists()
    assert fit(rounds=9, callbacks=[never_better(monitor="train_loss")], monitor="train_loss")[0]["rounds"] == 3


@pytest.mark.parametrize("name", ["loss", "val_loss", "train_loss"])
def test_the_best_checkpoint_may_be_that_of_the_least_loss(fit, name):  # noqa: F811
    summary, trainer = fit(rounds=5, monitor=name, optimizer=AdamW(lr=0.3), evaluate_every=2)
    column = "train_loss" if name == "train_loss" else "val_loss"
    losses = {int(row["round"]): float(row[column]) for row in rows(trainer.folder.path) if row[column]}
    best = min(losses, key=losses.__getitem__)
    assert summary["best"]["round"] == best == load(trainer.folder.checkpoint("best")).round
    assert summary["best"][summary["monitor"]] == losses[best]
    assert set(summary["best"]) >= ({"accuracy"} if best % 2 == 0 or best == 5 else set())


def test_the_figure_may_change_where_a_run_goes_on(fit):  # noqa: F811
    fit(rounds=2)
    summary, _ = fit(rounds=4, monitor="train_loss", ckpt_path="last")
    assert (summary["monitor"], summary["best"]["train_loss"] > 0) == ("train_loss", True)
    again, _ = fit(rounds=5, monitor="loss", ckpt_path="last")
    assert again["best"]["loss"] <= json.loads(json.dumps(summary))["best"]["loss"]


def test_the_state_of_callbacks_is_checked(fit):  # noqa: F811
    class Odd(Callback):
        def state_dict(self):
            return {"seen": {1, 2}}

    with pytest.raises(ConfigurationError, match=r"what state_dict of Odd returns must be JSON"):
        fit(rounds=1, callbacks=[Odd()])
    stopping = EarlyStopping("accuracy")
    with pytest.raises(CheckpointError, match="no state of EarlyStopping with best, round and waited"):
        stopping.load_state_dict({"best": "high", "round": 1, "waited": 0})


def test_several_callbacks_of_a_kind_are_kept_apart(fit):  # noqa: F811
    class Count(Callback):
        def __init__(self):
            self.seen = 0

        def on_round_logged(self, trainer, row):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    def both():
        return [Count(), EarlyStopping("accuracy", patience=9), EarlyStopping("loss", patience=9), Count()]

    _, trainer = fit(rounds=1, callbacks=both())
    kept = load(trainer.folder.checkpoint("last")).progress["callbacks"]
    assert sorted(kept) == ["Count", "Count (2)", "EarlyStopping accuracy max", "EarlyStopping val_loss min"]
    last = both()
    fit(rounds=2, callbacks=last, ckpt_path="last")
    assert [last[0].seen, last[3].seen] == [3, 3]  # of rounds 0, 1 and 2


def test_seeds_that_end_after_unlike_rounds_are_repetitions(fit, tmp_path):  # noqa: F811
    """Of one callback; a run without it is another one, though it is longer by its rounds alone."""

    class Late(EarlyStopping):
        """Ends a run of seed 1 a round later."""

        def on_fit_start(self, trainer, first_round):
            self._after = self.patience + trainer.seed

        def reason_to_stop(self):
            return super().reason_to_stop() if self._waited >= self._after else None

    for seed in (0, 1):
        fit(rounds=4, seed=seed, callbacks=[Late(min_delta=100, patience=2)])
    fit(rounds=4)
    ended, whole = group_runs(read_runs([tmp_path / "runs"]))
    assert [run.summary["rounds"] for run in ended.runs] == [2, 3]
    assert [run.summary["rounds"] for run in whole.runs] == [4]
    assert "Late(" in ended.label
    told = " ".join(caveats([ended, whole], View()))
    assert "ended early by a callback" in told
    assert "seed 0: 2 of 4; " in told
    assert "other rounds" not in told


@pytest.mark.parametrize(("asking", "agreed"), [([], None), ([2], "a callback set trainer.should_stop"), ([0, 1], "x")])
def test_processes_end_together_if_one_asks_for_it(asking, agreed):
    """Whatever the others would say."""

    class Ask(Callback):
        def reason_to_stop(self):
            return "x" if len(asking) == 2 else None

    def on_rank(ranks):
        asks = ranks.rank in asking
        callbacks = [Ask()] if asks else []
        recorder, plan = SimpleNamespace(folder=SimpleNamespace(path="folder")), SimpleNamespace(rounds=9)
        progress = Progress(finished=3)
        federation = SimpleNamespace(ranks=ranks, progress=progress, recorder=recorder, plan=plan, callbacks=callbacks)
        return is_over(federation, asks), federation.progress.stopped

    assert on_ranks(3, on_rank) == [(agreed is not None, agreed)] * 3


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: loss, patience: 5}}]"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=loss", "--trainer.callbacks.patience=5"],
    ],
)
def test_it_has_a_short_name_in_configs(options):
    built = build(["--config", str(QUICKSTART), *options, "--trainer.monitor", "val_loss"]).trainer
    (callback,) = (each for each in built.callbacks if isinstance(each, EarlyStopping))
    assert (callback.monitor, callback.patience, built.settings.monitor) == ("loss", 5, "val_loss")


def test_nan_is_no_better_figure():
    loss, nan = Monitor("val_loss", "min"), float("nan")
    assert [loss.is_better(1, nan), loss.is_better(nan, 1), loss.is_better(nan, nan)] == [True, False, False]
    assert [Monitor("f1", "max").is_better(*pair, by=0.1) for pair in ((0.7, 0.5), (0.55, 0.5))] == [True, False]
