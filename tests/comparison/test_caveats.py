import pytest

from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.caveats import caveats
from fedgram.comparison.overview import View
from made_runs import write_run


def told(folder, view=None):
    view = view or View()
    return caveats(group_runs(read_runs([folder]), view.by), view)


def write_runs(folder, methods=("FLoRG", "FedIT"), seeds=3, **more):
    for method in methods:
        for seed in range(seeds):
            write_run(folder, method, seed, [0.5, 0.7 + seed / 50], **more)


def test_a_sound_comparison_has_none(tmp_path):
    write_runs(tmp_path)
    assert told(tmp_path) == []


def test_few_seeds(tmp_path):
    write_runs(tmp_path, ["FLoRG"], seeds=3)
    write_runs(tmp_path, ["FedIT"], seeds=2)
    few, other = told(tmp_path)
    assert few == "fewer than 3 seeds (2: FedIT): chance may decide who is ahead"
    assert other.startswith("other seeds (0 1 2: FLoRG; 0 1: FedIT): ")


def test_few_seeds_of_all(tmp_path):
    write_runs(tmp_path, seeds=1)
    assert told(tmp_path) == ["fewer than 3 seeds (every method): chance may decide who is ahead"]


def test_as_many_seeds_that_are_others(tmp_path):
    write_runs(tmp_path, ["FLoRG"])
    for seed in (0, 1, 7):
        write_run(tmp_path, "FedIT", seed, [0.5, 0.7 + seed / 50])
    (other,) = told(tmp_path)
    assert other.startswith("other seeds (0 1 2: FLoRG; 0 1 7: FedIT): ")


@pytest.mark.parametrize(
    ("samples", "points"),
    [
        (71, "one of the 71 evaluated samples is 1.41 points"),
        (1000, "one of the 1,000 evaluated samples is 0.1 points"),
    ],
)
def test_a_small_split(tmp_path, samples, points):
    write_runs(tmp_path, evaluated_samples=samples)
    assert told(tmp_path) == [points]


@pytest.mark.parametrize("samples", [1001, None])
def test_a_split_that_is_large_or_unknown_is_not_told_of(tmp_path, samples):
    write_runs(tmp_path, evaluated_samples=samples)
    assert told(tmp_path) == []


def test_a_spread_below_one_sample(tmp_path):
    write_runs(tmp_path, ["FLoRG"])
    for seed in range(3):
        write_run(tmp_path, "FedIT", seed, [0.5, 0.7 + seed * 1e-6])
    assert told(tmp_path) == [
        "one of the 10,000 evaluated samples is 0.01 points, and half the interval of FedIT is less"
    ]


def test_one_sample_is_no_share_of_a_loss(tmp_path):
    write_runs(tmp_path, evaluated_samples=71)
    assert told(tmp_path, View(metric="loss")) == []


@pytest.mark.parametrize(
    ("settings", "summary", "sentence"),
    [
        ({}, {"rounds": 30}, "other rounds (1: FLoRG; 30: FedIT)"),
        ({"trainer.participation": 0.5}, {}, "other participation (1: FLoRG; 0.5: FedIT)"),
        ({"trainer.local_steps": 8}, {}, "other local_steps (2: FLoRG; 8: FedIT)"),
        ({"data.batch_size": 8}, {}, "other batch_size (4: FLoRG; 8: FedIT)"),
        ({"method.rank": 8}, {}, "other rank (4: FLoRG; 8: FedIT)"),
    ],
)
def test_other_conditions(tmp_path, settings, summary, sentence):
    write_runs(tmp_path, ["FLoRG"])
    write_runs(tmp_path, ["FedIT"], settings=settings, **summary)
    assert told(tmp_path) == [f"{sentence}: not under the same conditions"]


def test_a_learning_rate_of_its_own_is_no_other_condition(tmp_path):
    write_runs(tmp_path, ["FLoRG"])
    write_runs(tmp_path, ["FedIT"], settings={"optimizer.lr": 1})
    assert told(tmp_path) == []


def test_a_run_without_the_metric(tmp_path):
    write_runs(tmp_path)
    own = write_run(tmp_path, "FedIT", 2, [0.5, 0.7], final={"f1": 0.7})
    assert told(tmp_path) == [f"no accuracy after the last round: {own}"]


def test_what_holds_in_some_slices_says_in_which_and_what_holds_in_all_is_said_once(tmp_path):
    for rank, samples in ((2, 71), (4, 71), (8, 10_000)):
        write_runs(tmp_path, seeds=2, settings={"method.rank": rank}, evaluated_samples=samples)
    assert told(tmp_path, View(by=("rank", "rho"))) == [
        "fewer than 3 seeds (every method): chance may decide who is ahead",
        "rank 2; rank 4: one of the 71 evaluated samples is 1.41 points",
    ]
