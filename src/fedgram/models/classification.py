"""Classification of one or two texts."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fedgram.errors import ConfigurationError
from fedgram.models.base import Batch, FederatedTask, Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedgram.data import TextClassificationData

__all__ = ["TextClassification"]


class TextClassification(FederatedTask):
    """Text classification with a pretrained transformer; reports accuracy and macro F1.

    Args:
        backbone: a model of the Hugging Face hub, a local folder, package:NAME/FOLDER for one that a Python package
            carries, a GGUF file in any of these, or shape:NAME for the shape alone of a known model.
        dtype: the type of the frozen weights; adapters and head are float32 (float64 with precision 64-true) always.
        pretrained: whether to load weights; without, they are drawn from the seed, which is enough to measure cost.
        tokenizer: where the tokenizer comes from, given like the backbone; by default it is the backbone's own.
    """

    auto_class = "AutoModelForSequenceClassification"
    monitor = "accuracy"

    def __init__(
        self,
        backbone: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        pretrained: bool = True,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(backbone, dtype, pretrained, tokenizer)
        self.label_names: list[str] = []

    def configure_for(self, tokenizer: "PreTrainedTokenizerBase", data: "TextClassificationData", seed: int) -> None:
        if data.num_labels < 2:
            raise ConfigurationError(f"classification needs at least 2 labels, got data.num_labels {data.num_labels}")
        self.label_names = data.label_names
        self.build(tokenizer, seed, num_labels=data.num_labels, problem_type="single_label_classification")

    def outputs(self, batch: Batch) -> Outputs:
        return {"logits": self.loaded()(**batch).logits}

    def sample_losses(self, outputs: Outputs, labels: Tensor) -> Float[Tensor, " rows"]:
        logits = outputs["logits"]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(logits, labels, reduction="none")

    def evaluate(self, outputs: Outputs, data: "TextClassificationData", split: str) -> dict[str, float]:
        from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

        logits, labels = outputs["logits"].float(), torch.tensor(data.split(split).labels)
        classes = logits.shape[1]
        return {
            "accuracy": float(multiclass_accuracy(logits, labels, classes, average="micro")),
            "f1": float(multiclass_f1_score(logits, labels, classes, average="macro")),
        }

    def predictions(self, outputs: Outputs, data: "TextClassificationData", split: str) -> dict[str, list[Any]]:
        probabilities = outputs["logits"].float().softmax(dim=1)
        confidence, best = probabilities.max(dim=1)
        return {"label": [self.label_names[i] for i in best.tolist()], "probability": confidence.tolist()}
