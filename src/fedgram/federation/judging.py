"""The model that test, validate and predict ask: of which checkpoint it is, and whether that is of the same run."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgram.data import FederatedData, Shards
from fedgram.distributed.collectives import Ranks
from fedgram.engine.network import ClientNetwork
from fedgram.engine.precision import trained_type
from fedgram.federation.clients import ClientStore, Models
from fedgram.federation.describe import describe
from fedgram.federation.forms import check_tensors
from fedgram.federation.run_settings import CLASSES, WEIGHTS_SETTING, check_same_run, dealing
from fedgram.federation.session import Session
from fedgram.federation.summary import evaluated_samples
from fedgram.methods import Method
from fedgram.runs.checkpoint import Checkpoint, load_first
from fedgram.runs.folder import UNTRAINED, find_checkpoints, newest_checkpoints
from fedgram.runs.results import Result
from fedgram.settings import TrainerSettings
from fedgram.state import ServerState

__all__ = ["Judged", "find_judged", "models_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A checkpoint whose models are asked.

    Attributes:
        path: its file.
        checkpoint: what was read from that.
    """

    path: Path
    checkpoint: Checkpoint

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the classes that its models answer with; None without any, and of former versions."""
        return self.checkpoint.progress.get("classes")

    def result(self, data: FederatedData, split: str, metrics: Mapping[str, float], how: str | None) -> Result:
        """Return what its models score on a split, with what they were judged on.

        Args:
            data: the data.
            split: the split.
            metrics: what they score.
            how: on what models of clients were judged; None where there is one model.
        """
        parts = data.parts(split).values()
        digest = hashlib.sha256("\n".join(f"{part}:{data.split(part).fingerprint()}" for part in parts).encode())
        samples = {part: evaluated_samples(data, part) for part in parts}
        return Result(
            split, self.checkpoint.round, self.path.name, data.name, metrics, samples, how, digest.hexdigest()
        )


def find_judged(session: Session, ckpt_path: str | None) -> Judged | None:
    """Return the checkpoint that is asked for; None where that is the untrained model."""
    with session.ranks.apart():
        paths = _checkpoints_to_judge(session, ckpt_path)
        return Judged(*load_first(paths)) if paths else None


def _checkpoints_to_judge(session: Session, ckpt_path: str | None) -> list[Path]:
    """Return the files that may hold the model that is asked for; none where that is the untrained one."""
    if ckpt_path == UNTRAINED:
        return []
    if ckpt_path is not None:
        return find_checkpoints(ckpt_path, *session.home)
    found = newest_checkpoints(*session.home)
    if not found and session.ranks.rank == 0:
        log.warning(
            "WARNING: no run in %s has a checkpoint, so the model that answers is UNTRAINED; fedgram fit trains one, "
            "--ckpt_path takes another run's, and --ckpt_path none asks for the untrained one",
            session.settings.root / session.run_name,
        )
    return found


def models_of(
    judged: Judged | None,
    settings: TrainerSettings,
    network: ClientNetwork,
    data: FederatedData,
    method: Method,
    ranks: Ranks,
) -> Models:
    """Return the models of a checkpoint, or those that training would start from, and log which they are."""
    initial = network.initial_state()
    # Only the models of clients ask whose samples are whose.
    everything = np.zeros(len(data.split("train")), np.int64)
    shards = data.shards(settings.clients, settings.seed) if method.personal else Shards.of(everything, 1)
    level = logging.DEBUG if ranks.rank else logging.INFO
    if judged is None:
        log.log(level, "the untrained model: the backbone, with the adapters and the head that training starts from")
        start = method.model(ServerState(initial, method.server_start(initial, settings.clients)))
        return Models(start, ClientStore(), shards, settings.seed)
    path, checkpoint = judged.path, judged.checkpoint
    _check_run(judged, settings, network, data, method)
    log.log(level, "%s, after round %d", path, checkpoint.round)
    initial = network.initial_state(trained_type(checkpoint.settings.get("trainer.precision")))
    memory = method.server_start(initial, checkpoint.settings["trainer.clients"])
    helps = "has this data as many labels as the run's, and is the backbone the same?"
    check_tensors(path, checkpoint, ServerState(initial, memory), method, helps=helps)
    model = method.model(checkpoint.state)
    return Models(model, ClientStore(checkpoint.clients), shards, settings.seed)


def _check_run(
    judged: Judged, settings: TrainerSettings, network: ClientNetwork, data: FederatedData, method: Method
) -> None:
    """Refuse a checkpoint of another run: of a method, model or seed, or of classes that are not these."""
    present = {
        **describe(method, "method"),
        **describe(network.task, "model"),
        WEIGHTS_SETTING: network.weights,
        CLASSES: network.task.classes,
        "trainer.seed": settings.seed,
    }
    if method.personal:  # whose samples are whose
        present |= {"trainer.clients": settings.clients, **dealing(data)}
    if network.task.classes and "classes" not in judged.checkpoint.progress:
        log.warning("%s does not record the names of its classes: whether they are these is not checked", judged.path)
    helps = "use the settings it has, another run's --ckpt_path, or --ckpt_path none"
    check_same_run(judged.path, judged.checkpoint, present, network.task.config_digest(), helps, partly=True)
