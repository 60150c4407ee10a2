import contextlib
import csv

import numpy as np
import pytest
import torch

from fedgram import AdamW, FederatedTrainer, FLoRG, TextClassification
from fedgram.data import GLUE, IID, counts
from fedgram.data.glue import _FACTS
from fedgram.distributed.collectives import Ranks
from fedgram.engine.network import ClientNetwork
from fedgram.errors import CheckpointError, ConfigurationError, DataError
from fedgram.federation.evaluation import evaluate, infer
from tiny_glue import COLUMNS, LABELS, MNLI_SPLITS, SPLITS, TASKS, dataset_of, rows_of, write_glue
from whole_models import all_by, models_of

METRICS = {
    "cola": ("matthews_correlation", "accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}
NAMED = {"validation_matched": "validation", "test_matched": "test"}


@pytest.fixture
def make(make_data):
    def make(task, path, **settings):
        data = make_data(GLUE, task, str(path), **settings)
        data.setup()
        return data

    return make


def assert_official(data, task, tokenizer):
    sizes = {NAMED.get(name, name): size for name, size in (MNLI_SPLITS if task == "mnli" else SPLITS).items()}
    assert {name: len(table) for name, table in data.tables.items()} == sizes
    assert data.name == task
    assert data.metrics == METRICS.get(task, ("accuracy",))
    assert data.label_names == LABELS.get(task, ["score"])
    assert data.num_labels == len(LABELS.get(task, "1"))
    raw = rows_of(task, "train", 30)
    assert data.split("train").labels.tolist() == raw["label"]
    first = tokenizer(*(raw[column][0] for column in COLUMNS[task]))["input_ids"]
    assert data.split("train").ids[: len(first)].tolist() == first
    assert {name for name in data.tables if not data.is_labelled(name)} == {n for n in sizes if n.startswith("test")}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_a_folder(tmp_path, make, tokenizer, task, suffix):
    assert_official(make(task, write_glue(tmp_path / "mine", task, suffix)), task, tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_the_hub(monkeypatch, make, tokenizer, task):
    import datasets

    asked = []
    splits = MNLI_SPLITS if task == "mnli" else SPLITS
    hub = datasets.DatasetDict({split: dataset_of(task, split, samples) for split, samples in splits.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: asked.append(arguments) or hub)
    assert_official(make(task, "nyu-mll/glue"), task, tokenizer)
    assert asked == [("nyu-mll/glue", task)]


def test_the_hub_is_the_default():
    data = GLUE("rte")
    assert (data.path, data.config_name, data.num_labels) == ("nyu-mll/glue", "rte", 2)


def test_both_validation_splits_of_mnli_are_parts_of_one(tmp_path, make):
    data = make("mnli", write_glue(tmp_path / "mnli", "mnli", ".parquet"))
    assert data.parts("validation") == {"": "validation", "_mismatched": "validation_mismatched"}
    assert data.parts("test") == {"": "test", "_mismatched": "test_mismatched"}


def test_mnli_files_by_plain_names(tmp_path, make):
    folder = write_glue(tmp_path / "mnli", "mnli", ".csv")
    (folder / "validation_matched.csv").rename(folder / "validation.csv")
    assert len(make("mnli", folder).split("validation")) == 12


OFFICIAL = {  # of the benchmark's own files: the header, and a row with {0}, {1} for texts and {2} for the label
    "cola": (None, "gj04\t{2}\t*\t{0}"),
    "sst2": ("sentence\tlabel", "{0}\t{2}"),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{2}\t70\t26\t{0}\t{1}"),
    "stsb": ("index\tgenre\tsentence1\tsentence2\tscore", "1\tmain\t{0}\t{1}\t{2}"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t5\t6\t{0}\t{1}\t{2}"),
    "mnli": ("index\tsentence1\tsentence2\tlabel1\tgold_label", "1\t{0}\t{1}\tneutral\t{2}"),
    "qnli": ("index\tquestion\tsentence\tlabel", "1\t{0}\t{1}\t{2}"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "1\t{0}\t{1}\t{2}"),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "1\t{0}\t{1}\t{2}"),
}


def write_official(folder, task):
    """Write the task as the benchmark publishes it: names for labels in three tasks, and texts with quotes."""
    folder.mkdir()
    header, row = OFFICIAL[task]
    named = LABELS[task] if task in ("mnli", "qnli", "rte") else None
    for split, samples in {"train": 30, "dev": 12, "dev_matched": 12, "dev_mismatched": 9, "test": 6}.items():
        if (split in ("dev", "test") and task == "mnli") or (split.startswith("dev_") and task != "mnli"):
            continue
        rows = rows_of(task, split.replace("test", "unlabelled"), samples)
        texts = [rows[column] for column in COLUMNS[task]]
        labels = [named[label] if named else label for label in rows["label"]]
        lines = [row.format(f'"{a}', b, label) for a, b, label in zip(texts[0], texts[-1], labels, strict=True)]
        if split == "test":  # whose labels nobody has
            header = "index\t" + "\t".join(COLUMNS[task])
            lines = ["\t".join(["1", *row]) for row in zip(*texts, strict=True)]
            header = header.replace("sentence1\tsentence2", "#1 String\t#2 String") if task == "mrpc" else header
        (folder / f"{split}.tsv").write_text("\n".join([header, *lines] if header else lines) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_the_files_of_the_benchmark(tmp_path, make, tokenizer, task):
    data = make(task, write_official(tmp_path / "official", task))
    hub = rows_of(task, "train", 30)
    assert data.split("train").labels.tolist() == hub["label"]
    assert data.split("validation").labels.tolist() == rows_of(task, "dev", 12)["label"]
    if task == "mnli":
        assert len(data.split("validation_mismatched")) == 9
    else:
        assert not data.is_labelled("test")
    first, *second = (hub[column][0] for column in COLUMNS[task])
    expected = tokenizer(f'"{first}', *second)["input_ids"]
    assert data.split("train").ids[: len(expected)].tolist() == expected


def test_a_row_of_a_file_without_header_is_counted_right(tmp_path, make):
    folder = write_official(tmp_path / "official", "cola")
    (folder / "dev.tsv").write_text("gj04\t1\t\tgood\ngj04\t0\t*\tbad\ngj04\t7\t*\tfilm\n")
    with pytest.raises(DataError, match=r"validation split \(dev\.tsv\), row 3 \(counted from 1; line 3\): label '7'"):
        make("cola", folder)


def test_two_files_for_the_matched_split(tmp_path, make):
    folder = write_glue(tmp_path / "mnli", "mnli", ".csv")
    (folder / "validation.csv").write_text((folder / "validation_matched.csv").read_text())
    with pytest.raises(DataError, match=r"several files for the validation split: validation\.csv, validation_matched"):
        make("mnli", folder)


def test_labels_by_name_get_their_official_numbers(tmp_path, make):
    folder = write_glue(tmp_path / "rte", "rte", ".csv")
    rows = ["sentence1,sentence2,label", "good,bad,not_entailment", "bad,good,entailment", "film,plot,not_entailment"]
    (folder / "train.csv").write_text("\n".join(rows))
    data = make("rte", folder)
    assert data.split("train").labels.tolist() == [1, 0, 1]
    assert data.label_names == ["entailment", "not_entailment"]
    assert data.split("validation").labels.tolist() == [0, 1] * 6  # whose file has numbers


def test_names_in_another_order_are_put_into_the_official_one(tmp_path, make):
    folder = write_glue(tmp_path / "mnli", "mnli", ".parquet")
    swapped = dataset_of("mnli", "train", 30, ["contradiction", "entailment", "neutral"])
    swapped.to_parquet(folder / "train.parquet")
    data = make("mnli", folder)
    assert data.label_names == LABELS["mnli"]
    assert data.split("train").labels[:3].tolist() == [2, 0, 1]
    assert data.split("validation").labels[:3].tolist() == [0, 1, 2]


def test_names_of_ones_own_are_kept(tmp_path, make):
    folder = write_glue(tmp_path / "sst2", "sst2", ".parquet")
    dataset_of("sst2", "train", 30, ["awful", "lovely"]).to_parquet(folder / "train.parquet")
    with pytest.raises(DataError, match=r"validation split .*'negative' does not occur .*'awful', 'lovely'"):
        make("sst2", folder)
    dataset_of("sst2", "validation", 12, ["lovely", "awful"]).to_parquet(folder / "validation.parquet")
    data = make("sst2", folder)
    assert data.label_names == ["awful", "lovely"]
    assert data.split("validation").labels.tolist() == [1, 0] * 6


@pytest.mark.parametrize("label", [2, -1, "maybe"])
def test_labels_of_another_task_are_refused(tmp_path, make, label):
    folder = write_glue(tmp_path / "rte", "rte", ".csv")
    (folder / "validation.csv").write_text(f"sentence1,sentence2,label\ngood,bad,0\nbad,good,{label}\n")
    with pytest.raises(DataError, match=r"validation split \(validation\.csv\), row 2"):
        make("rte", folder)


def test_missing_columns_are_named(tmp_path, make):
    with pytest.raises(DataError, match=r"no column 'question', 'sentence'; it has 'sentence1', .*: rename them"):
        make("qnli", write_glue(tmp_path / "rte", "rte", ".csv"))


def test_unknown_task():
    with pytest.raises(ConfigurationError, match=r"data\.task must be one of cola, sst2, .*; got 'snli'"):
        GLUE("snli")


def test_tables_of_tasks_are_complete():
    assert list(_FACTS) == TASKS


@pytest.mark.parametrize("quantiles", [1, 3, 5])
def test_scores_are_dealt_by_quantile(tmp_path, make, quantiles):
    data = make("stsb", write_glue(tmp_path / "stsb", "stsb", ".parquet"), label_quantiles=quantiles)
    groups = data.groups("train")
    assert groups.dtype == np.int64
    assert set(groups) == set(range(quantiles))
    assert len(data.group_names) == quantiles
    assert (data.group_names[0][:8], data.group_names[-1][-4:]) == ("0.00 to ", "5.00")
    table = counts(data.shards(4, 0), groups, quantiles)
    assert table.sum() == 30
    assert data.label_names == ["score"]


def test_all_splits_are_grouped_by_the_edges_of_the_training_scores(tmp_path, make):
    folder = write_glue(tmp_path / "stsb", "stsb", ".csv")
    (folder / "validation.csv").write_text("sentence1,sentence2,label\n" + "good,bad,4.9\n" * 9 + "bad,good,0.2\n")
    data = make("stsb", folder, label_quantiles=3)
    assert data.group_names == ["0.00 to 2.00", "2.00 to 4.00", "4.00 to 5.00"]
    assert data.groups("validation").tolist() == [2] * 9 + [0]
    assert data.groups("test").tolist() == [-1] * 6


def test_fewer_samples_and_another_partition(tmp_path, make):
    data = make("qqp", write_glue(tmp_path / "qqp", "qqp", ".csv"), max_train_samples=10, partition=IID(), max_length=8)
    assert len(data.split("train")) == 10
    assert isinstance(data.partition, IID)
    assert data.split("validation").lengths.max() == 8


# --- with a model ---


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def network(tiny_backbone):
    def network(data, method):
        task = TextClassification(tiny_backbone)
        data.tokenizer = task.load_tokenizer()
        data.setup()
        task.configure_for(data.tokenizer, data, seed=0)
        layers = method.install(task.loaded(), seed=0)
        return ClientNetwork(task, layers, torch.device("cpu"), torch.float32, contextlib.nullcontext, 0)

    return network


def test_both_validation_splits_of_mnli_are_evaluated(tmp_path, network):
    data = GLUE("mnli", str(write_glue(tmp_path / "mnli", "mnli", ".parquet")), cache_dir=str(tmp_path / "cache"))
    model = network(data, FLoRG(rank=2))
    state = model.initial_state()
    metrics = evaluate(model, models_of(state, data), data, "validation", Ranks())
    assert list(metrics) == ["loss", "accuracy", "loss_mismatched", "accuracy_mismatched"]
    for suffix in ("", "_mismatched"):
        table = data.split(f"validation{suffix}")
        predicted = infer(model, all_by(state, table), table, 64, Ranks())["logits"].argmax(dim=1).numpy()
        assert metrics[f"accuracy{suffix}"] == pytest.approx((predicted == table.labels).mean())
    assert metrics["loss"] != metrics["loss_mismatched"]


@pytest.fixture
def fit(tiny_backbone, tmp_path):
    """Trains on a task with few clients; keywords are the data's, but for rounds, metrics and ckpt_path."""

    def fit(task, rounds=2, metrics=None, ckpt_path=None, **settings):
        settings = {"batch_size": 3, "cache_dir": str(tmp_path / "cache")} | settings
        folder = tmp_path / task
        data = GLUE(task, str(folder if folder.exists() else write_glue(folder, task, ".parquet")), **settings)
        trainer = FederatedTrainer(
            rounds, 4, local_steps=6, accelerator="cpu", default_root_dir=str(tmp_path / "runs"), loggers=False
        )
        model = TextClassification(tiny_backbone, metrics=metrics)
        return trainer.fit(model, data, FLoRG(rank=2), AdamW(lr=0.05), ckpt_path), trainer

    return fit


def test_mnli_is_trained_and_logged_with_both_parts(fit, caplog):
    with caplog.at_level("INFO", logger="fedgram"):
        summary, trainer = fit("mnli")
    rows = lines(trainer.folder.path / "metrics.csv")
    names = {"val_loss", "accuracy", "val_loss_mismatched", "accuracy_mismatched"}
    assert names <= set(rows[0])
    assert float(rows[-1]["accuracy_mismatched"]) == summary["final"]["accuracy_mismatched"]
    said = caplog.messages[-1]
    assert f"accuracy {summary['final']['accuracy']:.4f}  accuracy_mismatched " in said
    assert "val_loss" not in said


@pytest.mark.slow
def test_sts_b_from_end_to_end(fit, tiny_backbone, tmp_path):
    summary, trainer = fit("stsb", rounds=8, partition=IID(), label_quantiles=3)
    losses = [float(row["train_loss"]) for row in lines(trainer.folder.path / "metrics.csv")[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert set(summary["final"]) == {"loss", "pearson", "spearman"}
    assert all(-1 <= summary["final"][name] <= 1 for name in ("pearson", "spearman"))
    rows = lines(trainer.folder.path / "metrics.csv")
    assert summary["best"]["pearson"] == max(float(row["pearson"]) for row in rows)
    partition = lines(trainer.folder.path / "partition.csv")
    assert list(partition[0]) == ["client", "samples", "0.00 to 2.00", "2.00 to 4.00", "4.00 to 5.00"]
    data = GLUE("stsb", str(tmp_path / "stsb"), cache_dir=str(tmp_path / "cache"))
    path = trainer.predict(
        TextClassification(tiny_backbone), data, FLoRG(rank=2), "last", "validation", str(tmp_path / "p.csv")
    )
    scores = [float(row["score"]) for row in lines(path)]
    truth = rows_of("stsb", "validation", 12)["label"]
    assert np.mean((np.array(scores) - truth) ** 2) == pytest.approx(summary["final"]["loss"], rel=1e-4)
    with pytest.raises(ConfigurationError, match=r"the test split has no labels"):
        trainer.test(TextClassification(tiny_backbone), data, FLoRG(rank=2), "last")


def test_other_groups_are_another_run_and_another_first_metric_is_not(fit):
    fit("stsb", rounds=1)
    with pytest.raises(CheckpointError, match=r"data\.groups"):
        fit("stsb", ckpt_path="last", label_quantiles=2)
    fit("stsb", rounds=2, ckpt_path="last", metrics=["spearman"])
