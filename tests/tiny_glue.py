"""Folders with the tasks of GLUE, of some sentences, for tests."""

import json
from pathlib import Path

import numpy as np

COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "stsb": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}
TASKS = list(COLUMNS)
SPLITS = {"train": 30, "validation": 12, "test": 6}
MNLI_SPLITS = {
    "train": 30,
    "validation_matched": 12,
    "validation_mismatched": 9,
    "test_matched": 6,
    "test_mismatched": 3,
}


def rows_of(task, split, samples):
    """Samples as the benchmark has them: whole numbers or scores, -1 in the test splits, and a number of each."""
    random = np.random.default_rng(samples)
    words = ["good", "bad", "film", "plot", "very", "not"]
    texts = {column: [" ".join(random.choice(words, 4)) for _ in range(samples)] for column in COLUMNS[task]}
    kind = float if task == "stsb" else int
    most = 5 if task == "stsb" else len(LABELS[task]) - 1
    labels = [kind(-1)] * samples if split.startswith("test") else [kind(i % (most + 1)) for i in range(samples)]
    return {**texts, "label": labels, "idx": list(range(samples))}


def dataset_of(task, split, samples, names=None):
    import datasets

    features = {column: datasets.Value("string") for column in COLUMNS[task]}
    label = datasets.Value("float32") if task == "stsb" else datasets.ClassLabel(names=names or LABELS[task])
    features = datasets.Features(features | {"label": label, "idx": datasets.Value("int32")})
    return datasets.Dataset.from_dict(rows_of(task, split, samples), features=features)


def write_glue(folder: Path, task: str, suffix: str = ".parquet") -> Path:
    """Make a folder with the task's files under their official names."""
    import pandas

    folder.mkdir(exist_ok=True)
    for split, samples in (MNLI_SPLITS if task == "mnli" else SPLITS).items():
        path = folder / f"{split}{suffix}"
        if suffix == ".parquet":
            dataset_of(task, split, samples).to_parquet(path)
        elif suffix == ".csv":
            pandas.DataFrame(rows_of(task, split, samples)).to_csv(path, index=False)
        else:
            rows = pandas.DataFrame(rows_of(task, split, samples)).to_dict("records")
            path.write_text("\n".join(map(json.dumps, rows)))
    return folder
