"""Classification and regression of one or two texts."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fedgram.errors import ConfigurationError
from fedgram.models.base import Batch, FederatedTask, Outputs
from fedgram.models.metrics import check_metrics, compute_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedgram.data import TextClassificationData

__all__ = ["TextClassification"]


class TextClassification(FederatedTask):
    """Text classification with a pretrained transformer, or regression where the data has a single label.

    Args:
        metrics: what to report, out of accuracy, f1 (of class 1 of two), macro_f1, matthews_correlation, and for a
            regression pearson and spearman; the first decides which checkpoint is best. The data's own if not given.
        common: the settings of `FederatedTask`: backbone, dtype, pretrained, tokenizer.

    Raises:
        ConfigurationError: there is no such metric.
    """

    auto_class = "AutoModelForSequenceClassification"
    reported = frozenset({"metrics"})

    def __init__(self, *args: Any, metrics: list[str] | None = None, **common: Any) -> None:
        super().__init__(*args, **common)
        if metrics is not None:
            check_metrics(metrics)
        self.given_metrics = metrics
        self.metrics: tuple[str, ...] = ()
        self.label_names: list[str] = []
        self.is_regression = False

    def configure_for(self, tokenizer: "PreTrainedTokenizerBase", data: "TextClassificationData", seed: int) -> None:
        if not hasattr(data, "num_labels"):
            raise ConfigurationError(
                "model TextClassification needs texts with labels, with data such as GLUE or TextClassificationData; "
                f"got {type(data).__name__}"
            )
        self.metrics = tuple(self.given_metrics or data.metrics)
        check_metrics(self.metrics, data.num_labels)
        self.monitor = self.metrics[0]
        self.label_names, self.is_regression = data.label_names, data.num_labels == 1
        classes = None if self.is_regression else self.label_names
        self.build(tokenizer, seed, classes, **self.head_settings(data.num_labels))

    @property
    def classes(self) -> list[str] | None:
        return None if self.is_regression else list(self.label_names)

    def head_settings(self, labels: int) -> dict[str, Any]:
        return {"num_labels": labels, "problem_type": "regression" if labels == 1 else "single_label_classification"}

    @property
    def directions(self) -> dict[str, Literal["max", "min"]]:
        return dict.fromkeys(self.metrics, "max")

    def outputs(self, batch: Batch) -> Outputs:
        return {"logits": self.say(batch).logits}

    def sample_losses(self, outputs: Outputs, labels: Tensor) -> Float[Tensor, " rows"]:
        logits = outputs["logits"]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.is_regression:
            return functional.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="none")
        return functional.cross_entropy(logits, labels, reduction="none")

    def evaluate(self, outputs: Outputs, data: "TextClassificationData", split: str) -> dict[str, float]:
        return compute_metrics(self.metrics, outputs["logits"], torch.tensor(data.split(split).labels))

    def predictions(self, outputs: Outputs, data: "TextClassificationData", split: str) -> dict[str, list[Any]]:
        if self.is_regression:
            return {"score": outputs["logits"][:, 0].tolist()}
        probabilities = outputs["logits"].float().softmax(dim=1)
        confidence, best = probabilities.max(dim=1)
        of_classes = zip(self.label_names, probabilities.T.tolist(), strict=True)
        return {
            "label": [self.label_names[i] for i in best.tolist()],
            "probability": confidence.tolist(),
            **{f"probability of {name}": column for name, column in of_classes},
        }
