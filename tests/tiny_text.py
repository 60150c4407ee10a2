"""Sentences of a few words, whose label is whether a good word is in them."""

import numpy as np

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
