import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import made_checkpoints
from fedgram.errors import CheckpointError
from fedgram.federation.run_settings import compare_settings
from fedgram.runs.checkpoint import Checkpoint, fingerprint, load, save
from fedgram.state import ModelState, ServerMemory, ServerState, flatten, state_hash
from made_checkpoints import PROGRESS, parts_of, resigned

SETTINGS = made_checkpoints.SETTINGS | {"method": "FLoRG", "method.target_modules": None, "betas": [0.9, 0.999]}


def make_checkpoint(state=None):
    if state is None:
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(4, 3, generator=generator)
        model = ModelState(
            {
                "a.query": {"A": draw, "transposed": draw.mT, "same": draw, "slice": draw[1:]},
                "a.value": {"A": draw.double() / 3, "half": draw.bfloat16(), "step": torch.tensor(2.5)},
            },
            {"out": {"weight": torch.tensor([float("nan"), -0.0, 5e-324, 1e38], dtype=torch.float64)}},
        )
        state = ServerState(model, ServerMemory({"a.query": {"mean": draw / 7}}, {"cluster": torch.tensor([2, 0])}))
    return Checkpoint(state, 7, SETTINGS, PROGRESS, {4: {"head|out|bias": torch.ones(2)}})


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
    assert loaded.state.adapter["a.value"]["half"].dtype == torch.bfloat16
    assert loaded.state.adapter["a.value"]["step"].shape == ()
    assert loaded.state.memory.globals["cluster"].tolist() == [2, 0]
    assert (loaded.round, loaded.settings, loaded.progress) == (7, SETTINGS, saved.progress)
    assert {client: list(kept) for client, kept in loaded.clients.items()} == {4: ["head|out|bias"]}


def test_an_empty_part_comes_back(tmp_path):
    save(tmp_path / "last", make_checkpoint(ServerState(ModelState({"q": {"A": torch.ones(2)}}))))
    state = load(tmp_path / "last").state
    assert list(state.adapter) == ["q"]
    assert (state.head, state.memory) == ({}, ServerMemory())


def test_saving_again_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, make_checkpoint())
    save(path, make_checkpoint(ServerState(ModelState({"q": {"A": torch.ones(2)}}))))
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
        (rb"seconds_training", rb"seconds_draining"),
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


def put(path, value):
    """Return a change of what a checkpoint says: a value at a dotted path, or nothing there where it is None."""

    def change(facts):
        where, *keys = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in keys:
            facts, where = facts[where], key
        if value is None:
            del facts[where]
        else:
            facts[where] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("round", None, "round is missing, which should be a whole number"),
        ("round", "7", "round should be a whole number from 0 on, and is '7'"),
        ("round", True, "round should be a whole number"),
        ("round", -1, "round should be a whole number"),
        ("round", 0, "it holds round 0, before which nothing is sent"),
        ("settings", [], "settings should be a mapping"),
        ("settings/trainer.threads", None, "settings.trainer.threads is missing"),
        ("settings/trainer.clients", 10**30, "settings.trainer.clients should be a whole number from 1 to"),
        ("settings/trainer.participation", 9, "9 of 5 clients take part"),
        ("progress", None, "progress is missing, which should be a mapping"),
        ("progress/seconds", "long", "progress.seconds should be a number from 0 on, and is 'long'"),
        ("progress/seconds_training", float("nan"), "progress.seconds_training should be a number"),
        ("progress/totals", {}, "progress.totals should be rows"),
        ("progress/totals/0/bytes", 0.5, "progress.totals should be rows"),
        ("progress/totals/0/part", "server", "progress.totals should be rows"),
        ("progress/metrics", {"accuracy": None}, "progress.metrics should be numbers by name"),
        ("progress/best", {"accuracy": 1.0}, "progress.best should have accuracy and a round of at most 7"),
        ("progress/best/round", 8, "progress.best should have accuracy and a round of at most 7"),
        ("progress/devices", [], "progress.devices should be names of devices"),
        ("progress/monitor", 3, "progress.monitor should be a text, and is 3"),
        ("progress/monitor", "f1", "progress.best should have f1 and a round"),
        ("progress/evaluated", 0.5, "progress.evaluated should be a whole number from -1 on"),
        ("progress/evaluated", 8, "progress.evaluated should be at most round 7, and is 8"),
        ("progress/stopped", {"reason": "x"}, "progress.stopped should be null, or a reason and rounds"),
        ("progress/stopped", {"reason": "x", "rounds": 0}, "progress.stopped should be null, or a reason and rounds"),
        ("progress/callbacks", {"EarlyStopping": 1}, "progress.callbacks should be states by name"),
        ("progress/classes", ["bad"], "progress.classes should be null or the names of at least two classes"),
        ("progress/classes", ["bad", "bad"], "progress.classes should be null or the names"),
        ("progress/classes", ["bad", 1], "progress.classes should be null or the names"),
        ("progress/classes", "bad", "progress.classes should be null or the names"),
        (
            "progress/client_flops",
            7,
            "progress.client_flops and progress.server_flops should be whole",
        ),
    ],
)
def test_facts_that_no_run_writes_are_an_error_that_says_which(saved_file, path, value, told):
    facts, header, data = parts_of(saved_file[1])
    put(path, value)(facts)
    altered = saved_file[0].with_name("resigned")
    altered.write_bytes(resigned(facts, header, data))
    with pytest.raises(CheckpointError, match=f"was altered: {told}.*; use an older one or start again$") as caught:
        load(altered)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "adapter",
        "adapter|q",
        "other|q|A",
        "client x|head|out|bias",
        "client 01|head|out|bias",
        "client 1|server|q|A",
    ],
)
def test_names_of_tensors_that_no_run_gives_are_an_error(saved_file, name):
    facts, header, data = parts_of(saved_file[1])
    header = {name if key == "client 4|head|out|bias" else key: place for key, place in header.items()}
    altered = saved_file[0].with_name("renamed")
    altered.write_bytes(resigned(facts, header, data))
    with pytest.raises(CheckpointError, match=r"a tensor of the name .*, which is none that fedgram gives"):
        load(altered)


def test_what_is_made_anew_unchanged_is_read(saved_file):
    again = saved_file[0].with_name("again")
    again.write_bytes(resigned(*parts_of(saved_file[1])))
    assert state_hash(load(again).state) == state_hash(load(saved_file[0]).state)


def test_a_file_of_another_round_than_its_name_says_is_an_error(saved_file):
    renamed = saved_file[0].with_name("round_000008.safetensors")
    renamed.write_bytes(saved_file[1])
    with pytest.raises(CheckpointError, match="its name says round 8, but it holds round 7"):
        load(renamed)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "nowhere"])
def test_what_is_no_regular_file_is_an_error_at_once(tmp_path, kind):
    path = tmp_path / "round_000001.safetensors"
    targets = {"device": "/dev/zero", "loop": path, "nowhere": tmp_path / "no"}
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(targets[kind])
    with pytest.raises(CheckpointError, match="is a pipe, a device or a link to nowhere, and no checkpoint"):
        load(path)


@pytest.mark.parametrize("path", ["x" * 300, "a\0b"])
def test_a_path_that_can_be_none_is_an_error(path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load(Path(path))
