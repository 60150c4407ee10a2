"""The round: sample, cut into blocks, download, train, upload, aggregate, account, evaluate, log, checkpoint."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.strategies.strategy import Strategy

from fedgram import tracking
from fedgram.callbacks import Callback
from fedgram.checkpoint import load_first
from fedgram.clients import Models, PersonalEvaluation
from fedgram.cohort import ClientWeights, cohort_size
from fedgram.cost import Announce, Estimate, estimate, silent
from fedgram.cost import every_method as all_methods
from fedgram.data import FederatedData
from fedgram.early_stopping import EarlyStopping
from fedgram.ending import conclude, is_over
from fedgram.errors import ConfigurationError, Preempted, located, require_choice
from fedgram.evaluation import evaluate, infer, log_undefined
from fedgram.facts import MOST_CLIENTS
from fedgram.federation import Federation, Plan
from fedgram.files import check_output, expand_home
from fedgram.finite import undefined
from fedgram.hardware import check_hardware, check_requests
from fedgram.judging import find_judged, models_of
from fedgram.launch import choose_accelerator, devices_per_node, follow_srun, nodes, without_srun_hint
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.monitor import LOSS
from fedgram.names import check_path, check_run_name
from fedgram.optim import DEFAULT_OPTIMIZER, ClientOptimizer
from fedgram.preparation import Preparation, prepare
from fedgram.progress import ProgressBar
from fedgram.reporting import summarise, write_predictions
from fedgram.results import keep_result
from fedgram.run_folder import RunFolder
from fedgram.setup import assemble, begin, connect
from fedgram.slow_types import warn_of_slow_type
from fedgram.slurm import DEFAULT_EARLY, StopSignals, current_job, requeue
from fedgram.state import State

__all__ = ["EarlyStopping", "FederatedTrainer"]

log = logging.getLogger(__name__)

MOST_ROUNDS = 100_000
"""Nobody trains for more, and what a run costs is added up round by round."""
Precision = Literal["32-true", "64-true", "bf16-true", "bf16-mixed"]


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
        self.rounds = rounds
        self.clients = clients
        self.participation = participation
        self.local_epochs = local_epochs
        self.local_steps = local_steps
        self.clients_per_block = clients_per_block
        self.packing = packing
        self.client_weights: ClientWeights = client_weights
        self.personal_evaluation: PersonalEvaluation = personal_evaluation
        self.evaluate_every = evaluate_every
        self.evaluate_at_start = evaluate_at_start
        self.monitor = monitor
        self.monitored = LOSS
        self.should_stop = False
        self.keep_last = keep_last
        self.seed = seed
        self.threads = threads
        self.precision = precision
        self.loggers = loggers
        check_path("trainer.default_root_dir", default_root_dir)
        self.default_root_dir = expand_home(default_root_dir)
        self.name = None if name is None else check_run_name("trainer.name", name)
        self.preempt_signal = preempt_signal
        self.requeue = requeue
        self.stop_signals = StopSignals(preempt_signal)
        self.run_name = name or ""
        self.folder: RunFolder | None = None
        self.plan: Plan | None = None
        self.federation: Federation | None = None
        self.callbacks = [*(callbacks or []), *([ProgressBar()] if progress_bar else [])]
        self.accelerator = accelerator
        self.devices = devices
        self.strategy = strategy
        self._asked_nodes = num_nodes
        self._check()

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
                precision=self.precision,
                callbacks=self.callbacks,
            )

    def _check(self) -> None:
        check_requests(self.accelerator, self.devices, self._asked_nodes, self.strategy, self.threads)
        at_least_one = (
            "rounds",
            "clients",
            "local_epochs",
            "local_steps",
            "clients_per_block",
            "evaluate_every",
            "keep_last",
            "threads",
        )
        for key in at_least_one:
            value = getattr(self, key)
            if isinstance(value, int) and value < 1:
                raise ConfigurationError(f"trainer.{key} must be at least 1, got {value}")
        for key, most in {"rounds": MOST_ROUNDS, "clients": MOST_CLIENTS}.items():
            if getattr(self, key) > most:
                raise ConfigurationError(f"trainer.{key} must be at most {most:,}, got {getattr(self, key)}")
        if self.local_epochs is not None and self.local_steps is not None:
            raise ConfigurationError(
                f"give trainer.local_epochs or trainer.local_steps, not both; got {self.local_epochs} and "
                f"{self.local_steps}"
            )
        if not 0 < self.participation <= self.clients or (self.participation > 1 and self.participation % 1):
            raise ConfigurationError(
                "trainer.participation must be a share of the clients in (0, 1], or a whole number of at most "
                f"trainer.clients = {self.clients}; got {self.participation}"
            )
        require_choice("trainer.client_weights", self.client_weights, ClientWeights)
        require_choice("trainer.personal_evaluation", self.personal_evaluation, PersonalEvaluation)
        require_choice("trainer.precision", self.precision, Precision)
        cohort = cohort_size(self.participation, self.clients)
        if isinstance(self.clients_per_block, int) and self.clients_per_block > cohort:
            raise ConfigurationError(
                f"trainer.clients_per_block must be at most the {cohort} clients of a round, got "
                f"{self.clients_per_block}; auto chooses for you"
            )

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
            self.federation = federation = begin(
                self, model, datamodule, method, optimizer or DEFAULT_OPTIMIZER(), ckpt_path, held
            )
            if federation.ranks.rank == 0:
                warn_of_slow_type(federation.network, self.precision)
            with self._ending_together(federation):
                for number in range(federation.finished + 1, self.rounds + 1):
                    if is_over(self, federation):
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
                conclude(federation)
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
        return prepare(self, model, datamodule, method)

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
        return estimate(self, model, datamodule, methods, tokens, labels, samples, announce)

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
        ranks = connect(self, datamodule, method)
        judged = find_judged(self, ckpt_path, ranks)
        network = assemble(self, ranks, model, datamodule, method, None if judged is None else judged.classes)
        with ranks.apart():
            table = datamodule.split(split)
            state = _model_of(client, models_of(judged, self, network, datamodule, method, ranks))
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
        ranks = connect(self, datamodule, method)
        judged = find_judged(self, ckpt_path, ranks)
        network = assemble(self, ranks, model, datamodule, method, None if judged is None else judged.classes)
        with ranks.apart():
            if not all(datamodule.is_labelled(part) for part in datamodule.parts(split).values()):
                raise ConfigurationError(f"the {split} split has no labels to compare with; use fedgram predict")
            models = models_of(judged, self, network, datamodule, method, ranks)
        metrics = evaluate(network, models, datamodule, split, ranks, self.personal_evaluation)
        if (names := undefined(metrics)) and ranks.rank == 0:
            log_undefined(names, split)
        if judged is not None and ranks.rank == 0:
            how = self.personal_evaluation if method.personal else None
            keep_result(judged.path, judged.result(datamodule, split, metrics, how))
        return metrics

    @contextmanager
    def _ending_together(self, federation: Federation) -> Iterator[None]:
        """Tell callbacks when training begins and ends, other ranks of an error here, and SLURM of an early end."""
        try:
            self.fabric.call("on_fit_start", trainer=self, first_round=max(1, federation.finished + 1))
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
        standing = federation.folder.round_checkpoints()
        where = f"after round {load_first(standing)[1].round}" if standing else "at its start"
        log.info("%s; %s stands %s, and goes on there with --ckpt_path last", stop, federation.folder.path, where)
        job = current_job()
        if self.requeue and stop.signal == self.preempt_signal and job is not None:
            requeue(job)

    def _finish(self, federation: Federation) -> dict[str, Any]:
        """Write summary.json, and tell the loggers what came of the run."""
        summary = summarise(federation)
        if federation.ranks.rank == 0:
            federation.folder.write_json("summary.json", summary)
            sent = {f"megabytes_{way}": summary[f"bytes_{way}"] / tracking.MEGABYTE for way in ("up", "down")}
            federation.tracker.finish(federation.finished, {**federation.metrics, **sent})
        return summary


def _model_of(client: int | None, models: Models) -> State:
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
