"""The names of classes in what a run writes."""

import csv
import json

import pytest

from fedgram import AdamW, FederatedTrainer, FedIT, TextClassification, TextClassificationData

WORDS = {"200": "good", "404": "bad", "500": "film"}


def lines(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_codes_keep_their_names_in_every_output(tmp_path, tiny_backbone, suffix):
    """Pairs of texts whose classes are numbers far apart; of the held-out ones too."""
    rows = [{"a": f"{WORDS[code]} {n}", "b": "plot", "code": int(code)} for n in range(12) for code in WORDS]
    path = tmp_path / f"answers{suffix}"
    if suffix == ".tsv":
        path.write_text("\n".join("\t".join(map(str, row)) for row in [[*rows[0]], *(row.values() for row in rows)]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    settings = {"text": ["a", "b"], "label": "code", "validation_fraction": 0.3, "cache_dir": str(tmp_path / "cache")}
    data = TextClassificationData(str(path), **settings)
    trainer = FederatedTrainer(
        1, 2, local_steps=1, accelerator="cpu", default_root_dir=str(tmp_path / "runs"), loggers=False
    )
    trainer.fit(TextClassification(tiny_backbone), data, FedIT(rank=2), AdamW(lr=0.05))
    table = lines(trainer.folder.path / "partition.csv")
    assert list(table[0]) == ["client", "samples", *WORDS]
    assert all(sum(int(row[code]) for row in table) for code in WORDS)
    predicted = trainer.predict(
        TextClassification(tiny_backbone), data, FedIT(rank=2), "last", "validation", str(tmp_path / "p.csv")
    )
    assert {row["label"] for row in lines(predicted)} <= set(WORDS)
    assert len(lines(predicted)) == len(data.split("validation"))
