"""All that `FederatedTrainer.fit` does before its first round, where there is a network and no accelerator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgram.data import FederatedData
from fedgram.distributed.collectives import Ranks
from fedgram.federation.hooks import set_up
from fedgram.federation.setup import build, check_steps
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.models.sources import find_source, folder_of
from fedgram.runs.monitor import Mode, Monitor
from fedgram.settings import TrainerSettings
from fedgram.state import parameters_of

__all__ = ["Preparation", "prepare"]


@dataclass(frozen=True)
class Preparation:
    """What `fit` will find.

    Attributes:
        backbone: as it was given.
        place: the folder that the backbone was loaded from: on the hub's behalf, that in its cache.
        pretrained: whether the backbone has its pretrained weights.
        data: what the data is called.
        samples: how many samples each split has.
        clients: how many clients there are.
        smallest: the samples of the client that has the fewest.
        largest: the samples of the client that has the most.
        layers: how many layers are adapted.
        parameters: of all adapters of a client.
        head_parameters: of a client's head; 0 where it is frozen.
        cache: the folder of the tokenised data.
    """

    backbone: str
    place: Path
    pretrained: bool
    data: str
    samples: Mapping[str, int]
    clients: int
    smallest: int
    largest: int
    layers: int
    parameters: int
    head_parameters: int
    cache: Path

    def __str__(self) -> str:
        """Return a short table."""
        weights = "" if self.pretrained else ", weights drawn from the seed"
        samples = ", ".join(f"{name} {count:,}" for name, count in self.samples.items())
        rows = {
            "backbone": f"{self.backbone}{weights}",
            "  from": str(self.place),
            "data": f"{self.data}: {samples} samples",
            "  tokens in": str(self.cache),
            "clients": f"{self.clients:,}, of {self.smallest:,} to {self.largest:,} training samples",
            "adapters": f"{self.layers} layers, {self.parameters:,} parameters a client",
            "head": f"{self.head_parameters:,} parameters a client" if self.head_parameters else "frozen",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def prepare(
    settings: TrainerSettings,
    announce: Callable[[Monitor, Mapping[str, Mode]], None],
    model: FederatedTask,
    data: FederatedData,
    method: Method,
) -> Preparation:
    """Fetch, tokenise and check all that a run needs, in this process and on the CPU.

    Args:
        settings: of the run.
        announce: has the callbacks set themselves up, see `Session.set_up`.
        model: the task.
        data: of the run.
        method: of the run.
    """
    method.check_clients(settings.clients)
    network = build(settings, Ranks(), model, data, method)
    set_up(settings, announce, model, data)
    shards, start = data.shards(settings.clients, settings.seed), network.initial_state()
    check_steps(settings, method, data, shards)
    sizes = shards.sizes
    return Preparation(
        backbone=model.backbone,
        place=folder_of(find_source(model.backbone)),
        pretrained=model.pretrained,
        data=data.name,
        samples={name: len(table) for name, table in data.tables.items()},
        clients=settings.clients,
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        layers=len(start.adapter),
        parameters=parameters_of(start.adapter),
        head_parameters=parameters_of(start.head),
        cache=data.cache,
    )
