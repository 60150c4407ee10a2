"""A backbone without a tokenizer is refused, where Transformers would make one up that knows no word."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedgram.errors import ConfigurationError
from fedgram.models import TextClassification
from fedgram.models.tokenizers import check_unknown, check_vocabulary
from tiny_models import make_tokenizer, save_tiny
from tiny_text import WORDS

HELD = {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {family: Path(save_tiny(family, root / family)) for family in ("bert", "roberta", "opt", "llama", "qwen2")}


def without(folder, target, kept=frozenset()):
    """A copy of a model's folder without its tokenizer's files, but for some."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name in HELD | kept:
            shutil.copy(path, target)
    return str(target)


@pytest.mark.parametrize("kept", [set(), {"tokenizer_config.json", "special_tokens_map.json"}], ids=["none", "config"])
@pytest.mark.parametrize("family", ["bert", "roberta", "opt", "llama", "qwen2"])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path, folders, family, kept):
    place = without(folders[family], tmp_path / "bare", kept)
    with pytest.raises(ConfigurationError, match=r"tokenizer|pretrained transformer") as error:
        TextClassification(place).load_tokenizer()
    assert place in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["bert", "roberta", "opt", "llama", "qwen2"])
def test_a_borrowed_tokenizer_serves_in_its_place(tmp_path, folders, family):
    place = without(folders[family], tmp_path / "bare")
    task = TextClassification(place, tokenizer=str(folders[family]))
    assert task.load_tokenizer()("good film")["input_ids"]


def test_a_tokenizer_in_a_file_of_another_form_is_one(tmp_path, tiny_backbone):
    """vocab.txt alone, as older models have it."""
    place = without(Path(tiny_backbone), tmp_path / "old", {"vocab.txt"})
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    assert TextClassification(place).load_tokenizer()("good film")["input_ids"] == [2, 5, 14, 3]


@pytest.mark.parametrize("kind", ["ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"])
def test_tokenizers_of_bytes_and_characters_need_no_file(tmp_path, folders, kind):
    place = Path(without(folders["bert"], tmp_path / "bytes"))
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    tokenizer = TextClassification(str(place)).load_tokenizer()
    assert type(tokenizer).__name__ == kind
    assert tokenizer.unk_token_id not in tokenizer("a good film, naïve")["input_ids"]
    large = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=2_000_000))
    check_vocabulary(tokenizer, large, "x", "x", borrowed=False)


def test_a_tokenizer_of_special_tokens_alone_is_refused(tmp_path, folders):
    folder = tmp_path / "empty"
    shutil.copytree(folders["bert"], folder)
    make_tokenizer("bert", []).save_pretrained(folder)
    with pytest.raises(ConfigurationError, match=r"no tokens but the special ones, 4 of them"):
        TextClassification(str(folder)).load_tokenizer()


@pytest.mark.parametrize(("size", "refused"), [(18, False), (360, False), (361, True), (30_522, True)])
def test_a_vocabulary_far_below_the_backbones_is_not_its_own(size, refused):
    tokenizer = make_tokenizer("bert")
    assert len(tokenizer) == 18
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))
    check_vocabulary(tokenizer, config, "small", "large", borrowed=True)
    if not refused:
        check_vocabulary(tokenizer, config, "small", "large", borrowed=False)
        return
    with pytest.raises(ConfigurationError, match=rf"'small' has 18 tokens, but the backbone was made for {size:,}"):
        check_vocabulary(tokenizer, config, "small", "large", borrowed=False)


def ids_of(tokenizer, known, unknown):
    texts = ["film"] * known + ["Zug"] * unknown
    return np.array([number for text in texts for number in tokenizer(text)["input_ids"]], np.int32)


@pytest.mark.parametrize("family", ["bert", "roberta", "opt"])
@pytest.mark.parametrize(("unknown", "level"), [(2, ""), (10, ""), (11, "warned"), (90, "warned"), (91, "refused")])
def test_unknown_tokens_are_counted_without_the_special_ones(family, unknown, level, caplog):
    tokenizer = make_tokenizer(family)
    ids = ids_of(tokenizer, 100 - unknown, unknown)
    if level == "refused":
        with pytest.raises(
            ConfigurationError, match=r"91% of the 100 tokens of the train split are unknown to the tok"
        ):
            check_unknown(tokenizer, ids)
        return
    with caplog.at_level(logging.WARNING, logger="fedgram"):
        check_unknown(tokenizer, ids)
    assert (f"{unknown}% of the 100 tokens of the train split are unknown" in caplog.text) == (level == "warned")


def test_a_tokenizer_that_writes_every_text_has_no_unknown_ones():
    """GPT-2 and its like name the end of a text as the unknown token, and never use it as that."""
    tokenizer = make_tokenizer("qwen2")
    tokenizer.unk_token = tokenizer.eos_token
    check_unknown(tokenizer, np.full(50, tokenizer.eos_token_id, np.int32))


def test_a_run_on_unknown_words_is_refused(fedgram, config, tiny_data):
    text = (tiny_data / "train.csv").read_text()
    for word in WORDS:
        text = text.replace(word, f"{word}ski")
    (tiny_data / "train.csv").write_text(text)
    code, _, err = fedgram("fit", "--config", config)
    assert code == 1
    assert "100% of the" in err
    assert "Traceback" not in err
