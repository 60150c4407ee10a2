"""fedgram on one GPU: RoBERTa-large's shape with random weights, blocks of many clients against one client at a time.

    python benchmarks/gpu.py --write docs/performance.md       # a few minutes; needs no download
    python benchmarks/gpu.py --quick                           # a tiny shape, on a CPU too: that it works

The sequential loop is what the code of papers does: one client after the other, LoRA modules around the frozen layers
and the head in float32 beside a backbone in the same precision, `torch.optim.AdamW`, the same start and batches. Both
wait for the GPU before a clock is read; all take turns in every pass, after one that does not count. The share of the
matrix rate counts the operations that training needs, and none for padding, which there is only in the last rows.
"""

import argparse
import copy
import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgram import AdamW, FederatedTrainer, FedIT, FLoRG
from fedgram.backbone import first_token
from fedgram.backbone.padding_free import stack_of_layers
from fedgram.cohort import local_batches
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.engine.block_size import choose_clients_per_block
from fedgram.errors import FedgramError
from fedgram.federation.evaluation import evaluate
from fedgram.federation.rounds import Federation, Round
from fedgram.federation.setup import begin
from fedgram.methods import RoundContext
from fedgram.models.base import FederatedTask
from fedgram.seeding import numpy_generator
from fedgram.state import ServerState, flatten, send
from report import add_options, best_seconds, paired_ratio, publish, say, table
from synthetic import RandomBackbone, Synthetic, draw_lengths, make_table

RATE, RANK, ALPHA = 1e-3, 4, 16.0
LOOP = "sequential loop"
PRECISIONS = {"bf16-true": torch.bfloat16, "32-true": torch.float32}
TINY = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class NoGpuError(FedgramError):
    """There is no GPU, and not a try alone was asked for."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tiny shape and few steps, on a CPU if need be")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="local steps of a client")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of a local step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 5, 10, 20], help="clients in a block")
    parser.add_argument("--passes", type=int, default=3)
    add_options(parser)
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.clients, arguments.steps, arguments.blocks, arguments.passes = 4, 2, [1, 4], 1
        arguments.length = min(arguments.length, 16)
    return arguments


def find_device(quick: bool) -> torch.device:
    """Return the GPU, or the CPU for a try.

    Raises:
        NoGpuError: there is none, and this is no try.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if not quick:
        raise NoGpuError("no GPU: this benchmark needs one that torch sees; --quick tries it on the CPU")
    return torch.device("cpu")


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed(device: torch.device, seconds: list[float]) -> Iterator[None]:
    """Add to a list how long something takes, device included."""
    wait(device)
    start = time.perf_counter()
    yield
    wait(device)
    seconds.append(time.perf_counter() - start)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return operations a second of one large product of matrices, the best of ten."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, 10, lambda: wait(device))


def operations(config: Any, lengths: np.ndarray, rank: int) -> float:
    """Return what a forward and backward pass over sequences costs, with adapters on query and value.

    Per token, layer, and one pass: 2 (4 d² + 2 d f) in the frozen matrices and 4 T d in attention; the backward pass
    needs the matrices once, for the gradient of their inputs, and attention twice. An adapter costs 4 r d, and in the
    backward pass twice as much. Nobody needs the gradients of what the first layer's projections see, nor of its keys.
    The embeddings and the head, which sees one token of a sequence, are left out.
    """
    d, f, layers, tokens = config.hidden_size, config.intermediate_size, config.num_hidden_layers, float(lengths.sum())
    matrices = (2 * 2 * layers * (4 * d * d + 2 * d * f) - 2 * 3 * d * d) * tokens
    attention = (3 * 4 * layers - 2) * d * float(np.square(lengths, dtype=np.float64).sum())
    adapters = (3 * 2 * layers * 4 * rank * d - 2 * 2 * rank * d) * tokens
    return matrices + attention + adapters


# --- fedgram ---


def make_backbone(quick: bool, folder: Path) -> RandomBackbone:
    """Return RoBERTa-large's shape, or a tiny one."""
    if not quick:
        return RandomBackbone("shape:roberta-large")
    from transformers import RobertaConfig

    RobertaConfig(**TINY, max_position_embeddings=64, type_vocab_size=1).save_pretrained(folder / "tiny")
    return RandomBackbone(str(folder / "tiny"))


def make_data(arguments: argparse.Namespace, vocabulary: int, ragged: bool) -> Synthetic:
    """Return as many sequences as the clients need, all of one length or log-normal, and some to evaluate on."""
    generator = np.random.default_rng(0)
    train, held_out = arguments.clients * arguments.steps * arguments.batch_size, 64 if arguments.quick else 1024
    lengths = np.full(train, arguments.length)
    if ragged:
        lengths = draw_lengths(train, arguments.length, generator)
    tables = {
        "train": make_table(lengths, vocabulary, generator),
        "validation": make_table(draw_lengths(held_out, arguments.length, generator), vocabulary, generator),
    }
    return Synthetic(tables, arguments.batch_size)


def build(arguments: argparse.Namespace, precision: str, ragged: bool, folder: Path) -> Federation:
    """Return a federation that stands before its first round."""
    device = find_device(arguments.quick)
    trainer = FederatedTrainer(
        rounds=1,
        clients=arguments.clients,
        local_steps=arguments.steps,
        clients_per_block=1,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=precision,
        loggers=False,
        progress_bar=False,
        default_root_dir=str(folder / f"{precision}-{ragged}"),
    )
    vocabulary = TINY["vocab_size"] if arguments.quick else 50265
    data = make_data(arguments, vocabulary, ragged)
    backbone, method = make_backbone(arguments.quick, folder), FedIT(rank=RANK, alpha=ALPHA)
    with ExitStack() as held:  # nobody else is at the run
        return begin(trainer.connect(data, method), backbone, data, method, AdamW(lr=RATE), None, held)


def train_blocks(federation: Federation, clients_per_block: int) -> Round:
    """Train all clients of a round, in blocks."""
    federation.plan = dataclasses.replace(federation.plan, clients_per_block=clients_per_block)
    current = federation.sample(1)
    for block in federation.deal(current, federation.cut(current)):
        start = federation.download(current, block)
        federation.upload(current, block, start, federation.train(current, block, start))
    return current


# --- the sequential loop ---


class PlainLora(nn.Module):
    """A frozen layer and LoRA in float32 beside it, as PEFT has it."""

    def __init__(self, base: nn.Module, scale: float, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b + s B A x."""
        added = functional.linear(functional.linear(x.to(self.A.dtype), self.A), self.B)
        y: Tensor = self.base(x)
        return y + (self.scale * added).to(y.dtype)


class PlainHead(nn.Module):
    """A layer of the head in float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b."""
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Loop:
    """The training of one client after the other, with the start and the batches of a federation's first round.

    It must be made before the federation trains, whose network it copies.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation, self.start = federation, flatten(federation.state)
        self.task: FederatedTask = copy.deepcopy(federation.network.task)
        self._make_whole()
        self.trained: dict[str, nn.Parameter] = {}
        for name, layer in federation.network.layers.items():
            tensors = federation.state.parts[layer.part][name]
            parent, _, child = name.rpartition(".")
            base = self.task.loaded().get_submodule(name).get_submodule("base")
            plain = PlainHead(**tensors) if layer.part == "head" else PlainLora(base, ALPHA / RANK, **tensors)
            setattr(self.task.loaded().get_submodule(parent), child, plain)
            self.trained |= {f"{layer.part}|{name}|{field}": getattr(plain, field) for field in tensors}

    def _make_whole(self) -> None:
        """Have the last layer compute all tokens, as the code of papers has it."""
        layers = stack_of_layers(self.task.loaded())
        if layers is not None and "forward" in vars(layers[-1]):
            first_token.uninstall(layers[-1])

    def train(self) -> dict[str, Tensor]:
        """Train all clients, and return the mean of what they end with."""
        mean = {key: torch.zeros_like(tensor) for key, tensor in self.start.items()}
        clients = self.federation.plan.clients
        for client in range(clients):
            self._train(client)
            for key, parameter in self.trained.items():
                mean[key] += parameter.detach() / clients
        return mean

    def _train(self, client: int) -> None:
        federation, parameters = self.federation, list(self.trained.values())
        with torch.no_grad():
            for key, parameter in self.trained.items():
                parameter.copy_(self.start[key])
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        data, plan = federation.data, federation.plan
        generator = numpy_generator(plan.seed, "batches", 1, client)
        for rows in local_batches(federation.shards[client], plan.local_steps or 1, data.batch_size, generator):
            found = data.split("train").batch(rows, federation.network.pad_id)
            batch = {key: send(tensor, federation.network.device) for key, tensor in found.items()}
            labels = batch.pop("labels")
            loss = self.task.sample_losses(self.task.outputs(batch), labels).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


# --- what is measured ---


def gap(mean: dict[str, Tensor], state: ServerState) -> float:
    """Return the largest difference between the loop's mean and the server's tensors."""
    ours = flatten(state)
    return max(float((tensor - ours[key]).abs().max()) for key, tensor in mean.items())


@dataclasses.dataclass
class Measured:
    """One contestant's figures.

    Attributes:
        seconds: of the local training of all clients, by pass.
        peak: bytes of GPU memory beside what lies there between trainings, such as the weights; 0 on a CPU.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0


def measure_training(
    arguments: argparse.Namespace, federation: Federation, loop: Loop, blocks: Sequence[int]
) -> dict[str, Measured]:
    """Return the figures of the loop and of fedgram with blocks of several sizes, in turn."""
    device = federation.network.device
    contestants: dict[str, Callable[[], object]] = {LOOP: loop.train}
    contestants |= {f"blocks of {size}": lambda size=size: train_blocks(federation, size) for size in blocks}
    found = {name: Measured() for name in contestants}
    for number in range(arguments.passes + 1):
        for name, train in contestants.items():
            with timed(device, found[name].seconds if number else []), memory_of(device, found[name]):
                train()
    return found


@contextmanager
def memory_of(device: torch.device, measured: Measured) -> Iterator[None]:
    """Note how much memory something takes."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    measured.peak = max(measured.peak, torch.cuda.max_memory_allocated(device) - before)


def measure(arguments: argparse.Namespace, precision: str, ragged: bool, folder: Path) -> dict[str, Any]:
    """Return all figures of one precision, with sequences of one length or of many."""
    federation = build(arguments, precision, ragged, folder)
    network, device, lengths = federation.network, federation.network.device, federation.data.split("train").lengths
    loop = Loop(federation)
    widest = max(arguments.blocks)
    blocks = [widest] if ragged or precision != "bf16-true" else sorted({*arguments.blocks, chosen_block(federation)})
    training = measure_training(arguments, federation, loop, blocks)
    start, current, server = federation.state, train_blocks(federation, widest), list[float]()
    with timed(device, server):
        federation.aggregate(current)
    return {
        "clients": arguments.clients,
        "client_steps": arguments.clients * arguments.steps,
        "operations": operations(network.task.loaded().config, lengths, RANK),
        "rate": matrix_rate(device, PRECISIONS[precision], 64 if arguments.quick else 8192),
        "training": {name: dataclasses.asdict(measured) for name, measured in training.items()},
        "auto": chosen_block(federation),
        "server_seconds": server[0],
        "gap": gap(loop.train(), federation.state),
        "moved": gap(flatten(start), federation.state),
        "evaluation": evaluation_rate(federation),
    }


def chosen_block(federation: Federation) -> int:
    """Return the number of clients in a block that ``clients_per_block: auto`` takes."""
    data, plan = federation.data, federation.plan
    return choose_clients_per_block(
        federation.network, federation.state, data.split("train"), data.batch_size, plan.clients
    )


def evaluation_rate(federation: Federation) -> float:
    """Return tokens a second of an evaluation, the best of three."""
    device, tokens = federation.network.device, len(federation.data.split("validation").ids)

    def run() -> None:
        evaluate(federation.network, federation.models(), federation.data, "validation", federation.ranks)

    return tokens / best_seconds(run, 3, lambda: wait(device))


def florg_seconds(arguments: argparse.Namespace, device: torch.device) -> float:
    """Return how long FLoRG's server step takes, for as many layers and clients as in the training."""
    k, layers = (32, 4) if arguments.quick else (1024, 48)
    generator = torch.Generator().manual_seed(0)

    def draw() -> dict[str, dict[str, Tensor]]:
        return {f"layer {i}": {"A": torch.randn(RANK, k, generator=generator).to(device)} for i in range(layers)}

    server, method = draw(), FLoRG(rank=RANK)
    payloads = {client: draw() for client in range(arguments.clients)}
    weights = dict.fromkeys(payloads, 1 / len(payloads))
    info = RoundContext(1, 0, dict.fromkeys(payloads, 0))

    def step() -> None:
        method.aggregate(server, Uploads(payloads, weights, Ranks()), info)

    return best_seconds(step, 3, lambda: wait(device))


# --- the table ---


def rows_of(what: str, figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of one precision."""
    rows = []
    loop = figures["training"][LOOP]["seconds"]
    for name, own in figures["training"].items():
        seconds = statistics.median(own["seconds"])
        rows.append(
            [
                what,
                f"{name} (auto)" if name == f"blocks of {figures['auto']}" else name,
                f"{figures['client_steps'] / seconds:.1f}",
                f"{paired_ratio(loop, own['seconds']):.2f}",
                f"{100 * figures['operations'] / seconds / figures['rate']:.0f} %",
                f"{own['peak'] / 1e9:.1f}" if own["peak"] else "-",
            ]
        )
    return rows


def remarks(what: str, figures: dict[str, Any]) -> str:
    """Return what is said of one precision below the table."""
    return (
        f"- {what}: one large product reaches {figures['rate'] / 1e12:.3g} TFLOP/s; the server step takes "
        f"{1e3 * figures['server_seconds']:.1f} ms, evaluation does {figures['evaluation']:,.0f} tokens a second; "
        f"after a round the loop's tensors differ from fedgram's by {figures['gap']:.1g} at most, and both from the "
        f"start by {figures['moved']:.1g}."
    )


def lines_of(arguments: argparse.Namespace, figures: dict[str, Any]) -> list[str]:
    """Return the table, and what is said around it."""
    cases = {name: found for name, found in figures.items() if name != "florg_seconds"}
    head = [
        "backbone and sequences",
        "",
        "client-steps a second",
        "of the loop's",
        "of the matrix rate",
        "GB in use",
    ]
    shape = "A tiny shape, to try the script" if arguments.quick else "RoBERTa-large's shape, random weights"
    return [
        f"{shape}: LoRA of rank {RANK} on query and value and the head in float32, {arguments.clients} clients, "
        f"{arguments.steps} steps of AdamW on {arguments.batch_size} x {arguments.length} tokens. Medians of "
        f"{arguments.passes} interleaved passes; GB beside what lies there between trainings, such as the weights.",
        "",
        *table(head, [row for what, found in cases.items() for row in rows_of(what, found)]),
        "",
        *(remarks(what, found) for what, found in cases.items()),
        f"- FLoRG's server step (48 layers, k = 1024, `solver: polar`): {1e3 * figures['florg_seconds']:.1f} ms."
        if not arguments.quick
        else f"- FLoRG's server step, tiny: {1e3 * figures['florg_seconds']:.1f} ms.",
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and publish."""
    arguments = parse(words)
    device = find_device(arguments.quick)
    if device.type != "cuda":
        say("no GPU: a tiny run on the CPU, which says nothing of speed")
    cases = {
        "bfloat16, one length": ("bf16-true", False),
        "float32, one length": ("32-true", False),
        "bfloat16, log-normal lengths, padded": ("bf16-true", True),
    }
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for what, (precision, ragged) in cases.items():
            say(f"{what} ...")
            figures[what] = measure(arguments, precision, ragged, Path(folder))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    figures["florg_seconds"] = florg_seconds(arguments, device)
    publish(arguments, "gpu", lines_of(arguments, figures), figures)


if __name__ == "__main__":
    try:
        main()
    except NoGpuError as error:
        raise SystemExit(f"error: {error}") from None
