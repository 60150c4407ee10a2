"""What a round sends and computes, by one rule for all methods, beside tables 2 and 8 of FLoRG's paper.

    python benchmarks/communication.py --write docs/communication.md

Nothing is measured: all figures are those of ``fedgram cost``, for the setting of the paper (20 clients, all in every
round, rank 4 on query and value, batches of 4 samples of 128 tokens), with a head that every method averages.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgram import GLUE, FeDeRA, FederatedTrainer, FedExLoRA, FedIT, FedSALoRA, FFALoRA, FLoRG, TextClassification
from fedgram.comparison.paper import PaperRow, load
from fedgram.cost import Cost, Estimate, Size, estimate
from fedgram.methods import Method
from report import say, table, write_table

MODELS = {"OPT-125M": "shape:opt-125m", "RoBERTa-large": "shape:roberta-large"}
"""The paper's models of table 2, by its names."""
CLIENTS, BATCH, TOKENS = 20, 4, 128
COMMON = {"rank": 4, "head": "averaged"}
FACTORED, EIGH, INIT = "FedEx-LoRA, factored", "FLoRG, `solver: eigh`", "FeDeRA, `when: init`"
METHODS: dict[str, Method] = {
    "FLoRG": FLoRG(**COMMON),
    EIGH: FLoRG(solver="eigh", **COMMON),
    "FedIT": FedIT(**COMMON),
    "FeDeRA": FeDeRA(when="round", **COMMON),
    INIT: FeDeRA(**COMMON),
    "FFA-LoRA": FFALoRA(**COMMON),
    "FedSA-LoRA": FedSALoRA(**COMMON),
    "FedEx-LoRA": FedExLoRA(**COMMON),
    FACTORED: FedExLoRA(residual="factored", **COMMON),
}
"""By the paper's names, FeDeRA as the paper tells it; what else there is of a method has a name of its own."""
SAME_PAYLOAD = {EIGH, INIT}
"""These send what another row sends."""


@dataclass(frozen=True)
class Rounds:
    """What is sent up and down, in the first round and in every later one."""

    first: int
    later: int

    @classmethod
    def of(cls, cost: Cost, *, head: bool, clients: int) -> "Rounds":
        """Return the parameters to and from some clients, of the adapters, or of adapters and head."""

        def count(size: Size) -> int:
            return clients * (size.parameters if head else size.adapter)

        return cls(count(cost.up) + count(cost.down_first), count(cost.up) + count(cost.down))

    def until(self, total: float) -> float:
        """Return after how many rounds a total is reached."""
        return total / self.first if total < self.first else 1 + (total - self.first) / self.later


def ask(model: str, methods: Mapping[str, Method]) -> Estimate:
    """Return the costs of some methods for a model of the paper."""
    trainer = FederatedTrainer(rounds=2, clients=CLIENTS, local_epochs=1, clients_per_block=1)
    data = GLUE("qnli", max_length=TOKENS, batch_size=BATCH)
    return estimate(trainer.settings, TextClassification(MODELS[model]), data, methods)


def payload_rows(model: str, costs: Sequence[Cost]) -> list[list[str]]:
    """Return what one client sends and gets in a round, and what all do."""
    return [
        [
            model,
            cost.method,
            f"{cost.up.adapter:,}",
            f"{cost.down.adapter:,}",
            *(f"{Rounds.of(cost, head=False, clients=n).later:,}" for n in (1, CLIENTS)),
            *(f"{Rounds.of(cost, head=True, clients=n).later:,}" for n in (1, CLIENTS)),
        ]
        for cost in costs
        if cost.method not in SAME_PAYLOAD
    ]


def payload_lines(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return the table of payloads."""
    head = [
        *("model", "method", "adapters: up", "down", "both, a client", f"both, all {CLIENTS}"),
        *("with the head: a client", f"all {CLIENTS}"),
    ]
    rows = [row for model, found in estimates.items() for row in payload_rows(model, found.costs)]
    heads = "; ".join(f"{model} {found.costs[0].up.head:,}" for model, found in estimates.items())
    return [*table(head, rows), "", f"Parameters of the head, each way: {heads}."]


def implied_rows(of_paper: PaperRow, costs: Mapping[str, Cost]) -> list[list[str]]:
    """Return the paper's totals, with the rounds that they come to by each rule."""
    target = f"{100 * (of_paper.target or 0):.0f} %"
    ours = {name: [costs[name]] for name in of_paper.values} | {"FedEx-LoRA": [costs["FedEx-LoRA"], costs[FACTORED]]}
    return [
        [of_paper.backbone, target, cost.method, power(total), *_implied(cost, total)]
        for name, total in of_paper.values.items()
        for cost in ours[name]
    ]


def _implied(cost: Cost, total: float | None) -> list[str]:
    rules = [(head, clients) for head in (False, True) for clients in (1, CLIENTS)]
    if total is None:
        return ["-"] * len(rules)
    return [f"{Rounds.of(cost, head=head, clients=n).until(total):.1f}" for head, n in rules]


def implied_lines(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return the paper's table 2 with rounds."""
    head = [
        *("model", "target", "method", "the paper's total", "rounds: adapters, a client", f"adapters, all {CLIENTS}"),
        *("with the head, a client", f"with the head, all {CLIENTS}"),
    ]
    rows = [
        row
        for of_paper in load("table2").rows
        for row in implied_rows(of_paper, {cost.method: cost for cost in estimates[of_paper.backbone].costs})
    ]
    return table(head, rows)


def compute_lines(found: Estimate) -> list[str]:
    """Return the paper's table 8 beside what is counted here."""
    paper = {of_paper.quantity: of_paper.values for of_paper in load("table8").rows}
    head = [
        *(
            "method",
            "client, the paper",
            f"here, a step of {BATCH} x {TOKENS} tokens",
            "a step: the paper's is so many",
        ),
        *("server, the paper", "here", "memory, the paper, MB", "here, MB"),
    ]
    rows = []
    for cost in found.costs:
        name = cost.method.partition(",")[0]
        client, server, memory = (paper[key][name] for key in ("client_flops", "server_flops", "peak_megabytes"))
        figures = [power(client), power(cost.step_flops), f"{(client or 0) / cost.step_flops:.2f}"]
        figures += [power(server), power(cost.server_flops), f"{memory:,.0f}", f"{cost.memory.total / 1e6:,.0f}"]
        rows.append([cost.method, *figures])
    return table(head, rows)


def power(number: float | None) -> str:
    """Return a number as powers of ten are written in Markdown; "-" for None.

    >>> power(1.18e12), power(None)
    ('1.18·10¹²', '-')
    """
    if number is None:
        return "-"
    digits, _, exponent = f"{number:.2e}".partition("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables, and put them into a document if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the tables into this Markdown document")
    arguments = parser.parse_args(sys.argv[1:] if words is None else words)
    estimates = {model: ask(model, METHODS) for model in MODELS}
    tables = {
        "payloads": payload_lines(estimates),
        "table2": implied_lines(estimates),
        "table8": compute_lines(estimates["RoBERTa-large"]),
    }
    for name, lines in tables.items():
        say([f"{name}:", "", *lines, ""])
        if arguments.write:
            write_table(arguments.write, name, lines)


if __name__ == "__main__":
    main()
