"""GLUE: nine tasks of natural language understanding, with their official labels and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedgram.data.columns import Columns
from fedgram.data.partition import Partition
from fedgram.data.reading import SPLITS, RawSplit, is_local
from fedgram.data.text import TextClassificationData
from fedgram.errors import require_choice

__all__ = ["GLUE"]

Task = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


@dataclass(frozen=True)
class _Facts:
    """What the benchmark says of a task.

    Attributes:
        text: columns of text.
        labels: in order; none for a regression.
        metrics: the most important one first.
        samples: of the train split.
    """

    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    samples: int


_HUB = "nyu-mll/glue"
_TWO = ("sentence1", "sentence2")
_FACTS: Mapping[str, _Facts] = {
    # Accuracy is not official for CoLA, but most papers give it as well.
    "cola": _Facts(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy"), 8_551),
    "sst2": _Facts(("sentence",), ("negative", "positive"), ("accuracy",), 67_349),
    "mrpc": _Facts(_TWO, ("not_equivalent", "equivalent"), ("accuracy", "f1"), 3_668),
    "stsb": _Facts(_TWO, (), ("pearson", "spearman"), 5_749),
    "qqp": _Facts(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), 363_846),
    "mnli": _Facts(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",), 392_702),
    "qnli": _Facts(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",), 104_743),
    "rte": _Facts(_TWO, ("entailment", "not_entailment"), ("accuracy",), 2_490),
    "wnli": _Facts(_TWO, ("not_entailment", "entailment"), ("accuracy",), 635),
}


# The benchmark's own .tsv files, where they call columns otherwise than the hub's data sets do.
_OFFICIAL_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "mrpc": {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    "stsb": {"score": "label"},
    "qqp": {"is_duplicate": "label"},
    "mnli": {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
}
# CoLA's files of labelled samples have no header.
_COLA = ("source", "label", "mark", "sentence")


class GLUE(TextClassificationData):
    """A task of the GLUE benchmark, from the Hugging Face hub or from local files with the same columns.

    CoLA is judged by Matthews' correlation, MRPC and QQP by accuracy and F1, STS-B (a regression) by Pearson's and
    Spearman's correlation, the others by accuracy. Of MNLI both validation splits are evaluated; the figures of the
    mismatched one end in ``_mismatched``. Most test splits are unlabelled: they are for ``fedgram predict``.

    Source: A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding",
    ICLR 2019.

    Args:
        task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.
        path: the benchmark on the hub, or a folder with the task's train, validation and test as .csv, .tsv, .json,
            .jsonl or .parquet files; of MNLI with validation_matched, validation_mismatched and so on. The benchmark's
            own .tsv files serve as well, whose validation split is called dev.
        max_length: the most tokens of a sample; longer ones are cut.
        batch_size: samples of one local step.
        eval_batch_size: samples of one evaluation step.
        validation_fraction: hold out this share of the train split, chosen by a hash of the text, and validate on it in
            the place of the official validation split: to choose a learning rate without a look at what is reported.
        max_train_samples: train on no more than this many samples, chosen by the same hash.
        label_quantiles: how many groups of about equal size a partition makes of the scores of STS-B.
        partition: how samples are dealt to clients; Dirichlet(rho=0.5) if not given.
        cache_dir: where tokenised data is kept; ``$FEDGRAM_CACHE`` or ``~/.cache/fedgram`` if not given.
    """

    validation_remedy = (
        "hold some rows out with --data.validation_fraction 0.1, or add the task's dev.tsv to the folder"
    )
    # The further names are MNLI's, whose matched splits are the validation and test proper.
    source_splits: Mapping[str, Sequence[str]] = {
        "train": ("train",),
        "validation": (*SPLITS["validation"], "validation_matched", "dev_matched"),
        "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
        "test": ("test", "test_matched"),
        "test_mismatched": ("test_mismatched",),
    }

    def __init__(
        self,
        task: Task,
        path: str = _HUB,
        max_length: int = 128,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        validation_fraction: float = 0.0,
        max_train_samples: int | None = None,
        label_quantiles: int = 5,
        partition: Partition | None = None,
        cache_dir: str | None = None,
    ) -> None:
        require_choice("data.task", task, Task)
        facts = _FACTS[task]
        super().__init__(
            path=path,
            config_name=None if is_local(path) else task,
            text=list(facts.text),
            num_labels=len(facts.labels) or 1,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            validation_fraction=validation_fraction,
            max_train_samples=max_train_samples,
            label_quantiles=label_quantiles,
            partition=partition,
            cache_dir=cache_dir,
        )
        self.name = self.task = task
        self.metrics = facts.metrics

    @property
    def known_samples(self) -> int | None:
        """As published on the hub; files of one's own may hold others."""
        return self._kept_of(_FACTS[self.task].samples) if self.path == _HUB else None

    def arranged(self, source: Columns) -> Columns:
        names = list(source.column_names)
        if self.task == "cola" and "sentence" not in names and len(names) == len(_COLA) and names[1] in ("0", "1"):
            return source.without_header(_COLA)
        official = _OFFICIAL_COLUMNS.get(self.task, {})
        return source.renamed({old: new for old, new in official.items() if old in names and new not in names})

    def read(self) -> dict[str, RawSplit]:
        labels = _FACTS[self.task].labels
        return {name: _official(raw, labels) if labels else raw for name, raw in super().read().items()}


def _official(raw: RawSplit, labels: tuple[str, ...]) -> RawSplit:
    """Number the labels in their official order, where the source gives names or has the names in another order.

    A source with names of its own keeps them.
    """
    names = raw.label_names or labels
    if raw.labels is None or set(names) != set(labels):
        return replace(raw, label_names=names)
    return replace(raw, labels=[_number(value, names, labels) for value in raw.labels], label_names=labels)


def _number(value: Any, names: tuple[str, ...], labels: tuple[str, ...]) -> Any:
    """Return the official number of a label; what is none, such as the -1 of an unlabelled sample, stays as it is."""
    name = names[value] if type(value) is int and 0 <= value < len(names) else value
    return labels.index(name) if name in labels else value
