import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from fedgram.data import SQuAD
from fedgram.errors import ConfigurationError
from fedgram.models import TextClassification


class Labels:
    """What a task asks of its data."""

    def __init__(self, *names: str) -> None:
        self.label_names, self.num_labels = list(names), len(names)
        self.metrics = ("pearson", "spearman") if len(names) == 1 else ("accuracy", "macro_f1")


@pytest.fixture
def task(tiny_backbone):
    task = TextClassification(tiny_backbone)
    task.configure_for(task.load_tokenizer(), Labels("no", "perhaps", "yes"), seed=0)
    return task


def test_the_backbone_is_frozen_and_without_dropout(task):
    network = task.loaded()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.classifier.out_features == 3
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert torch.equal(task.outputs(batch)["logits"], task.outputs(batch)["logits"])


def test_what_the_backbone_came_without_is_drawn_from_the_seed(tiny_backbone):
    def head(seed):
        task = TextClassification(tiny_backbone)
        task.configure_for(task.load_tokenizer(), Labels("a", "b"), seed)
        return task.loaded().classifier.weight

    before = torch.get_rng_state()
    one, same, other = head(0), head(0), head(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < one.std() < 0.1


def test_pretrained_weights_are_those_of_the_folder(task, tiny_backbone):
    from transformers import BertModel

    pretrained = BertModel.from_pretrained(tiny_backbone).state_dict()
    loaded = task.loaded().bert.state_dict()
    for key in pretrained:
        assert torch.equal(loaded[key], pretrained[key]), key


def test_losses_are_per_sample_cross_entropies(task):
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.1, -2.0]], dtype=torch.float64)
    losses = task.sample_losses({"logits": logits}, torch.tensor([2, 1]))
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(losses.numpy(), [-np.log(p[0, 2]), -np.log(p[1, 1])], atol=1e-12)


def test_data_of_another_kind_is_an_error(tiny_backbone):
    task = TextClassification(tiny_backbone)
    with pytest.raises(ConfigurationError, match=r"needs texts with labels.*GLUE.*got SQuAD"):
        task.configure_for(task.load_tokenizer(), SQuAD(), seed=0)


class Labelled:
    """Data whose every split has the same labels."""

    def __init__(self, labels):
        self.labels = np.array(labels)

    def split(self, name):
        return self


def test_metrics_are_accuracy_and_macro_f1(task):
    predicted, labels = [0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
    metrics = task.evaluate({"logits": logits}, Labelled(labels), "validation")
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    # Label 2 occurs neither in labels nor in predictions, and so does not count.
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_predictions_are_names_with_their_probability(task):
    table = task.predictions({"logits": torch.tensor([[0.0, 0.0, 9.0], [3.0, 0.0, 0.0]])}, Labelled([]), "test")
    assert table["label"] == ["yes", "no"]
    assert table["probability"] == pytest.approx([1 / (1 + 2 * np.exp(-9)), 1 / (1 + 2 * np.exp(-3))], rel=1e-5)


def test_a_decoder_without_pad_token_needs_none(tmp_path, tiny_backbone):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=AutoTokenizer.from_pretrained(tiny_backbone).backend_tokenizer)
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=19, n_embd=8, n_layer=1, n_head=2, n_positions=32, pad_token_id=None)
    with torch.random.fork_rng():
        GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    task = TextClassification(str(tmp_path))
    loaded = task.load_tokenizer()
    assert loaded.pad_token is None
    task.configure_for(loaded, Labels("a", "b"), seed=0)
    network = task.loaded()
    assert network.config.pad_token_id == task.pad_id
    assert network.config.use_cache is False
    one, padded = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, task.pad_id, task.pad_id]])
    logits = [
        task.outputs({"input_ids": ids, "attention_mask": (ids != task.pad_id).long()})["logits"]
        for ids in (one, padded)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)


def test_a_network_that_is_not_built_says_so(tiny_backbone):
    with pytest.raises(RuntimeError, match="call configure_for"):
        TextClassification(tiny_backbone).loaded()


@pytest.fixture
def regression(tiny_backbone):
    task = TextClassification(tiny_backbone)
    task.configure_for(task.load_tokenizer(), Labels("score"), seed=0)
    return task


def test_one_label_is_a_regression(regression):
    assert regression.loaded().classifier.out_features == 1
    assert regression.loaded().config.problem_type == "regression"
    assert regression.monitor == "pearson"


@pytest.mark.parametrize(("given", "kind"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_losses_of_a_regression_are_squared_errors(regression, given, kind):
    logits = torch.tensor([[1.0], [2.5], [-3.0]], dtype=given)
    losses = regression.sample_losses({"logits": logits}, torch.tensor([0.5, 2.5, 1.0], dtype=kind))
    assert losses.dtype == given
    assert losses.tolist() == [0.25, 0.0, 16.0]


def test_losses_of_a_bfloat16_regression_are_of_float32(regression):
    losses = regression.sample_losses({"logits": torch.ones(1, 1).bfloat16()}, torch.tensor([1.0001]))
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(1e-8, rel=1e-2)


def test_a_regression_is_judged_by_its_correlations_and_predicts_scores(regression):
    outputs = {"logits": torch.tensor([[1.0], [2.0], [4.0], [3.0]])}
    metrics = regression.evaluate(outputs, Labelled([0.0, 1.0, 5.0, 2.0]), "validation")
    assert metrics == pytest.approx({"pearson": np.corrcoef([1, 2, 4, 3], [0, 1, 5, 2])[0, 1], "spearman": 1.0})
    assert regression.predictions(outputs, Labelled([]), "test") == {"score": [1.0, 2.0, 4.0, 3.0]}


def test_metrics_are_those_asked_for_and_the_first_decides(tiny_backbone):
    task = TextClassification(tiny_backbone, metrics=["macro_f1", "matthews_correlation"])
    task.configure_for(task.load_tokenizer(), Labels("no", "yes"), seed=0)
    assert task.monitor == "macro_f1"
    logits = torch.eye(2)[[0, 1, 1, 0]]
    assert list(task.evaluate({"logits": logits}, Labelled([0, 1, 0, 0]), "test")) == [
        "macro_f1",
        "matthews_correlation",
    ]


def test_metrics_that_do_not_fit_are_refused(tiny_backbone):
    for unknown in (["precision"], []):
        with pytest.raises(ConfigurationError, match=r"model\.metrics must name one or more of accuracy"):
            TextClassification(tiny_backbone, metrics=unknown)
    task = TextClassification(tiny_backbone, metrics=["accuracy"])
    with pytest.raises(ConfigurationError, match=r"'accuracy' is not for a regression; use pearson or spearman"):
        task.configure_for(task.load_tokenizer(), Labels("score"), 0)
