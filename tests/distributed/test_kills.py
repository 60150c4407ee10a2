"""Runs whose ranks are killed, and go on with any number of ranks to the end that they would have had."""

import json
import shutil
import signal
import sys
from random import Random

import pytest

from distributed.nursery import Kill
from fedgram.runs.checkpoint import load
from fedgram.state import tensor_hash
from tables import rows, without_ranks

SEED = 0
TRIALS = 20
NAMES = ("FedSALoRA-keep_state", "FLoRG-polar", "FedExLoRA-factored")
ROUNDS = 4
ATTEMPTS = 5
FIT = "distributed.fits:fit_or_go_on"


class Stage:
    """Fits on any number of ranks in folders of their own, and how long they take if nobody disturbs them."""

    def __init__(self, nursery, material, folder):
        self._nursery, self._material, self._folder = nursery, material, folder
        self._whole, self._seconds, self._roots = {}, {}, 0

    def root(self):
        self._roots += 1
        return self._folder / str(self._roots)

    def fit(self, name, root, size, job=FIT, **arguments):
        """Fit, or go on; with tokens that are made anew in every run, as a kill may hit that too."""
        arguments |= {"name": name, "root": str(root), "cache": str(root / "cache"), "rounds": ROUNDS}
        return self._nursery.ranks(size, job, material=self._material, **arguments)

    def finish(self, name, root, size):
        """Fit, or go on, to the end."""
        outcome = self.fit(name, root, size)
        assert not any(outcome.codes), f"{outcome}\n{self._nursery.output()}"
        return outcome

    def whole(self, name):
        """Return the folder of a run that nobody disturbed."""
        if name not in self._whole:
            root = self.root()
            self.finish(name, root, 1)
            self._whole[name] = run_of(root)
        return self._whole[name]

    def kill(self, name, root, size, rank, share):
        """Kill a rank of a run after some share of the time that an undisturbed one takes; return what happened."""
        if size not in self._seconds:
            self._seconds[size] = self.finish(name, self.root(), size).seconds
        for _ in range(ATTEMPTS):
            is_new = not root.exists()
            outcome = self.fit(name, root, size, kill=Kill(rank, share * self._seconds[size]))
            if outcome.struck or not is_new:  # one that goes on has less to do, and may well have ended before
                return outcome
            self._seconds[size] = outcome.seconds  # the machine has more time for a run than it had
            shutil.rmtree(root)
        pytest.fail(f"{ATTEMPTS} runs ended before rank {rank} of {size} was to be killed; {outcome}")


@pytest.fixture(scope="module")
def stage(nursery, material, tmp_path_factory):
    return Stage(nursery, material, tmp_path_factory.mktemp("kills"))


def run_of(root):
    """Return the folder of the run that was finished."""
    (summary,) = root.glob("run/*/summary.json")
    return summary.parent


def tell(what):
    """Say what was drawn and what came of it: pytest shows it with a failure, and with -rP always."""
    sys.stdout.write(f"{what}\n")


def standing(root):
    """Say how far a run has come."""
    if any(root.glob("run/*/summary.json")):
        return "had finished"
    checkpoints = sorted(root.glob("run/*/checkpoints/round_*.safetensors"))
    return f"stands at round {int(checkpoints[-1].stem.removeprefix('round_'))}" if checkpoints else "stands nowhere"


def check_same_end(run, whole):
    """Check that nothing but times tells two finished runs apart."""
    seen, expected = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    for key in ("state_hash", "initial", "final", "best", "rounds", "bytes_up", "bytes_down"):
        assert seen[key] == expected[key], key
    assert [row["round"] for row in rows(run)] == [str(number) for number in range(ROUNDS + 1)]
    for table in ("metrics.csv", "communication.csv", "diagnostics.csv", "partition.csv"):
        assert without_ranks(rows(run, table)) == without_ranks(rows(whole, table)), table
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (run, whole)]
    assert names[0] == names[1]  # so nothing half-written is left
    for file in (run / "checkpoints").iterdir():
        assert tensor_hash(load(file).tensors()) == tensor_hash(load(whole / "checkpoints" / file.name).tensors())


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_run_goes_on_to_the_same_end(stage, trial):
    """One trial in two kills the run that goes on as well."""
    random, name, root = Random(f"{SEED}-{trial}"), NAMES[trial % 3], stage.root()
    tell(f"seed {SEED}, trial {trial}: {name}")
    for _ in range(1 + trial // 2 % 2):
        size = random.randint(1, 4)
        rank, share = random.randrange(size), random.random()
        outcome = stage.kill(name, root, size, rank, share)
        tell(f"rank {rank} of {size} to be killed after {share:.3f} of a run, which {standing(root)}: {outcome}")
        assert not outcome.stuck
        if outcome.connected:  # and so the others had to see to their own end
            assert all(code >= 0 for other, code in enumerate(outcome.codes) if other != rank)
    size = random.randint(1, 4)
    tell(f"goes on with {size}")
    stage.finish(name, root, size)
    check_same_end(run_of(root), stage.whole(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "time"),
    [
        ("metrics.csv", 2),  # the whole table anew, as the first round of training adds columns
        ("metrics.csv", 3),  # from here on rows are added to the tables
        ("communication.csv", 2),
        ("diagnostics.csv", 2),
        ("round_000002.safetensors", 1),
        ("best.safetensors", 1),
        ("summary.json", 1),
    ],
)
def test_a_run_killed_while_it_writes_goes_on_to_the_same_end(stage, file, time):
    """Between the writing of a file and its appearance under its name, or halfway through what is added to it."""
    name, root = NAMES[0], stage.root()
    outcome = stage.fit(name, root, 1, "distributed.fits:die_while_writing", file=file, time=time)
    assert outcome.codes == [-signal.SIGKILL]
    stage.finish(name, root, 2)
    check_same_end(run_of(root), stage.whole(name))
