import math

import numpy as np
import pytest

from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.targets import COSTS, cost_to_target, group_cost_to_target
from made_runs import CLIENT_FLOPS, write_run


def only(folder):
    (run,) = read_runs([folder])
    return run


def test_the_first_evaluated_round_at_the_target_counts(tmp_path):
    write_run(tmp_path, accuracy=[0.5, 0.6, None, 0.8, 0.7, 0.9])
    run = only(tmp_path)
    found = cost_to_target(run, "accuracy", 0.8)
    assert found == pytest.approx(
        {
            "round": 3,
            "parameters_up": 3000,
            "parameters_down": 6000,
            "parameters_both": 9000,
            "megabytes_up": 0.012,
            "megabytes_down": 0.024,
            "megabytes_both": 0.036,
            "client_flops": 3 * CLIENT_FLOPS,
        }
    )
    assert set(found) == set(COSTS)
    assert cost_to_target(run, "accuracy", 0.85)["round"] == 5
    assert cost_to_target(run, "accuracy", 0.91) is None
    assert cost_to_target(run, "accuracy", 0.4)["parameters_both"] == 0
    assert cost_to_target(run, "no such metric", 0.4) is None


def test_of_a_loss_at_most_the_target_counts(tmp_path):
    write_run(tmp_path, accuracy=[0.5, 0.75, 0.875])
    run = only(tmp_path)
    assert cost_to_target(run, "loss", 0.25)["round"] == 1
    assert cost_to_target(run, "loss", 0.2)["round"] == 2
    assert cost_to_target(run, "loss", 0.1) is None


def test_a_target_is_reached_but_for_rounding_to_32_bits(tmp_path):
    write_run(tmp_path, accuracy=[0.5, float(np.float32(0.7)), 0.9])
    run = only(tmp_path)
    assert run.rounds["accuracy"][1] < 0.7
    assert cost_to_target(run, "accuracy", 0.7)["round"] == 1
    assert cost_to_target(run, "accuracy", 0.70001)["round"] == 2


def test_runs_of_older_versions_do_not_tell_their_flops(tmp_path):
    write_run(tmp_path, flops=False)
    found = cost_to_target(only(tmp_path), "accuracy", 0.6)
    assert math.isnan(found["client_flops"])
    assert found["round"] == 1


def test_the_mean_is_over_seeds_and_there_is_none_where_one_did_not_reach_it(tmp_path):
    write_run(tmp_path, seed=0, accuracy=[0.5, 0.8, 0.9])
    write_run(tmp_path, seed=1, accuracy=[0.5, 0.6, 0.85])
    (group,) = group_runs(read_runs([tmp_path]))
    both, one, none = (group_cost_to_target(group, "accuracy", target) for target in (0.8, 0.9, 0.95))
    assert (both.reached, one.reached, none.reached, none.seeds) == (2, 1, 0, 2)
    assert both.means["round"] == 1.5
    assert both.means["parameters_both"] == 4500
    assert all(math.isnan(value) for found in (one, none) for value in found.means.values())
