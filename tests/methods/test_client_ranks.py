"""Ranks that differ from client to client, for every method that allows them."""

import inspect
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import fedgram.methods
from fedgram.cli.lightning import build
from fedgram.cost import Size
from fedgram.engine.block import train_block
from fedgram.errors import CheckpointError, ConfigurationError
from fedgram.methods import (
    FedExLoRA,
    FedIT,
    FedSALoRA,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    FLoRANA,
    FLoRG,
    FSLoRA,
    HetLoRA,
    LoRAFAIR,
    Method,
    MFedLoRU,
    RoundContext,
)
from fedgram.methods.client_memory import NOTHING, begin, without_padding
from fedgram.methods.client_ranks import deal_ranks
from fedgram.optim import SGD, AdamW
from fedgram.state import ModelState, ServerState, flatten, merge
from helpers import rng
from methods.rounds import play
from test_block import make_network
from test_trainer import fit  # noqa: F401 (a fixture)

RANKS = [4, 2, 1, 3]
ALPHA = 6.0
METHODS = {
    "FedIT": FedIT,
    "FedExLoRA": FedExLoRA,
    "FedExLoRA-factored": partial(FedExLoRA, residual="factored"),
    "FFALoRA": partial(FFALoRA, head="averaged"),
    "FedSALoRA": FedSALoRA,
    "FLoRA": FLoRA,
    "FlexLoRA": FlexLoRA,
    "FlexLoRA-global": partial(FlexLoRA, scaling="global"),
    "FLoRANA": FLoRANA,
    "LoRAFAIR": partial(LoRAFAIR, mode="l2"),
    "FLoRG": partial(FLoRG, init_std=0.3),
    "FLoRG-svd": partial(FLoRG, init_std=0.3, basis="svd", preserve_start=False),
    "HetLoRA": partial(HetLoRA, gamma=0.5, lam=0.3),
    "HetLoRA-unpruned": partial(HetLoRA, gamma=1.0),
}
OF_PARTS = {"FSLoRA": FSLoRA, "MFedLoRU": MFedLoRU}
"""Methods of which clients' ranks are not those of the server's pair cut off, so that none could train one alone."""
ADAMW = AdamW(lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
MOMENTUM = SGD(lr=0.1, momentum=0.9, weight_decay=0.1, max_grad_norm=1.0)
TRAINED = [*((name, ADAMW) for name in METHODS), ("FedIT", MOMENTUM), ("FLoRG", MOMENTUM), ("HetLoRA", MOMENTUM)]
"""Every method with decay and clipping; what SGD does to padding depends on an adapter's form and its penalty alone."""


def concrete():
    found = [kind for kind in vars(fedgram.methods).values() if inspect.isclass(kind) and issubclass(kind, Method)]
    return [kind for kind in found if not inspect.isabstract(kind)]


def test_every_method_that_says_it_allows_them_is_here():
    here = {type(make()) for make in (METHODS | OF_PARTS).values()}
    assert {kind for kind in concrete() if kind.heterogeneous} == here


def start_of(method, server, client, ctx):
    """What a client starts with, in its own shapes."""
    return begin(method, server, server.model, NOTHING, method.context(server, client, ctx))[1]


class Federation:
    """A server somewhere in a run, one block of clients of all ranks, and the method of each client's rank alone."""

    def __init__(self, make, backbone, data):
        self.data = data
        self.make, self.backbone = make, backbone
        self.method = make(rank=max(RANKS), alpha=ALPHA, client_ranks=RANKS)
        self.network, tables = make_network(backbone, data, self.method)
        self.table = tables.split("train")
        random = rng(0)
        noisy = self.network.initial_state().map(
            lambda tensor: tensor + 0.3 * torch.from_numpy(random.normal(size=tuple(tensor.shape)))
        )
        self.server = ServerState(noisy, self.method.server_start(noisy, len(RANKS)))
        self.ctx = RoundContext(3, 0, dict.fromkeys(range(len(RANKS)), 2), len(RANKS))
        self.network.share(self.server.model)
        self.begun = [start_of(self.method, self.server, client, self.ctx) for client in range(len(RANKS))]
        self.starts = [self.method.pad(own, self.server, self.ctx) for own in self.begun]
        self.batches = [[random.choice(60, 3, replace=False) for _ in range(n)] for n in (5, 4, 4, 2)]

    def train(self, optimizer):
        trained, penalty = self.method.trained_fields, self.method.penalty
        return train_block(
            self.network, optimizer, self.starts, self.table, self.batches, trained=trained, penalty=penalty
        ).states

    def alone(self, client, optimizer):
        """Train one client with adapters of its own rank: return its method, server, start, and end."""
        rank = RANKS[client]
        # s = alpha / rank is the same for all ranks, but for FlexLoRA, of which alpha is.
        alpha = ALPHA if self.method.name == "FlexLoRA" else ALPHA * rank / max(RANKS)
        method = self.make(rank=rank, alpha=alpha)
        network, _ = make_network(self.backbone, self.data, method)
        for name, layer in network.layers.items():
            if isinstance(method, FLoRG) and layer.part == "adapter":  # they are drawn after A, of a lower rank here
                big = self.network.layers[name]
                layer.L, layer.R, layer.start = big.L, big.R, big.start
        model, ctx = network.initial_state(), RoundContext(3, 0, {0: 2}, 1)
        server = ServerState(model, method.server_start(model, 1))
        network.share(self.server.model)
        start = start_of(method, server, 0, ctx)
        ranked = {field.name for field in method.fields if field.rank_axis is not None}
        own = {
            name: {f: t for f, t in layer.items() if f in ranked} for name, layer in self.begun[client].adapter.items()
        }
        start = merge(start, ModelState(own, self.begun[client].head))
        (end,) = train_block(
            network, optimizer, [start], self.table, [self.batches[client]],
            trained=method.trained_fields, penalty=method.penalty,
        ).states  # fmt: skip
        return method, server, start, end, ctx


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(("name", "optimizer"), TRAINED)
def test_a_client_in_a_block_trains_and_sends_what_it_would_with_adapters_of_its_own_rank(
    tiny_backbone, tiny_data, name, optimizer
):
    federation = Federation(METHODS[name], tiny_backbone, tiny_data)
    method, server = federation.method, federation.server
    ends = federation.train(optimizer)
    ranked = [field for field in method.fields if field.rank_axis is not None]
    for client, (rank, begun, end) in enumerate(zip(RANKS, federation.begun, ends, strict=True)):
        own, own_server, own_start, own_end, own_ctx = federation.alone(client, optimizer)
        cut_end = without_padding(end, begun)
        shapes, own_shapes = ({k: t.shape for k, t in flatten(state).items()} for state in (begun, own_start))
        assert own_shapes.items() <= shapes.items()  # FlexLoRA has a scale beside, where ranks differ
        for key, tensor in flatten(own_end).items():
            if key.startswith("head") or key.split("|")[2] in own.trained_fields:
                torch.testing.assert_close(flatten(cut_end)[key], tensor, rtol=0, atol=1e-10)
                assert not torch.equal(tensor, flatten(own_start)[key])
        for name, layer in end.adapter.items():
            for field in ranked:
                beyond = layer[field.name].narrow(field.rank_axis, rank, max(RANKS) - rank)
                assert not beyond.any(), (name, field.name)
        contexts = method.context(server, client, federation.ctx), own.context(own_server, 0, own_ctx)
        sent, expected = method.upload(begun, cut_end, contexts[0]), own.upload(own_start, own_end, contexts[1])
        assert flatten(sent).keys() == flatten(expected).keys()
        for key, tensor in flatten(expected).items():
            torch.testing.assert_close(flatten(sent)[key], tensor, rtol=0, atol=1e-10)
        new = [RoundContext(3, 0, dict.fromkeys(i.last_rounds, 0), i.clients) for i in (federation.ctx, own_ctx)]
        down = method.download(server, method.context(server, client, new[0]))
        assert Size.of(down) == Size.of(own.download(own_server, own.context(own_server, 0, new[1])))


def test_what_a_client_has_beyond_its_rank_counts_in_the_comparison_above(tiny_backbone, tiny_data):
    """Its padding is zero, and training from anything else ends elsewhere."""
    federation = Federation(FedIT, tiny_backbone, tiny_data)
    start = federation.starts[2]
    for layer in start.adapter.values():
        layer["A"][3] = layer["B"][:, 3] = 0.1
    ends = federation.train(ADAMW)
    *_, alone, _ = federation.alone(2, ADAMW)
    name = next(iter(alone.adapter))
    assert not torch.allclose(ends[2].adapter[name]["A"][:1], alone.adapter[name]["A"], atol=1e-6)


@pytest.mark.parametrize("name", ["FedIT", "FedExLoRA", "FLoRANA", "LoRAFAIR", "HetLoRA", "HetLoRA-unpruned"])
def test_what_nobody_of_a_cohort_held_can_be_trained_again(name):
    """A cohort of low ranks adds nothing to the others, whose A stays: with A and B zero nothing would move them."""
    method = METHODS[name](rank=max(RANKS), alpha=ALPHA, client_ranks=RANKS)
    first, second = play(method, [{1, 2}, {0, 3}])
    before, after = (server.adapter["q"] for server in (first.before, first.after))
    assert not after["B"][:, 2:].any()
    assert torch.equal(after["A"][2:], before["A"][2:])
    assert not torch.equal(after["A"][:2], before["A"][:2])
    assert (second.start[0]["A"] != 0).any(dim=1).all()


def test_the_ledger_counts_what_ranks_make_of_payloads(fit):  # noqa: F811
    """Four layers of 16 x 16: a client of rank r sends 4 · r · 32 numbers, and a head of 2 x 16 and 2."""
    ranks = [3, 1, 2, 1, 1]
    summary, _ = fit(method=FedIT(rank=3, client_ranks=ranks), rounds=2)
    per_round = sum(4 * r * 32 + 34 for r in ranks)
    assert summary["parameters_up"] == 2 * summary["parameters_down"] == 2 * per_round
    assert summary["bytes_up"] == 4 * summary["parameters_up"]


LISTED = st.lists(st.integers(1, 8), min_size=1, max_size=30)


@given(LISTED, st.integers(0, 5))
def test_a_list_is_dealt_as_it_stands(ranks, seed):
    dealt = deal_ranks(ranks, 8, len(ranks), seed)
    assert dealt.dtype == np.int64
    assert dealt.tolist() == ranks
    with pytest.raises(ConfigurationError, match=rf"lists {len(ranks)} ranks for {len(ranks) + 1} clients"):
        deal_ranks(ranks, 8, len(ranks) + 1, seed)


@given(st.dictionaries(st.integers(1, 8), st.integers(1, 9), min_size=1), st.integers(1, 200), st.integers(0, 5))
def test_shares_are_dealt_to_within_one_client(parts, clients, seed):
    shares = {rank: part / sum(parts.values()) for rank, part in parts.items()}
    dealt = deal_ranks(shares, 8, clients, seed).tolist()
    assert len(dealt) == clients
    assert set(dealt) <= set(parts)
    assert all(abs(dealt.count(rank) - share * clients) <= 1 for rank, share in shares.items())
    assert dealt == deal_ranks(shares, 8, clients, seed).tolist()


@given(st.sampled_from(["uniform", "normal", "heavy_tail"]), st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_drawn_ranks_lie_in_their_range_and_come_from_the_seed(kind, largest, clients, seed):
    dealt = deal_ranks(kind, largest, clients, seed)
    assert dealt.dtype == np.int64
    assert dealt.shape == (clients,)
    assert 1 <= dealt.min() <= dealt.max() <= largest
    assert np.array_equal(dealt, deal_ranks(kind, largest, clients, seed))


def test_distributions_have_the_shapes_of_their_names():
    uniform, normal, heavy = (deal_ranks(kind, 8, 8000, 0) for kind in ("uniform", "normal", "heavy_tail"))
    counts = np.bincount(uniform, minlength=9)[1:]
    assert counts.min() > 850
    assert normal.mean() == pytest.approx(4.5, abs=0.05)
    assert normal.std() == pytest.approx(7 / 6, rel=0.1)
    odds = np.bincount(heavy, minlength=9)[1:]
    assert odds[0] / odds[1] == pytest.approx(2, rel=0.15)
    assert odds[0] / odds[7] == pytest.approx(8, rel=0.25)


def test_shares_are_dealt_whatever_the_number_of_a_client():
    """Low ranks are not those of the first clients, and other seeds deal otherwise."""
    one, other = (deal_ranks({8: 0.5, 1: 0.5}, 8, 40, seed).tolist() for seed in (0, 1))
    assert one not in (other, sorted(one), sorted(one, reverse=True))
    assert one == deal_ranks({1: 0.5, 8: 0.5}, 8, 40, seed=0).tolist()  # YAML keeps no order


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([4, 5], r"between 1 and method\.rank = 4, got \[5\]"),
        ([0, 1], r"between 1 and method\.rank = 4, got \[0\]"),
        ([], r"between 1 and method\.rank = 4, got none"),
        ({5: 1.0}, r"between 1 and method\.rank = 4, got \[5\]"),
        ({4: 0.5, 2: 0.4}, r"sum to 1, got \{4: 0\.5, 2: 0\.4\}"),
        ({4: 1.5, 2: -0.5}, r"must not be negative"),
        ("pareto", r"one of uniform, normal, heavy_tail; got 'pareto'"),
    ],
)
def test_ranks_that_no_client_can_have_are_errors(ranks, message):
    with pytest.raises(ConfigurationError, match=message):
        FedIT(rank=4, client_ranks=ranks)


def test_a_method_that_is_not_defined_for_them_says_so():
    for kind in concrete():
        if not kind.heterogeneous:
            with pytest.raises(ConfigurationError, match=rf"^{kind.__name__} is not defined for ranks that differ"):
                kind(rank=4, client_ranks=[4, 2])


FORMS = {
    "[4, 2, 1, 1]": [4, 2, 1, 1],
    "{4: 0.25, 1: 0.75}": {4: 0.25, 1: 0.75},
    "heavy_tail": "heavy_tail",
}


def settings_of(run):
    return json.loads(Path("runs", run, "version_0", "summary.json").read_text())


@pytest.mark.parametrize("form", FORMS)
def test_they_may_be_given_on_the_command_line_and_in_a_config(config, tmp_path, form):
    common = ["--config", str(config), "--method", "FedIT", "--method.rank", "4"]
    told = build([*common, "--method.client_ranks", form]).arguments["method"]
    content = yaml.safe_load(config.read_text())
    content["method"] = {"class_path": "FedIT", "init_args": {"rank": 4, "client_ranks": FORMS[form]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    written = build(["--config", str(tmp_path / "mine.yaml")]).arguments["method"]
    assert told.client_ranks == written.client_ranks == FORMS[form]


def test_a_run_has_the_ranks_that_were_asked_for_and_its_saved_config_repeats_them(fedgram, config):
    shares, given = {4: 0.25, 1: 0.75}, ["--method.rank", 4, "--method.client_ranks", "{4: 0.25, 1: 0.75}"]
    code, _, err = fedgram("fit", "--config", config, "--method", "FedIT", "--trainer.rounds", 1, *given)
    assert code == 0, err
    found = settings_of("data-FedIT")
    assert found["settings"]["method.client_ranks"] == json.loads(json.dumps(shares))
    assert found["parameters_up"] == sum(4 * r * 32 + 34 for r in deal_ranks(shares, 4, 4, seed=0).tolist())
    saved = Path("runs/data-FedIT/version_0/config.yaml")
    assert fedgram("fit", "--config", saved, "--trainer.name", "again")[0] == 0
    assert settings_of("again")["state_hash"] == found["state_hash"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "FeDeRA", "--method.client_ranks", "[2,1,1,1]"], "FeDeRA is not defined for ranks that differ"),
        (["--method", "FedIT", "--method.client_ranks", "[2,1]"], "method.client_ranks lists 2 ranks for 4 clients"),
        (["--method", "FedIT", "--method.client_ranks", "[9,1,1,1]"], "between 1 and method.rank = 4, got [9]"),
        (["--method", "FedIT", "--method.client_ranks", "{4: 0.5}"], "sum to 1"),
        (["--method", "FedIT", "--method.client_ranks", "pareto"], "client_ranks"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "cost"])
def test_what_can_not_be_is_one_line_and_leaves_no_run(fedgram, config, command, arguments, message):
    code, _, err = fedgram(command, "--config", config, *arguments, "--method.rank", 4)
    assert code != 0
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert not Path("runs").exists()


def test_cost_tells_the_mean_over_clients(fedgram, config):
    given = ["--method", "FedIT", "--method.rank", 4, "--method.client_ranks", "{4: 0.25, 2: 0.75}"]
    code, _, err = fedgram("cost", "--config", config, *given, "--json", "costs.json")
    assert (code, err) == (0, "")
    (cost,) = json.loads(Path("costs.json").read_text())["costs"]
    assert cost["up"]["adapter"] == 4 * 32 * (4 + 2 + 2 + 2) / 4
    assert cost["all_up"]["adapter"] == 2 * 4 * 32 * (4 + 2 + 2 + 2)


def test_a_run_does_not_go_on_with_other_ranks(fit):  # noqa: F811
    """Its shares of clients stand as text in a checkpoint, and are read as what they were."""
    shares = {4: 0.4, 2: 0.6}
    fit(FedIT(rank=4, client_ranks=shares), rounds=1)
    with pytest.raises(CheckpointError, match=r"method\.client_ranks: \{'4': 0\.4, '2': 0\.6\} there, \[4, 2"):
        fit(FedIT(rank=4, client_ranks=[4, 2, 2, 4, 2]), rounds=2, ckpt_path="last")
    assert fit(FedIT(rank=4, client_ranks=shares), rounds=2, ckpt_path="last")[0]["rounds"] == 2
