import doctest

import numpy as np
import pytest
import torch

from fedgram import seeding
from fedgram.seeding import derive, isolated, numpy_generator, torch_generator


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(seeding)
    assert result.attempted
    assert not result.failed


def test_seeds_are_what_they_were_when_the_first_runs_were_made():
    """python -c "import hashlib; print(int.from_bytes(hashlib.sha256(b'7/batches/3/11').digest()[:8], 'big') >> 1)"."""
    assert derive(7, "batches", 3, 11) == 7155414375107558812
    assert numpy_generator(7, "batches", 3, 11).integers(1000, size=4).tolist() == [590, 784, 495, 429]
    assert torch_generator(7, "bases").initial_seed() == derive(7, "bases")


def test_every_seed_purpose_and_index_has_a_seed_of_its_own():
    keys = [(s, p, *i) for s in range(3) for p in ("cohort", "batches") for i in [(), (1,), (11,), (1, 1), (1, 1, 1)]]
    seeds = [derive(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_start_anew_for_each_draw():
    for make in (numpy_generator, torch_generator):
        one, same, other = (make(0, "batches", 1, client) for client in (2, 2, 3))
        if make is numpy_generator:
            draws = [g.random(5) for g in (one, same, other)]
        else:
            draws = [torch.rand(5, generator=g).numpy() for g in (one, same, other)]
        assert np.array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], draws[2])
    assert torch_generator(0, "batches").device.type == "cpu"


def test_isolated_draws_the_same_whatever_was_drawn_before_and_leaves_no_trace():
    before = torch.get_rng_state()
    with isolated(3, "backbone"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        with isolated(3, "backbone"):
            assert torch.equal(torch.rand(3), first)
        with isolated(4, "backbone"):
            assert not torch.equal(torch.rand(3), first)


def test_isolated_restores_the_generator_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(TypeError), isolated(0, "backbone"):
        torch.rand(1, dtype="no type")
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_leave_the_global_ones_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (that it is untouched)
    numpy_generator(0, "a").random(3)
    torch.rand(3, generator=torch_generator(0, "a"))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
