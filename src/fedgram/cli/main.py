"""The command line.

``fedgram --help`` and ``--version`` answer without importing torch; everything else goes to `fedgram.cli.lightning`.
"""

import difflib
import logging
import os
import signal
import sys
import warnings

from fedgram.errors import FedgramError, UsageError, explain

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "init": "write example files: a quickstart, a config for your own data, a sweep, SLURM scripts",
    "fit": "fine-tune a model across clients",
    "prepare": "download, tokenise and check what fit needs, where there is a network",
    "cost": "estimate what fit would cost: what is sent and computed, and memory",
    "methods": "list the methods: papers, what travels, and how much for a backbone",
    "validate": "evaluate a run's model on the validation split",
    "test": "evaluate a run's model on the test split",
    "predict": "write a run's predictions to a CSV file",
    "sweep": "run a grid of methods, seeds and settings, here or as a SLURM job array",
    "compare": "compare finished runs in tables, pictures and a report, and with the paper",
}

_HELP = """\
usage: fedgram COMMAND [options]

Simulates federated low-rank fine-tuning of pretrained transformers.

commands:
{commands}

  fedgram COMMAND --help           all options of a command
  fedgram fit --method.help FLoRG  the options of a method; likewise --model.help, --data.help, --optimizer.help

options:
  --help, --version
  --debug    with any command: show the traceback of an error

examples:
  fedgram init own-data reviews                         a config for your own CSV, with a sample of one
  fedgram fit --config quickstart                       a config that comes with fedgram, or a file of your own
  fedgram fit --config quickstart --method FedIT --trainer.rounds 5
  fedgram fit --config quickstart --print_config
  fedgram fit --config quickstart --ckpt_path last      go on with the newest run
  fedgram prepare --config roberta_qnli                 on the login node of a cluster
  fedgram methods                                       all methods, and with --config what each sends
  fedgram cost --config roberta_qnli --method all       without weights or data
  fedgram test --config quickstart                      the newest run's best checkpoint
  fedgram predict --config quickstart --ckpt_path none  the untrained model
  fedgram sweep quickstart                              a grid that comes with fedgram, or a file of your own
  fedgram compare runs
  tensorboard --logdir runs
"""


def _dispatch(arguments: list[str]) -> None:
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}."
        raise UsageError(f"there is no command {arguments[0]!r}{hint} See fedgram --help")
    if arguments[0] == "compare":
        from fedgram.cli.compare import main as compare

        compare(arguments[1:])
    elif arguments[0] == "sweep":
        from fedgram.cli.sweep import main as sweep

        sweep(arguments[1:])
    elif arguments[0] == "init":
        from fedgram.cli.init import main as init

        init(arguments[1:])
    elif arguments[0] == "methods":
        from fedgram.cli.methods import main as methods

        methods(arguments[1:])
    else:
        from fedgram.cli.lightning import run

        run()


def _cause(error: BaseException | None) -> FedgramError | None:
    """Return the error that the user can mend: this one, or the one that it came of."""
    while error is not None and not isinstance(error, FedgramError):
        error = error.__cause__
    return error


def main() -> None:
    """Run the command that ``sys.argv`` names; a `FedgramError` is printed as one line and sets the exit code."""
    if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):  # which must not kill a run before it heeds it
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]  # the program's own, of no command's config
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<10} {description}" for name, description in COMMANDS.items())
        sys.stdout.write(_HELP.format(commands=rows))
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"fedgram {version('fedgram')}\n")
        return
    log = logging.getLogger("fedgram")
    log.handlers, log.level = [logging.StreamHandler()], logging.INFO  # and the root logger is left to its owner
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated")  # Fabric's own call
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # where a rank is gone, torch warns in stacks of C++
    sys.path.append(os.getcwd())  # noqa: PTH109 (a method of your own may lie beside your config)
    try:
        _dispatch(arguments)
    except (FedgramError, ValueError) as error:
        cause = _cause(error)
        if cause is None or debug:
            raise
        if cause.reported_elsewhere:
            sys.exit(0)  # rank 0 says it, and carries the exit code
        sys.stderr.write(f"fedgram: {cause.label}: {explain(cause)}\n")
        sys.exit(cause.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("fedgram: stopped; --ckpt_path last goes on after the last finished round\n")
        sys.exit(130)
