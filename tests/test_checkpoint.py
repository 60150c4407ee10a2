import os

import pytest
import torch

from fedgram.checkpoint import Checkpoint, atomic_write, compare_settings, load, save
from fedgram.errors import CheckpointError
from fedgram.state import flatten, state_hash

SETTINGS = {"trainer.seed": 3, "method": "FLoRG", "method.target_modules": None, "optimizer.betas": [0.9, 0.999]}


def make_checkpoint(state=None):
    if state is None:
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(4, 3, generator=generator)
        state = {
            "adapter": {
                "a.query": {"A": draw, "transposed": draw.mT, "same": draw, "slice": draw[1:]},
                "a.value": {"A": draw.double() / 3, "half": draw.bfloat16(), "step": torch.tensor(2.5)},
            },
            "head": {"out": {"weight": torch.tensor([float("nan"), -0.0, 5e-324, 1e38], dtype=torch.float64)}},
        }
    return Checkpoint(state, 7, SETTINGS, {"seconds": 0.1, "metrics": {"accuracy": 0.5}, "totals": [{"bytes": 2**40}]})


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    path, saved = tmp_path / "new" / "last.safetensors", make_checkpoint()
    save(path, saved)
    loaded = load(path)
    assert state_hash(loaded.state) == state_hash(saved.state)  # names, types, shapes and bits
    assert loaded.state["adapter"]["a.value"]["half"].dtype == torch.bfloat16
    assert loaded.state["adapter"]["a.value"]["step"].shape == ()
    assert (loaded.round, loaded.settings, loaded.progress) == (7, SETTINGS, saved.progress)


def test_an_empty_part_comes_back(tmp_path):
    save(tmp_path / "last", make_checkpoint({"adapter": {"q": {"A": torch.ones(2)}}, "head": {}}))
    assert load(tmp_path / "last").state.keys() == {"adapter", "head"}


def test_saving_again_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, make_checkpoint())
    save(path, make_checkpoint({"adapter": {"q": {"A": torch.ones(2)}}, "head": {}}))
    assert list(flatten(load(path).state)) == ["adapter|q|A"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os if broken == "fsync" else type(path), broken, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*--ckpt_path"):
        load(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_checkpoint_is_an_error(tmp_path, kept):
    path = tmp_path / "last.safetensors"
    save(path, make_checkpoint())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


def test_altered_tensors_are_an_error(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, make_checkpoint())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="was altered"):
        load(path)


@pytest.mark.parametrize("key", ["bert.encoder.weight", "other|layer|A", "adapter|q|A"])
def test_a_safetensors_file_of_others_is_an_error(tmp_path, key):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({key: torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of this version"):
        load(path)


def test_settings_that_differ_are_all_named_with_both_values(tmp_path):
    compare_settings(tmp_path, {"betas": [0.9, 0.999], "n": 1}, {"betas": (0.9, 0.999), "n": 1})
    with pytest.raises(CheckpointError, match=r"method: 'FedIT' there, 'FLoRG' here; rank: 4 there, None here"):
        compare_settings(tmp_path, {"method": "FedIT", "rank": 4, "seed": 0}, {"method": "FLoRG", "seed": 0})
    with pytest.raises(CheckpointError, match=r"alpha: None there, 2\.0 here"):
        compare_settings(tmp_path, {}, {"alpha": 2.0})
