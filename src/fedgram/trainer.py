"""The round: sample, cut into blocks, download, train, upload, aggregate, account, evaluate, log, checkpoint."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.strategies.strategy import Strategy

from fedgram.callbacks import Callback
from fedgram.cohort import ClientWeights
from fedgram.cost import Announce, Estimate, estimate, silent
from fedgram.cost import every_method as all_methods
from fedgram.data import FederatedData
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.hardware import check_hardware, check_requests
from fedgram.distributed.launch import (
    choose_accelerator,
    devices_per_node,
    follow_srun,
    launch,
    nodes,
    without_srun_hint,
)
from fedgram.distributed.slurm import DEFAULT_EARLY, StopSignals, current_job, requeue
from fedgram.early_stopping import EarlyStopping
from fedgram.engine.slow_types import warn_of_slow_type
from fedgram.errors import ConfigurationError, Preempted, located
from fedgram.federation.clients import Models
from fedgram.federation.ending import is_over
from fedgram.federation.evaluation import evaluate, infer, log_undefined
from fedgram.federation.hooks import own_callbacks, stopping
from fedgram.federation.judging import find_judged, models_of
from fedgram.federation.prepare import Preparation, prepare
from fedgram.federation.rounds import Federation
from fedgram.federation.session import Session
from fedgram.federation.setup import assemble, begin
from fedgram.federation.summary import summarise, write_predictions
from fedgram.files import check_output, expand_home
from fedgram.finite import undefined
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.optim import DEFAULT_OPTIMIZER, ClientOptimizer
from fedgram.progress_bar import ProgressBar
from fedgram.runs import tensorboard
from fedgram.runs.checkpoint import load_first
from fedgram.runs.folder import RunFolder
from fedgram.runs.monitor import LOSS, Mode, Monitor
from fedgram.runs.results import keep_result
from fedgram.settings import PersonalEvaluation, Precision, TrainerSettings
from fedgram.state import ModelState

__all__ = ["EarlyStopping", "FederatedTrainer"]

log = logging.getLogger(__name__)


class FederatedTrainer:
    """Simulates federated fine-tuning: N clients with their own data, a server, and rounds between them.

    Args:
        rounds: how many rounds to run.
        clients: N, the number of clients that share the training data.
        participation: who trains in a round: a share of the clients where it is at most 1 (1 is everyone), or a number
            of clients where it is greater.
        local_epochs: passes of a client over its data in a round; 1 unless local_steps is given.
        local_steps: optimizer steps of a client in a round, instead of local_epochs.
        clients_per_block: clients trained together in one batched pass; "auto" chooses by memory and is written down,
            since it can change the last bits. 1 is the plain loop over clients.
        packing: leave out what changes no answer, where the backbone lets one: on a CPU padding, and in the last layer
            all tokens but the first, where the head reads no other.
        client_weights: how the server weighs clients: "uniform", or by their number of "samples".
        personal_evaluation: on what the models of clients are judged, where a method has each client keep a part of its
            own. "own" has each answer its client's share of the split, dealt as the training data is, and scores all
            answers as one: knowing which labels a client has is rewarded, as a global model's score never is. "all" has
            each answer the whole split and takes the plain mean of the scores, for N times the cost.
        evaluate_every: rounds between evaluations on the validation split; the last round is always evaluated.
        evaluate_at_start: evaluate before training as well, as round 0.
        monitor: what decides which checkpoint is the best: a metric of the task, by default the first one, or the
            loss of which less is better: val_loss or train_loss.
        keep_last: how many checkpoints of rounds are kept besides the best; if the newest is damaged, the one before is
            used.
        seed: of all that is random. Equal seeds and settings give equal bits.
        threads: CPU threads of each rank; by default what torch chooses.
        accelerator: cpu, cuda or another that Lightning Fabric knows; "auto" is CUDA where there is some, or else the
            CPU. Apple's GPUs (mps) are refused: they have no float64.
        devices: as Fabric has it: how many devices, or which. Every device is a rank that trains its own blocks. "auto"
            takes as many as srun or torchrun started tasks on a node; without them one CPU, or all GPUs.
        num_nodes: how many nodes; "auto" asks srun or torchrun, and is one without them.
        strategy: as Fabric has it; a DDPStrategy may say how long a rank waits for the others (timeout).
        precision: of the backbone; adapters and head are always float32, or float64 with 64-true.
        loggers: Lightning loggers; true is TensorBoard in the run's folder, false is none.
        callbacks: hooks into the run, see fedgram.callbacks.Callback.
        progress_bar: show progress on the terminal.
        default_root_dir: where runs are kept.
        name: the run's name, by default task-method; its folder is default_root_dir/name/version_N.
        preempt_signal: a signal that announces the end, as `sbatch --signal=USR1@120` has SLURM send it. At it, and at
            SIGTERM, the run finishes its local step, drops the unfinished round, and ends with exit code 75.
        requeue: at preempt_signal, put the SLURM job back into the queue; once requeued, it goes on with its run.

    Attributes:
        folder: the run's folder, for callbacks, once `fit` has begun; likewise
        plan: what was chosen for the run, and
        federation: the run itself: the server's state, the last metrics and so on.
        should_stop: callbacks set it, in any process, to have the run end with the round that is done.
        monitored: the figure that the best checkpoint is chosen by, once data and model are known.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    def __init__(
        self,
        rounds: int = 10,
        clients: int = 20,
        participation: int | float = 1,
        local_epochs: int | None = None,
        local_steps: int | None = None,
        clients_per_block: int | Literal["auto"] = "auto",
        packing: bool = True,
        client_weights: ClientWeights = "uniform",
        personal_evaluation: PersonalEvaluation = "own",
        evaluate_every: int = 1,
        evaluate_at_start: bool = True,
        monitor: str | None = None,
        keep_last: int = 2,
        seed: int = 0,
        threads: int | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int | Literal["auto"] = "auto",
        strategy: str | Strategy = "auto",
        precision: Precision = "32-true",
        loggers: Logger | list[Logger] | bool = True,
        callbacks: list[Callback] | None = None,
        progress_bar: bool = True,
        default_root_dir: str = "runs",
        name: str | None = None,
        preempt_signal: str | None = DEFAULT_EARLY,
        requeue: bool = False,
    ) -> None:
        self.settings = TrainerSettings(
            rounds=rounds,
            clients=clients,
            participation=participation,
            local_epochs=local_epochs,
            local_steps=local_steps,
            clients_per_block=clients_per_block,
            packing=packing,
            client_weights=client_weights,
            personal_evaluation=personal_evaluation,
            evaluate_every=evaluate_every,
            evaluate_at_start=evaluate_at_start,
            monitor=monitor,
            keep_last=keep_last,
            seed=seed,
            threads=threads,
            precision=precision,
            default_root_dir=default_root_dir,
            name=name,
        )
        check_requests(accelerator, devices, num_nodes, strategy, threads)
        self.accelerator = accelerator
        self.devices = devices
        self.strategy = strategy
        self._asked_nodes = num_nodes
        self.loggers = loggers
        self.callbacks = [*(callbacks or []), *([ProgressBar()] if progress_bar else [])]
        self.preempt_signal = preempt_signal
        self.requeue = requeue
        self.stop_signals = StopSignals(preempt_signal)
        self.should_stop = False
        self.monitored = LOSS
        self.run_name = name or ""
        self.folder: RunFolder | None = None
        self.plan: TrainerSettings | None = None
        self.federation: Federation | None = None

    @property
    def rounds(self) -> int:
        """How many rounds the run has."""
        return self.settings.rounds

    @property
    def clients(self) -> int:
        """N, how many clients there are."""
        return self.settings.clients

    @property
    def seed(self) -> int:
        """Of all that is random."""
        return self.settings.seed

    @property
    def default_root_dir(self) -> Path:
        """The folder of all runs."""
        return self.settings.root

    @cached_property
    def num_nodes(self) -> int:
        """How many nodes the run has."""
        follow_srun()
        return nodes(self._asked_nodes)

    @cached_property
    def fabric(self) -> Fabric:
        """The run's devices and ranks, looked for when they are needed: `prepare` does without them."""
        num_nodes = self.num_nodes  # before the devices, as it follows srun
        accelerator, devices = choose_accelerator(self.accelerator), devices_per_node(self.devices)
        check_hardware(accelerator, devices, num_nodes, nodes("auto"))
        with without_srun_hint():
            return Fabric(
                accelerator=accelerator,
                strategy=self.strategy,
                devices=devices,
                num_nodes=num_nodes,
                precision=self.settings.precision,
                callbacks=self.callbacks,
            )

    def connect(self, data: FederatedData, method: Method) -> Session:
        """Launch the processes of a run, and settle its name."""
        launch(self.fabric, self.num_nodes)
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)  # after the launch, which sets a share of the cores
        self.run_name = self.settings.name or f"{data.name}-{method.name}"
        ranks = Ranks(self.fabric, lambda: self.stop_signals.received)
        return Session(
            self.settings, self.fabric, ranks, self.run_name, self.callbacks, self.loggers, self._set_callbacks_up
        )

    def _set_callbacks_up(self, monitor: Monitor, figures: Mapping[str, Mode]) -> None:
        """Have callbacks check their settings, once it is known what a round can be judged by."""
        self.monitored, self.should_stop = monitor, False
        for callback in own_callbacks(self.callbacks):
            callback.on_setup(self, figures)

    def fit(
        self,
        model: FederatedTask,
        datamodule: FederatedData,
        method: Method,
        optimizer: ClientOptimizer | None = None,
        ckpt_path: str | None = None,
    ) -> dict[str, Any]:
        """Fine-tune a model across clients.

        Args:
            model: the task: a backbone with a head, its loss and metrics.
            datamodule: the data and how it is split among the clients.
            method: the federated method.
            optimizer: the clients' optimizer, AdamW by default; its memory is fresh in every round unless keep_state.
            ckpt_path: go on with a run: "last" for the newest of this name, or the path of its folder or checkpoint.
                Without it, or with "none", a new run begins.

        Returns:
            What summary.json says.
        """
        with self.stop_signals, ExitStack() as held:
            optimizer = optimizer or DEFAULT_OPTIMIZER()
            method.check_clients(self.settings.clients)
            optimizer.check_rounds(self.rounds)
            session = self.connect(datamodule, method)
            self.federation = federation = begin(session, model, datamodule, method, optimizer, ckpt_path, held)
            self.folder, self.plan = federation.recorder.folder, federation.plan
            if federation.ranks.rank == 0:
                warn_of_slow_type(federation.network, self.settings.precision)
            with self._ending_together(federation):
                for number in range(federation.progress.finished + 1, self.rounds + 1):
                    if is_over(federation, self.should_stop):
                        break
                    current = federation.sample(number)  # nobody in round 0, which is the evaluation before training
                    federation.describe(current)
                    blocks = federation.deal(current, federation.cut(current))
                    with federation.ranks.apart(f"round {number}"):
                        self.fabric.call("on_round_start", trainer=self, round_number=number, clients=_count(blocks))
                        for block in blocks:
                            start = federation.download(current, block)
                            trained = federation.train(current, block, start)
                            federation.upload(current, block, start, trained)
                            self.fabric.call("on_block_end", trainer=self, clients=len(block.clients))
                    federation.aggregate(current)
                    federation.account(current)
                    federation.evaluate(current)
                    with federation.ranks.apart(f"round {number}"):
                        federation.log(current)
                        self.fabric.call("on_round_logged", trainer=self, row=current.row)
                        federation.checkpoint(current.row)
                        self.fabric.call("on_round_end", trainer=self, row=current.row)
                if federation.progress.stopped is not None:
                    federation.evaluate_last()
            return self._finish(federation)

    def prepare(
        self,
        model: FederatedTask,
        datamodule: FederatedData,
        method: Method,
        optimizer: ClientOptimizer | None = None,
        ckpt_path: str | None = None,
    ) -> Preparation:
        """Fetch, tokenise and check what fit needs, so that it then runs without a network.

        It does what `fit` does before its first round, in this process and on the CPU, whatever devices and ranks are
        asked for, and without a run's folder. A wrong setting is an error here, not in a job that has waited for hours.

        Args:
            model: the task: a backbone with a head, its loss and metrics.
            datamodule: the data and how it is split among the clients.
            method: the federated method.
            optimizer: the clients' optimizer, AdamW by default.
            ckpt_path: left to fit, whose arguments these are.

        Returns:
            What was found, and where it is.
        """
        (optimizer or DEFAULT_OPTIMIZER()).check_rounds(self.rounds)
        return prepare(self.settings, self._set_callbacks_up, model, datamodule, method)

    def cost(
        self,
        model: FederatedTask,
        datamodule: FederatedData,
        method: Method,
        optimizer: ClientOptimizer | None = None,
        ckpt_path: str | None = None,
        tokens: int | None = None,
        labels: int | None = None,
        samples: int | None = None,
        every_method: bool = False,
        announce: Announce = silent,
    ) -> Estimate:
        """Tell what fit would cost: parameters and bytes sent, operations, and memory.

        Neither weights nor data are read, no tokenizer is needed, and seconds are enough for a model of billions of
        parameters. A model of the hub that is not in its cache is taken by its shape where fedgram has that.
        What all clients send and are sent is what the run's ledger will have; where only training can tell, it is a
        range, with the reason.

        Args:
            model: the task: a backbone with a head, its loss and metrics.
            datamodule: the data and how it is split among the clients.
            method: the federated method.
            optimizer: the clients' optimizer; memory is told for AdamW.
            ckpt_path: left to fit, whose arguments these are.
            tokens: of every sample; if not given data.max_length, or as many as the backbone has positions for.
            labels: of the head, if not what the data says, or 2.
            samples: of the train split, where it is not known what the data holds.
            every_method: tell it for every method with its defaults, but for method.rank, method.alpha and
                method.target_modules; --method all is short for it.
            announce: is called before each method is counted, with its name, its number and how many there are.
        """
        methods = all_methods(method) if every_method else {method.name: method}
        return estimate(self.settings, model, datamodule, methods, tokens, labels, samples, announce)

    def validate(
        self, model: FederatedTask, datamodule: FederatedData, method: Method, ckpt_path: str | None = None
    ) -> dict[str, float]:
        """Evaluate a run's model, or the untrained one, on the validation split, and keep the result in its folder.

        Args:
            model: the task.
            datamodule: the data.
            method: the method of the run.
            ckpt_path: "last" or "best" of the newest run of this name, or the path of a run's folder or checkpoint.
                Without it, the best one of the newest run, or else its last; where there is no run, a warning says that
                the model is the one that training starts from. "none" asks for that.
        """
        return self._evaluate_split("validation", model, datamodule, method, ckpt_path)

    def test(
        self, model: FederatedTask, datamodule: FederatedData, method: Method, ckpt_path: str | None = None
    ) -> dict[str, float]:
        """Evaluate a run's model, or the untrained one, on the test split, and keep the result in its folder.

        Args:
            model: the task.
            datamodule: the data.
            method: the method of the run.
            ckpt_path: "last" or "best" of the newest run of this name, or the path of a run's folder or checkpoint.
                Without it, the best one of the newest run, or else its last; where there is no run, a warning says that
                the model is the one that training starts from. "none" asks for that.
        """
        return self._evaluate_split("test", model, datamodule, method, ckpt_path)

    def predict(
        self,
        model: FederatedTask,
        datamodule: FederatedData,
        method: Method,
        ckpt_path: str | None = None,
        split: str = "test",
        output: str = "predictions.csv",
        client: int | None = None,
    ) -> Path:
        """Write a run's predictions for a split to a CSV file.

        A row has the columns of the data, and then what is predicted: of a classification the class, its probability
        and that of every class, by their names; of a regression the score.

        Args:
            model: the task.
            datamodule: the data.
            method: the method of the run.
            ckpt_path: "last" or "best" of the newest run of this name, or the path of a run's folder or checkpoint.
                Without it, the best one of the newest run, or else its last; where there is no run, a warning says that
                the model is the one that training starts from. "none" asks for that.
            split: which split to predict.
            output: the file to write.
            client: whose model, where a method has each client keep a part of its own.

        Returns:
            The file's path.
        """
        path = expand_home(output)
        check_output(path)
        session = self.connect(datamodule, method)
        ranks, judged = session.ranks, find_judged(session, ckpt_path)
        network = assemble(session, model, datamodule, method, None if judged is None else judged.classes)
        with ranks.apart():
            table = datamodule.split(split)
            state = _model_of(client, models_of(judged, self.settings, network, datamodule, method, ranks))
        with located(f"{split} split"):
            outputs = infer(network, [(state, np.arange(len(table)))], table, datamodule.eval_batch_size, ranks)
        if ranks.rank == 0:
            write_predictions(path, datamodule.inputs(split), model.predictions(outputs, datamodule, split))
        return path

    def _evaluate_split(
        self,
        split: str,
        model: FederatedTask,
        datamodule: FederatedData,
        method: Method,
        ckpt_path: str | None,
    ) -> dict[str, float]:
        session = self.connect(datamodule, method)
        ranks, judged = session.ranks, find_judged(session, ckpt_path)
        network = assemble(session, model, datamodule, method, None if judged is None else judged.classes)
        with ranks.apart():
            if not all(datamodule.is_labelled(part) for part in datamodule.parts(split).values()):
                raise ConfigurationError(f"the {split} split has no labels to compare with; use fedgram predict")
            models = models_of(judged, self.settings, network, datamodule, method, ranks)
        metrics = evaluate(network, models, datamodule, split, ranks, self.settings.personal_evaluation)
        if (names := undefined(metrics)) and ranks.rank == 0:
            log_undefined(names, split)
        if judged is not None and ranks.rank == 0:
            how = self.settings.personal_evaluation if method.personal else None
            keep_result(judged.path, judged.result(datamodule, split, metrics, how))
        return metrics

    @contextmanager
    def _ending_together(self, federation: Federation) -> Iterator[None]:
        """Tell callbacks when training begins and ends, other ranks of an error here, and SLURM of an early end."""
        try:
            self.fabric.call("on_fit_start", trainer=self, first_round=max(1, federation.progress.finished + 1))
            yield
        except Preempted as stop:
            self._give_way(federation, stop)
            raise
        except Exception as error:
            federation.ranks.warn_others(error)
            raise
        finally:
            self.fabric.call("on_fit_end", trainer=self)

    def _give_way(self, federation: Federation, stop: Preempted) -> None:
        """Say where the run stands, and put its job back into the queue if that was asked for."""
        if federation.ranks.rank:
            return
        folder = federation.recorder.folder
        standing = folder.round_checkpoints()
        where = f"after round {load_first(standing)[1].round}" if standing else "at its start"
        log.info("%s; %s stands %s, and goes on there with --ckpt_path last", stop, folder.path, where)
        job = current_job()
        if self.requeue and stop.signal == self.preempt_signal and job is not None:
            requeue(job)

    def _finish(self, federation: Federation) -> dict[str, Any]:
        """Write summary.json, and tell the loggers what came of the run."""
        summary = summarise(federation, stopping(self.callbacks))
        if federation.ranks.rank == 0:
            federation.recorder.folder.write_json("summary.json", summary)
            sent = {f"megabytes_{way}": summary[f"bytes_{way}"] / tensorboard.MEGABYTE for way in ("up", "down")}
            progress = federation.progress
            federation.recorder.tracker.finish(progress.finished, {**progress.metrics, **sent})
        return summary


def _model_of(client: int | None, models: Models) -> ModelState:
    """Return the model that predicts."""
    clients = len(models.shards)
    if models.personal and (client is None or not 0 <= client < clients):
        raise ConfigurationError(
            f"every client has its own model here: say whose predicts with --client 0 to {clients - 1}, got {client}"
        )
    if client is not None and not models.personal:
        raise ConfigurationError(
            f"all clients have one model, before training and with methods that keep nothing with clients: leave "
            f"--client {client} out, or give --ckpt_path"
        )
    return models.server if client is None else models.of(client)


def _count(blocks: list[Any]) -> int:
    return sum(len(block.clients) for block in blocks)
