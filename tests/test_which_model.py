"""Which model predict, test and validate judge, and that the backbone is the one that it was trained with."""

import logging

import pytest
import torch

from fedgram import FederatedTrainer, FedIT, FLoRG, TextClassification, TextClassificationData
from fedgram.errors import CheckpointError
from fedgram.federation.run_settings import WEIGHTS_SETTING
from fedgram.models.digest import weights_digest
from fedgram.runs.checkpoint import load, save
from test_trainer import fit  # noqa: F401 (a fixture)
from tiny_models import save_tiny


@pytest.fixture
def judge(tiny_backbone, tiny_data, tmp_path, caplog):
    """Runs a command of the trainer, returns the bytes or metrics that came and what was logged."""
    caplog.set_level(logging.INFO, "fedgram")

    def run(command="test", method=None, backbone=None, seed=0, **options):
        trainer = FederatedTrainer(
            clients=5, accelerator="cpu", seed=seed, default_root_dir=str(tmp_path / "runs"), progress_bar=False
        )
        data = TextClassificationData(str(tiny_data), batch_size=3, cache_dir=str(tmp_path / "cache"))
        if command == "predict":
            options |= {"output": str(tmp_path / "p.csv")}
        caplog.clear()
        task = TextClassification(backbone or tiny_backbone)
        found = getattr(trainer, command)(task, data, method or FLoRG(rank=2), **options)
        return (found.read_bytes() if command == "predict" else found), caplog.text

    return run


@pytest.mark.parametrize("command", ["predict", "test", "validate"])
def test_without_a_run_the_untrained_model_answers_with_a_warning(judge, command):
    found, logged = judge(command)
    assert "WARNING: no run in" in logged
    assert "UNTRAINED" in logged
    assert "--ckpt_path none" in logged
    asked, logged = judge(command, ckpt_path="none")
    assert asked == found
    assert "WARNING" not in logged
    assert "the untrained model: the backbone" in logged


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("command", ["predict", "test", "validate"])
def test_the_best_of_the_newest_run_answers_or_else_its_last(fit, judge, command):  # noqa: F811
    fit(rounds=1, lr=0.3)
    folder = fit(rounds=3, lr=0.3)[1].folder  # version_1
    best = load(folder.checkpoint("best")).round
    found, logged = judge(command)
    assert f"version_1/checkpoints/best.safetensors, after round {best}" in logged
    assert found == judge(command, ckpt_path="best")[0]
    folder.checkpoint("best").unlink()
    last, logged = judge(command)
    assert "version_1/checkpoints/round_000003.safetensors, after round 3" in logged
    assert last == judge(command, ckpt_path="last")[0] != judge(command, ckpt_path="none")[0]
    assert "--ckpt_path" not in logged
    for path in folder.round_checkpoints():
        path.unlink()
    assert "version_0/checkpoints/best.safetensors" in judge(command)[1]  # of the newest run that has any


def test_a_run_of_other_settings_is_refused_with_how_to_go_on(fit, judge):  # noqa: F811
    fit(rounds=1)
    for change in ({"method": FLoRG(rank=3)}, {"seed": 1}):
        with pytest.raises(CheckpointError, match=r"another run's --ckpt_path, or --ckpt_path none$"):
            judge(**change)
        judge(**change, ckpt_path="none")
    assert "UNTRAINED" in judge(method=FedIT(rank=2))[1]  # whose runs have another name


def test_fit_takes_none_for_a_new_run(fit):  # noqa: F811
    _, first = fit(rounds=1)
    _, second = fit(rounds=1, ckpt_path="none")
    assert (first.folder.path.name, second.folder.path.name) == ("version_0", "version_1")


def replace_weights(folder, factor=1.01):
    """Change one matrix of a saved model, and nothing else; return how to undo it."""
    import transformers

    (path,) = folder.glob("*.safetensors")
    kept = path.read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[3:5] *= factor
    model.save_pretrained(folder)
    return lambda: path.write_bytes(kept)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("command", ["fit", "predict", "test", "validate"])
def test_a_backbone_whose_weights_were_replaced_is_refused(fit, judge, tmp_path, command):  # noqa: F811
    folder = tmp_path / "opt"
    backbone = save_tiny("opt", folder)
    fit(rounds=1, backbone=backbone)
    undo = replace_weights(folder)

    def again():
        if command == "fit":
            return fit(rounds=2, backbone=backbone, ckpt_path="last")
        return judge(command, backbone=backbone)

    with pytest.raises(CheckpointError, match=rf"the backbone '{backbone}' has other weights than it had there"):
        again()
    undo()
    again()


def test_a_checkpoint_without_a_digest_is_taken_with_a_word(fit, judge):  # noqa: F811
    _, trainer = fit(rounds=1)
    for path in trainer.folder.path.glob("checkpoints/*"):
        old = load(path)
        del old.settings[WEIGHTS_SETTING]
        save(path, old)
    assert "does not record the backbone's weights" in judge("test")[1]
    summary, _ = fit(rounds=2, ckpt_path="last")
    assert len(summary["settings"][WEIGHTS_SETTING]) == 64  # from now on
    assert "does not record" not in judge("test", ckpt_path="last")[1]


def test_the_digest_is_of_what_was_loaded_and_of_no_seed(fit, tmp_path):  # noqa: F811
    backbone = save_tiny("llama", tmp_path / "llama")
    digests = [fit(rounds=1, seed=s, backbone=backbone, name="x")[0]["settings"][WEIGHTS_SETTING] for s in (0, 1)]
    assert digests[0] == digests[1]
    replace_weights(tmp_path / "llama")
    assert fit(rounds=1, backbone=backbone)[0]["settings"][WEIGHTS_SETTING] != digests[0]


class Net(torch.nn.Module):
    """A base of two layers with the same weight, a pooler that was drawn, and a drawn head."""

    base_model_prefix = "base"

    def __init__(self, seed, labels=2, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = torch.nn.ModuleDict({name: torch.nn.Linear(4, width) for name in ("one", "two", "pooler")})
        self.head = torch.nn.Linear(4, labels)
        for name, parameter in self.named_parameters():
            drawn = torch.Generator().manual_seed(seed) if "pooler" in name or "head" in name else generator
            parameter.data = torch.randn(parameter.shape, generator=drawn)
        self.base["two"].weight = self.base["one"].weight


DRAWN = ["base.pooler.weight", "base.pooler.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize("most", [1 << 30, 8])
def test_a_digest_is_of_loaded_bytes_and_of_the_shapes_of_what_was_drawn(most):
    first = weights_digest(Net(0), DRAWN, most)
    assert weights_digest(Net(1), DRAWN, most) == first
    assert weights_digest(Net(0, labels=3), DRAWN, most) == first
    assert weights_digest(Net(0), DRAWN[2:], most) != weights_digest(Net(1), DRAWN[2:], most)
    assert weights_digest(Net(0, width=5), list(Net(0).state_dict()), most) != weights_digest(
        Net(0), list(Net(0).state_dict()), most
    )
    other = Net(0)
    with torch.no_grad():
        other.base["one"].bias[0] += 1
    assert weights_digest(other, DRAWN, most) != first
    half = Net(0).to(torch.bfloat16)
    assert weights_digest(half, DRAWN, most) != first


def test_a_large_network_is_read_in_part_alone():
    """16 pages of 64 KiB, of which every fourth is read: a change in any of the others goes unnoticed."""
    network = torch.nn.Linear(1024, 256, bias=False)
    first, seen = weights_digest(network, [], 1 << 18), []
    for page in range(16):
        with torch.no_grad():
            network.weight.view(-1)[page * 16384] += 1
        seen.append(weights_digest(network, [], 1 << 18) != first)
        with torch.no_grad():
            network.weight.view(-1)[page * 16384] -= 1
        first = weights_digest(network, [], 1 << 18)
    assert seen == [page % 4 == 0 for page in range(16)]
