"""Backbones that come with a head: rows follow the data by name, or the head is drawn anew and that is said."""

import logging
from types import SimpleNamespace

import pytest
import torch

from fedgram.errors import ConfigurationError
from fedgram.federation.setup import build
from fedgram.methods import FedIT, FFALoRA
from fedgram.models import QuestionAnswering, TextClassification
from fedgram.models.trained_head import HeadStart, match_rows, names_of_rows
from tiny_models import make_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
FAMILIES = {
    "bert": SIZES,
    "roberta": SIZES | {"max_position_embeddings": 66},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24},
    "electra": SIZES | {"embedding_size": 16},
    "deberta-v2": SIZES,
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24},
    "llama": SIZES | {"num_key_value_heads": 2},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "bos_token_id": 0, "decoder_start_token_id": 2},
}
IDS = [[4, 5, 7, 6, 3], [4, 9, 8, 11, 3]]
TOPICS = ["sport", "trade", "weather", "arts"]


def published(folder, names, family="bert", task="SequenceClassification", **settings):
    """Save a random model with a head that has a row for each name, as if it had been fine-tuned."""
    import transformers

    tokenizer = make_tokenizer(family if family in ("llama", "opt", "roberta") else "bert")
    tokenizer.save_pretrained(folder)
    last = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    ids = {"eos_token_id": last, "pad_token_id": last if tokenizer.pad_token_id is None else tokenizer.pad_token_id}
    settings = {"num_labels": len(names), "id2label": dict(enumerate(names))} | settings
    settings.setdefault("label2id", {name: row for row, name in settings["id2label"].items()})
    sizes = FAMILIES[family] | {"vocab_size": len(tokenizer), **ids}
    config = transformers.AutoConfig.for_model(family, **sizes, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def labels(*names):
    metrics = ("pearson",) if len(names) == 1 else ("accuracy",)
    return SimpleNamespace(label_names=list(names), num_labels=len(names), metrics=metrics)


def task_for(folder, *names, seed=0):
    task = TextClassification(folder)
    tokenizer = task.load_tokenizer()
    task.configure_for(tokenizer, labels(*names), seed)
    return task


def logits(task):
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        return task.outputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"]


def plain_logits(folder):
    import transformers

    ids = torch.tensor(IDS)
    with torch.inference_mode():
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_follow_the_classes_by_name(tmp_path, family):
    folder = published(tmp_path, TOPICS, family)
    order = ["Weather ", "sport", "ARTS", "trade"]
    task = task_for(folder, *order)
    assert task.head_start.misfit == ""
    assert "sport, trade, weather, arts, are taken in the data's order, Weather , sport, ARTS" in task.head_start.note
    torch.testing.assert_close(logits(task), plain_logits(folder)[:, [2, 0, 3, 1]], rtol=1e-5, atol=1e-5)
    same = task_for(folder, *TOPICS)
    assert (same.head_start.note, same.head_start.misfit, same.head_start.drawn) == ("", "", ())
    torch.testing.assert_close(logits(same), plain_logits(folder), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_other_classes_is_drawn_from_the_seed(tmp_path, family):
    folder = published(tmp_path, TOPICS, family)
    one, same, other = (task_for(folder, "a", "b", "c", "d", seed=seed) for seed in (0, 0, 1))
    assert "its classes are sport, trade, weather, arts by id2label" in one.head_start.misfit
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))
    assert (logits(one) - plain_logits(folder)).abs().max() > 1e-2
    assert all(name.split(".")[-1] in ("weight", "bias") for name in one.head_start.drawn)


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_head_of_another_size_is_drawn_and_that_is_a_reason(tmp_path, family):
    start = task_for(published(tmp_path, TOPICS, family), "bad", "good").head_start
    assert start.misfit == "it has 4 rows (sport, trade, weather, arts), and 2 are needed"
    hidden = {"roberta": ("classifier.dense.weight", "classifier.dense.bias")}
    assert start.loaded == hidden.get(family, ())
    assert task_for(published(tmp_path, TOPICS, family), "score").head_start.misfit.endswith("and 1 is needed")


def test_a_head_of_a_single_row_is_kept_for_a_regression(tmp_path):
    folder = published(tmp_path, ["stars"], "roberta")
    task = task_for(folder, "score")
    assert (task.head_start.misfit, task.head_start.note, task.head_start.drawn) == ("", "", ())
    torch.testing.assert_close(logits(task), plain_logits(folder))


def test_a_head_without_names_is_taken_by_number_and_that_is_said(tmp_path):
    folder = published(tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"], "distilbert")
    task = task_for(folder, "no", "perhaps", "yes")
    assert "as its config.json has no names: 'no' is 'LABEL_0', 'perhaps' is 'LABEL_1'" in task.head_start.note
    torch.testing.assert_close(logits(task), plain_logits(folder))


def test_names_that_only_label2id_has_are_read(tmp_path):
    folder = published(
        tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"], "llama", label2id={"arts": 2, "sport": 0, "trade": 1}
    )
    task = task_for(folder, "arts", "sport", "trade")
    torch.testing.assert_close(logits(task), plain_logits(folder)[:, [2, 0, 1]], rtol=1e-5, atol=1e-5)


def test_a_head_of_another_task_is_not_one_for_texts(tmp_path):
    folder = published(tmp_path, ["O", "B", "I"], task="TokenClassification")
    start = task_for(folder, "O", "B", "I").head_start
    assert start.misfit == "it was trained in another task, as BertForTokenClassification"
    assert set(start.drawn) >= {"classifier.weight", "classifier.bias"}


def test_spans_keep_the_head_that_was_trained_for_spans(tmp_path):
    folder = published(tmp_path, ["LABEL_0", "LABEL_1"], "roberta", task="QuestionAnswering")
    task = QuestionAnswering(folder)
    task.build(task.load_tokenizer(), 0, **task.head_settings(2))
    assert task.head_start == HeadStart(loaded=("qa_outputs.weight", "qa_outputs.bias"))


@pytest.mark.parametrize(
    ("head", "classes", "rows"),
    [
        (["a", "b", "c"], ["c", "a", "b"], (2, 0, 1)),
        (["Pos", "pos"], ["pos", "Pos"], (1, 0)),  # to the letter, where the case tells two apart
        (["Pos", "pos"], ["POS", "neg"], None),
        (["a", "a"], ["a", "b"], None),
        (["label_0", "LABEL_1"], ["x", "y"], (0, 1)),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], (1, 0)),
        (["bad", "good"], ["0", "1"], (0, 1)),
        (["1 star", "2 stars"], ["1", "2"], None),
        (["2", "1"], ["1", "2"], (1, 0)),
    ],
)
def test_rows_by_names(head, classes, rows):
    match = match_rows(head, classes)
    assert match.rows == rows
    assert bool(match.note) == (rows != tuple(range(len(head))) or head[0].lower() == "label_0" or classes[0] == "0")


def test_names_of_rows_whose_numbers_are_written_as_words():
    config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={"no": "0", "yes": "1"})
    assert names_of_rows(config) == ["no", "yes"]
    config.label2id = {"no": 0, "yes": 0}
    assert names_of_rows(config) == ["LABEL_0", "LABEL_1"]


# --- what a run says of it ---


class Rows:
    """A few rows with labels, as data that is read."""

    max_length, metrics, tables = 8, ("accuracy",), {}

    def __init__(self, *names):
        self.label_names, self.num_labels, self.tokenizer = list(names), len(names), None

    def setup(self):
        from fedgram.data import TokenTable

        ids = self.tokenizer("good film")["input_ids"]
        import numpy as np

        ids, count = np.array(ids, np.int32), len(ids)
        self.tables = {"train": TokenTable(ids, None, np.array([0, count]), np.zeros(1, np.int64))}

    def split(self, name):
        return self.tables[name]


def install(folder, data, method):
    from fedgram import FederatedTrainer
    from fedgram.distributed.collectives import Ranks

    settings = FederatedTrainer(accelerator="cpu").settings
    return build(settings, Ranks(), TextClassification(folder), data, method)


def test_a_frozen_head_that_does_not_fit_is_refused_with_both_lists(tmp_path):
    folder = published(tmp_path, TOPICS, "roberta")
    message = r"method\.head is frozen.*its classes are sport, trade, .* the data's a, b, c, d; set method\.head to av"
    with pytest.raises(ConfigurationError, match=message):
        install(folder, Rows("a", "b", "c", "d"), FedIT(rank=2, head="frozen"))
    with pytest.raises(ConfigurationError, match=r"it has 4 rows \(sport, trade, weather, arts\), and 3 are needed"):
        install(folder, Rows("a", "b", "c"), FFALoRA(rank=2))


def test_a_head_that_is_trained_is_drawn_with_a_warning(tmp_path, caplog):
    folder = published(tmp_path, TOPICS, "roberta")
    with caplog.at_level(logging.INFO, logger="fedgram"):
        install(folder, Rows("a", "b", "c", "d"), FedIT(rank=2))
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the head is drawn anew, as the trained one of" in line.getMessage()
    assert "drawn from the seed classifier.out_proj.weight, classifier.out_proj.bias; loaded classifier.dense" in (
        line.getMessage()
    )


def test_a_frozen_head_that_fits_starts_in_the_order_of_the_data(tmp_path, caplog):
    folder = published(tmp_path, ["No", "Yes"], "opt")
    with caplog.at_level(logging.INFO, logger="fedgram"):
        network = install(folder, Rows("yes", "no"), FedIT(rank=2, head="frozen"))
    assert "are taken in the data's order" in caplog.text
    import transformers

    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).score.weight
    assert torch.equal(network.task.loaded().score.weight, plain[[1, 0]])


def test_a_frozen_head_of_a_backbone_without_any_is_random_and_that_is_said(tmp_path, tiny_backbone, caplog):
    with caplog.at_level(logging.INFO, logger="fedgram"):
        install(tiny_backbone, Rows("a", "b"), FedIT(rank=2))
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="fedgram"):
        install(tiny_backbone, Rows("a", "b"), FFALoRA(rank=2))
    assert "the head is frozen at random weights" in caplog.text


def test_a_head_under_another_name_is_missed(tmp_path, caplog):
    """The weights were renamed, as by a conversion, or the head was saved without its model."""
    from safetensors.torch import load_file, save_file

    folder = published(tmp_path, TOPICS, "opt")
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("score.", "classifier_head."): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, logger="fedgram"):
        install(folder, Rows(*TOPICS), FedIT(rank=2))
    (record,) = caplog.records
    assert "its config.json says OPTForSequenceClassification, but none of the head's weights" in record.getMessage()
    assert "left out classifier_head.weight" in record.getMessage()
    with pytest.raises(ConfigurationError, match="none of the head's weights are there"):
        install(folder, Rows(*TOPICS), FFALoRA(rank=2))


def test_a_pooler_that_the_checkpoint_lacks_is_random_and_that_is_said(tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    folder = published(tmp_path, TOPICS)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, logger="fedgram"):
        install(folder, Rows(*TOPICS), FedIT(rank=2))
    (record,) = caplog.records
    assert "drawn from the seed bert.pooler.dense.weight, bert.pooler.dense.bias; loaded classifier" in (
        record.getMessage()
    )


def test_the_heads_of_pretraining_are_left_out_without_a_word(tmp_path, caplog):
    folder = published(tmp_path, ["LABEL_0", "LABEL_1"], "electra", task="PreTraining")
    with caplog.at_level(logging.INFO, logger="fedgram"):
        install(folder, Rows("a", "b"), FedIT(rank=2))
    assert not caplog.records
