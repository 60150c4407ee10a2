import csv
import inspect
import shlex
from pathlib import Path

import pytest

from fedgram import SGD, Dirichlet, FederatedTrainer, FedSALoRA, FLoRG, TextClassification, TextClassificationData
from fedgram.data import text


@pytest.fixture
def untouchable(monkeypatch):
    """Lets no text be tokenised any more."""

    def untouchable(*_):
        raise AssertionError("tokenised again")

    return lambda: monkeypatch.setattr(text, "tokenise", untouchable)


def entries(folder):
    return sorted(path.name for path in (folder / "tokens").iterdir())


def test_all_is_said_that_fit_will_find(fedgram, config, tiny_backbone, tmp_path):
    code, out, err = fedgram("prepare", "--config", config)
    assert (code, err) == (0, "")
    *table, _, command = out.splitlines()
    rows = {name: value.strip() for name, value in (line.strip().split("  ", 1) for line in table)}
    assert rows.pop("clients").startswith("4, of ")
    assert rows == {
        "backbone": tiny_backbone,
        "from": tiny_backbone,
        "data": "data: train 60, validation 16, test 16 samples",
        "tokens in": str(tmp_path / "cache"),
        "adapters": "4 layers, 128 parameters a client",  # FLoRG's A: 2 x 16 each
        "head": "34 parameters a client",  # 2 x 16 + 2
    }
    assert command == f"  HF_HUB_OFFLINE=1 fedgram fit --config {config}"
    assert not Path("runs").exists()


def test_fit_tokenises_nothing_any_more(fedgram, config, tmp_path, untouchable):
    first = fedgram("prepare", "--config", config)
    made = entries(tmp_path / "cache")
    assert made
    untouchable()
    assert fedgram("prepare", "--config", config) == first
    assert fedgram("fit", "--config", config)[0] == 0
    assert entries(tmp_path / "cache") == made


def test_the_line_to_go_on_with_is_that_of_fit(fedgram, config):
    options = ["--config", config, "--method", "FedIT", "--trainer.name", "a name"]
    command = fedgram("prepare", *options)[1].splitlines()[-1]
    switch, program, *arguments = shlex.split(command)
    assert (switch, program, arguments) == ("HF_HUB_OFFLINE=1", "fedgram", ["fit", *map(str, options)])


def test_neither_an_accelerator_nor_ranks_are_needed(fedgram, config, monkeypatch):
    for name in ("SLURM_STEP_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "was not started by srun" in fedgram("fit", "--config", config)[2]
    asked = ["--trainer.accelerator", "gpu", "--trainer.devices", 8, "--trainer.num_nodes", 4]
    code, out, _ = fedgram("prepare", "--config", config, *asked)
    assert code == 0
    assert "--trainer.devices 8" in out


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.roundz", "3"], "no option 'trainer.roundz'; did you mean trainer.rounds"),
        (["--optimizer.lrr", "3"], "optimizer has no option 'lrr'; did you mean lr?"),
        (["--optimizer.lr", "-1"], "lr"),
        (["--method.target_modules", "[nope]"], "'nope' matches no"),
        (["--method.rank", "99"], "method.rank must be at most min(d_in, d_out) = 16"),
        (["--method.client_ranks", "[2,1]"], "method.client_ranks lists 2 ranks for 4 clients"),
        (["--trainer.clients", "61"], "61 clients cannot share 60 training samples"),
        (["--trainer.participation", "0"], "trainer.participation must be a share"),
        (["--data.path", "no/such.csv"], "no/such.csv"),
        (["--model.backbone", "no/such"], "HF_HUB_OFFLINE is set, so that it has to be in the cache"),
    ],
)
def test_what_fit_would_refuse_is_refused(fedgram, config, arguments, said):
    code, out, err = fedgram("prepare", "--config", config, *arguments)
    assert (code, out, err.replace("fedgram prepare --", "fedgram fit --")) == fedgram(
        "fit", "--config", config, *arguments
    )
    assert code in (1, 2)
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_runs_own_config_prepares_it_elsewhere(fedgram, config):
    arguments = ["--optimizer", "SGD", "--optimizer.lr", 0.1, "--data.partition", "IID"]
    assert fedgram("fit", "--config", config, *arguments)[0] == 0
    saved = Path("runs/data-FLoRG/version_0/config.yaml")
    code, out, _ = fedgram("prepare", "--config", saved, "--ckpt_path", "last")
    assert code == 0
    assert "4, of 15 to 15 training samples" in out


def test_fit_and_prepare_have_the_same_arguments():
    fit, prepare = (inspect.signature(getattr(FederatedTrainer, name)).parameters for name in ("fit", "prepare"))
    assert fit == prepare


@pytest.mark.parametrize(("method", "head"), [(FLoRG(rank=2), 34), (FedSALoRA(rank=2, head="frozen"), 0)])
def test_what_is_prepared_is_what_a_run_has(tiny_backbone, tiny_data, tmp_path, method, head):
    data = TextClassificationData(str(tiny_data), partition=Dirichlet(0.3), cache_dir=str(tmp_path / "cache"))
    trainer = FederatedTrainer(rounds=1, clients=5, accelerator="cpu", default_root_dir=str(tmp_path), loggers=False)
    prepared = trainer.prepare(TextClassification(tiny_backbone), data, method, SGD(lr=0.1))
    assert (trainer.folder, trainer.federation) == (None, None)
    assert not list(tmp_path.glob("data-*"))
    trainer.fit(TextClassification(tiny_backbone), data, method, SGD(lr=0.1))
    with (trainer.folder.path / "partition.csv").open(newline="") as file:
        sizes = [int(row["samples"]) for row in csv.DictReader(file)]
    assert (prepared.clients, prepared.smallest, prepared.largest) == (5, min(sizes), max(sizes))
    states = trainer.federation.held
    assert prepared.layers == len(states.adapter) == 4
    assert prepared.parameters == sum(t.numel() for layer in states.adapter.values() for t in layer.values())
    assert prepared.head_parameters == head
    assert ("frozen" in str(prepared)) == (head == 0)
