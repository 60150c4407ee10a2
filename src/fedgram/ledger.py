"""Parameters and bytes of every payload, counted from the tensors that travel, never from a formula."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from fedgram.state import PARTS, ModelState, bytes_of, parameters_of

__all__ = ["Direction", "Ledger", "Traffic"]

Direction = Literal["up", "down"]


@dataclass
class Traffic:
    """What was sent in one direction for one part: payloads, parameters (numbers) and bytes, summed over clients."""

    clients: int = 0
    parameters: int = 0
    bytes: int = 0

    def add(self, other: "Traffic") -> None:
        """Add the traffic of another round."""
        self.clients += other.clients
        self.parameters += other.parameters
        self.bytes += other.bytes


@dataclass
class Ledger:
    """The traffic of one round, per direction and part.

    Only federated payloads are counted: what a real deployment would send. What the ranks of a simulation exchange
    among themselves is not (`fedgram.distributed.collectives.Ranks.moved` has it).
    """

    entries: dict[tuple[str, str], Traffic] = field(default_factory=lambda: defaultdict(Traffic))

    def record(self, direction: Direction, payload: ModelState) -> None:
        """Count one client's payload, in which a part without tensors does not travel."""
        for part, layers in payload.parts.items():
            if any(layers.values()):
                self.entries[direction, part].add(Traffic(1, parameters_of(layers), bytes_of(layers)))

    def add(self, other: "Ledger") -> None:
        """Add the entries of another ledger."""
        for key, traffic in other.entries.items():
            self.entries[key].add(traffic)

    @classmethod
    def of(cls, rows: list[dict[str, int | str]]) -> "Ledger":
        """Undo `rows`."""
        ledger = cls()
        for row in rows:
            traffic = Traffic(int(row["clients"]), int(row["parameters"]), int(row["bytes"]))
            ledger.entries[str(row["direction"]), str(row["part"])].add(traffic)
        return ledger

    def total(self, direction: Direction) -> Traffic:
        """Return adapter and head together in one direction."""
        result = Traffic()
        for part in PARTS:
            result.add(self.entries.get((direction, part), Traffic()))
        return result

    def rows(self) -> list[dict[str, int | str]]:
        """Return one row for each direction and part, as communication.csv has them."""
        return [
            {"direction": d, "part": p, "clients": t.clients, "parameters": t.parameters, "bytes": t.bytes}
            for (d, p), t in sorted(self.entries.items())
        ]
