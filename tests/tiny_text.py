"""Sentences of a few words, whose label is whether a good word is in them, and a config to learn it."""

from pathlib import Path

import numpy as np
import yaml

WORDS = ["good", "fine", "great", "lovely", "bad", "poor", "awful", "dull", "the", "film", "plot", "cast", "was", "is"]


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return sentences of 3 to 10 words whose label is whether a good word is in them."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for index in range(count):
        label = index % 2
        words = list(generator.choice(WORDS[8:], generator.integers(2, 10)))
        words.insert(int(generator.integers(len(words))), WORDS[generator.integers(4) + 4 * (1 - label)])
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def write_config(folder: Path, backbone: str, data: Path | str, **trainer) -> Path:
    """Write a config.yaml of FLoRG on a folder of such sentences; its cache is beside it."""
    settings = {"path": str(data), "batch_size": 3, "cache_dir": str(folder / "cache")}
    content = {
        "method": {"class_path": "FLoRG", "init_args": {"rank": 2}},
        "model": {"class_path": "TextClassification", "init_args": {"backbone": str(backbone)}},
        "data": {"class_path": "TextClassificationData", "init_args": settings},
        "trainer": {"threads": 1, "accelerator": "cpu", "loggers": False, **trainer},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
