"""Devices, processes, threads and names of folders that no run can have: one line each, before anything is written."""

import math
from pathlib import Path
from unittest import mock

import pytest

from fedgram import FederatedTrainer
from fedgram.distributed.hardware import check_hardware, check_requests
from fedgram.errors import ConfigurationError
from fedgram.methods import CELoRA, FLoRG, LoRAFAIR, MFedLoRU, PFedLoRU
from fedgram.names import check_folder_name, check_path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 0}, "trainer.devices must be auto, a number of at least 1"),
        ({"devices": -2}, "got -2"),
        ({"devices": []}, r"got \[\]"),
        ({"devices": "all"}, "got 'all'"),
        ({"devices": "0x2"}, "got '0x2'"),
        ({"devices": ""}, "got ''"),
        ({"devices": "1,1"}, "got '1,1'"),
        ({"devices": [0, -1]}, "trainer.devices must be"),
        ({"devices": "9" * 5000}, "trainer.devices must be"),
        ({"devices": True}, "got True"),
        ({"accelerator": "gppu"}, "trainer.accelerator must be one of auto, cpu, gpu, cuda, mps; got 'gppu'"),
        ({"accelerator": "tpu"}, "trainer.accelerator must be one of"),
        ({"strategy": "dp"}, "trainer.strategy must be one of auto, ddp"),
        ({"strategy": "fsdp"}, "got 'fsdp'"),
        ({"strategy": ""}, "got ''"),
        ({"threads": 100_000}, "trainer.threads must be at most 1024, got 100000"),
        ({"num_nodes": 0}, "trainer.num_nodes must be at least 1, or auto, got 0"),
        ({"name": ".."}, r"trainer.name must be the name of one folder, without slashes; got '\.\.'"),
        ({"name": "../x"}, r"each part of trainer.name '../x' must be the name of one folder.*; got '\.\.'"),
        ({"name": "/abs"}, r"each part of trainer.name '/abs' must be the name of one folder.*; got ''"),
        ({"name": "group/../../x"}, r"each part of trainer.name 'group/../../x' must be"),
        ({"name": "group//x"}, "each part of trainer.name"),
        ({"name": "a\nb"}, "must not hold line breaks"),
        ({"name": "n" * 201}, "must have at most 200 bytes"),
        ({"name": " "}, "trainer.name must be"),
        ({"default_root_dir": "a\0b"}, "trainer.default_root_dir must be a path, got one with a NUL"),
        ({"default_root_dir": "d" * 256}, "trainer.default_root_dir must be a path of at most 4095 bytes, and of 255"),
        ({"participation": math.nan}, "trainer.participation must be"),
        ({"participation": math.inf}, "trainer.participation must be"),
    ],
)
def test_what_no_machine_has_is_refused_when_the_trainer_is_made(settings, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        FederatedTrainer(**settings)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("devices", ["auto", 1, "2", [0], "0,1", -1, "-1"])
def test_what_some_machine_has_may_be_asked_for(devices):
    check_requests("gpu", devices, 7, "ddp", 1024)


@pytest.mark.parametrize(
    ("asked", "gpus", "said"),
    [
        (("cuda", 1, 1, 1), 0, "trainer.accelerator is cuda, and torch finds no GPU here"),
        (("gpu", "auto", 1, 1), 0, "trainer.accelerator is gpu"),
        (("cpu", -1, 1, 1), 0, "trainer.devices must be a number of processes on the CPU"),
        (("cpu", [0], 1, 1), 0, r"got \[0\]"),
        (("cpu", 100_000, 1, 1), 0, "trainer.devices must be at most"),
        (("cuda", 3, 1, 1), 2, "trainer.devices is 3, and torch finds 2 GPUs here"),
        (("cuda", [2], 1, 1), 2, "torch finds 2 GPUs here"),
        (("cpu", 1, 7, 1), 0, "trainer.num_nodes is 7, and this program was started on one node"),
        (("cpu", 4, 2, 2), 0, None),
        (("cpu", "auto", 1, 1), 0, None),
        (("cuda", -1, 1, 1), 2, None),
        (("cuda", "0,1", 1, 1), 2, None),
        (("cuda", "auto", 1, 1), 2, None),
    ],
)
def test_what_this_machine_has_not_is_refused_before_anything_is_started(monkeypatch, asked, gpus, said):
    monkeypatch.delenv("NODE_RANK", raising=False)
    monkeypatch.delenv("GROUP_RANK", raising=False)
    cuda = {"is_available": mock.Mock(return_value=gpus > 0), "device_count": mock.Mock(return_value=gpus)}
    with mock.patch.multiple("torch.cuda", **cuda):
        if said is None:
            check_hardware(*asked)
            return
        with pytest.raises(ConfigurationError, match=said):
            check_hardware(*asked)


def test_a_run_on_nodes_that_nobody_starts_is_refused_and_writes_nothing(fedgram, config):
    code, out, err = fedgram("fit", "--config", config, "--trainer.num_nodes", 7)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "trainer.num_nodes is 7" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["a", "task-FLoRG", "rho=0.5", "ünï", "..a", "a b"])
def test_a_plain_name_is_a_folder(name):
    assert check_folder_name("trainer.name", name) == name
    check_path("data.path", f"some/{name}")


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("method", "option"),
    [
        (FLoRG, "alpha"),
        (FLoRG, "init_std"),
        (CELoRA, "init_std"),
        (CELoRA, "temperature"),
        (LoRAFAIR, "lam"),
        (LoRAFAIR, "lr"),
        (PFedLoRU, "personal_scale"),
        (PFedLoRU, "personal_share"),
        (MFedLoRU, "inner_scale"),
    ],
)
def test_a_number_that_must_be_finite_is(method, option, odd):
    with pytest.raises(ConfigurationError, match=rf"method\.{option}|method\.lr") as caught:
        method(**{option: odd})
    assert str(odd) in str(caught.value)


def test_shares_of_ranks_are_finite():
    from fedgram import FlexLoRA

    with pytest.raises(ConfigurationError, match="client_ranks"):
        FlexLoRA(rank=4, client_ranks={4: math.nan, 2: 0.5})


@pytest.mark.parametrize("odd", ["n" * 300, "a/" * 3000, "a\0b"])
def test_no_path_is_too_long_or_holds_a_nul(odd):
    from fedgram import TextClassification, TextClassificationData

    for make, key in [
        (lambda: TextClassification(odd), "model.backbone"),
        (lambda: TextClassification("x", tokenizer=odd), "model.tokenizer"),
        (lambda: TextClassificationData(odd), "data.path"),
        (lambda: TextClassificationData("x", test_path=odd), "data.test_path"),
        (lambda: TextClassificationData("x", cache_dir=odd), "data.cache_dir"),
    ]:
        with pytest.raises(ConfigurationError, match=rf"{key} must be a path"):
            make()
