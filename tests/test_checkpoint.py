import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.checkpoint import Checkpoint, compare_settings, fingerprint, load, save
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
    progress = {"seconds": 0.1, "metrics": {"accuracy": 0.5}, "totals": [{"bytes": 2**40}]}
    return Checkpoint(state, 7, SETTINGS, progress, {4: {"head|out|bias": torch.ones(2)}})


@pytest.fixture(scope="session")
def saved_file(tmp_path_factory):
    """A checkpoint in a file, and its bytes."""
    path = tmp_path_factory.mktemp("checkpoint") / "last.safetensors"
    save(path, make_checkpoint())
    return path, path.read_bytes()


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    path, saved = tmp_path / "new" / "last.safetensors", make_checkpoint()
    save(path, saved)
    loaded = load(path)
    assert state_hash(loaded.state) == state_hash(saved.state)  # names, types, shapes and bits
    assert loaded.state["adapter"]["a.value"]["half"].dtype == torch.bfloat16
    assert loaded.state["adapter"]["a.value"]["step"].shape == ()
    assert (loaded.round, loaded.settings, loaded.progress) == (7, SETTINGS, saved.progress)
    assert {client: list(kept) for client, kept in loaded.clients.items()} == {4: ["head|out|bias"]}


def test_an_empty_part_comes_back(tmp_path):
    save(tmp_path / "last", make_checkpoint({"adapter": {"q": {"A": torch.ones(2)}}, "head": {}}))
    assert load(tmp_path / "last").state.keys() == {"adapter", "head"}


def test_saving_again_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, make_checkpoint())
    save(path, make_checkpoint({"adapter": {"q": {"A": torch.ones(2)}}, "head": {}}))
    assert list(flatten(load(path).state)) == ["adapter|q|A"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*--ckpt_path"):
        load(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_no_byte_may_be_another(saved_file, data):
    """Whatever it belongs to: tensors, round, settings, progress, clients, the digest itself, or mere padding."""
    path, content = saved_file
    position = data.draw(st.integers(0, len(content) - 1))
    altered = bytearray(content)
    altered[position] ^= data.draw(st.integers(1, 255))
    assert_refused(path.with_name("altered"), bytes(altered))


@given(data=st.data())
@settings(deadline=None)
def test_no_byte_may_be_missing_or_too_many(saved_file, data):
    path, content = saved_file
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    assert_refused(path.with_name("cut"), cut)
    assert_refused(path.with_name("longer"), content + data.draw(st.binary(min_size=1, max_size=9)))


def assert_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged|was altered|no checkpoint of this version"):
        load(path)


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        (rb"\"round\": 7", rb"\"round\": 6"),
        (rb"trainer.seed", rb"trainer.feed"),
        (rb"accuracy", rb"adequacy"),
        (b"client 4|", b"client 5|"),
    ],
)
def test_altered_facts_are_an_error(saved_file, found, instead):
    path, content = saved_file
    assert content.count(found) == 1
    altered = path.with_name("facts")
    altered.write_bytes(content.replace(found, instead))
    with pytest.raises(CheckpointError, match="was altered"):
        load(altered)


def test_a_checkpoint_of_the_former_format_is_an_error_that_says_so(tmp_path):
    from safetensors.torch import save_file

    facts = {"format": "1", "round": 1, "settings": {}, "progress": {}, "state_hash": "0" * 64}
    save_file({"adapter|q|A": torch.ones(2)}, tmp_path / "old", metadata={"fedgram": json.dumps(facts)})
    with pytest.raises(CheckpointError, match=r"reads format '2'; got '1': go on with the version that wrote it"):
        load(tmp_path / "old")


def test_a_file_holds_the_fingerprint_of_its_settings(saved_file):
    path, content = saved_file
    assert fingerprint(load(path).settings) == fingerprint(SETTINGS)
    assert content.count(fingerprint(SETTINGS).encode()) == 1
    assert fingerprint(dict(reversed(SETTINGS.items()))) == fingerprint(SETTINGS) != fingerprint({})


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
