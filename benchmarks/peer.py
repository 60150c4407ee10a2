"""fedgram on the workload of its peers, with their command line and their last line of output.

    python benchmarks/peer.py --peers FOLDER --model FOLDER --clients 20 --rounds 4 --padding dynamic --threads 2

``--peers`` is a folder with a `common.py` that makes the workload and measures; each peer is a script beside it. The
round is a whole one: download, local training, upload, aggregation, accounting, tables and a checkpoint.
"""

import argparse
import os
import sys
import tempfile
from types import ModuleType
from typing import Any

sys.path.insert(0, sys.argv[sys.argv.index("--peers") + 1] if "--peers" in sys.argv else ".")

import common


def parse() -> argparse.Namespace:
    """Return the command line: that of the peers, and what is fedgram's own."""
    parser = common.parser("fedgram")
    parser.add_argument("--peers", required=True, help="the folder of common.py")
    parser.add_argument("--block", type=int, default=None, help="clients_per_block; auto if not given")
    parser.add_argument("--precision", default="32-true", help="as trainer.precision has it")
    parser.add_argument("--procs", type=int, default=1, help="ranks, which share the threads")
    parser.add_argument("--unpacked", action="store_true", help="compute on padding too")
    return parser.parse_args()


def tag(arguments: argparse.Namespace) -> str:
    """Return what tells this run from one with the default settings, as the peers name theirs."""
    parts = {
        f"_block{arguments.block}": arguments.block,
        f"_{arguments.precision}": arguments.precision != "32-true",
        f"_{arguments.procs}proc": arguments.procs > 1,
        "_unpacked": arguments.unpacked,
    }
    return "".join(part for part, given in parts.items() if given)


def in_order(indices: Any, steps: int, batch_size: int, generator: Any) -> list[Any]:
    """Return a client's batches in the order of the data, as all peers take them."""
    del generator
    return [indices[i * batch_size : (i + 1) * batch_size] for i in range(steps)]


def make_data(arguments: argparse.Namespace, common: ModuleType) -> Any:
    """Return the peers' data as fedgram's, which knows no padding."""
    import numpy as np

    from fedgram.data.base import FederatedData
    from fedgram.data.partition import Partition
    from fedgram.data.tokens import TokenTable

    clients = common.make_data(arguments.clients, arguments.local_steps, arguments.batch_size)
    ids = np.concatenate([client["input_ids"].numpy() for client in clients]).astype(np.int32)
    lengths = np.concatenate([client["attention_mask"].sum(1).numpy() for client in clients])
    labels = np.concatenate([client["labels"].numpy() for client in clients])
    flat = np.concatenate([row[:length] for row, length in zip(ids, lengths, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    table = TokenTable(flat, np.zeros_like(flat, dtype=np.uint8), offsets, labels)

    class InTurn(Partition):
        """Client c holds the c-th rows."""

        def owners(self, labels: Any, clients: int, seed: int) -> Any:
            del seed
            return np.arange(len(labels)) * clients // len(labels)

    class Peers(FederatedData):
        """The peers' sequences."""

        name = "peers"
        num_labels, label_names, metrics = 2, ["0", "1"], ("accuracy",)

        def load_tables(self) -> dict[str, TokenTable]:
            self.group_names = self.label_names
            return {"train": table}

        def groups(self, split: str) -> Any:
            return self.tables[split].labels

        def fingerprint(self) -> str:
            return table.fingerprint()

    return Peers(128, arguments.batch_size, 64, InTurn(), None)


def start_as_peers(layers: Any) -> None:
    """Start from the numbers that the peers start from, drawn in their order."""
    import torch

    generator = torch.Generator().manual_seed(common.SEED + 3)
    for layer in layers.values():
        if layer.part == "adapter":
            A = layer.start["A"]
            layer.start["A"] = torch.randn(A.shape, generator=generator) / A.shape[-1] ** 0.5
        else:
            weight = layer.base.weight
            weight.data = (0.02 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
            layer.base.bias.data.zero_()


def named_as_peers(state: Any) -> dict[str, Any]:
    """Return the server's tensors under the names that PEFT gives them."""
    adapters = {
        f"base_model.model.{name}.lora_{field}.default.weight": tensor
        for name, layer in state.adapter.items()
        for field, tensor in layer.items()
    }
    heads = {
        f"base_model.model.{name}.modules_to_save.default.{field}": tensor
        for name, layer in state.head.items()
        for field, tensor in layer.items()
    }
    return adapters | heads


def main() -> None:
    """Measure some rounds and report them as a peer does."""
    arguments = parse()
    started = common.process_start()
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # the others are started by Fabric, with this command line
    watch = common.Watch(arguments.mem_interval if first else 0)
    import fedgram.federation.rounds
    from fedgram import AdamW, FederatedTrainer, FedIT, TextClassification
    from fedgram.callbacks import Callback

    ends: list[float] = []

    class Tick(Callback):
        """Tells the peers' clock of a round."""

        def on_round_end(self, trainer: Any, row: Any) -> None:
            if first and row["round"]:
                common.tick(ends)

    class LikePeers(FedIT):
        """FedIT with the peers' start, whose head is not the one that fedgram draws."""

        keeps_start = False

        def install(self, network: Any, seed: int) -> Any:
            layers = super().install(network, seed)
            start_as_peers(layers)
            return layers

    fedgram.federation.rounds.local_batches = in_order
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            rounds=arguments.rounds,
            clients=arguments.clients,
            local_steps=arguments.local_steps,
            clients_per_block=arguments.block or "auto",
            threads=max(1, arguments.threads // arguments.procs),
            accelerator="cpu",
            devices=arguments.procs,
            precision=arguments.precision,
            packing=not arguments.unpacked,
            evaluate_at_start=False,
            loggers=False,
            progress_bar=False,
            callbacks=[Tick()],
            default_root_dir=folder,
        )
        trainer.fit(
            TextClassification(arguments.model),
            make_data(arguments, common),
            LikePeers(rank=4, alpha=16, target_modules=["query", "value"]),
            AdamW(lr=common.LR, weight_decay=0.01),
        )
        chosen = {"clients_per_block": trainer.plan.clients_per_block, "precision": arguments.precision}
    if first:
        tensors = named_as_peers(trainer.federation.state)
        common.dump_state(arguments.dump_state, list(tensors), list(tensors.values()))
        common.report("fedgram" + tag(arguments), arguments, started, ends, watch.stop(), **chosen)


if __name__ == "__main__":
    main()
