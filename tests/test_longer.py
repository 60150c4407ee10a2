"""Runs that are extended, and what else may be another setting where a run goes on."""

import json
import shutil

import pytest

from fedgram import FLASC, FedDPA, FedSALoRA, FLoRG, SLoRA
from fedgram.callbacks import Callback
from fedgram.comparison import read_runs
from fedgram.errors import CheckpointError, ConfigurationError, DataError
from fedgram.optim import SGD, AdamW
from fedgram.runs.checkpoint import load, save
from tables import rows, without_times
from test_trainer import fit  # noqa: F401
from test_which_model import judge  # noqa: F401


def all_of(trainer):
    """Return the tables of a run, without times."""
    return [without_times(rows(trainer.folder.path, f"{name}.csv")) for name in ("metrics", "communication")]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        (lambda: FLoRG(rank=2), lambda: AdamW(lr=0.02, keep_state=True)),
        (lambda: FedSALoRA(rank=2, head="local"), lambda: SGD(lr=0.1, momentum=0.9, keep_state=True)),
        (lambda: FedDPA(rank=2, schedule="sequential", local_from=4), lambda: AdamW(lr=0.02)),
        (lambda: SLoRA(rank=2, sparse_rounds=3), lambda: AdamW(lr=0.02, keep_state=True)),
        (lambda: FLASC(rank=2), lambda: AdamW(lr=0.02)),
    ],
    ids=["FLoRG", "FedSALoRA", "FedDPA", "SLoRA", "FLASC"],
)
def test_a_finished_run_that_is_extended_has_the_bits_of_a_longer_one(fit, method, optimizer):  # noqa: F811
    """Also where the switch of a method lies in the rounds that were added."""
    keys = {"participation": 3, "client_weights": "samples"}
    whole, one = fit(method=method(), optimizer=optimizer(), rounds=4, name="whole", **keys)
    short, _ = fit(method=method(), optimizer=optimizer(), rounds=2, name="parts", **keys)
    longer, two = fit(method=method(), optimizer=optimizer(), rounds=4, name="parts", ckpt_path="last", **keys)
    assert short["state_hash"] != whole["state_hash"] == longer["state_hash"]
    assert all_of(one) == all_of(two)
    same = ("rounds", "final", "best", "initial", "bytes_up", "client_flops", "settings", "settings_fingerprint")
    assert {key: longer[key] for key in same} == {key: whole[key] for key in same}
    assert json.loads((two.folder.path / "summary.json").read_text())["rounds"] == 4


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("schedule", [{"schedule": "linear"}, {"schedule": "cosine", "warmup": 0.5}, {"warmup": 1.0}])
def test_a_run_whose_schedule_spans_more_rounds_is_extended_to_the_same_bits(fit, schedule):  # noqa: F811
    def go(rounds, **keys):
        given = {"schedule_rounds": 4} if rounds == 2 else {}
        return fit(optimizer=AdamW(lr=0.02, span="run", **schedule, **given), rounds=rounds, **keys)[0]

    go(2, name="parts")
    assert go(4, name="parts", ckpt_path="last")["state_hash"] == go(4, name="whole")["state_hash"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("schedule", "rounds", "remedy"),
    [
        ("linear", 4, "a run that may be extended to 4 rounds is begun with --optimizer.schedule_rounds 4, and this"),
        ("cosine", 3, "a run that may be extended to 3 rounds is begun with --optimizer.schedule_rounds 3, and this"),
        ("constant", 4, "--optimizer.schedule_rounds 2 goes on with the schedule that it has"),
        ("linear", 1, "--optimizer.schedule_rounds 2 goes on with the schedule that it has"),
    ],
)
def test_a_schedule_over_other_rounds_is_refused_with_the_way(fit, schedule, rounds, remedy):  # noqa: F811
    """The remedy of those that have one is taken at its word."""
    given = {"lr": 0.02, "span": "run", "schedule": schedule, "warmup": 0.25}
    _, trainer = fit(optimizer=AdamW(**given), rounds=2, keep_last=3)
    place = str(trainer.folder.round_checkpoint(min(rounds, 2)))
    said = rf"is scheduled over 2 rounds, and here over {rounds}, with which the rounds that are done .*; {remedy}"
    with pytest.raises(CheckpointError, match=said):
        fit(optimizer=AdamW(**given), rounds=rounds, ckpt_path=place)
    assert (trainer.folder.path / "summary.json").exists()
    if remedy.startswith("--"):
        kept = AdamW(**given, schedule_rounds=2)
        assert fit(optimizer=kept, rounds=rounds, ckpt_path=place)[0]["rounds"] == rounds


def test_a_learning_rate_that_does_not_depend_on_the_rounds_needs_no_setting(fit):  # noqa: F811
    optimizer = AdamW(lr=0.02, span="run")
    _, trainer = fit(optimizer=optimizer, rounds=1)
    path = trainer.folder.checkpoint("last")
    former = load(path)
    assert "optimizer.schedule_rounds" not in former.settings
    former.settings["trainer.rounds"] = 1  # as former versions wrote it
    save(path, former)
    assert fit(optimizer=optimizer, rounds=2, ckpt_path="last")[0]["rounds"] == 2


def test_a_schedule_of_a_former_version_is_compared(fit):  # noqa: F811
    optimizer = AdamW(lr=0.02, span="run", schedule="linear")
    _, trainer = fit(optimizer=optimizer, rounds=2)
    path = trainer.folder.checkpoint("last")
    former = load(path)
    former.settings["trainer.rounds"] = former.settings.pop("optimizer.schedule_rounds")
    save(path, former)
    with pytest.raises(CheckpointError, match="is scheduled over 2 rounds, and here over 3"):
        fit(optimizer=optimizer, rounds=3, ckpt_path="last")
    assert fit(optimizer=optimizer, rounds=2, ckpt_path="last")[0]["rounds"] == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"schedule_rounds": 0, "span": "run"}, r"optimizer\.schedule_rounds must be at least 1, or null, got 0"),
        ({"schedule_rounds": 4}, r"optimizer\.schedule_rounds must be left out where span is round, got 4; set"),
    ],
)
def test_rounds_of_a_schedule_are_checked(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        AdamW(lr=0.1, **settings)


def test_a_run_is_no_longer_than_a_schedule_that_falls_to_zero(fit, tmp_path):  # noqa: F811
    falling = AdamW(lr=0.1, schedule="cosine", span="run", schedule_rounds=2)
    with pytest.raises(ConfigurationError, match=r"trainer\.rounds is 3, but .*schedule_rounds = 2; set .* at least 3"):
        fit(optimizer=falling, rounds=3)
    assert not (tmp_path / "runs").exists()


def test_how_a_run_is_watched_may_change_where_it_goes_on(fit):  # noqa: F811
    whole, _ = fit(rounds=4, name="whole")
    fit(rounds=2, name="parts", evaluate_every=2, evaluate_at_start=False)
    watched = {"evaluate_every": 1, "keep_last": 1, "loggers": True, "progress_bar": True}
    parts, trainer = fit(rounds=4, name="parts", ckpt_path="last", **watched)
    assert parts["state_hash"] == whole["state_hash"]
    assert parts["settings_fingerprint"] == whole["settings_fingerprint"]
    assert [row["round"] for row in rows(trainer.folder.path) if row["accuracy"]] == ["2", "3", "4"]
    assert len(trainer.folder.round_checkpoints()) == 1
    assert list(trainer.folder.path.rglob("events.*"))


def test_paths_may_change_where_what_they_lead_to_is_the_same(fit, tiny_backbone, tiny_data, tmp_path):  # noqa: F811
    whole, _ = fit(rounds=3, name="whole")
    _, trainer = fit(rounds=1, name="parts")
    data, backbone, folder = (tmp_path / name for name in ("moved_data", "moved_backbone", "moved_run"))
    shutil.copytree(tiny_data, data)
    shutil.copytree(tiny_backbone, backbone)
    trainer.folder.path.rename(folder)
    moved = {"backbone": str(backbone), "path": data, "ckpt_path": str(folder)}
    assert fit(rounds=2, **moved)[0]["state_hash"] != whole["state_hash"]
    assert fit(rounds=3, **moved)[0]["state_hash"] == whole["state_hash"]


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_backbone_of_another_configuration_is_another_run(fit, judge, tiny_backbone, tmp_path, is_moved):  # noqa: F811
    """Its weights are the same."""
    backbone = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, backbone)
    fit(rounds=1, backbone=str(tiny_backbone if is_moved else backbone))
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    said = r"of another run \(.*has another configuration than it had there"
    with pytest.raises(CheckpointError, match=said):
        fit(rounds=2, ckpt_path="last", backbone=str(backbone))
    with pytest.raises(CheckpointError, match=said):
        judge("test", backbone=str(backbone))


@pytest.mark.parametrize("done", [2, 3])
def test_a_kill_while_a_run_is_extended_leaves_what_compare_reads_rightly(fit, tmp_path, done):  # noqa: F811
    """Before a further round counts it is the run that it was; after that it is one that is not finished."""

    class KilledError(Exception):
        pass

    class Kill(Callback):
        def on_round_start(self, trainer, round_number, clients):
            if round_number == done + 1:
                raise KilledError

    short, _ = fit(rounds=2)
    with pytest.raises(KilledError):
        fit(rounds=4, ckpt_path="last", callbacks=[Kill()])
    if done == 2:
        (run,) = read_runs([tmp_path / "runs"])
        assert run.summary["state_hash"] == short["state_hash"]
        assert run.rounds["round"].tolist() == [0, 1, 2]
    else:
        with pytest.raises(DataError, match="no finished run"):
            read_runs([tmp_path / "runs"])
    fit(rounds=4, ckpt_path="last")
    (run,) = read_runs([tmp_path / "runs"])
    assert (run.summary["rounds"], run.rounds["round"].tolist()) == (4, [0, 1, 2, 3, 4])
