"""What is told before a run, against what the run then says."""

import inspect

import numpy as np
import pytest
import torch

import fedgram.methods
from fedgram import (
    GLUE,
    IID,
    CELoRA,
    FedDPA,
    FeDeRA,
    FederatedTrainer,
    FedExLoRA,
    FedIT,
    FedLEASE,
    FFALoRA,
    FLoRA,
    FLoRG,
    Quickstart,
    RoLoRA,
    SLoRA,
    SQuAD,
    TextClassification,
    TextClassificationData,
)
from fedgram.cohort import cohort_size, sample
from fedgram.cost import Size, estimate, every_method, find_payloads
from fedgram.cost.client_flops import Work, training_flops
from fedgram.cost.estimation import _cohorts
from fedgram.engine.block_size import COPIES, held_bytes, saved_bytes
from fedgram.errors import ConfigurationError
from fedgram.methods import Method
from fedgram.models import QuestionAnswering
from tables import rows
from test_flops import make_network, samples_of
from test_trainer import fit  # noqa: F401
from tiny_models import save_tiny

METHODS = every_method(FLoRG(rank=1))
WORDS = 6
TOKENS = WORDS + 2


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    """60 samples of as many tokens."""
    folder = tmp_path_factory.mktemp("even")
    words = ("fine", "dull", "great", "poor", "lovely", "awful", "plot", "cast")
    text = "".join(f"the film was {'good' if i % 2 else 'bad'} and {words[i // 2 % 8]},{i % 2}\n" for i in range(60))
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text(f"text,label\n{text}")
    return folder


@pytest.fixture
def ask(tiny_backbone, even):
    """Returns an estimate; keywords are the trainer's, but for methods, data, backbone, and what estimate takes."""

    def run(methods=None, data=None, backbone=None, model=None, tokens=TOKENS, labels=None, samples=None, **keys):
        keys = {"rounds": 3, "clients": 5, "local_steps": 2} | keys
        data = data or TextClassificationData(str(even), batch_size=3)
        model = model or TextClassification(backbone or tiny_backbone)
        methods = methods or {"FLoRG": FLoRG(rank=2)}
        return estimate(FederatedTrainer(**keys).settings, model, data, methods, tokens, labels, samples)

    return run


def sums_of(folder):
    """What a run's ledger has, by direction."""
    table = rows(folder, "communication.csv")

    def total(direction, part, column):
        return sum(int(r[column]) for r in table if (r["direction"], r["part"]) == (direction, part))

    keys = [(part, column) for column in ("parameters", "bytes") for part in ("adapter", "head")]
    return [Size(*(total(direction, *key) for key in keys)) for direction in ("up", "down")]


@pytest.mark.quick_cases(1)
@pytest.mark.flops
@pytest.mark.parametrize("name", ["FLoRG", "FedExLoRA-factored", "RoLoRA", "CELoRA"])
def test_a_run_costs_what_was_told(fit, ask, even, name):  # noqa: F811
    """What is sent with every method is compared in tests/distributed/test_costs.py and in test_traffic.py."""
    keys = {"rounds": 4, "participation": 2, "clients_per_block": 1}
    summary, trainer = fit(method=METHODS[name], path=even, partition=IID(), evaluate_at_start=False, **keys)
    (cost,) = ask({name: METHODS[name]}, **keys).costs
    for direction, seen in zip(("all_up", "all_down"), sums_of(trainer.folder.path), strict=True):
        least, most = cost.bounds(direction)
        assert least.bytes <= seen.bytes <= most.bytes
        assert cost.unknown or least == seen == most
    assert summary["client_flops"] == cost.all_flops
    assert summary["server_flops"] == 4 * cost.server_flops


@pytest.mark.quick_cases(1)
@pytest.mark.flops
@pytest.mark.parametrize(
    "method", [SLoRA(rank=2, sparse_rounds=3, density=0.1), FedDPA(rank=2, schedule="sequential", local_from=4)]
)
def test_operations_are_those_of_what_each_round_trains(fit, ask, even, method):  # noqa: F811
    """Three rounds train something else than the fourth: a sparse matrix, or the global pair alone."""
    summary, _ = fit(method=method, path=even, partition=IID(), evaluate_every=4, rounds=4)
    (three,), (four,) = (ask({"": method}, rounds=rounds).costs for rounds in (3, 4))
    assert summary["client_flops"] == four.all_flops
    assert four.all_flops != three.all_flops + three.round_flops


def test_a_warm_up_is_told_apart_from_what_follows(ask):
    """Nothing travels in two rounds; in the third what each has trained goes up, and experts and routers down."""
    method, keys = FedLEASE(rank=2, warmup_rounds=3, experts=2), {"rounds": 6, "clients_per_block": 1}
    (cost,) = ask({"FedLEASE": method}, **keys).costs
    assert cost.all_down == cost.down * (4 * 5)
    assert cost.up.adapter > 0
    assert (cost.unknown, cost.least) == ("", {})


def test_what_only_training_can_tell_is_a_range(ask):
    (cost,) = ask({"FedLEASE": FedLEASE(rank=2)}, rounds=4).costs
    assert cost.unknown == "how many experts there will be"
    assert set(cost.least) == {"up", "down", "down_first", "all_up", "all_down"}
    for name in cost.least:
        least, most = cost.bounds(name)
        assert least.adapter < most.adapter
    assert cost.bounds("up_first") == (cost.up_first, cost.up_first)
    two, four = (ask({"": FedLEASE(rank=2, experts=n)}, rounds=4).costs[0] for n in (2, 4))
    assert cost.bounds("all_down") == (two.all_down, four.all_down)


def test_a_client_tells_of_one_sample_at_least(ask):
    """CE-LoRA: a Gaussian, of mean, variance and weight, and two counts; at most three for each of two classes."""
    (cost,) = ask({"CELoRA": CELoRA(rank=2)}, rounds=4).costs
    least, most = cost.bounds("once")
    assert (least, most) == (Size(33, 0, 33 * 4 + 16, 0), Size(6 * 33, 0, 6 * 33 * 4 + 32, 0))
    assert most * 5 == cost.all_up + cost.up * -20


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("participation", [1.0, 0.1])
def test_many_clients_and_rounds_take_seconds(even, tiny_backbone, participation):
    keys = {"rounds": 300, "clients": 300, "participation": participation}
    methods = {"FLoRA": FLoRA(rank=2, client_ranks={1: 0.5, 2: 0.5}), "RoLoRA": RoLoRA(rank=2)}
    data = TextClassificationData(str(even))
    found = find_payloads(FederatedTrainer(**keys).settings, TextClassification(tiny_backbone), data, methods)
    sent = found["RoLoRA"].most
    assert sent["all_up"] == sent["up"] * (300 * cohort_size(participation, 300))


@pytest.mark.flops
def test_epochs_are_counted_over_all_samples(fit, ask, even):  # noqa: F811
    keys = {"rounds": 2, "local_steps": None, "local_epochs": 2}
    summary, _ = fit(method=FLoRG(rank=2), path=even, partition=IID(), **keys)
    found = ask(samples=60, **keys)
    assert found.setting.local_steps == 8
    assert summary["client_flops"] == 2 * found.costs[0].round_flops == found.costs[0].all_flops


def test_without_the_number_of_samples_epochs_are_not_known(ask):
    found = ask(local_steps=None)
    assert (found.setting.samples, found.setting.local_steps, found.costs[0].round_flops) == (None, None, None)
    assert found.costs[0].step_flops > 0


def test_in_double_precision_twice_the_bytes_travel(fit, ask, even):  # noqa: F811
    _, trainer = fit(method=FedIT(rank=2), path=even, precision="64-true", rounds=1)
    single, double = (ask({"FedIT": FedIT(rank=2)}, precision=p, rounds=1).costs[0] for p in ("32-true", "64-true"))
    assert sums_of(trainer.folder.path) == [double.all_up, double.all_down]
    assert double.all_up.bytes == 2 * single.all_up.bytes
    assert double.memory.total > 1.5 * single.memory.total


def test_a_step_is_that_of_a_full_batch(ask):
    (cost,) = ask(tokens=11).costs
    longer = ask(tokens=12).costs[0]
    assert longer.step_flops > cost.step_flops
    assert cost.round_flops == 5 * 2 * cost.step_flops


def test_what_is_sent_by_hand(ask):
    """Four layers of 16 x 16, rank 2, and a head of 2 x 16 and 2; five clients, three rounds."""
    costs = {
        "FLoRG": (FLoRG(rank=2), 32, 32),
        "FedIT": (FedIT(rank=2), 64, 64),
        "FedExLoRA": (FedExLoRA(rank=2), 64, 64 + 16 * 16),
        "FedExLoRA-factored": (FedExLoRA(rank=1, residual="factored"), 32, 32 + 4 * 32),
    }
    found = ask({name: method for name, (method, _, _) in costs.items()})
    assert [cost.method for cost in found.costs] == list(costs)
    for cost, (_, up, down) in zip(found.costs, costs.values(), strict=True):
        assert cost.up == Size(4 * up, 34, 16 * up, 136)
        assert (cost.up_first, cost.down_first) == (cost.up, Size())  # what all start from comes from the seed
        assert cost.down == Size(4 * down, 34, 16 * down, 136)
        assert cost.all_up == cost.up * 15
        assert cost.all_down == cost.down * 10
        assert cost.trained == cost.up


def test_parts_that_stay_with_clients_or_frozen_are_told(ask):
    methods = {"FFALoRA": FFALoRA(rank=2), "local": FedIT(rank=2, head="local")}
    frozen, local = ask(methods).costs
    assert (frozen.trained, frozen.up) == (Size(128, 0, 512, 0), Size(128, 0, 512, 0))
    assert (local.trained.head, local.up.head) == (34, 0)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("name", ["FLoRG", "FedIT", "FedExLoRA", "FFALoRA"])
def test_memory_is_that_of_a_network_with_weights(tmp_path, ask, name, depth):
    backbone, method = save_tiny("roberta", tmp_path), METHODS[name]
    network, config = make_network(backbone, method, labels=2, num_hidden_layers=depth)
    config.save_pretrained(backbone)
    state, table = network.initial_state(), samples_of([TOKENS] * 3, network.pad_id)
    network.share(state)
    kept = saved_bytes(network, state, table, np.arange(3))
    (cost,) = ask({name: method}, backbone=backbone, clients_per_block=2).costs
    assert cost.memory.held == held_bytes(network)
    assert cost.memory.per_client == kept + COPIES * cost.trained.bytes
    assert cost.memory.uploads == 5 * cost.up.bytes
    assert cost.memory.total == cost.memory.held + 2 * cost.memory.per_client + cost.memory.uploads


def test_half_precision_halves_the_weights(ask):
    single, half = (ask(precision=precision).costs[0].memory.held for precision in ("32-true", "bf16-true"))
    assert half == pytest.approx(single / 2, rel=0.2)


def test_a_model_of_the_hub_is_taken_by_its_shape_where_it_is_not_at_hand(ask):
    found = ask(backbone="facebook/opt-125m", data=GLUE("mnli"), tokens=64)
    assert (found.setting.backbone, found.setting.shape, found.setting.labels) == (
        "facebook/opt-125m",
        "shape:opt-125m",
        3,
    )
    (cost,) = found.costs
    assert cost.trained == Size(24 * 2 * 768, 3 * 768, 4 * 24 * 2 * 768, 4 * 3 * 768)
    assert found.costs == ask(backbone="shape:opt-125m", data=GLUE("mnli"), tokens=64).costs


def test_a_model_of_the_hub_without_a_shape_is_an_error_that_says_so(ask):
    with pytest.raises(ConfigurationError, match=r"model\.backbone: 'owner/unknown'"):
        ask(backbone="owner/unknown")


@pytest.mark.parametrize(
    ("data", "given", "labels", "samples"),
    [
        (lambda: GLUE("rte"), {}, 2, 2_490),
        (lambda: GLUE("stsb"), {}, 1, 5_749),
        (lambda: GLUE("mnli", max_train_samples=1000), {}, 3, 1000),
        (lambda: GLUE("qqp", validation_fraction=0.1), {}, 2, 327_461),
        (lambda: GLUE("rte", path="files/of/rte"), {}, 2, None),
        (lambda: GLUE("rte", path="files/of/rte"), {"samples": 7}, 2, 7),
        (Quickstart, {}, 2, 7_961),
        (lambda: TextClassificationData("mine.csv"), {}, 2, None),
        (lambda: TextClassificationData("mine.csv"), {"labels": 5, "samples": 60}, 5, 60),
        (lambda: TextClassificationData("mine.csv", num_labels=4), {}, 4, None),
    ],
)
def test_labels_and_samples_are_what_is_known_without_reading(ask, data, given, labels, samples):
    setting = ask(data=data(), **given).setting
    assert (setting.labels, setting.samples) == (labels, samples)


def test_question_answering_is_told_as_well(ask, tiny_backbone):
    found = ask(model=QuestionAnswering(tiny_backbone), data=SQuAD(max_train_samples=500), labels=9)
    assert (found.setting.labels, found.setting.samples) == (2, 500)
    assert found.costs[0].up.head == 34
    assert ask(model=QuestionAnswering(tiny_backbone), data=SQuAD("files/of/squad")).setting.samples is None


def test_samples_are_as_long_as_data_and_backbone_allow_unless_said(ask, even, tmp_path):
    data = TextClassificationData(str(even), max_length=9)
    assert ask(data=data, tokens=None).setting.tokens == 9
    longer = TextClassificationData(str(even), max_length=128)  # and the backbone, of 64 positions
    assert ask(data=longer, tokens=None).setting.tokens == 64
    assert ask(data=longer, tokens=None, backbone=save_tiny("roberta", tmp_path)).setting.tokens == 64  # of 66 less 2
    assert ask(data=longer, tokens=None, backbone="shape:opt-125m").setting.tokens == 128


def test_blocks_are_of_one_client_where_a_run_would_choose(ask):
    assert (ask().setting.clients_per_block, ask().setting.auto) == (1, True)
    chosen = ask(clients_per_block=3)
    assert (chosen.setting.clients_per_block, chosen.setting.auto, chosen.costs[0].memory.clients) == (3, False, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"labels": 0}, "labels must be at least 1, got 0"),
        ({"samples": -1}, "samples must be at least 1, got -1"),
        ({"methods": {"FLoRG": FLoRG(rank=17)}}, r"method\.rank must be at most .* got 17"),
    ],
)
def test_settings_out_of_range_are_errors(ask, keys, message):
    with pytest.raises(ConfigurationError, match=message):
        ask(**keys)


def test_every_method_of_fedgram_is_among_all():
    exported = [kind for kind in vars(fedgram.methods).values() if inspect.isclass(kind) and issubclass(kind, Method)]
    concrete = {kind for kind in exported if not inspect.isabstract(kind)}
    assert {type(method) for method in METHODS.values()} == concrete
    assert next(iter(METHODS)) == "FLoRG"


def test_all_methods_have_rank_alpha_and_targets_of_the_one_given_and_all_else_as_it_comes():
    like = FedIT(rank=3, alpha=7.0, target_modules=["key"], head="frozen")
    for name, method in every_method(like).items():
        assert (method.rank, method.alpha, method.target_modules) == (3, 7.0, ["key"])
        assert method.head == type(method)().head, name
    assert (every_method(like)["FLoRG-eigh"].solver, every_method(like)["FeDeRA-round"].when) == ("eigh", "round")


def test_cohorts_are_those_of_the_run(ask):
    setting = ask(rounds=6, participation=2).setting
    assert (setting.cohort, setting.rounds) == (2, 6)
    found = [cohort.tolist() for cohort in _cohorts(setting, seed=0)]
    assert found == [sample(0, number, 5, 2) for number in range(1, 7)]


def test_of_other_seeds_newcomers_come_at_other_times(ask):
    methods = {"RoLoRA": RoLoRA(rank=2)}
    costs = {ask(methods, rounds=3, participation=2, seed=seed).costs[0].all_down for seed in range(8)}
    assert len(costs) > 1


@pytest.mark.flops
def test_operations_are_those_of_the_formula(ask, tiny_backbone):
    method = FLoRG(rank=2)
    network, config = make_network(tiny_backbone, method, labels=2)
    config.problem_type = "single_label_classification"
    formula = training_flops(network.task, config, method, TOKENS)
    assert ask().costs[0].step_flops == formula.of(Work(1, 3, 3 * TOKENS, 3 * TOKENS**2))


def test_no_generator_is_touched(ask):
    before = torch.get_rng_state()
    ask({"FLoRG": FLoRG(rank=3), "FeDeRA": FeDeRA(rank=3)})
    assert torch.equal(torch.get_rng_state(), before)
