"""Backbones as broken downloads leave them: each is one line that names the file."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedgram.errors import ConfigurationError
from fedgram.models import TextClassification
from tiny_tokenizer import make_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


@pytest.fixture
def folder(tiny_backbone, tmp_path):
    return shutil.copytree(tiny_backbone, tmp_path / "model")


@pytest.fixture
def as_bin(folder):
    """Has the weights in the older format."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def load(folder, **settings):
    task = TextClassification(str(folder), **settings)
    tokenizer = task.load_tokenizer()
    task.build(tokenizer, 0, num_labels=2)
    return task


def refusal(folder, **settings):
    with pytest.raises(ConfigurationError) as caught:
        load(folder, **settings)
    message = str(caught.value)
    assert message.startswith("model.backbone: ")
    assert "\n" not in message
    return message


DAMAGE = {
    "empty": (lambda content: b"", "is empty; download it anew"),
    "pointer": (lambda content: POINTER, "is a pointer of git-lfs and not the file itself; run git lfs pull there"),
    "page": (lambda content: PAGE, "is a page of a web site"),
    "truncated": (lambda content: content[: len(content) // 2], "is cut off"),
    "nearly whole": (lambda content: content[:-1], "is cut off"),
    "few bytes": (lambda content: content[:5], "is cut off, or no file of"),
    "noise": (lambda content: bytes(range(1, 100)) * 9, "is cut off, or no file of"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_weights_that_are_none(folder, damage, message):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(folder).startswith(f"model.backbone: {path} {message}")


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_weights_of_the_older_format_that_are_none(as_bin, damage, message):
    path = as_bin / "pytorch_model.bin"
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(as_bin).startswith(f"model.backbone: {path} {message}")


@pytest.mark.parametrize(
    "content", [b"[]", b"{}extra", b'{"a": 1}', b'{"a": {"data_offsets": [0, "x"]}}', b"[" * 99_999]
)
def test_headers_of_weights_that_are_none(folder, content):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    assert "model.safetensors is cut off, or no file of safetensors; download it anew" in refusal(folder)


def test_weights_with_more_than_their_header_tells(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"12345")
    assert "model.safetensors has 5 bytes too many" in refusal(folder)


def test_a_pickle_that_breaks_off(as_bin):
    (as_bin / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00")
    assert "is no folder with a pretrained transformer" in refusal(as_bin)


def test_whole_weights_load_and_other_files_do_not_matter(folder):
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    (folder / "optimizer.bin").write_bytes(b"")
    load(folder)


def test_a_shard_that_is_cut_off(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shards = [dict(list(weights.items())[:5]), dict(list(weights.items())[5:])]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, {"format": "pt"})
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    load(folder)
    content = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(content[:-10])
    assert f"{names[1]} is cut off: it has {len(content) - 10:,} of {len(content):,} bytes" in refusal(folder)
    (folder / names[1]).unlink()
    assert "is no folder with a pretrained transformer" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", POINTER, PAGE, b"{", b'{"a": 1}', b"null", b"\xff\xfe", b"[" * 99_999])
def test_configurations_and_tokenizers_that_are_none(folder, name, content):
    (folder / name).write_bytes(content)
    if (name, content) == ("tokenizer_config.json", b'{"a": 1}'):
        load(folder)
    else:
        assert str(folder) in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folder, value):
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    weights[name][3, 1] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = refusal(folder)
    assert f"{str(folder)!r} has NaN or inf in 1 of " in message
    assert f"(bert.{name}, ...); give a backbone whose weights are whole" in message


def test_weights_that_float16_cannot_hold(folder):
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = 70_000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load(folder, dtype="bfloat16")
    assert "float16 ends at 65,504: set model.dtype to bfloat16 or float32" in refusal(folder, dtype="float16")


def test_a_tokenizer_of_its_own_is_named_by_its_setting(folder, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    make_tokenizer(tmp_path / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(ConfigurationError, match=r"model\.tokenizer: .*tokenizer\.json is a pointer of git-lfs"):
        TextClassification(str(folder), tokenizer=str(tmp_path / "tokenizer")).load_tokenizer()
