"""fedgram's commands, as a LightningCLI over `FederatedTrainer`: configs, overrides, --print_config, class help."""

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

import fedgram
from fedgram.callbacks import Callback, RunningTrainer
from fedgram.cli.usage import FedgramParser
from fedgram.comparison import Run
from fedgram.comparison.overview import run_table
from fedgram.cost import Announce, Estimate, Payloads, every_method, find_payloads, silent
from fedgram.cost.tables import WIDTH, markdown, rich_tables
from fedgram.data import FederatedData
from fedgram.errors import UsageError
from fedgram.files import atomic_write, check_output, expand_home
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.optim import DEFAULT_OPTIMIZER, ClientOptimizer
from fedgram.option_errors import OptionError
from fedgram.relative_paths import absolute
from fedgram.runs.event_files import silence_writers
from fedgram.trainer import FederatedTrainer

__all__ = ["Built", "FedgramCLI", "announced", "build", "cost_of", "run", "traffic_of"]

_GIVEN = {"model", "datamodule", "method", "optimizer"}
"""Arguments of the trainer's commands that the CLI builds from config sections of their own."""


_MADE: dict[str, Any] = {}
"""The parsers of all commands once they were made, which takes longer than to parse: a sweep's costs ask for many."""


class SaveConfig(Callback):
    """Writes the run's full configuration into its folder: with absolute paths, and what "auto" was resolved to."""

    def __init__(self, parser: LightningArgumentParser, config: Any) -> None:
        self._parser = parser
        self._config = config

    def on_fit_start(self, trainer: RunningTrainer, first_round: int) -> None:
        if trainer.folder is None or trainer.plan is None or trainer.fabric.global_rank:
            return
        content = absolute(yaml.safe_load(self._parser.dump(self._config, skip_none=False, format="yaml")))
        content["trainer"] |= {"clients_per_block": trainer.plan.clients_per_block, "threads": trainer.plan.threads}
        content["ckpt_path"] = None
        header = f"# fedgram=={fedgram.__version__}: fedgram fit --config with this file repeats the run\n"
        trainer.folder.write_text("config.yaml", header + yaml.safe_dump(content, sort_keys=False))


class FedgramCLI(LightningCLI):
    """Parses a config into a trainer, a method, an optimizer, a model and data, and runs a command with them."""

    trainer: FederatedTrainer  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(
            FederatedTask,
            FederatedData,
            trainer_class=FederatedTrainer,  # type: ignore[arg-type]  # only its methods are asked for
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=FedgramParser,
            parser_kwargs={"prog": "fedgram", "version": fedgram.__version__},
        )

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        if not _MADE:
            super().setup_parser(*args, **kwargs)
            names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            _MADE.update({name: getattr(self, name) for name in names})
        vars(self).update(_MADE)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return dict.fromkeys(("fit", "prepare", "validate", "test", "predict"), _GIVEN) | {
            "cost": _GIVEN | {"announce"}
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "cost":
            parser.add_argument("--markdown", action="store_true", help="Print Markdown.")
            parser.add_argument("--json", type=str | None, default=None, help="Write all figures to this file as well.")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add none: the seed is the trainer's."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_subclass_arguments(Method, "method", required=True, help="The federated method.")
        parser.add_subclass_arguments(FederatedTask, "model", required=True, help="The task and its backbone.")
        parser.add_subclass_arguments(FederatedData, "data", required=True, help="The data and its partition.")
        parser.add_subclass_arguments(ClientOptimizer, "optimizer", help="The clients' optimizer.")
        parser.set_defaults(
            {"optimizer": {"class_path": f"{DEFAULT_OPTIMIZER.__module__}.{DEFAULT_OPTIMIZER.__name__}"}}
        )
        parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, sub_configs=True)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except OptionError as error:
            raise UsageError(error.explain(f"fedgram {self.subcommand}")) from error

    def instantiate_trainer(self, **kwargs: Any) -> FederatedTrainer:  # type: ignore[override]
        settings = {**self._get(self.config_init, "trainer"), **kwargs}
        if self.subcommand == "fit":
            save_config = SaveConfig(self._subcommand_parsers["fit"], self.config["fit"])
            settings["callbacks"] = [save_config, *(settings["callbacks"] or [])]
        return FederatedTrainer(**settings)

    def fit(self, **kwargs: Any) -> None:
        """Train, and say what came of it."""
        summary = self.trainer.fit(**kwargs)
        if self.trainer.fabric.global_rank == 0 and self.trainer.folder is not None:
            console = Console()
            console.print(run_table([Run(self.trainer.folder.path, summary, {})]).rich(console.width), crop=False)
            if self.trainer.loggers is True:
                console.print(f"curves: tensorboard --logdir {self.trainer.default_root_dir}", soft_wrap=True)

    def prepare(self, **kwargs: Any) -> None:
        """Say what was found, and how to go on."""
        arguments = sys.argv[1:]
        arguments[arguments.index("prepare")] = "fit"
        text = f"{self.trainer.prepare(**kwargs)}\nready, without a network:\n"
        text += f"  HF_HUB_OFFLINE=1 {shlex.join(['fedgram', *arguments])}"
        Console().print(text, soft_wrap=True, markup=False, highlight=False)

    def cost(self, **kwargs: Any) -> None:
        """Print what was told, and write it to a file if asked to."""
        options = self.config_init["cost"]
        path = None if options["json"] is None else expand_home(options["json"])
        if path is not None:
            check_output(path)
        with announced("costs") as announce:
            found = self.trainer.cost(**kwargs, announce=announce)
        if path is not None:
            atomic_write(path, (json.dumps(found.as_dict(), indent=1) + "\n").encode())
        console = Console()
        if options["markdown"]:
            console.print("\n".join(markdown(found)), soft_wrap=True, markup=False, highlight=False)
        else:
            console.width = max(console.width, WIDTH)  # else figures would be cut off
            console.print(*rich_tables(found), sep="\n")

    def validate(self, **kwargs: Any) -> None:
        """Print the metrics of the validation split."""
        self._print_metrics(self.trainer.validate(**kwargs))

    def test(self, **kwargs: Any) -> None:
        """Print the metrics of the test split."""
        self._print_metrics(self.trainer.test(**kwargs))

    def predict(self, **kwargs: Any) -> None:
        """Say where the predictions are."""
        path = self.trainer.predict(**kwargs)
        if self.trainer.fabric.global_rank == 0:
            Console().print(f"predictions: {path}", soft_wrap=True)

    def _print_metrics(self, metrics: dict[str, float]) -> None:
        if self.trainer.fabric.global_rank == 0:
            width = max(map(len, metrics))
            shown = {name: "undefined" if math.isnan(value) else f"{value:.6g}" for name, value in metrics.items()}
            Console().print("\n".join(f"{name:<{width}}  {value}" for name, value in shown.items()))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["method"] = self._get(self.config_init, "method")
        if subcommand in ("fit", "prepare", "cost"):
            kwargs["optimizer"] = self._get(self.config_init, "optimizer")
        return kwargs

    def _set_seed(self) -> None:
        """Leave the global generators alone: fedgram draws from none of them (see fedgram.seeding)."""

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint of another run is refused, not adapted to."""


@contextmanager
def announced(what: str) -> Iterator[Announce]:
    """Yield a function that shows on a terminal which of several methods is being counted, in a line that goes away."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    with console.status(f"{what}: reading the backbone's configuration") as line:
        yield lambda name, number, count: line.update(f"{what}: {name}, {number} of {count}")


class Built(NamedTuple):
    """A trainer, and what its command takes: ``built.trainer.fit(**built.arguments)``."""

    trainer: FederatedTrainer
    arguments: dict[str, Any]


class _Builder(FedgramCLI):
    """Makes what options name, and leaves running it to whoever asked."""

    built: Built

    def __init__(self, options: Sequence[str], command: str) -> None:
        self._arguments = [command, *options]
        super().__init__()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(self._arguments)

    def _run_subcommand(self, subcommand: str) -> None:
        self.built = Built(self.trainer, self._prepare_subcommand_kwargs(subcommand))


def build(options: Sequence[str], command: str = "fit") -> Built:
    """Return the trainer, model, data, method and optimizer that options of a command name, without running it.

    Args:
        options: as on the command line behind ``fedgram fit``, such as ``["--config", "configs/quickstart.yaml"]``.
        command: whose options they are.

    Raises:
        FedgramError: as for the command.
    """
    return _Builder(_with_every_method(options) if command == "cost" else options, command).built


def traffic_of(options: Sequence[str]) -> dict[str, Payloads]:
    """Return what is sent with every method, by options of fit.

    Raises:
        FedgramError: as for the commands.
    """
    trainer, given = build(options, "cost")
    with announced("payloads") as announce:
        methods = every_method(given["method"])
        return find_payloads(trainer.settings, given["model"], given["datamodule"], methods, announce=announce)


def cost_of(options: Sequence[str]) -> Estimate:
    """Return what a run would cost that is given by options of fit.

    Args:
        options: as on the command line behind ``fedgram fit``, such as ``["--config", "configs/quickstart.yaml"]``, and
            those of ``fedgram cost`` besides.

    Raises:
        FedgramError: as for the commands.
    """
    trainer, given = build(options, "cost")
    return trainer.cost(**given)


def _with_every_method(arguments: Sequence[str]) -> list[str]:
    """Write ``--method all`` out: any method, and the wish for every one.

    >>> _with_every_method(["--method", "all", "--method.rank", "8"])
    ['--method=FLoRG', '--every_method=true', '--method.rank', '8']
    """
    text = "\0".join(arguments)  # which no argument can hold
    every = "--method=FLoRG\0--every_method=true"
    return re.sub(r"(?<![^\0])--method[=\0]all(?![^\0])", every, text).split("\0") if text else []


def run() -> None:
    """Run the command line."""
    silence_writers()
    if sys.argv[1:2] == ["cost"]:
        sys.argv[1:] = _with_every_method(sys.argv[1:])
    FedgramCLI()
