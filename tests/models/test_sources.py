from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from fedgram.adapters import find_targets
from fedgram.adapters.base import layer_sizes
from fedgram.errors import ConfigurationError, DataError
from fedgram.models import TextClassification, sources
from fedgram.models.sources import find_source, known_shapes
from tiny_models import make_tokenizer, save_tiny

EMBEDDINGS = 50265 * 1024 + 514 * 1024 + 1024 + 2 * 1024
LAYER = 4 * (1024 * 1024 + 1024) + (2 * 1024 * 4096 + 4096 + 1024) + 4 * 1024
BASE_PARAMETERS = {
    "roberta-large": EMBEDDINGS + 24 * LAYER,  # 354,310,144; 355,359,744 with the pooler, which no task here has
    "opt-125m": 125_239_296,
    "llama-3.2-3b": 3_212_749_824,
}
ADAPTED = {
    "roberta-large": {(1024, 1024): 48},
    "opt-125m": {(768, 768): 24},
    "llama-3.2-3b": {(3072, 3072): 28, (3072, 1024): 28},
}


def network_of(shape, auto_class="AutoModelForSequenceClassification"):
    import transformers

    config = transformers.AutoConfig.from_pretrained(find_source(f"shape:{shape}").place)
    with torch.device("meta"):
        return getattr(transformers, auto_class).from_config(config)


def test_every_shape_is_tested():
    assert known_shapes() == sorted(BASE_PARAMETERS)


@pytest.mark.parametrize("auto_class", ["AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"])
@pytest.mark.parametrize("shape", BASE_PARAMETERS)
def test_shapes_have_the_published_numbers_of_parameters(shape, auto_class):
    network = network_of(shape, auto_class)
    assert sum(p.numel() for p in network.base_model.parameters()) == BASE_PARAMETERS[shape]
    targets = find_targets(network, None)
    assert Counter(layer_sizes(linear) for linear in targets.values()) == ADAPTED[shape]
    if shape == "llama-3.2-3b":
        sizes = {name.rsplit(".", 1)[-1]: layer_sizes(linear) for name, linear in targets.items()}
        assert sizes == {"q_proj": (3072, 3072), "v_proj": (3072, 1024)}


def test_roberta_large_has_355_million_parameters_with_its_pooler():
    assert sum(p.numel() for p in network_of("roberta-large", "AutoModel").parameters()) == 355_359_744


def test_llama_turns_positions_as_published():
    """Frequencies of less than a turn in 8192 / 1 tokens are divided by 32, those of more than 4 turns are kept."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(find_source("shape:llama-3.2-3b").place, num_hidden_layers=1)
    config.vocab_size, config.intermediate_size = 8, 8
    frequencies = transformers.AutoModel.from_config(config).rotary_emb.inv_freq
    plain = 500000.0 ** -(torch.arange(0, 128, 2) / 128)
    torch.testing.assert_close(frequencies[0], plain[0])
    torch.testing.assert_close(frequencies[-1], plain[-1] / 32)


def test_a_shape_is_drawn_with_another_models_tokenizer(tmp_path):
    make_tokenizer("bert").save_pretrained(tmp_path)
    task = TextClassification("shape:opt-125m", "bfloat16", pretrained=False, tokenizer=str(tmp_path))
    task.configure_for(
        task.load_tokenizer(), SimpleNamespace(label_names=["a", "b"], num_labels=2, metrics=("accuracy",)), seed=0
    )
    assert {p.dtype for p in task.loaded().parameters()} == {torch.bfloat16}
    assert task.pad_id == 1  # the shape's own


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("shape:roberta-large", {}, r"model\.backbone: .* has no weights; set model\.pretrained to false"),
        ("shape:roberta-large", {"pretrained": False}, r"has no tokenizer; set model\.tokenizer to a folder"),
        ("roberta-large", {"tokenizer": "shape:opt-125m"}, r"'shape:opt-125m' is a shape and has no tokenizer"),
    ],
)
def test_a_shape_has_neither_weights_nor_tokenizer(backbone, settings, message):
    task = TextClassification(backbone, **settings)  # its cost can be told nevertheless
    with pytest.raises(ConfigurationError, match=message):
        task.load_tokenizer()


def test_an_unknown_shape_is_an_error_that_lists_the_known():
    with pytest.raises(ConfigurationError, match=r"no 'shape:bert'; known are shape:llama-3.2-3b, shape:opt-125m, sh"):
        find_source("shape:bert")
    with pytest.raises(ConfigurationError, match="no 'shape:bert'; known are"):
        TextClassification("shape:bert")


def test_a_gguf_file_is_found_in_folders_packages_and_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "find_spec", lambda name: object())
    for reference, place in {
        f"{tmp_path}/a.gguf": str(tmp_path),
        "owner/repository/a.gguf": "owner/repository",
    }.items():
        source = find_source(reference)
        assert (source.place, source.options) == (place, {"gguf_file": "a.gguf"})
    assert find_source("owner/repository").options == {}
    with pytest.raises(DataError, match=r"the installed package fedgram has no a\.gguf"):
        find_source("package:fedgram/a.gguf")


@pytest.mark.parametrize("missing", [["gguf"], ["gguf", "accelerate"]])
def test_a_gguf_file_without_its_packages_is_an_error_with_a_remedy(monkeypatch, missing):
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name in missing else object())
    with pytest.raises(
        ConfigurationError, match=rf"{' and '.join(missing)} is missing .*pip install 'fedgram\[gguf\]'"
    ):
        find_source("some/model.gguf")


def test_token_types_of_a_borrowed_tokenizer_are_left_out_where_the_backbone_has_one(tmp_path):
    """BERT's tokenizer tells two sentences apart, RoBERTa's embeddings do not."""
    folders = {family: save_tiny(family, tmp_path / family) for family in ("roberta", "bert")}
    task = TextClassification(str(folders["roberta"]), pretrained=False, tokenizer=str(folders["bert"]))
    tokenizer = task.load_tokenizer()
    labels = SimpleNamespace(label_names=["a", "b"], num_labels=2, metrics=("accuracy",))
    task.configure_for(tokenizer, labels, seed=0)
    batch = dict(tokenizer("good film", "bad plot", return_tensors="pt"))
    assert batch["token_type_ids"].max() == 1
    assert torch.isfinite(task.outputs(batch)["logits"]).all()
    own = TextClassification(str(folders["bert"]))
    own.configure_for(tokenizer, labels, seed=0)
    other = batch | {"token_type_ids": 0 * batch["token_type_ids"]}
    assert not torch.equal(own.outputs(batch)["logits"], own.outputs(other)["logits"])
