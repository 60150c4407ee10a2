import dataclasses
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedgram import (
    IID,
    AdamW,
    Dirichlet,
    FeDeRA,
    FederatedTrainer,
    FedExLoRA,
    FedIT,
    FFALoRA,
    FLoRG,
    TextClassification,
    TextClassificationData,
)
from fedgram.callbacks import Callback
from fedgram.cohort import cohort_size
from fedgram.errors import CheckpointError, ConfigurationError, DataError, FedgramError, TrainingError
from fedgram.runs.checkpoint import fingerprint, load, save
from fedgram.runs.folder import RunFolder
from fedgram.state import flatten
from tables import rows, without_times


@pytest.fixture
def fit(tiny_backbone, tiny_data, tmp_path):
    """Runs a small federation; keywords are the trainer's, but for method, partition, lr, path and ckpt_path.

    All clients of a cohort are in one block, which takes the least time, unless clients_per_block is given.
    """

    def run(
        method=None, partition=None, lr=0.02, path=tiny_data, ckpt_path=None, optimizer=None, backbone=None, **keys
    ):
        keys = {"rounds": 3, "clients": 5, "local_steps": 2, "progress_bar": False, "loggers": False} | keys
        cohort = cohort_size(keys.get("participation", 1), keys["clients"])
        keys = {"clients_per_block": cohort} | keys
        trainer = FederatedTrainer(accelerator="cpu", default_root_dir=str(tmp_path / "runs"), **keys)
        data = TextClassificationData(
            str(path), batch_size=3, partition=partition or Dirichlet(1.0), cache_dir=str(tmp_path / "cache")
        )
        task = TextClassification(backbone or tiny_backbone)
        summary = trainer.fit(task, data, method or FLoRG(rank=2), optimizer or AdamW(lr=lr), ckpt_path)
        return summary, trainer

    return run


@pytest.mark.partition_picture
def test_the_run_folder_holds_what_a_run_is_judged_by(fit, tmp_path):
    summary, trainer = fit(method=FLoRG(rank=2), loggers=True)
    folder = trainer.folder.path
    assert folder == tmp_path / "runs" / "data-FLoRG" / "version_0"
    metrics = rows(folder)
    assert [row["round"] for row in metrics] == ["0", "1", "2", "3"]
    assert metrics[0]["train_loss"] == ""
    assert all(0 <= float(row["accuracy"]) <= 1 for row in metrics)
    assert {
        "val_loss",
        "train_loss",
        "aggregation_error",
        "best_rank_error",
        "condition_number",
        "drift",
        "rank_of_q",
    } <= set(metrics[1])
    assert [row["step_imbalance"] for row in metrics] == ["", "1.0", "1.0", "1.0"]
    assert [row["collective_megabytes"] for row in metrics] == ["0.0"] * 4
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["final"]["accuracy"] == float(metrics[-1]["accuracy"])
    assert summary["initial"]["accuracy"] == float(metrics[0]["accuracy"])
    names = ("torch", "transformers", "lightning", "fedgram")
    assert summary["versions"] == {"python": platform.python_version(), **{name: version(name) for name in names}}
    assert summary["seed"] == 0
    assert summary["data_fingerprint"] == summary["settings"]["data.fingerprint"]
    assert len(summary["data_fingerprint"]) == 64
    assert summary["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", summary["git_commit"])
    assert summary["settings_fingerprint"] == fingerprint(load(trainer.folder.checkpoint("last")).settings)
    assert summary["state_hash"] == _hash_of(trainer.folder.checkpoint("last"))
    assert (folder / "partition.png").stat().st_size > 1000
    partition = rows(folder, "partition.csv")
    assert len(partition) == 5
    assert sum(int(row["samples"]) for row in partition) == 60
    assert len(rows(folder, "diagnostics.csv")) == 3 * 4  # 3 rounds, 4 layers
    assert summary["seconds"] > 0
    assert summary["peak_megabytes"] > 1


def _hash_of(path: Path) -> str:
    from fedgram.state import state_hash

    return state_hash(load(path).state)


def test_communication_is_what_the_shapes_say(fit):
    summary, trainer = fit(method=FedIT(rank=2), rounds=2)
    adapter = 4 * 2 * (16 + 16)  # 4 layers, rank 2, 16 to 16: A and B
    head = 2 * 16 + 2
    expected = [
        {"round": r, "direction": d, "part": p, "clients": "5", "parameters": str(5 * n), "bytes": str(20 * n)}
        for r, d in (("1", "up"), ("2", "down"), ("2", "up"))  # what all start from comes from the seed
        for p, n in (("adapter", adapter), ("head", head))
    ]
    assert rows(trainer.folder.path, "communication.csv") == expected
    assert summary["parameters_up"] == 2 * summary["parameters_down"] == 2 * 5 * (adapter + head)
    assert float(rows(trainer.folder.path)[-1]["megabytes_up"]) == pytest.approx(4 * summary["parameters_up"] / 1e6)


def test_a_frozen_head_is_neither_trained_nor_sent(fit):
    summary, trainer = fit(method=FLoRG(rank=2, head="frozen"), rounds=1)
    assert {row["part"] for row in rows(trainer.folder.path, "communication.csv")} == {"adapter"}
    assert load(trainer.folder.checkpoint("last")).state.head == {}
    assert summary["parameters_up"] == 5 * 4 * 2 * 16


@pytest.mark.slow  # test_end_to_end.py sees the quickstart learn
@pytest.mark.parametrize("method", [FLoRG(rank=2, init_std=0.3), FedIT(rank=2)])
def test_training_learns(fit, method):
    _, trainer = fit(method=method, lr=0.03, rounds=16, local_steps=8, partition=IID(), evaluate_every=16)
    losses = [float(row["train_loss"]) for row in rows(trainer.folder.path)[1:]]
    assert losses[-1] < 0.95 * losses[0]


def test_equal_settings_give_equal_bits_and_another_seed_does_not(fit):
    first, second, other = fit()[0], fit()[0], fit(seed=1)[0]
    assert first["state_hash"] == second["state_hash"] != other["state_hash"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", [FLoRG(rank=2), FLoRG(rank=2, solver="eigh"), FedIT(rank=2)])
def test_block_size_is_a_matter_of_speed(fit, method):
    keys = {"method": method, "precision": "64-true", "partition": Dirichlet(0.5), "local_steps": None, "rounds": 2}
    states = []
    for size in (1, 3, 5):
        _, trainer = fit(clients_per_block=size, **keys)
        states.append(flatten(load(trainer.folder.checkpoint("last")).state))
    for state in states[1:]:
        for key, tensor in state.items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, states[0][key], rtol=0, atol=1e-10)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_with_the_bits_of_one_in_one_go(fit, stop):
    keys = {"participation": 3, "partition": Dirichlet(0.5), "client_weights": "samples", "evaluate_every": 2}
    whole, one = fit(rounds=4, name="whole", **keys)
    fit(rounds=stop, name="parts", **keys)
    parts, two = fit(rounds=4, name="parts", ckpt_path="last", **keys)
    assert two.folder.path.name == "version_0"
    assert parts["state_hash"] == whole["state_hash"]
    assert parts["bytes_up"] == whole["bytes_up"]
    seen = [row for row in without_times(rows(one.folder.path)) if int(row["round"]) != stop]
    again = [row for row in without_times(rows(two.folder.path)) if int(row["round"]) != stop]
    assert seen == again  # the last round of a run is always evaluated, so the row of the stop may hold more
    assert rows(one.folder.path, "communication.csv") == rows(two.folder.path, "communication.csv")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("finished", [0, 2])
def test_a_run_killed_in_a_round_loses_that_round_only(fit, finished):
    class KilledError(Exception):
        pass

    class Kill(Callback):
        def on_block_end(self, trainer, clients):
            if (trainer.folder.path / "metrics.csv").read_text().count("\n") == finished + 2:  # header, round 0
                raise KilledError

    whole, _ = fit(rounds=4, name="whole")
    with pytest.raises(KilledError):
        fit(rounds=4, name="killed", callbacks=[Kill()])
    resumed, trainer = fit(rounds=4, name="killed", ckpt_path="last")
    assert resumed["state_hash"] == whole["state_hash"]
    assert [row["round"] for row in rows(trainer.folder.path)] == ["0", "1", "2", "3", "4"]


def test_rows_of_a_round_that_was_not_checkpointed_are_dropped(fit):
    _, trainer = fit(rounds=3)
    trainer.folder.checkpoint("last").unlink()  # as if killed between row and checkpoint
    _, again = fit(rounds=3, ckpt_path="last")
    assert [row["round"] for row in rows(again.folder.path)] == ["0", "1", "2", "3"]


def test_the_best_checkpoint_has_the_best_accuracy(fit):
    summary, trainer = fit(rounds=6, local_steps=6, partition=IID(), lr=0.05)
    accuracies = {int(row["round"]): float(row["accuracy"]) for row in rows(trainer.folder.path)}
    best = max(accuracies.values())
    assert summary["best"]["accuracy"] == best
    assert load(trainer.folder.checkpoint("best")).round == min(r for r, a in accuracies.items() if a == best)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "trainer.seed: 0 there, 1 here"),
        ({"method": FLoRG(rank=3)}, "method.rank: 2 there, 3 here"),
        ({"method": FedIT(rank=2)}, "method: 'FLoRG' there, 'FedIT' here"),
        ({"lr": 0.5}, "optimizer.lr: 0.02 there, 0.5 here"),
        ({"clients": 6}, "trainer.clients: 5 there, 6 here"),
        ({"partition": Dirichlet(9.0)}, "data.partition.rho: 1.0 there, 9.0 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(fit, tmp_path, change, said):
    _, trainer = fit(rounds=1, clients_per_block=2)
    before = sorted(tmp_path.glob("runs/**/*"))
    with pytest.raises(CheckpointError, match=said):
        fit(clients_per_block=2, ckpt_path=str(trainer.folder.checkpoint("last")), **change)
    assert sorted(tmp_path.glob("runs/**/*")) == before


def test_changed_data_is_another_run(fit, tiny_data):
    _, trainer = fit(rounds=1)
    file = tiny_data / "train.csv"
    file.write_text(file.read_text().replace("film", "plot", 1))
    with pytest.raises(CheckpointError, match=r"data\.fingerprint"):
        fit(ckpt_path=str(trainer.folder.checkpoint("last")))


def test_the_block_size_that_auto_chose_is_kept_on_resume(fit, monkeypatch):
    import fedgram.federation.setup

    monkeypatch.setattr(fedgram.federation.setup, "choose_clients_per_block", lambda *_: 3)
    fit(rounds=1, clients_per_block="auto")
    monkeypatch.setattr(fedgram.federation.setup, "choose_clients_per_block", lambda *_: 1)
    _, trainer = fit(rounds=2, ckpt_path="last", clients_per_block="auto")
    assert trainer.plan.clients_per_block == 3


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"participation": 0}, ConfigurationError, r"participation .* got 0"),
        ({"participation": 6}, ConfigurationError, r"at most trainer.clients = 5; got 6"),
        ({"participation": 2.5}, ConfigurationError, r"whole number .* got 2.5"),
        ({"clients_per_block": 6}, ConfigurationError, "at most the 5 clients of a round, got 6"),
        ({"clients_per_block": 2, "participation": 0.2}, ConfigurationError, "at most the 1 clients"),
        ({"local_epochs": 1}, ConfigurationError, "not both; got 1 and 2"),
        (
            {"client_weights": "equal"},
            ConfigurationError,
            "client_weights must be one of uniform, samples; got 'equal'",
        ),
        ({"precision": "16-mixed"}, ConfigurationError, "precision must be one of 32-true.*; got '16-mixed'"),
        ({"ckpt_path": "best"}, ConfigurationError, "last; best is for validate and test"),
        ({"rounds": 0}, ConfigurationError, "rounds must be at least 1, got 0"),
        ({"method": FLoRG(rank=17)}, ConfigurationError, r"at most min\(d_in, d_out\) = 16 .* got 17"),
        (
            {"method": FLoRG(target_modules=["nope"])},
            ConfigurationError,
            r"'nope' matches no .* dense, key, pooler.dense, query, value",
        ),
        ({"clients": 61, "participation": 5}, DataError, "61"),
        ({"backbone": "no/such/folder"}, ConfigurationError, "model.backbone: 'no/such/folder'"),
        ({"ckpt_path": "last"}, CheckpointError, "no run in .*data-FLoRG"),
        ({"ckpt_path": "no/such/file"}, CheckpointError, "no checkpoint at no/such/file"),
        ({"lr": 1e30, "local_steps": 3}, TrainingError, r"client \d diverged[^\n]*\nround \d"),
    ],
)
def test_bad_input_gives_one_error_and_writes_no_run(fit, tmp_path, keys, error, said):
    with pytest.raises(error, match=said) as caught:
        fit(**keys)
    assert isinstance(caught.value, FedgramError)
    if error is not TrainingError:
        assert not list(tmp_path.glob("runs/*/*"))


def test_a_run_that_goes_on_on_another_kind_of_device_says_that_its_bits_may_differ(fit, caplog):
    _, trainer = fit(rounds=1)
    own = trainer.federation.progress.devices
    fit(rounds=2, ckpt_path="last")
    assert "kind of device" not in caplog.text
    last = trainer.folder.checkpoint("last")
    behind = load(last)
    assert behind.progress["devices"] == own
    doctored = behind.progress | {"devices": ["NVIDIA H200"]}
    save(last, dataclasses.replace(behind, progress=doctored))
    for rounds in (3, 4):  # the second time it has been on both
        caplog.clear()
        summary, _ = fit(rounds=rounds, ckpt_path="last")
        (warning,) = [r for r in caplog.records if "equal bits are promised on one kind of device only" in r.message]
        assert f"NVIDIA H200 and {own[0]}" in warning.message
        assert summary["devices"] == ["NVIDIA H200", *own]


def test_a_run_does_not_go_back(fit):
    fit(rounds=3)
    with pytest.raises(ConfigurationError, match=r"rounds is 2, but .* stands at round 3"):
        fit(rounds=2, ckpt_path="last")


def test_a_truncated_checkpoint_is_refused(fit):
    _, trainer = fit(rounds=1, keep_last=1)
    last = trainer.folder.checkpoint("last")
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        fit(rounds=2, ckpt_path="last")


def test_where_the_newest_checkpoint_is_damaged_the_one_before_is_used(fit, caplog):
    whole, _ = fit(rounds=4, name="whole")
    _, trainer = fit(rounds=3, name="cut")
    names = [path.name for path in trainer.folder.round_checkpoints()]
    assert names == ["round_000003.safetensors", "round_000002.safetensors"]
    last = trainer.folder.checkpoint("last")
    last.write_bytes(last.read_bytes()[:-100])
    resumed, trainer = fit(rounds=4, name="cut", ckpt_path="last")
    assert "round_000003.safetensors is damaged" in caplog.text
    assert resumed["state_hash"] == whole["state_hash"]
    assert [row["round"] for row in rows(trainer.folder.path)] == ["0", "1", "2", "3", "4"]


def test_the_server_weighs_clients_as_told(fit):
    uniform, samples = (fit(client_weights=kind, partition=Dirichlet(0.3))[0] for kind in ("uniform", "samples"))
    assert uniform["state_hash"] != samples["state_hash"]


def test_local_epochs_see_every_sample_once(fit):
    steps = []

    class Count(Callback):
        def on_round_end(self, trainer, row):
            steps.append(row["round"])

    summary, _ = fit(local_steps=None, local_epochs=2, partition=IID(), callbacks=[Count()])
    assert steps == [0, 1, 2, 3]
    assert summary["settings"]["trainer.local_epochs"] == 2


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_low_precision_backbones_keep_float32_adapters(fit, precision):
    _, trainer = fit(precision=precision, rounds=2)
    state = load(trainer.folder.checkpoint("last")).state
    assert {tensor.dtype for tensor in flatten(state).values()} == {torch.float32}
    losses = [float(row["train_loss"]) for row in rows(trainer.folder.path)[1:]]
    exact = [float(row["train_loss"]) for row in rows(fit(rounds=2)[1].folder.path)[1:]]
    assert losses == pytest.approx(exact, abs=0.02)
    assert losses != exact


def test_a_schedule_over_the_run_ends_at_zero(fit):
    falling, constant = (
        fit(rounds=4, optimizer=AdamW(lr=0.02, schedule=schedule, span="run"))[1] for schedule in ("linear", "constant")
    )
    spans = [load(t.folder.checkpoint("last")).settings.get("optimizer.schedule_rounds") for t in (falling, constant)]
    assert spans == [4, None]  # nothing depends on it where the rate is constant
    drift = [[float(row["drift"]) for row in rows(t.folder.path)[1:]] for t in (falling, constant)]
    assert drift[0][-1] < 0.5 * drift[1][-1]


def test_the_evaluation_before_training_may_be_left_out(fit):
    summary, trainer = fit(rounds=2, evaluate_at_start=False, evaluate_every=2)
    assert summary["initial"] == {}
    assert [row.get("accuracy", "") != "" for row in rows(trainer.folder.path)] == [False, False, True]
    assert summary["state_hash"] == fit(rounds=2, name="with")[0]["state_hash"]


def test_evaluation_waits_for_its_round_and_the_last(fit):
    _, trainer = fit(rounds=5, evaluate_every=2)
    metrics = rows(trainer.folder.path)
    assert [row["round"] for row in metrics if row["accuracy"]] == ["0", "2", "4", "5"]
    assert all(float(row["drift"]) > 0 for row in metrics[1:])


def test_no_global_generator_is_touched_or_heard(fit):
    import random

    import numpy as np

    def states():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    first = fit(rounds=1, partition=Dirichlet(0.5), participation=3)[0]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = states()
        second = fit(rounds=1, partition=Dirichlet(0.5), participation=3)[0]
        assert states() == before
    assert first["state_hash"] == second["state_hash"]


def test_threads_are_part_of_the_run(fit):
    before = torch.get_num_threads()
    try:
        fit(rounds=1, threads=1, name="one")
        torch.set_num_threads(2)
        _, trainer = fit(rounds=2, name="one", ckpt_path="last")
        assert (trainer.plan.threads, torch.get_num_threads()) == (1, 1)
        with pytest.raises(CheckpointError, match=r"trainer\.threads: 1 there, 2 here"):
            fit(rounds=3, threads=2, name="one", ckpt_path="last")
    finally:
        torch.set_num_threads(before)


def test_the_type_of_the_weights_is_part_of_the_run(fit, tiny_backbone, tiny_data, tmp_path):
    fit(rounds=1)
    trainer = FederatedTrainer(
        rounds=2, clients=5, local_steps=2, accelerator="cpu", default_root_dir=tmp_path / "runs"
    )
    data = TextClassificationData(str(tiny_data), batch_size=3, partition=Dirichlet(1.0), cache_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.dtype: 'torch\.float32' there, 'torch\.bfloat16' here"):
        trainer.fit(TextClassification(tiny_backbone, "bfloat16"), data, FLoRG(rank=2), AdamW(lr=0.02), "last")


def test_samples_beyond_the_positions_of_the_backbone_are_refused(fit, tiny_data):
    file = tiny_data / "train.csv"
    file.write_text(file.read_text() + "film " * 100 + ",1\n")
    with pytest.raises(ConfigurationError, match=r"a sample has 102 tokens, but .* has 64 positions"):
        fit()


def test_a_checkpoint_for_other_labels_is_refused(fit, tiny_backbone, tiny_data, tmp_path):
    fit(rounds=1)
    data = TextClassificationData(str(tiny_data), num_labels=3, cache_dir=str(tmp_path / "cache"))
    trainer = FederatedTrainer(accelerator="cpu", default_root_dir=tmp_path / "runs")
    with pytest.raises(DataError, match="for the classes '0', '1', and the data has '0', '1', '2'"):
        trainer.test(TextClassification(tiny_backbone), data, FLoRG(rank=2), "last")
    for path in (tmp_path / "runs").glob("*/*/checkpoints/*"):
        old = load(path)
        del old.progress["classes"]  # as former versions wrote it
        save(path, old)
    with pytest.raises(CheckpointError, match="as many labels"):
        trainer.test(TextClassification(tiny_backbone), data, FLoRG(rank=2), "last")


def test_callbacks_are_called_in_order(fit):
    calls = []

    class Record(Callback):
        def on_fit_start(self, trainer, first_round):
            calls.append(("fit", first_round))

        def on_round_start(self, trainer, round_number, clients):
            calls.append(("round", round_number, clients))

        def on_block_end(self, trainer, clients):
            calls.append(("block", clients))

        def on_round_end(self, trainer, row):
            calls.append(("end", row["round"]))

        def on_fit_end(self, trainer):
            calls.append(("done",))

    fit(rounds=1, clients_per_block=3, callbacks=[Record()])
    assert calls == [
        ("fit", 1),
        ("round", 0, 0),
        ("end", 0),
        ("round", 1, 5),
        ("block", 3),
        ("block", 2),
        ("end", 1),
        ("done",),
    ]


def test_validate_test_and_predict_use_a_checkpoint(fit, tiny_backbone, tiny_data, tmp_path):
    summary, trainer = fit(rounds=6, local_steps=6, partition=IID(), lr=0.05)
    data = TextClassificationData(str(tiny_data), cache_dir=str(tmp_path / "cache"))
    data = {"datamodule": data, "method": FLoRG(rank=2)}
    fresh = FederatedTrainer(accelerator="cpu", default_root_dir=str(tmp_path / "runs"))
    last = {"ckpt_path": "last"}
    assert fresh.validate(TextClassification(tiny_backbone), **data, **last) == pytest.approx(
        summary["final"], abs=1e-6
    )
    start = fresh.validate(TextClassification(tiny_backbone), **data)
    assert start["accuracy"] == summary["initial"]["accuracy"]
    tested = fresh.test(TextClassification(tiny_backbone), **data, **last)
    path = fresh.predict(TextClassification(tiny_backbone), **data, **last, output=str(tmp_path / "out" / "p.csv"))
    predicted = rows(path.parent, path.name)
    truth = rows(tiny_data, "test.csv")
    assert [row["sample"] for row in predicted] == [str(i) for i in range(16)]
    assert list(predicted[0]) == [
        *("sample", "text", "input label", "label", "probability", "probability of 0", "probability of 1"),
    ]
    for p, t in zip(predicted, truth, strict=True):
        assert (p["text"], p["input label"]) == (t["text"], t["label"])
        assert float(p["probability"]) == float(p[f"probability of {p['label']}"]) >= 0.5
    right = [p["label"] == t["label"] for p, t in zip(predicted, truth, strict=True)]
    assert tested["accuracy"] == pytest.approx(sum(right) / 16)
    with pytest.raises(CheckpointError, match=r"method\.rank: 2 there, 4 here"):
        fresh.test(
            TextClassification(tiny_backbone), data["datamodule"], FLoRG(rank=4), str(trainer.folder.checkpoint("last"))
        )


def test_a_run_may_be_judged_by_other_metrics(fit, tiny_backbone, tiny_data, tmp_path):
    fit(rounds=1)
    data = TextClassificationData(str(tiny_data), cache_dir=str(tmp_path / "cache"))
    trainer = FederatedTrainer(accelerator="cpu", default_root_dir=str(tmp_path / "runs"))
    task = TextClassification(tiny_backbone, metrics=["matthews_correlation"])
    assert set(trainer.validate(task, data, FLoRG(rank=2), "last")) == {"loss", "matthews_correlation"}


def test_an_unlabelled_split_gives_predictions_and_no_scores(fit, tiny_backbone, tiny_data, tmp_path):
    fit(rounds=1)
    texts = (tiny_data / "test.csv").read_text().splitlines()
    (tiny_data / "test.csv").write_text("text\n" + "\n".join(row.rsplit(",", 1)[0] for row in texts[1:]))
    data = TextClassificationData(str(tiny_data), cache_dir=str(tmp_path / "cache"))
    trainer = FederatedTrainer(accelerator="cpu", default_root_dir=str(tmp_path / "runs"))
    with pytest.raises(ConfigurationError, match=r"no labels.*predict"):
        trainer.test(TextClassification(tiny_backbone), data, FLoRG(rank=2), "last")
    path = trainer.predict(
        TextClassification(tiny_backbone), data, FLoRG(rank=2), "last", output=str(tmp_path / "p.csv")
    )
    assert len(rows(path.parent, path.name)) == 16


def test_without_a_validation_split_a_run_still_trains(fit, tiny_data):
    (tiny_data / "validation.csv").unlink()
    summary, trainer = fit(rounds=2)
    assert summary["final"] == {}
    assert float(rows(trainer.folder.path)[-1]["train_loss"]) > 0
    assert not trainer.folder.checkpoint("best").exists()


def test_versions_are_counted_up(tmp_path):
    names = [RunFolder.create(tmp_path, "run").path.name for _ in range(3)]
    assert names == ["version_0", "version_1", "version_2"]


def test_a_field_that_is_neither_sent_nor_trained_stays_what_the_seed_gave(fit):
    """FFA-LoRA's A is one for all clients, and for ever: only then is averaging B exact."""
    summary, trainer = fit(method=FFALoRA(rank=2), rounds=3)
    sent = 5 * 4 * 2 * 16
    assert (summary["parameters_up"], summary["parameters_down"]) == (3 * sent, 2 * sent)
    errors = [float(row["aggregation_error"]) for row in rows(trainer.folder.path) if row["aggregation_error"]]
    assert len(errors) == 3
    assert max(errors) < 1e-6
    first = load(trainer.folder.checkpoint("last")).state.adapter
    start = fit(method=FFALoRA(rank=2), rounds=1, lr=1e-9, name="start")[1]
    second = load(start.folder.checkpoint("last")).state.adapter
    for name, layer in first.items():
        assert torch.equal(layer["A"], second[name]["A"])
        assert not torch.equal(layer["B"], second[name]["B"])


@pytest.mark.parametrize(("residual", "extra"), [("dense", 16 * 16), ("factored", 4 * 1 * 32)])
def test_a_residual_travels_from_the_second_round_and_is_counted_as_sent(fit, residual, extra):
    """Four layers of 16 x 16; five clients, of which the residual has rank 4 * 1."""
    _, trainer = fit(method=FedExLoRA(rank=1, residual=residual), rounds=3)
    table = rows(trainer.folder.path, "communication.csv")
    down, up = (
        [int(row["parameters"]) for row in table if (row["direction"], row["part"]) == (direction, "adapter")]
        for direction in ("down", "up")
    )
    factors = 5 * 4 * 1 * 32
    assert down == [factors + 5 * 4 * extra] * 2
    assert up == [factors] * 3


def test_both_forms_of_a_residual_are_one_method(fit):
    dense, _ = fit(method=FedExLoRA(rank=2), rounds=3)
    factored, _ = fit(method=FedExLoRA(rank=2, residual="factored"), rounds=3, name="factored")
    assert dense["final"] == pytest.approx(factored["final"], abs=1e-6)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("method", [FeDeRA(rank=2), FFALoRA(rank=2), FedExLoRA(rank=2), FeDeRA(rank=2, when="round")])
def test_every_start_is_the_pretrained_function(fit, method):
    """Before training all methods say the same, whatever their adapters start from."""
    initial = fit(method=method, rounds=1, lr=1e-9)[0]["initial"]
    assert initial == pytest.approx(fit(method=FLoRG(rank=2), rounds=1, name="other")[0]["initial"], abs=1e-5)


@pytest.mark.parametrize("rounds", [1, 3])
def test_fedex_is_the_mean_of_what_its_clients_trained(fit, tiny_backbone, rounds):
    """The model that is evaluated is the dense one, W⁰ + R + s B A, and lies where the clients' mean does."""
    summary, trainer = fit(method=FedExLoRA(rank=2, alpha=4.0, head="frozen"), rounds=rounds)
    network, state = trainer.federation.network, trainer.federation.state.adapter
    data = trainer.federation.data
    task = network.task.loaded()
    for name, layer in state.items():
        adapter = task.get_submodule(name)
        dense = nn.Linear(adapter.d_in, adapter.d_out)
        weight = adapter.base.weight + layer["residual"] + 2.0 * layer["B"] @ layer["A"]
        dense.load_state_dict({"weight": weight, "bias": adapter.base.bias})
        parent, _, child = name.rpartition(".")
        setattr(task.get_submodule(parent), child, dense)
    table = data.split("validation")
    batch = table.batch(np.arange(len(table)), 0)
    labels = batch.pop("labels")
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(task(**batch).logits, labels))
    assert loss == pytest.approx(summary["final"]["loss"], abs=1e-5)
    assert all(float(row["aggregation_error"]) < 1e-5 for row in rows(trainer.folder.path)[1:])


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_a_residual_beside_weights_in_half_precision_stays_in_single(fit, precision):
    summary, trainer = fit(method=FedExLoRA(rank=2), rounds=2, precision=precision)
    residuals = [layer["residual"] for layer in trainer.federation.state.adapter.values()]
    assert all(residual.dtype == torch.float32 and residual.any() for residual in residuals)
    assert summary["final"]["loss"] < 1


def test_a_residual_is_shared_where_heads_are_not(fit):
    summary, trainer = fit(method=FedExLoRA(rank=2, head="local"), rounds=2)
    assert {row["part"] for row in rows(trainer.folder.path, "communication.csv")} == {"adapter"}
    clients = load(trainer.folder.checkpoint("last")).clients
    assert all(key.startswith("head|") for tensors in clients.values() for key in tensors)
    assert summary["personal_evaluation"] == "own"
    assert fit(rounds=1, name="global")[0]["personal_evaluation"] is None


def test_seconds_of_training_leave_evaluation_out(fit):
    summary, trainer = fit(rounds=2)
    table = rows(trainer.folder.path)
    parts = sum(float(row[key]) for row in table[1:] for key in ("seconds_local", "seconds_server"))
    assert summary["seconds_training"] == pytest.approx(parts)
    assert summary["seconds_training"] < summary["seconds"]
