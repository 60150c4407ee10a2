import pytest
import torch

from adapters.plain import B, C, R, T, dense_forward, draw, make_linear
from fedgram.adapters import LoraPairAdapter
from fedgram.errors import ConfigurationError
from fedgram.methods import FedDPA, FedIT, RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, ServerState, state_hash
from test_trainer import fit, rows  # noqa: F401 (a fixture)


def pairs(clients, d_in=11, d_out=7):
    shapes = {"A": (R, d_in), "B": (d_out, R), "L": (R, d_in), "U": (d_out, R)}
    return {field: draw(clients, *shape, seed=i) for i, (field, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_forward_mixes_the_two_pairs_and_has_the_global_one_whole_where_there_is_no_other(mix):
    linear, weight = make_linear()
    adapter, own = LoraPairAdapter(linear, R, 0.7, {}, (1 - mix, mix)), pairs(C)
    x = draw(C * B, T, 11, seed=9)
    common, local = 0.7 * own["B"] @ own["A"], 0.7 * own["U"] @ own["L"]
    adapter.load(own)
    expected = dense_forward(x, weight, linear.bias, (1 - mix) * common + mix * local)
    torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)
    adapter.load({field: own[field] for field in ("A", "B")})
    torch.testing.assert_close(adapter(x), dense_forward(x, weight, linear.bias, common), rtol=0, atol=1e-12)


def stands(trainer):
    return load(trainer.folder.checkpoint("last"))


def parameters(trainer, direction, part="adapter"):
    found = [row for row in rows(trainer.folder.path, "communication.csv") if row["part"] == part]
    return [int(row["parameters"]) for row in found if row["direction"] == direction]


Q = 4 * 2 * (16 + 16)
"""Numbers in the pairs of one client: four layers of 16 to 16, rank 2."""


def test_the_global_pair_is_trained_as_if_there_were_no_local_one(fit):  # noqa: F811
    """Whatever the mixture, it is the same; and without steps for the local one it is FedIT's."""
    methods = {str(mix): FedDPA(rank=2, mix=mix, head="frozen") for mix in (0.2, 1.0)}
    methods |= {"none": FedDPA(rank=2, local_share=0.0, head="frozen"), "plain": FedIT(rank=2, head="frozen")}
    trainers = {name: fit(method=method, rounds=2, name=name)[1] for name, method in methods.items()}
    hashes = {name: state_hash(stands(trainer).state) for name, trainer in trainers.items()}
    assert hashes["0.2"] == hashes["1.0"] != hashes["none"] == hashes["plain"]
    kept = stands(trainers["0.2"]).clients
    assert set(kept) == set(range(5))
    assert {key.split("|")[2] for key in kept[0]} == {"L", "U"}
    assert all(tensor.any() for tensor in kept[0].values())
    assert all(not torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    assert [parameters(trainers["0.2"], way) for way in ("up", "down")] == [[5 * Q] * 2, [5 * Q]]


def test_phases_hold_what_they_do_not_train():
    local, common = FedDPA(local_share=0.25).phases(3)
    assert (local.trained, local.absent, local.share) == ({"L", "U"}, frozenset(), 0.25)
    assert (common.trained, common.absent, common.share) == ({"A", "B"}, {"L", "U"}, 0.75)


def test_the_sequential_schedule_is_fedit_and_then_local_training(fit):  # noqa: F811
    """Two rounds of FedIT, after which the final global pair comes down once, and nothing goes up."""
    method = FedDPA(rank=2, schedule="sequential", local_from=3, head="frozen")
    _, whole = fit(method=method, rounds=4)
    _, plain = fit(method=FedIT(rank=2, head="frozen"), rounds=2, name="plain")
    _, first = fit(method=method, rounds=2, name="first")
    for trainer in (whole, first):
        for name, layer in stands(plain).state.adapter.items():
            for field, tensor in layer.items():
                assert torch.equal(stands(trainer).state.adapter[name][field], tensor)
    assert not stands(first).clients or not any(stands(first).clients.values())
    assert {key.split("|")[2] for key in stands(whole).clients[0]} == {"L", "U"}
    assert parameters(whole, "up") == [5 * Q] * 2
    assert parameters(whole, "down") == [5 * Q] * 2


def test_a_client_that_comes_late_starts_its_local_pair_from_the_final_global_one():
    method = FedDPA(rank=2, schedule="sequential", local_from=3)
    server = ServerState(ModelState({"q": {f: t[0] for f, t in pairs(1).items() if f in "AB"}}))
    initial = ModelState({"q": {f: torch.zeros_like(t) for f, t in server.adapter["q"].items()}})
    ctx = RoundContext(5, 0, {0: 2, 1: 3, 2: 0}, 3)

    def begun(client, kept=NOTHING):
        return begin(method, server, initial, kept, method.context(server, client, ctx))

    for client, is_sent in ((0, True), (1, False), (2, True)):
        payload, start = begun(client)
        assert set(payload.adapter["q"]) == ({"A", "B"} if is_sent else set())
        assert torch.equal(start.adapter["q"]["L"], server.adapter["q"]["A"])
        assert torch.equal(start.adapter["q"]["U"], server.adapter["q"]["B"])
        assert torch.equal(start.adapter["q"]["A"], server.adapter["q"]["A"])
    _, start = begun(1, ModelState({"q": {"L": torch.ones(2, 11), "U": torch.ones(7, 2)}}))
    assert (start.adapter["q"]["L"] == 1).all()
    assert (start.adapter["q"]["U"] == 1).all()


@pytest.mark.parametrize("head", ["local", "averaged"])
def test_a_client_keeps_its_own_pair_and_a_head_of_its_own(head):
    pair, weights = {"A": torch.ones(2, 3), "L": torch.ones(2, 3)}, {"classifier": {"weight": torch.ones(2)}}
    kept = FedDPA(rank=2, head=head).kept(ModelState({"q": pair}, weights))
    assert kept == ModelState({"q": {"L": pair["L"]}}, weights if head == "local" else {})


def test_settings_that_make_no_sense_are_errors():
    for settings in ({"mix": -0.1}, {"local_share": 1.5}):
        with pytest.raises(ConfigurationError, match=r"must be between 0 and 1"):
            FedDPA(**settings)
    for settings in ({"schedule": "sequential"}, {"local_from": 2}, {"schedule": "sequential", "local_from": 0}):
        with pytest.raises(ConfigurationError, match=r"method\.local_from must be the first round"):
            FedDPA(**settings)
    with pytest.raises(ConfigurationError, match=r"method\.schedule .*alternating.*sequential.*both"):
        FedDPA(schedule="both")
    assert [FedDPA().name, FedDPA(schedule="sequential", local_from=2).name] == ["FedDPA", "FedDPA-F"]
