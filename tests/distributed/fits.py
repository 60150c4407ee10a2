"""Whole fits of every method, as each rank of a nursery does them.

Seven clients of unequal sizes, of which five take part in a round, in blocks of two, two and one: a fourth rank has no
work. They make two local steps in a round, in some cases an epoch. The layers that are adapted are 16 to 16, 16 to 24
and 24 to 16.
"""

import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blank_pictures import partition_picture
from distributed.replay import replayed
from fedgram import (
    FLASC,
    FLTAC,
    RAVAN,
    SGD,
    AdamW,
    CELoRA,
    Dirichlet,
    FedDPA,
    FeDeRA,
    FederatedTrainer,
    FedExLoRA,
    FedIT,
    FedLEASE,
    FedLoRU,
    FedRotLoRA,
    FedSALoRA,
    FedSVD,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    FLoRANA,
    FLoRG,
    FRLoRA,
    FSLoRA,
    HetLoRA,
    LoRAFAIR,
    MFedLoRU,
    PFedLoRU,
    QuestionAnswering,
    RoLoRA,
    SLoRA,
    SQuAD,
    TextClassification,
    TextClassificationData,
)
from fedgram.callbacks import Callback
from fedgram.distributed.collectives import Ranks
from fedgram.errors import Preempted
from fedgram.federation import setup
from fedgram.federation import summary as reporting
from fedgram.methods import Method
from fedgram.optim import ClientOptimizer
from fedgram.runs import folder as run_folder
from rough_operations import rough_prices

ADAMW = partial(AdamW, lr=0.02)
KEEPING_ADAMW = partial(AdamW, lr=0.02, schedule="cosine", span="run", keep_state=True)
KEEPING_SGD = partial(SGD, lr=0.1, momentum=0.9, keep_state=True)
TARGETS = ["0.attention.self.query", "1.intermediate.dense", "1.output.dense"]


@dataclass(frozen=True)
class Case:
    """What to fit.

    Attributes:
        method: makes the method.
        optimizer: makes the optimizer.
        questions: fit questions and answers instead of sentences.
        trainer: settings of the trainer.
    """

    method: Callable[[], Method]
    optimizer: Callable[[], ClientOptimizer] = ADAMW
    questions: bool = False
    trainer: Mapping[str, Any] = field(default_factory=dict)


def case(method, rank=2, optimizer=ADAMW, questions=False, trainer=None, **settings):
    make = partial(method, rank=rank, target_modules=TARGETS, **settings)
    return Case(make, optimizer, questions, trainer or {})


CASES = {
    "FLoRG-polar": case(FLoRG, trainer={"local_epochs": 1}),
    "FLoRG-polar-by-Gram-matrices": case(FLoRG, rank=7),  # the stack of five clients is larger than Q
    "FLoRG-polar-keep_state": case(FLoRG, optimizer=KEEPING_ADAMW, basis="svd"),
    "FLoRG-eigh": case(FLoRG, solver="eigh", basis="identity"),
    "FLoRG-top_r": case(FLoRG, projection="top_r", basis="kaiming"),
    "FLoRG-top_r_aligned": case(FLoRG, projection="top_r_aligned", head="local"),
    "FLoRG-none": case(FLoRG, projection="none", solver="eigh"),
    "FLoRG-average": case(FLoRG, projection="average", head="frozen"),
    "FedIT": case(FedIT),
    "FedIT-keep_state": case(FedIT, optimizer=KEEPING_SGD, trainer={"precision": "bf16-true", "local_epochs": 1}),
    "FedIT-questions": case(FedIT, questions=True),
    "FeDeRA-init": case(FeDeRA),
    "FeDeRA-round": case(FeDeRA, when="round"),
    "FFALoRA": case(FFALoRA),
    "FFALoRA-averaged": case(FFALoRA, head="averaged", trainer={"precision": "64-true"}),
    "FFALoRA-local": case(FFALoRA, head="local", trainer={"personal_evaluation": "all"}),
    "FedSALoRA": case(FedSALoRA),
    "FedSALoRA-averaged": case(FedSALoRA, head="averaged", trainer={"evaluate_every": 3}),
    "FedSALoRA-keep_state": case(FedSALoRA, head="frozen", optimizer=KEEPING_ADAMW),
    "RAVAN": case(RAVAN),
    "RAVAN-normal": case(RAVAN, bases="normal", head="local", optimizer=KEEPING_ADAMW),
    "FedDPA-alternating": case(FedDPA, trainer={"local_epochs": 1}),
    "FedDPA-sequential": case(FedDPA, schedule="sequential", local_from=3, optimizer=KEEPING_ADAMW, head="local"),
    "FedLEASE-frozen": case(FedLEASE, experts=1, head="frozen", warmup_rounds=2),
    "FedLEASE-plain": case(FedLEASE, experts=2),
    "FedLEASE-weighted": case(FedLEASE, mean="weighted", renormalise=True, head="averaged", optimizer=KEEPING_ADAMW),
    "FedExLoRA-dense": case(FedExLoRA),
    "FedExLoRA-factored": case(FedExLoRA, rank=1, residual="factored"),
    "FLoRANA": case(FLoRANA),
    "FLoRANA-model": case(FLoRANA, scope="model", client_ranks={1: 0.5, 2: 0.5}),
    "LoRAFAIR": case(LoRAFAIR, steps=20),
    "LoRAFAIR-absolute": case(LoRAFAIR, steps=20, relative=False, client_ranks="uniform"),
    "LoRAFAIR-xavier": case(LoRAFAIR, steps=20, init="xavier", lam=1.0),
    "LoRAFAIR-l2": case(LoRAFAIR, mode="l2"),
    "FedRotLoRA": case(FedRotLoRA),
    "FedRotLoRA-A": case(FedRotLoRA, align="A", strength=1.0),
    "FedRotLoRA-B": case(FedRotLoRA, align="B"),
    "FedSVD": case(FedSVD),
    "FedSVD-2": case(FedSVD, every=2, head="averaged"),
    "FedSVD-local": case(FedSVD, head="local"),
    "FLoRG-client_ranks": case(FLoRG, rank=4, client_ranks="uniform"),
    "FedIT-client_ranks": case(FedIT, rank=4, client_ranks=[4, 1, 2, 3, 1, 2, 4]),
    "FLoRA": case(FLoRA),
    "FLoRA-client_ranks": case(FLoRA, rank=4, client_ranks={4: 0.3, 2: 0.3, 1: 0.4}, head="local"),
    "FlexLoRA": case(FlexLoRA, rank=4, client_ranks="heavy_tail"),
    "FlexLoRA-global": case(FlexLoRA, rank=4, client_ranks="normal", scaling="global"),
    "HetLoRA-layer": case(HetLoRA, rank=4, gamma=0.6, lam=5.0, client_ranks=[4, 1, 2, 3, 1, 2, 4]),
    "HetLoRA-client": case(HetLoRA, rank=3, gamma=0.7, lam=1.0, scope="client", optimizer=KEEPING_ADAMW),
    "FRLoRA": case(FRLoRA),
    "FRLoRA-freeze_A": case(FRLoRA, freeze_A=True, trainer={"precision": "bf16-true"}),
    "FedLoRU-reset": case(FedLoRU, merge_every=1, optimizer=KEEPING_ADAMW),
    "FedLoRU-keep": case(FedLoRU, merge_every=2, mode="keep"),
    "pFedLoRU": case(PFedLoRU, merge_every=2, personal_rank=3, trainer={"local_epochs": 1}),
    "pFedLoRU-keep": case(PFedLoRU, merge_every=2, mode="keep", optimizer=KEEPING_ADAMW, head="local"),
    "mFedLoRU": case(MFedLoRU, merge_every=2),
    "mFedLoRU-keep-client_ranks": case(MFedLoRU, merge_every=1, mode="keep", client_ranks="uniform"),
    "CELoRA": case(CELoRA),
    "CELoRA-model-cosine": case(CELoRA, similarity="model", measure="cosine", head="averaged"),
    "CELoRA-data-questions": case(CELoRA, similarity="data", head="frozen", questions=True),
    "FLTAC": case(FLTAC, clusters=2),
    "FLTAC-B-weighted": case(FLTAC, clusters=3, cluster_on="B", mean="weighted", head="local"),
    "FLTAC-all": case(FLTAC, clusters=2, cluster_on="all", trainer={"personal_evaluation": "all"}),
    "FLASC": case(FLASC, decay=0.7),
    "FLASC-head-adam": case(FLASC, density_down=0.02, mask_head=True, server_optimizer="adam"),
    "FSLoRA": case(FSLoRA),
    "FSLoRA-adam": case(FSLoRA, rank=4, client_ranks={1: 0.5, 3: 0.5}, server_optimizer="adam"),
    "RoLoRA": case(RoLoRA),
    "RoLoRA-keep_state": case(RoLoRA, optimizer=KEEPING_ADAMW),
    "SLoRA": case(SLoRA, sparse_rounds=2, density=0.1, optimizer=KEEPING_ADAMW),
}


class Stop(Callback):
    """Sends its process a signal after a round, as SLURM does before it ends a job."""

    def __init__(self, after):
        self.after = after

    def on_round_end(self, trainer, row):
        if row["round"] == self.after:
            os.kill(os.getpid(), signal.SIGUSR1)


def parts_of(name, material, root, cache=None, **settings):
    """Return trainer, task, data and method of one case; arguments of `fit`."""
    case = CASES[name]
    kept = {"partition": Dirichlet(0.5), "batch_size": 3, "cache_dir": cache or material["cache"]}
    if case.questions:
        task, data = QuestionAnswering(material["backbone"]), SQuAD(material["questions"], 48, 8, **kept)
    else:
        task = TextClassification(material["backbone"])
        data = TextClassificationData(material["sentences"], eval_batch_size=4, **kept)
    steps = {} if "local_epochs" in case.trainer else {"local_steps": 2}
    settings = {"rounds": 3, "evaluate_every": 2, "threads": 1} | steps | dict(case.trainer) | settings
    trainer = FederatedTrainer(
        clients=7,
        participation=5,
        clients_per_block=2,
        client_weights="samples",
        accelerator="cpu",
        loggers=False,
        progress_bar=False,
        default_root_dir=root,
        name="run",
        **settings,
    )
    return trainer, task, data, case.method()


def fit(name, root, material, cache=None, ckpt_path=None, **settings):
    """Fit one case.

    Args:
        name: of the case.
        root: the folder of its runs.
        material: the folders of backbone, sentences and questions.
        cache: where tokens are kept.
        ckpt_path: what to go on with.
        settings: of the trainer.

    Returns:
        The summary.
    """
    trainer, task, data, method = parts_of(name, material, root, cache, **settings)
    return trainer.fit(task, data, method, CASES[name].optimizer(), ckpt_path)


def fit_in_parts(name, root, **arguments):
    """Fit one case, be stopped after its first round or its second, and go on."""
    after = 1 + list(CASES).index(name) % 2
    try:
        fit(name, root, callbacks=[Stop(after)], **arguments)
    except Preempted:
        return fit(name, root, ckpt_path="last", **arguments) | {"stopped_after": after}
    raise AssertionError(f"{name} was not stopped after round {after}")


def fit_and_replay(name, root, **arguments):
    """Fit one case on one process, and write what came of replaying what its clients were sent."""
    with replayed() as replay:
        summary = fit(name, root, **arguments)
    Path(root, "replay.json").write_text(json.dumps({"starts": replay.starts, "wrong": replay.wrong}))
    return summary


def fit_all(names, root, in_parts=False, replay=False, **arguments):
    """Fit one case after another in the same ranks; each rank writes what came of it, also if it is an error."""
    fit_one = fit_and_replay if replay else fit_in_parts if in_parts else fit
    reporting.partition_picture = partition_picture  # a picture takes as long as a fit, and so does counting operations
    setup.find_prices = rough_prices
    for name in names:
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            seen = fit_one(name, str(folder), **arguments)
        except Exception:  # noqa: BLE001 (the test tells of it)
            seen = {"error": traceback.format_exc()}
        (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(seen))


def fit_all_with_plain_sums(**arguments):
    """Fit with sums of floats, each rank its own and then over the ranks: what must be seen to differ."""
    Ranks.sum = _plain_sum
    fit_all(**arguments)


def fit_until_a_signal(rank, **arguments):
    """Fit FedIT until one process gets a signal after the first round; each process ends as the command line does."""
    stops = [Stop(1)] if os.environ["RANK"] == str(rank) else []
    try:
        fit("FedIT", callbacks=stops, **arguments)
    except Preempted as stopped:
        raise SystemExit(stopped.exit_code) from stopped


def fit_with_a_bug(rank, **arguments):
    """Fit FedIT, which raises an IndexError where the first client of a rank starts."""

    def raise_it(*_):
        raise IndexError("a bug of mine")

    if os.environ["RANK"] == str(rank):
        FedIT.start = raise_it
    fit("FedIT", **arguments)


def _plain_sum(ranks, terms, count, like):
    total = torch.zeros_like(like, dtype=torch.float32)
    for term in terms():
        total += term.float()
    if ranks.size > 1:
        torch.distributed.all_reduce(total)
    return total.double()


def fit_or_go_on(root, **arguments):
    """Fit, or go on where a run stands that was killed."""
    stands = any(Path(root).glob("run/*/checkpoints/round_*.safetensors"))
    fit(root=root, ckpt_path="last" if stands else None, **arguments)


def die_while_writing(file, time, **arguments):
    """Fit, and be killed while a file is written for the given time.

    That is when a new version is there but not yet under its name, or half of what is to be added.
    """
    replace, append, seen = os.replace, run_folder.append, []

    def is_time(path):
        seen.extend([path] * (Path(path).name == file))
        return Path(path).name == file and len(seen) == time

    def replace_or_die(source, target):
        if is_time(target):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def append_or_die(path, content):
        if is_time(path):
            append(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, content)

    os.replace, run_folder.append = replace_or_die, append_or_die
    fit_or_go_on(**arguments)
