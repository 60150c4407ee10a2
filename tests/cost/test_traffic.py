"""What is expected of payloads before a run, against rounds of every method on tensors that have numbers."""

from dataclasses import astuple, dataclass, field, replace

import numpy as np
import pytest
import torch

from fedgram.cohort import sample
from fedgram.cost import Setting, Size
from fedgram.cost.flop_counter import NotCountableError
from fedgram.cost.traffic import Traffic, bounded
from fedgram.engine.network import ClientNetwork
from fedgram.methods import FedIT, FedLEASE, FLoRA, Method
from fedgram.state import ServerMemory, without_numbers
from methods.still import World
from methods.test_nobody_moved import METHODS

CLIENTS, ROUNDS = 7, 9


def setting_of(cohort):
    return Setting("", None, "", 2, 8, 3, None, CLIENTS, cohort, ROUNDS, 1, 1, auto=False, precision="64-true")


def cohorts_of(size):
    return [np.array(sample(0, number, CLIENTS, size)) for number in range(1, ROUNDS + 1)]


@dataclass
class CountedWorld(World):
    """A world in which all payloads are counted, and none of them may hold what the seed has given."""

    up: Size = field(default_factory=Size)
    down: Size = field(default_factory=Size)

    def __post_init__(self):
        super().__post_init__()
        self.first, method = self.server, self.method
        download, upload, answer = method.download, method.upload, method.answer

        def down(server, ctx):
            payload = download(server, ctx)
            self.down += Size.of(payload)
            for part, layers in payload.parts.items():
                now, before = server.parts[part], self.first.parts[part]
                for name, layer in layers.items():
                    known = before.get(name, {})
                    assert not [f for f in layer if f in known and now[name][f] is known[f]], (name, ctx)
            return payload

        def up(*arguments):
            payload = upload(*arguments)
            self.up += Size.of(payload)
            return payload

        def after(*arguments):
            payload = answer(*arguments)
            self.down += Size() if payload is None else Size.of(payload)
            return payload

        method.download, method.upload, method.answer = down, up, after


def run(make, size, drift=0.3):
    """Play a run, and return what was sent, and what is expected of it, at least and at most."""
    world = CountedWorld(make(), clients=CLIENTS)
    start = without_numbers(world.first)
    for cohort in cohorts_of(size):
        world.round(cohort.tolist(), drift)
    expected = {
        bound: Traffic(method, start, {}, setting_of(size), world.seed).of_all(cohorts_of(size))
        for bound, method in bounded(make()).items()
    }
    return (world.up, world.down), expected.get("least", expected["most"]), expected["most"]


@pytest.mark.quick_cases(34)
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_expected_of_a_run_is_what_it_sends(name, size):
    """Clients come new, miss rounds and have ranks; what clients prune and how they cluster is not known before."""
    seen, least, most = run(METHODS[name], size)
    for sent, low, high in zip(seen, least, most, strict=True):
        assert all(a <= b <= c for a, b, c in zip(*map(astuple, (low, sent, high)), strict=True)), (low, sent, high)
    if not METHODS[name]().unknown:
        assert least == most
    assert seen[0].adapter > 0


def test_bounds_are_reached():
    """HetLoRA prunes nothing where tails never shrink, and FedLEASE makes as many experts as it is let."""
    kinds = {bound: bounded(FedLEASE(rank=2))[bound]._count(9) for bound in ("least", "most")}
    assert kinds == {"least": 2, "most": 4}
    assert [FedLEASE(rank=2)._count(cohort) for cohort in (1, 2, 3, 4)] == [1, 1, 2, 3]
    method = METHODS["HetLoRA-layer"]
    world = CountedWorld(method(), clients=CLIENTS)
    world.method._has_shrunk = lambda *_: False
    for cohort in cohorts_of(2):
        world.round(cohort.tolist(), 0.3)
    _, least, most = run(method, 2)
    assert (world.up, world.down) == most
    world = CountedWorld(method(), clients=CLIENTS)
    world.method._has_shrunk = lambda *_: True
    for cohort in cohorts_of(2):
        world.round(cohort.tolist(), 0.3)
    assert (world.up, world.down) == least


def test_who_comes_when_matters():
    """With two of seven clients a round, more is sent than if nobody missed any, or less where the start is new."""
    seen = {name: [run(METHODS[name], size)[0][1].parameters / size for size in (2, 7)] for name in ("FRLoRA", "FLoRA")}
    assert all(some != everyone for some, everyone in seen.values())


class Growing(FedIT):
    """A method whose server holds one more row each round, which it does not declare."""

    def next_state(self, server, adapters, heads, ctx):
        after = super().next_state(server, adapters, heads, ctx)
        rows = {n: {"all": torch.cat([layer["A"], layer["A"]])} for n, layer in after.adapter.items()}
        return replace(after, memory=ServerMemory(rows))


def test_a_method_that_does_not_declare_what_its_server_will_hold_is_refused(network_of):
    with pytest.raises(NotCountableError, match=r"Growing.next_form returns: .*'all'"):
        Traffic.of(Growing(rank=2), network_of(Growing(rank=2)), setting_of(3), 0)


@pytest.fixture
def network_of(tiny_backbone):
    from fedgram.models import TextClassification
    from test_flops import make_network

    def make(method: Method) -> ClientNetwork:
        return make_network(tiny_backbone, method, TextClassification)[0]

    return make


@pytest.mark.parametrize("method", [FLoRA(rank=2, client_ranks="uniform"), FedIT(rank=2)])
def test_layers_of_one_form_are_counted_once(network_of, method):
    traffic = Traffic.of(method, network_of(method), setting_of(3), 0)
    assert (len(traffic.start.adapter), list(traffic._of_each_kind.alike.values())) == (4, [4])
    whole = [sum(column, Size()) for column in zip(*traffic._rounds(with_last(cohorts_of(3))), strict=True)]
    assert list(traffic.of_all(cohorts_of(3))) == whole


def with_last(cohorts):
    from fedgram.cost.traffic import _with_last

    return _with_last(cohorts, CLIENTS)


def test_numbers_of_all_layers_together_are_counted_on_all_of_them(network_of):
    """FLASC rounds down once for all layers, and not for each."""
    from fedgram.methods import FLASC

    method = FLASC(rank=1, density_down=0.12, head="frozen")
    traffic = Traffic.of(method, network_of(method), setting_of(2), 0)
    up, down = traffic.of_all(cohorts_of(2))
    assert (up.adapter, down.adapter) == (2 * 9 * int(128 * 0.25), 2 * 8 * int(128 * 0.12))
    assert 2 * 8 * 4 * int(32 * 0.12) < down.adapter


def test_a_client_stands_for_those_like_it():
    """The last round of each client is that of the run's cohorts."""
    last = [seen.tolist() for _, seen in with_last([np.array([0, 2]), np.array([2, 3]), np.array([0, 1, 2])])]
    assert last == [[0, 0], [1, 0], [1, 0, 2]]
