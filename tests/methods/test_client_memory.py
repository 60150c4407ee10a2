"""What clients hold: that nothing reaches them but by payloads, and that a method which forgets some is found out."""

from types import SimpleNamespace

import pytest
import torch

from distributed.replay import Replay
from fedgram import FedIT, FedLoRU, FFALoRA, FLoRA, RoLoRA
from fedgram.errors import TrainingError
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin, in_order, read, without_padding
from fedgram.state import ModelState, Payload, ServerState, without
from methods.rounds import make_adapter, play

EVERYONE = [{0, 1, 2}] * 3


class ForgetsB(FedIT):
    """A method that never sends B, which every round changes."""

    def download(self, server, ctx):
        return without(super().download(server, ctx), {"B"})


class ForgetsTheStack(FLoRA):
    """A method that does not send what it adds to the weights that all clients share."""

    def download(self, server, ctx):
        return NOTHING


class ChangesA(FFALoRA):
    """A method whose server changes A, which is not sent to anybody as it does not go down."""

    def aggregate(self, layers, uploads, ctx):
        after = super().aggregate(layers, uploads, ctx)
        return {name: {**layer, "A": layer["A"] * 2} for name, layer in after.items()}


class AlsoMovesA(RoLoRA):
    """A method that changes A in the rounds of B too, without declaring it."""

    def aggregate(self, layers, uploads, ctx):
        after = super().aggregate(layers, uploads, ctx)
        return {name: {**layer, "A": layer["A"] + 1} for name, layer in after.items()}


@pytest.mark.parametrize(("method", "field"), [(ForgetsB, "B"), (ForgetsTheStack, "residual")])
def test_to_train_with_what_was_not_sent_is_an_error(method, field):
    message = rf"{method.__name__} does not send client 0 the {field} of q, which has changed since"
    rounds = play(method(rank=2), EVERYONE)
    next(rounds)  # in round 1 the seed gives everything
    with pytest.raises(TrainingError, match=message):
        next(rounds)


def test_what_was_not_sent_is_nan_for_a_method_that_looks_at_it():
    seen = []

    class Looks(ForgetsB):
        def start(self, held, payload, ctx):
            seen.append(held.adapter["q"]["B"].clone())
            return without(super().start(held, payload, ctx), {"B"})

    server = ServerState(ModelState({"q": make_adapter(Looks(rank=2)).initial()}))
    method = Looks(rank=2)
    for number in (1, 2):
        ctx = method.context(server, 0, RoundContext(number, 0, {0: number - 1}, 1))
        begin(method, server, server.model, NOTHING, ctx)
    assert torch.equal(seen[0], server.adapter["q"]["B"])
    assert seen[1].isnan().all()


@pytest.mark.parametrize(
    "method", [AlsoMovesA(rank=2), ChangesA(rank=2, head="averaged")], ids=["A-declared-later", "A-stays-down"]
)
def test_a_change_that_is_not_declared_is_an_error(method):
    message = rf"the aggregation of round 1 changed A of q, which {type(method).__name__}.changes\(1\) does not return"
    with pytest.raises(TrainingError, match=message):
        list(play(method, EVERYONE))


def test_a_client_that_was_away_has_what_is_drawn_from_the_seed_without_being_sent_it():
    method = FedLoRU(rank=2, merge_every=2)
    cohorts = [{0, 1}, {0, 1}, {0, 1, 2}]
    last = list(play(method, cohorts))[-1]
    assert "A" not in last.down[2]
    assert torch.equal(last.start[2]["A"], last.before.adapter["q"]["A"])
    held = ModelState({"q": {f: t.double() for f, t in make_adapter(method).initial().items()}})
    payload = Payload({"q": last.down[2]})
    memory = read(method, held, payload, method.context(last.before, 2, last.ctx)).adapter["q"]
    for field in ("A", "B", "residual"):
        assert torch.equal(memory[field], last.before.adapter["q"][field]), field


def test_the_number_of_missed_changes():
    fedit, rolora, fedloru = FedIT(rank=2), RoLoRA(rank=2), FedLoRU(rank=2, merge_every=2)

    def missed(method, last_round, number):
        return {field.name: count for field, count in method.missed_changes(last_round, number).items()}

    assert missed(fedit, 0, 2) == {"A": 1, "B": 1}
    assert missed(fedit, 5, 9) == {"A": 1, "B": 1}  # that there is one is enough
    assert missed(rolora, 1, 2) == {"A": 0, "B": 1}
    assert missed(rolora, 2, 3) == {"A": 1, "B": 0}
    assert missed(rolora, 1, 3) == {"A": 1, "B": 1}
    assert missed(fedloru, 0, 2) == {"A": 1, "B": 1, "residual": 0}
    assert missed(fedloru, 0, 3) == {"A": 0, "B": 0, "residual": 1}
    assert missed(fedloru, 1, 8) == {"A": 1, "B": 1, "residual": 3}
    assert missed(fedloru, 7, 8) == {"A": 1, "B": 1, "residual": 0}


def test_a_replay_sees_a_start_that_no_payload_gives():
    """The last bit of one number is enough."""

    method = FedIT(rank=2)
    held = ModelState({"q": make_adapter(method).initial()})
    server = ServerState(held)
    federation = SimpleNamespace(method=method, held=held, state=server)
    ctx = method.context(server, 0, RoundContext(1, 0, {0: 0}, 1))
    payload, start = begin(method, server, held, NOTHING, ctx)
    replay = Replay()
    replay.compare(federation, payload, start, ctx)
    assert replay.wrong == []
    A = start.adapter["q"]["A"].clone()
    A[0, 0] = torch.nextafter(A[0, 0], torch.tensor(9.0))
    start.adapter["q"]["A"] = A
    replay.compare(federation, payload, start, ctx)
    assert replay.wrong == ["round 1, client 0: adapter|q|A"]


def test_fields_come_in_the_order_of_the_start_and_others_by_name():
    one = torch.ones(1)
    state = ModelState({"q": {"R": one, "B": one, "C": one, "A": one}}, {"h": {"bias": one, "weight": one}})
    initial = ModelState({"q": {"A": one, "B": one}}, {"h": {"weight": one, "bias": one}})
    found = in_order(state, initial)
    assert list(found.adapter["q"]) == ["A", "B", "C", "R"]
    assert list(found.head["h"]) == ["weight", "bias"]


def test_padding_is_taken_off_again():
    start = ModelState({"q": {"A": torch.ones(2, 3)}})
    trained = ModelState({"q": {"A": torch.arange(12.0).reshape(4, 3), "R": torch.ones(1)}})
    own = without_padding(trained, start).adapter["q"]
    assert list(own) == ["A"]
    assert torch.equal(own["A"], torch.arange(6.0).reshape(2, 3))
