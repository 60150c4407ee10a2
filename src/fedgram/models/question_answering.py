"""Answers to questions that are a stretch of a given context."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fedgram.data import SQuAD
from fedgram.errors import ConfigurationError
from fedgram.models.base import Batch, FederatedTask, Outputs
from fedgram.models.spans import best_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["QuestionAnswering"]


class QuestionAnswering(FederatedTask):
    """Extractive question answering with a pretrained transformer; reports F1 and exact match, both from 0 to 1.

    The head says of every token how likely the answer starts and ends there. The answer is the stretch of the context,
    over all windows of the question, with the largest sum of the two logits, and is compared with all right answers
    after the rules of SQuAD v1.1: case, punctuation, articles and spaces do not count, and the best match does. (In one
    corner torchmetrics is kinder than the official script: an answer of articles alone matches another such one.)

    Args:
        n_best: the best stretches of a question among which the probability of a predicted answer is shared out.
        max_answer_length: the most tokens of an answer.
        common: the settings of `FederatedTask`: backbone, dtype, pretrained, tokenizer.

    Raises:
        ConfigurationError: a setting is less than 1.
    """

    auto_class = "AutoModelForQuestionAnswering"
    monitor = "f1"

    def __init__(self, *args: Any, n_best: int = 20, max_answer_length: int = 30, **common: Any) -> None:
        super().__init__(*args, **common)
        for name, value in {"n_best": n_best, "max_answer_length": max_answer_length}.items():
            if value < 1:
                raise ConfigurationError(f"model.{name} must be at least 1, got {value}")
        self.n_best = n_best
        self.max_answer_length = max_answer_length

    def configure_for(self, tokenizer: "PreTrainedTokenizerBase", data: SQuAD, seed: int) -> None:
        if not isinstance(data, SQuAD):
            raise ConfigurationError(
                f"model QuestionAnswering needs questions about contexts, with data SQuAD; got {type(data).__name__}"
            )
        self.build(tokenizer, seed, **self.head_settings(2))

    def head_settings(self, labels: int) -> dict[str, Any]:
        return {"num_labels": 2}  # the start's logit and the end's, whatever the data

    @property
    def directions(self) -> dict[str, Literal["max", "min"]]:
        return dict.fromkeys(("f1", "exact_match"), "max")

    def outputs(self, batch: Batch) -> Outputs:
        said = self.say(batch)
        logits = {"start_logits": said.start_logits, "end_logits": said.end_logits}
        if "attention_mask" not in batch:
            return logits
        # How far a row is padded depends on the others in its batch, so padding must have no share in the softmax.
        padding = batch["attention_mask"] == 0
        return {name: values.masked_fill(padding, -torch.inf) for name, values in logits.items()}

    def sample_losses(self, outputs: Outputs, labels: Tensor) -> Float[Tensor, " rows"]:
        start, end = (_at_least_single(outputs[name]) for name in ("start_logits", "end_logits"))
        losses = [
            functional.cross_entropy(logits, labels[:, side], reduction="none")
            for side, logits in enumerate((start, end))
        ]
        return (losses[0] + losses[1]) / 2

    def evaluate(self, outputs: Outputs, data: SQuAD, split: str) -> dict[str, float]:
        from torchmetrics.functional.text import squad

        predicted = self.predictions(outputs, data, split)["answer"]
        # Numbered, since torchmetrics would take questions of one id for one question.
        answers = [{"id": str(row), "prediction_text": text} for row, text in enumerate(predicted)]
        gold: list[Any] = [
            {"id": str(row), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
            for row, texts in enumerate(data.examples(split).answers or [])
        ]
        percent = squad(answers, gold)
        return {name: float(percent[name]) / 100 for name in ("f1", "exact_match")}

    def predictions(self, outputs: Outputs, data: SQuAD, split: str) -> dict[str, list[Any]]:
        examples = data.examples(split)
        start, end = (_at_least_single(outputs[name]) for name in ("start_logits", "end_logits"))
        best = best_answers(start, end, data.split(split), len(examples), self.n_best, self.max_answer_length)
        places = zip(examples.contexts, best.starts, best.ends, strict=True)
        texts = [context[first:last].strip() for context, first, last in places]
        return {"id": examples.ids, "answer": texts, "probability": best.probabilities.tolist()}


def _at_least_single(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
