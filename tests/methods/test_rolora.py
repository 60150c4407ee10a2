import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgram import AdamW, RoLoRA
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, ServerState
from helpers import rng
from tables import rows
from test_trainer import fit  # noqa: F401 (a fixture)
from thread_ranks import on_ranks

D_IN, D_OUT, R = 16, 16, 2
SIZES = {"A": R * D_IN, "B": R * D_OUT}


def state(trainer):
    return load(trainer.folder.checkpoint("last")).state.adapter


def drawn(seed):
    return {"q": {"A": torch.from_numpy(rng(seed).normal(size=(R, 5))), "B": torch.zeros(3, R, dtype=torch.float64)}}


def test_b_is_trained_first_and_then_they_take_turns(fit):  # noqa: F811
    states = [state(fit(method=RoLoRA(rank=R), rounds=number, name=str(number))[1]) for number in (1, 2, 3)]
    for name in states[0]:
        first, second, third = (own[name] for own in states)
        assert first["B"].any()
        assert torch.equal(first["B"], second["B"])
        assert not torch.equal(first["A"], second["A"])
        assert torch.equal(second["A"], third["A"])
        assert not torch.equal(second["B"], third["B"])


def test_the_aggregation_is_exact_in_every_round(fit):  # noqa: F811
    _, trainer = fit(method=RoLoRA(rank=R), rounds=4, client_weights="samples")
    errors = [float(row["aggregation_error"]) for row in rows(trainer.folder.path, "diagnostics.csv")]
    assert len(errors) == 4 * 4
    assert max(errors) < 1e-6


def test_only_the_factor_whose_turn_it_is_is_sent_and_down_goes_the_one_before(fit):  # noqa: F811
    """Four layers, five clients; the start needs no sending."""
    _, trainer = fit(method=RoLoRA(rank=R, head="frozen"), rounds=4)
    found = {(row["round"], row["direction"]): int(row["parameters"])
             for row in rows(trainer.folder.path, "communication.csv")}  # fmt: skip
    each = 4 * 5 * R * 16
    assert found == {(str(n), d): each for n in range(1, 5) for d in ("down", "up") if (n, d) != (1, "down")}


def begun(method, server, initial, number, last):
    """What client 7 is sent in a round, and what it starts with, of one layer."""
    state, seeds = ServerState(ModelState(server)), ModelState(initial)
    ctx = method.context(state, 7, RoundContext(number, 0, {7: last}, 9))
    payload, start = begin(method, state, seeds, NOTHING, ctx)
    return payload.adapter.get("q", {}), start.adapter["q"]


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_a_client_always_starts_with_the_servers_factors_and_is_sent_no_more_than_it_lacks(takes_part):
    """What it holds beside its payloads is the seed's start: it knows no more than it was sent since."""
    method, server, known, last = RoLoRA(rank=R), drawn(0), drawn(0), 0
    for number, there in enumerate(takes_part, 1):
        active = method.active(number)
        if there:
            payload, start = begun(method, server, drawn(0), number, last)
            assert {f for f in "AB" if not torch.equal(known["q"][f], server["q"][f])} == set(payload)
            known = {"q": {f: t.clone() for f, t in (known["q"] | payload).items()}}
            for held in (known["q"], start):
                assert all(torch.equal(held[f], server["q"][f]) for f in "AB")
            last = number
        server = {"q": {**server["q"], active: server["q"][active] + number}}


@pytest.mark.parametrize(
    ("number", "last", "sent"),
    [(1, 0, ""), (2, 0, "B"), (2, 1, "B"), (3, 2, "A"), (3, 1, "AB"), (3, 0, "AB"), (8, 7, "B"), (8, 5, "AB")],
)
def test_a_client_that_missed_a_round_is_sent_both(number, last, sent):
    payload, _ = begun(RoLoRA(rank=R), drawn(1), drawn(0), number, last)
    assert set(payload) == set(sent)


def test_the_start_of_a_client_is_the_servers_also_where_it_was_not_sent():
    server = drawn(1)
    payload, start = begun(RoLoRA(rank=R), server, drawn(0), 4, 3)
    assert set(payload) == {"B"}
    assert all(torch.equal(start[f], server["q"][f]) for f in "AB")


@pytest.mark.parametrize(("number", "changed"), [(1, "B"), (2, "A"), (3, "B"), (8, "A")])
def test_a_round_changes_the_factor_that_it_trains(number, changed):
    assert RoLoRA(rank=R).changes(number) == set(changed)


def test_each_factor_has_an_optimizer_memory_of_its_own(fit):  # noqa: F811
    _, trainer = fit(method=RoLoRA(rank=R, head="frozen"), rounds=3, optimizer=AdamW(lr=0.02, keep_state=True))
    for kept in load(trainer.folder.checkpoint("last")).clients.values():
        assert int(kept["optimizer:B|step"]) == 2 * 2
        assert int(kept["optimizer:A|step"]) == 2
        assert all(kept[f"optimizer:{field}|exp_avg"].numel() == 4 * SIZES[field] for field in "AB")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_knows_what_clients_sent(size):
    """The last of three ranks holds no client."""
    sent = {c: {"q": {"B": torch.ones(2)}} for c in (1, 4)}
    hands = {1: [[1, 4]], 2: [[4], [1]], 3: [[1], [4], []]}[size]

    def ask(ranks):
        own = {c: sent[c] for c in hands[ranks.rank]}
        uploads = Uploads(own, dict.fromkeys(sent, 0.5), ranks)
        return [uploads.fields("q"), uploads.fields("v")]

    assert on_ranks(size, ask) == [[["B"], []]] * size
    assert Uploads({}, {}, Ranks()).fields("q") == []
