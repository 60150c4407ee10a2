"""A data file as the data reads it, or as a round of training does."""

from pathlib import Path
from typing import Any


def read_from(settings: dict[str, Any], backbone: str, folder: str, trains: bool) -> dict[str, Any]:
    """Read and tokenise a file, and train on it if asked for; return what the data made of it.

    Args:
        settings: of the data.
        backbone: the folder of a model.
        folder: where the run and its cache go.
        trains: whether to train, which takes most of the time.
    """
    from fedgram import TextClassification, TextClassificationData
    from fedgram.data import IID

    common = {"batch_size": 4, "max_length": 16, "validation_fraction": 0.3, "cache_dir": f"{folder}/cache"}
    data = TextClassificationData(**settings, **common, max_train_samples=100, partition=IID())
    model = TextClassification(backbone)
    if trains:
        _train(data, model, folder)
    else:
        data.tokenizer = model.load_tokenizer()
        data.setup()
    raw, table = data.read()["train"], data.split("train")
    regression = table.labels.dtype.kind == "f"
    labels = [value if regression else data.label_names[value] for value in table.labels.tolist()]
    return {
        "texts": raw.texts,
        "rows": data.dealt()[0].tolist(),
        "labels": labels,
        "classes": [] if regression else data.label_names,
    }


def _train(data: Any, model: Any, folder: str) -> None:
    import math

    from fedgram import FederatedTrainer, FedIT

    trainer = FederatedTrainer(
        rounds=1, clients=2, local_steps=1, loggers=False, accelerator="cpu", threads=1, default_root_dir=Path(folder)
    )
    summary = trainer.fit(model, data, FedIT(rank=2))
    if not math.isfinite(summary["final"]["loss"]):
        raise ArithmeticError(f"the loss is {summary['final']}")
