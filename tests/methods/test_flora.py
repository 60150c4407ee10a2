import torch
from torch import nn

from fedgram import FLoRA
from fedgram.collectives import Ranks
from fedgram.methods import RoundInfo
from fedgram.seeding import torch_generator
from fedgram.state import flatten
from fedgram.uploads import Uploads
from helpers import rng, unequal_weights
from test_trainer import fit  # noqa: F401 (a fixture)

D_OUT, D_IN = 31, 47
RANKS = [3, 1, 2, 1, 3]
N = len(RANKS)


class Server:
    """One layer, round by round, with every weight multiplied out beside it."""

    def __init__(self, dtype=torch.float64, **settings):
        self.method = FLoRA(**({"rank": 3, "client_ranks": RANKS} | settings))
        with torch.random.fork_rng(devices=[]):
            self.adapter = self.method.adapter(nn.Linear(D_IN, D_OUT, dtype=dtype), torch_generator(0, "q"))
        model = {"adapter": {"q": {f: t.to(dtype) for f, t in self.adapter.initial().items()}}, "head": {}}
        self.state = {**model, "server": {}}
        self.last = dict.fromkeys(range(N), 0)
        self.number, self.random = 0, rng(1)

    def begin(self, cohort):
        self.number += 1
        self.info = RoundInfo(self.number, 0, {c: self.last[c] for c in cohort}, N)
        self.down = {c: self.method.sent_down(self.state, c, self.info) for c in cohort}
        held = self.method.without_shared(self.state)
        self.starts = {c: self.method.start(self.state, held, self.down[c], c, self.info) for c in cohort}

    def end(self, weights=None):
        """Have the clients drift and send, and aggregate; return what the mean of their weights is."""
        cohort = self.info.cohort
        weights = unequal_weights(len(cohort), self.random) if weights is None else weights
        self.up, ideal = {}, torch.zeros(D_OUT, D_IN, dtype=torch.float64)
        for c, w in zip(cohort, weights, strict=True):
            start = self.starts[c]["adapter"]["q"]
            own = {f: start[f] + torch.from_numpy(self.random.normal(size=start[f].shape)) for f in ("A", "B")}
            r = RANKS[c] if self.method.client_ranks else self.method.rank
            ideal += w * (self.weight({"A": own["A"][:r], "B": own["B"][:, :r]}))
            end = {"adapter": {"q": {**start, **own}}, "head": {}}
            self.up[c] = self.method.payload_up(self.state, self.starts[c], end, c, self.info)
        read = {c: self.method.receive(self.state, self.up[c], c, self.info)["adapter"] for c in cohort}
        uploads = Uploads(read, dict(zip(cohort, weights, strict=True)), Ranks())
        before = self.state["adapter"]
        self.state = {**self.state, "adapter": self.method.aggregate(before, uploads, self.info)}
        self.last |= dict.fromkeys(cohort, self.number)
        self.figures = self.method.diagnose(before, self.state["adapter"], uploads)["q"]
        return ideal

    def weight(self, own):
        """W⁰ with the server's sum and some factors."""
        layer = self.state["adapter"]["q"]
        return self.adapter.base.weight.double() + layer["residual"] + self.method.scale * own["B"] @ own["A"]


def numbers(payload):
    return sum(t.numel() for t in flatten(payload).values())


def test_the_servers_weight_is_the_mean_of_the_clients_over_many_rounds():
    """For ranks of all kinds, on a layer that is not square."""
    server = Server()
    for _ in range(4):
        server.begin(range(N))
        ideal = server.end()
        layer = server.state["adapter"]["q"]
        assert not layer["B"].any()
        torch.testing.assert_close(server.weight(layer), ideal, rtol=0, atol=1e-12)
        assert server.figures["aggregation_error"] < 1e-13


def test_every_client_begins_every_round_with_factors_of_its_own_and_no_product():
    server, seen = Server(), []
    for _ in range(2):
        server.begin(range(N))
        for c, start in server.starts.items():
            A, B = (start["adapter"]["q"][field] for field in ("A", "B"))
            assert not B.any()
            assert (A != 0).any(dim=1).tolist() == [row < RANKS[c] for row in range(3)]
            assert A.abs().max() <= D_IN**-0.5
            seen.append(A)
        again = server.method.start(
            server.state, server.method.without_shared(server.state), server.down[0], 0, server.info
        )
        assert torch.equal(again["adapter"]["q"]["A"], server.starts[0]["adapter"]["q"]["A"])
        server.end()
    assert len({tuple(A.flatten().tolist()) for A in seen}) == 2 * N


def test_clients_that_add_up_what_they_are_sent_have_the_servers_sum():
    """Client 0 is in every round, client 1 in every second, client 2 comes late."""
    server = Server()
    held = {c: torch.zeros(D_OUT, D_IN, dtype=torch.float64) for c in range(N)}
    for number in range(1, 7):
        server.begin([c for c in range(N) if c in (0, 3) or (c == 1 and number % 2) or (c == 2 and number > 3)])
        for c, payload in server.down.items():
            sent = payload["adapter"]["q"]
            if number == 1:
                assert sent == {}
            elif server.last[c] == number - 1:
                assert set(sent) == {"U", "V"}
                held[c] = held[c] + server.method.scale * sent["U"].mT @ sent["V"]
            else:
                assert set(sent) == {"residual"}
                held[c] = sent["residual"]
            torch.testing.assert_close(held[c], server.state["adapter"]["q"]["residual"], rtol=0, atol=1e-12)
        server.end()


def test_what_travels_by_hand():
    server = Server()
    server.begin(range(N))
    assert [numbers(server.down[c]) for c in range(N)] == [0] * N
    server.end()
    assert [numbers(server.up[c]) for c in range(N)] == [r * (D_OUT + D_IN) for r in RANKS]
    server.begin(range(N))
    assert [numbers(server.down[c]) for c in range(N)] == [sum(RANKS) * (D_OUT + D_IN)] * N


def test_the_sum_is_sent_where_the_stack_is_more_numbers():
    """Of five clients of rank 8 it has 40 rows, more than the layer has."""
    server = Server(rank=8, client_ranks=None)
    for _ in range(2):
        server.begin(range(N))
        server.end()
    server.begin(range(N))
    assert all(set(payload["adapter"]["q"]) == {"residual"} for payload in server.down.values())


def test_each_weight_counts_once():
    """A weight on both sides of the stack would count with its square."""
    server = Server(client_ranks=None)
    server.begin([0, 1])
    ideal = server.end(weights=[0.9, 0.1])
    torch.testing.assert_close(server.weight(server.state["adapter"]["q"]), ideal, rtol=0, atol=1e-12)


def test_nothing_stays_with_a_client():
    method = FLoRA(rank=2)
    assert not method.personal
    assert not any(field.kept for field in method.fields)
