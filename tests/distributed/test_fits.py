"""Every method on one process and on several over gloo, in one go and in parts: the same bits."""

import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from distributed.fits import CASES
from fedgram.cohort import cut_blocks, deal_blocks
from fedgram.methods.known import known_methods
from fedgram.runs.checkpoint import load
from fedgram.state import tensor_hash
from tables import rows, without_ranks

EXCHANGES = [
    "FLoRG-polar",
    "FLoRG-polar-by-Gram-matrices",
    "FLoRG-eigh",
    "FedIT-keep_state",
    "FedIT-questions",
    "FFALoRA-local",
    "FedSALoRA-keep_state",
    "FedExLoRA-factored",
    "FLoRA-client_ranks",
    "FLoRANA-model",
    "FedLEASE-weighted",
    "CELoRA-data-questions",
    "FLTAC-all",
    "FLASC-head-adam",
]
"""Of each kind of exchange one: sums in each precision, stacks of equal and unequal ranks, Gram matrices, what clients
keep, answers, clusters, descriptions of data, sparse payloads, evaluation by client and of windows."""


@pytest.fixture(scope="module")
def fits(nursery, material, once):
    """Fits all cases on some ranks, and returns the folder with a folder of each case."""

    def run(size):
        with once(f"fits-on-{size}") as (folder, is_there):
            if not is_there:
                arguments = {"names": names_on(size), "root": str(folder), "in_parts": size > 1, "replay": size == 1}
                nursery.run(size, "distributed.fits:fit_all", material=material, **arguments)
        return folder

    return run


@pytest.fixture(scope="module")
def alone(fits):
    return fits(1)


def summaries(folder, size):
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(size)]


def names_on(size):
    """Every case is fitted on one process and on two; half of the kinds of exchange on three, the others on four."""
    return {1: list(CASES), 2: list(CASES), 3: EXCHANGES[::2], 4: EXCHANGES[1::2]}[size]


SIZES = [
    pytest.param(size, name, marks=[] if size == 3 else [pytest.mark.slow], id=f"{size}-{name}")
    for size in (2, 3, 4)
    for name in names_on(size)
]
"""Two and four are for make test-slow: tests/methods/test_harness.py has every method on several ranks of threads."""


@pytest.mark.parametrize(("size", "name"), SIZES)
def test_every_rank_ends_with_the_bits_of_one_process(alone, fits, size, name):
    folder = fits(size)
    (expected,) = summaries(alone / name, 1)
    assert "error" not in expected, expected["error"]
    assert expected["ranks"] == 1
    for summary in summaries(folder / name, size):
        assert "error" not in summary, summary["error"]
        assert summary["ranks"] == size
        for key in ("state_hash", "initial", "final", "best", "bytes_up", "bytes_down", "parameters_up"):
            assert summary[key] == expected[key], key
        assert summary["client_flops"] == expected["client_flops"] > 0
        assert summary["server_flops"] == expected["server_flops"] > 0
        assert "stopped_after" not in expected
        assert "stopped_after" in summary
    runs = [root / name / "run" / "version_0" for root in (alone, folder)]
    for table in ("metrics.csv", "communication.csv", "diagnostics.csv", "partition.csv"):
        found = [without_ranks(rows(run, table)) for run in runs]
        assert found[0] == found[1], table
    for file in (runs[0] / "checkpoints").iterdir():  # with all that clients keep and the server remembers
        found = [tensor_hash(load(run / "checkpoints" / file.name).tensors()) for run in runs]
        assert found[0] == found[1], file.name


@pytest.mark.parametrize("method", known_methods())
def test_every_method_and_every_choice_of_its_own_is_among_the_cases(method):
    """A new method, or a new choice of one, needs a case."""
    made = [case.method() for case in CASES.values()]
    own = [vars(one) for one in made if type(one) is method]
    add = f"add a case of {method.__name__} to CASES in tests/distributed/fits.py"
    assert own, f"no whole fit of it is compared on one process and on several: {add}"
    hints = get_type_hints(vars(method)["__init__"]) if "__init__" in vars(method) else {}
    for setting in (name for name, hint in hints.items() if get_origin(hint) is Literal):
        missing = set(get_args(hints[setting])) - {one[setting] for one in own}
        assert not missing, f"{add} for each {setting} of {sorted(missing)}"


def test_the_cases_remember_what_a_run_that_goes_on_must_know(alone):
    def memory(name):
        return load(alone / name / "run" / "version_0" / "checkpoints" / "round_000003.safetensors").state.memory

    assert memory("HetLoRA-layer").globals["pruned"].any()
    assert any(layer["A.exp_avg_sq"].any() for layer in memory("FSLoRA-adam").layers.values())
    assert memory("CELoRA").globals["distance"].any()
    assert memory("FLTAC").globals["cluster"].any()


def test_the_cases_are_such_that_ranks_could_differ(alone):
    summary, folder = summaries(alone / "FedIT", 1)[0], alone / "FedIT" / "run" / "version_0"
    sizes = {row["samples"] for row in rows(folder, "partition.csv")}
    assert len(sizes) > 3
    assert (summary["settings"]["trainer.participation"], summary["settings"]["trainer.clients"]) == (5, 7)
    blocks = cut_blocks(range(5), [1] * 5, summary["settings"]["trainer.clients_per_block"])
    assert [len(block.clients) for block in blocks] == [2, 2, 1]
    assert deal_blocks(blocks, 4)[3] == []
    state = load(folder / "checkpoints" / "best.safetensors").state.adapter
    shapes = {(layer["A"].shape[1], layer["B"].shape[0]) for layer in state.values()}
    assert shapes == {(16, 16), (16, 24), (24, 16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FedIT", "FLoRG-eigh"])
def test_sums_of_floats_would_not_give_the_same_bits(nursery, material, tmp_path, name):
    """What the tests above would see if sums over ranks were not exact."""
    hashes = {}
    for size in (1, 3):
        root = tmp_path / str(size)
        arguments = {"names": [name], "root": str(root), "material": material}
        nursery.run(size, "distributed.fits:fit_all_with_plain_sums", **arguments)
        seen = summaries(root / name, size)
        assert all("error" not in summary for summary in seen), seen
        (hashes[size],) = {summary["state_hash"] for summary in seen}
    assert hashes[1] != hashes[3]


@pytest.mark.slow
def test_threads_are_those_of_each_rank(nursery, material, tmp_path):
    arguments = {"names": ["FedIT"], "root": str(tmp_path), "material": material, "rounds": 1, "threads": 2}
    nursery.run(2, "distributed.fits:fit_all", **arguments)
    assert [seen["settings"]["trainer.threads"] for seen in summaries(tmp_path / "FedIT", 2)] == [2, 2]
