"""One harness for all methods: a new method adds a `Case` with its oracle, and nothing else here."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import TrainingError
from fedgram.ledger import Ledger, Traffic
from fedgram.methods import (
    FLASC,
    FLTAC,
    RAVAN,
    CELoRA,
    FedDPA,
    FeDeRA,
    FedExLoRA,
    FedIT,
    FedLEASE,
    FedLoRU,
    FedRotLoRA,
    FedSALoRA,
    FedSVD,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    FLoRANA,
    FLoRG,
    FRLoRA,
    FSLoRA,
    HetLoRA,
    LoRAFAIR,
    Method,
    MFedLoRU,
    PFedLoRU,
    RoLoRA,
    RoundContext,
    SLoRA,
)
from fedgram.methods.client_memory import NOTHING, begin, check_changes
from fedgram.methods.known import known_methods
from fedgram.runs.checkpoint import Checkpoint, load, save
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerMemory, ServerState, bytes_of, flatten, split, state_hash
from helpers import deficient, rng, unequal_weights
from made_checkpoints import PROGRESS, SETTINGS
from methods import oracles
from thread_ranks import on_ranks

SIZES = {"q": (11, 7), "k": (7, 11), "v": (6, 6)}
"""(d_in, d_out) of the layers: none but the last is square."""
CLIENTS = [2, 3, 5, 8, 13]
HALF = {2: 0.5, 1: 0.5}
"""Half of the clients have rank 2, half have rank 1."""


@dataclass(frozen=True)
class Case:
    """A method and what its server should compute.

    Attributes:
        make: makes the method, of rank 2.
        oracle: (server's fields, clients' fields, weights) of one layer, NumPy -> the server's next fields.
        view: what of a layer's fields is unique, and so can be compared.
        answers: what the server answers, of methods that do: (server's layers, clients' layers, weights, what the
            server remembers, the cohort) -> the layers that each client is sent.
        drawn: fields of its answers that are random.
        traffic: parameters and bytes of what client 5 sends, and is sent, where these are not whole fields.
    """

    make: Callable[[], Method]
    oracle: Callable
    view: Callable = lambda layer: layer
    answers: Callable | None = None
    drawn: frozenset = frozenset()
    traffic: tuple[int, int] | None = None


def gram(layer):
    return {"gram": layer["A"].T @ layer["A"]}


def product(layer):
    """The product and its balance: singular vectors have arbitrary signs."""
    A, B = layer["A"], layer["B"]
    return {"product": B @ A, "A": A @ A.T, "B": B.T @ B}


def increment(layer):
    """The factors of the last residual are unique up to a rotation."""
    sent = {field: layer[field] for field in ("A", "B", "residual")}
    return sent | ({"increment": np.einsum("nmo,nmi->oi", layer["U"], layer["V"])} if "U" in layer else {})


def reset(layer):
    """Where a product has been added the next A is random, and B zero."""
    return {field: tensor for field, tensor in layer.items() if field != "A"}


def florg(oracle, view=Case.view, **settings):
    return Case(partial(FLoRG, rank=2, **settings), oracle, view)


METHODS = {
    "FedIT": Case(partial(FedIT, rank=2), oracles.fedit),
    "FeDeRA": Case(partial(FeDeRA, rank=2), oracles.federa_init),
    "FeDeRA-round": Case(partial(FeDeRA, rank=2, when="round"), oracles.federa_round, product),
    "FFALoRA": Case(partial(FFALoRA, rank=2), oracles.ffa_lora),
    "FedSALoRA": Case(partial(FedSALoRA, rank=2), oracles.fedsa_lora),
    "FedDPA": Case(partial(FedDPA, rank=2), oracles.fedit),
    "FedDPA-F": Case(partial(FedDPA, rank=2, schedule="sequential", local_from=4), oracles.fedit),
    "FedLEASE": Case(
        partial(FedLEASE, rank=2, warmup_rounds=3, experts=1, mean="weighted"),
        oracles.fedit,
        answers=oracles.fedlease_answers,
        drawn=frozenset({"R", "As", "Bs"}),
    ),
    "FedExLoRA": Case(partial(FedExLoRA, rank=2), oracles.fedex_lora, increment),
    "FedExLoRA-factored": Case(partial(FedExLoRA, rank=2, residual="factored"), oracles.fedex_lora, increment),
    "RAVAN": Case(partial(RAVAN, rank=2, heads=3), oracles.ravan),
    "RAVAN-normal": Case(partial(RAVAN, rank=2, bases="normal"), oracles.ravan),
    "FedIT-client_ranks": Case(partial(FedIT, rank=2, client_ranks=HALF), oracles.fedit_of_holders),
    "FedSALoRA-client_ranks": Case(partial(FedSALoRA, rank=2, client_ranks=HALF), oracles.fedsa_of_holders),
    "FFALoRA-client_ranks": Case(partial(FFALoRA, rank=2, client_ranks=HALF), oracles.ffa_lora),
    "FLoRG-client_ranks": florg(oracles.florg, client_ranks=HALF),
    "FLoRANA-client_ranks": Case(partial(FLoRANA, rank=2, client_ranks=HALF), oracles.flora_na),
    "LoRAFAIR-l2-client_ranks": Case(partial(LoRAFAIR, rank=2, mode="l2", client_ranks=HALF), oracles.lora_fair_l2),
    "FedExLoRA-client_ranks": Case(partial(FedExLoRA, rank=2, client_ranks=HALF), oracles.fedex_lora, increment),
    "FLoRA": Case(partial(FLoRA, rank=2), oracles.flora, increment),
    "FLoRA-client_ranks": Case(partial(FLoRA, rank=2, client_ranks=HALF), oracles.flora, increment),
    "FlexLoRA": Case(partial(FlexLoRA, rank=2), oracles.flexlora, product),
    "FlexLoRA-client_ranks": Case(partial(FlexLoRA, rank=2, client_ranks=HALF), oracles.flexlora, product),
    "FlexLoRA-global": Case(partial(FlexLoRA, rank=2, client_ranks=HALF, scaling="global"), oracles.flexlora, product),
    "HetLoRA": Case(partial(HetLoRA, rank=2, gamma=0.5, client_ranks=HALF), oracles.hetlora),
    "HetLoRA-unpruned": Case(partial(HetLoRA, rank=2, gamma=1.0), oracles.hetlora),
    "FRLoRA": Case(partial(FRLoRA, rank=2), oracles.frlora),
    "FRLoRA-freeze_A": Case(partial(FRLoRA, rank=2, freeze_A=True), oracles.frlora_frozen),
    "FedLoRU": Case(partial(FedLoRU, rank=2), oracles.fedloru),
    "FedLoRU-keep": Case(partial(FedLoRU, rank=2, mode="keep"), oracles.fedloru),
    "FedLoRU-merging": Case(partial(FedLoRU, rank=2, merge_every=3), oracles.fedloru_reset, reset),
    "pFedLoRU": Case(partial(PFedLoRU, rank=2, personal_rank=3), oracles.fedloru),
    "pFedLoRU-merging": Case(partial(PFedLoRU, rank=2, merge_every=3), oracles.fedloru_reset, reset),
    "mFedLoRU": Case(partial(MFedLoRU, rank=2), oracles.fedloru),
    "mFedLoRU-merging": Case(partial(MFedLoRU, rank=2, merge_every=3), oracles.fedloru_reset, reset),
    "mFedLoRU-client_ranks": Case(partial(MFedLoRU, rank=2, client_ranks={1: 0.5, 2: 0.5}), oracles.fedloru),
    "CELoRA": Case(partial(CELoRA, rank=2), oracles.ce_lora, answers=oracles.ce_lora_answers),
    "CELoRA-model-cosine": Case(
        partial(CELoRA, rank=2, similarity="model", measure="cosine"),
        oracles.ce_lora,
        answers=partial(oracles.ce_lora_answers, beta=0, measure="cosine"),
    ),
    "CELoRA-data": Case(
        partial(CELoRA, rank=2, similarity="data", temperature=0.5),
        oracles.ce_lora,
        answers=partial(oracles.ce_lora_answers, beta=1, temperature=0.5),
    ),
    "FLTAC": Case(partial(FLTAC, rank=2, clusters=2), oracles.fedit, answers=oracles.fl_tac_answers),
    "FLTAC-weighted": Case(
        partial(FLTAC, rank=2, clusters=2, mean="weighted"),
        oracles.fedit,
        answers=partial(oracles.fl_tac_answers, weighted=True),
    ),
    "FLTAC-B": Case(
        partial(FLTAC, rank=2, clusters=2, cluster_on="B"),
        oracles.fedit,
        answers=partial(oracles.fl_tac_answers, fields="B"),
    ),
    "FLoRG": florg(oracles.florg),
    "FLoRG-eigh": florg(oracles.florg, solver="eigh"),
    "FLoRG-average": florg(oracles.fedit, projection="average"),
    "FLoRG-top_r": florg(oracles.florg_top, gram, projection="top_r"),
    "FLoRG-top_r-eigh": florg(oracles.florg_top, gram, projection="top_r", solver="eigh"),
    "FLoRG-none": florg(oracles.florg_top, gram, projection="none"),
    "FLoRG-none-eigh": florg(oracles.florg_top, gram, projection="none", solver="eigh"),
    "FLoRG-top_r_aligned": florg(oracles.florg_top_aligned, projection="top_r_aligned"),
    "FLoRG-top_r_aligned-eigh": florg(oracles.florg_top_aligned, projection="top_r_aligned", solver="eigh"),
    "FLoRG-kaiming": florg(oracles.florg, basis="kaiming"),
    "FLoRG-svd": florg(oracles.florg, basis="svd", preserve_start=False),
    "FLoRG-identity": florg(oracles.florg, basis="identity"),
    "FLoRANA": Case(partial(FLoRANA, rank=2), oracles.flora_na),
    "LoRAFAIR": Case(partial(LoRAFAIR, rank=2, steps=40, lr=0.05), oracles.lora_fair),
    "LoRAFAIR-absolute": Case(
        partial(LoRAFAIR, rank=2, steps=40, lr=0.05, relative=False), partial(oracles.lora_fair, relative=False)
    ),
    "LoRAFAIR-l2": Case(partial(LoRAFAIR, rank=2, mode="l2"), oracles.lora_fair_l2),
    "FedRotLoRA": Case(partial(FedRotLoRA, rank=2), oracles.fedit),
    "FedSVD": Case(partial(FedSVD, rank=2), oracles.fedsvd, product),
    "FedSVD-2": Case(partial(FedSVD, rank=2, every=2), oracles.ffa_lora),  # the third round decomposes nothing
    "FLASC": Case(partial(FLASC, rank=2), oracles.fedit, traffic=(24, 96 + 12)),
    "FSLoRA": Case(partial(FSLoRA, rank=2), oracles.fedit, traffic=(48, 192)),
    "FSLoRA-ranks": Case(partial(FSLoRA, rank=2, client_ranks={1: 0.5, 2: 0.5}), oracles.fedit, traffic=(96, 384)),
    "RoLoRA": Case(partial(RoLoRA, rank=2), oracles.rolora),
    "SLoRA-sparse": Case(partial(SLoRA, rank=2, density=1.0), oracles.slora_sparse, traffic=(190, 760)),
    "SLoRA-low-rank": Case(
        partial(SLoRA, rank=2, density=1.0, sparse_rounds=1), oracles.slora_low_rank, traffic=(96, 384)
    ),
}


@pytest.fixture(params=METHODS)
def case(request):
    return METHODS[request.param]


@dataclass
class Federation:
    """A method on three layers, its server's tensors, and what its clients sent, as the server reads it."""

    method: Method
    adapters: dict
    server: dict
    payloads: dict
    weights: dict
    remembered: ServerMemory

    def uploads(self, ranks=None, clients=None):
        clients = self.payloads if clients is None else clients
        return Uploads({c: self.payloads[c] for c in clients}, self.weights, ranks or Ranks())

    @property
    def state(self):
        return ServerState(ModelState(self.server), self.remembered)

    def next_state(self, ranks=None, clients=None):
        ranks, clients = ranks or Ranks(), list(self.payloads) if clients is None else clients
        heads = Uploads({c: {} for c in clients}, self.weights, ranks)
        return self.method.next_state(self.state, self.uploads(ranks, clients), heads, self.ctx)

    def aggregate(self, **settings):
        return self.next_state(**settings).adapter

    @property
    def ctx(self):
        return third_round(self.weights)

    def oracle(self, case, name):
        own = {f.name: self.server[name][f.name].numpy() for f in self.method.fields if not f.trained}
        clients = [own | {f: t.numpy() for f, t in self.payloads[c][name].items()} for c in sorted(self.payloads)]
        weights = [self.weights[c] for c in sorted(self.payloads)]
        return case.oracle({f: t.numpy() for f, t in self.server[name].items()}, clients, weights)


def third_round(cohort):
    """A third round of twenty clients, whose cohort has been in the second."""
    return RoundContext(3, 0, dict.fromkeys(sorted(cohort), 2), 20)


def federate(case, clients=CLIENTS, dtype=torch.float64, change=lambda tensor, field: tensor):
    """Draw a server's tensors and the clients' drifts; ``change`` makes them special."""
    method, random = case.make(), rng(0)
    with torch.random.fork_rng(devices=[]):
        linears = {name: nn.Linear(*sizes) for name, sizes in SIZES.items()}
    adapters = {name: method.adapter(linear, torch_generator(0, name)) for name, linear in linears.items()}

    def noisy(tensor, size):
        return tensor.double() + size * torch.from_numpy(random.standard_normal(tensor.shape))

    # What no round changes: where clients start anew, and what the seed alone gives. Of the rest some is computed.
    held = {f.name for f in method.fields if f.fresh or not (f.down or f.up or f.trained)} - method.increments
    sums = {f.name for f in method.fields if f.down and f.shared}

    def made(tensor, field):
        return tensor.to(dtype) if field in held else change(noisy(tensor, 1.0), field).to(dtype)

    def agreeing(layer):
        return layer | {f: compute() for f, compute in method.derived(layer, {f: layer[f] for f in sums}).items()}

    server = {name: agreeing({f: made(t, f) for f, t in a.initial().items()}) for name, a in adapters.items()}
    remembered = method.server_start(ModelState(server), 20)
    state, ctx = ServerState(ModelState(server), remembered), third_round(clients)
    if method.describes_data:
        data = {c: torch.from_numpy(rng(c).standard_normal((3, 4))) for c in range(20)}
        told = {c: method.describe(features, torch.zeros(3, dtype=torch.int64), c, 0) for c, features in data.items()}
        remembered = method.read_descriptions(state, told)
        state = replace(state, memory=remembered)

    initial = ModelState(server)

    def sent(client):
        own = method.context(state, client, ctx)
        _, start = begin(method, state, initial, NOTHING, own)
        trained = split(start, method.trained_fields)[0].adapter
        new = {n: {f: change(noisy(t, 0.4), f).to(dtype) for f, t in layer.items()} for n, layer in trained.items()}
        ended = ModelState({n: start.adapter[n] | layer for n, layer in new.items()})
        return method.receive(state, method.upload(start, ended, own), own).parts["adapter"]

    payloads = {c: sent(c) for c in clients}
    weights = dict(zip(clients, unequal_weights(len(clients), random).tolist(), strict=True))
    return Federation(method, adapters, server, payloads, weights, remembered)


def numpy(layer):
    return {field: tensor.double().numpy() for field, tensor in layer.items()}


def assert_close(case, actual, expected, tolerance=1e-10):
    actual = numpy(actual)
    assert actual.keys() <= expected.keys()
    expected = case.view({field: expected[field] for field in actual})
    actual = case.view(actual)
    for key in expected:
        error = np.linalg.norm(actual[key] - expected[key])
        assert error <= tolerance * np.linalg.norm(expected[key]), (key, error)


def delta_w(adapter, layer):
    """The adapter's ΔW, multiplied out, with what the server has added to the frozen weight."""
    adapter.load({field: tensor.double().unsqueeze(0) for field, tensor in layer.items()})
    return adapter.added_to(torch.zeros(adapter.d_out, adapter.d_in).double()) + layer.get("residual", 0)


@pytest.mark.parametrize("kind", known_methods(), ids=lambda kind: kind.__name__)
def test_every_method_has_a_case(kind):
    """Nothing here would test it otherwise."""
    assert kind in {type(case.make()) for case in METHODS.values()}, (
        f"{kind.__name__} is not tested against NumPy. Add its server step, written with NumPy alone, to "
        f"tests/methods/oracles.py, and an entry to METHODS in tests/methods/test_harness.py, such as "
        f'"{kind.__name__}": Case(partial({kind.__name__}, rank=2), oracles.step_of_{kind.__name__.lower()})'
    )


def test_aggregation_equals_the_oracle(case):
    federation = federate(case)
    after = federation.aggregate()
    assert list(after) == list(SIZES)
    for name in SIZES:
        assert_close(case, after[name], federation.oracle(case, name))


def test_a_round_changes_no_field_that_the_method_does_not_declare(case):
    """Clients would not be sent it."""
    federation = federate(case)
    check_changes(federation.method, federation.server, federation.aggregate(), federation.ctx.number)


def test_what_the_server_answers_equals_the_oracle(case):
    """A method that answers needs an oracle of its answers."""
    federation = federate(case)
    after = federation.next_state()
    contexts = {client: federation.method.context(after, client, federation.ctx) for client in CLIENTS}
    answers = {client: federation.method.answer(after, ctx) for client, ctx in contexts.items()}
    if case.answers is None:
        assert set(map(type, answers.values())) == {type(None)}
        return
    sent = [{name: numpy(layer) for name, layer in federation.payloads[client].items()} for client in CLIENTS]
    server, told = (
        {n: numpy(layer) for n, layer in federation.state.parts[part].items()} for part in ("adapter", "server")
    )
    weights = [federation.weights[client] for client in CLIENTS]
    expected = case.answers(server, sent, weights, told, CLIENTS)
    for client, own in zip(CLIENTS, expected, strict=True):
        assert answers[client].adapter.keys() == own.keys()
        for name, layer in own.items():
            answer = answers[client].adapter[name]
            assert_close(case, {field: answer[field] for field in layer}, layer)
            assert answer.keys() - layer.keys() <= case.drawn


def test_the_oracle_tells_clients_weights_and_layers_apart(case):
    """The comparison above can fail: other weights, or one client less, are another server state."""
    federation = federate(case)
    after = federation.aggregate()
    equal = dict.fromkeys(CLIENTS, 1 / len(CLIENTS))
    for other in (Federation(**{**vars(federation), "weights": equal}), federate(case, CLIENTS[:-1])):
        for name in SIZES:
            with pytest.raises(AssertionError):
                assert_close(case, after[name], other.oracle(case, name), tolerance=1e-3)


def test_the_update_of_a_single_client_comes_back(case):
    federation = federate(case, [4])
    after = federation.aggregate()
    for name, adapter in federation.adapters.items():
        own = {**federation.server[name], **federation.payloads[4][name]}
        expected = delta_w(adapter, own)
        torch.testing.assert_close(delta_w(adapter, after[name]), expected, rtol=0, atol=1e-12 * expected.norm().item())


def test_the_order_in_which_clients_are_held_changes_no_bit(case):
    federation = federate(case)
    digest = state_hash(ModelState(federation.aggregate()))
    for seed in range(3):
        order = rng(seed).permutation(CLIENTS).tolist()
        federation.weights = {c: federation.weights[c] for c in order[::-1]}
        assert state_hash(ModelState(federation.aggregate(clients=order))) == digest


def test_any_number_of_ranks_gives_the_same_bits(case):
    federation = federate(case)
    digest = state_hash(federation.next_state())
    for size in (2, 3):
        results = on_ranks(
            size, lambda ranks: federation.next_state(ranks=ranks, clients=CLIENTS[ranks.rank :: ranks.size])
        )
        assert [state_hash(after) for after in results] == [digest] * size


@pytest.mark.quick_cases(23)
def test_a_rank_without_clients_expects_what_the_others_send(case):
    """In single precision: what a server computes in double is not of the type of what clients send."""
    federation = federate(case, dtype=torch.float32)
    digest = state_hash(ModelState(federation.aggregate()))
    size = len(CLIENTS) + 1
    results = on_ranks(size, lambda ranks: federation.aggregate(ranks=ranks, clients=CLIENTS[ranks.rank :: ranks.size]))
    assert [state_hash(ModelState(after)) for after in results] == [digest] * size


def test_the_server_state_survives_a_checkpoint_bit_by_bit(case, tmp_path):
    state = federate(case, dtype=torch.float32).next_state()
    save(tmp_path / "last", Checkpoint(state, 1, SETTINGS, PROGRESS))
    assert state_hash(load(tmp_path / "last").state) == state_hash(state)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_what_travels_is_what_the_fields_declare(case, direction):
    federation = federate(case, dtype=torch.float32)
    method, after = federation.method, federation.next_state()
    declared, seen = {field.name: field for field in method.fields if getattr(field, direction)}, set()
    instead = method.increments if direction == "down" else set()  # of others, where that is fewer numbers
    for number in (3, 4):  # of those that take turns, each has had its own
        ctx = method.context(after, 5, RoundContext(number, 0, dict.fromkeys(CLIENTS, number - 1), 20))
        payload, start = begin(method, after, after.model, NOTHING, ctx)
        source = after
        if direction == "up":
            payload, source = method.upload(start, start, ctx), start
        ledger = Ledger()
        ledger.record(direction, payload)
        if case.traffic is not None:
            assert ledger.entries == {(direction, "adapter"): Traffic(1, *case.traffic)}
            continue
        fields = set(payload.adapter.get("q", {}))
        seen |= fields
        expected = dict.fromkeys(SIZES if fields else (), fields)
        assert {name: set(layer) for name, layer in payload.adapter.items()} == expected
        parameters = sum(math.prod(source.adapter[name][field].shape) for name in SIZES for field in fields)
        places = bytes_of({"": payload.whole})  # what is told beside the layers' numbers
        sent = {(direction, "adapter"): Traffic(1, parameters, 4 * parameters + places)}
        assert ledger.entries == (sent if fields else {})
    # What all clients hold in common need not be sent to one that has it, and what they are answered neither.
    answered = set() if case.answers is None else set(declared)
    whole = {name for name, field in declared.items() if not field.shared} if case.traffic is None else set()
    assert whole - answered <= seen <= declared.keys() | instead | case.drawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_server_state_keeps_its_fields_shapes_and_type(case, dtype):
    federation = federate(case, dtype=dtype)
    before, after = flatten(ModelState(federation.server)), flatten(ModelState(federation.aggregate()))
    assert {k: t.dtype for k, t in after.items()} == {k: t.dtype for k, t in before.items()}
    shared = federation.method.shared_fields
    shapes = [{k: t.shape for k, t in flat.items() if k.split("|")[-1] not in shared} for flat in (after, before)]
    assert shapes[0] == shapes[1]
    assert state_hash(ModelState(federation.server)) == state_hash(ModelState(federate(case, dtype=dtype).server))


def test_single_precision_costs_no_more_than_single_precision(case):
    single = federate(case, dtype=torch.float32)
    after = single.aggregate()
    for client, layers in single.payloads.items():
        single.payloads[client] = {n: {f: t.double() for f, t in layer.items()} for n, layer in layers.items()}
    single.server = {n: {f: t.double() for f, t in layer.items()} for n, layer in single.server.items()}
    for name in SIZES:
        assert_close(case, after[name], single.oracle(case, name), tolerance=1e-5)


def zero(tensor, field, chosen):
    return torch.zeros_like(tensor) if field == chosen or chosen is None else tensor


@pytest.mark.quick_cases(67)
@pytest.mark.parametrize("chosen", ["A", "B", None])
def test_fields_of_zeros_are_no_trouble(case, chosen):
    """B = 0 is where LoRA starts; the rest is where training may end."""
    federation = federate(case, change=partial(zero, chosen=chosen))
    after = federation.aggregate()
    assert all(torch.isfinite(tensor).all() for tensor in flatten(ModelState(after)).values())
    for name in SIZES:
        assert_close(case, after[name], federation.oracle(case, name))
    figures = federation.method.diagnose(federation.server, after, federation.uploads())
    assert not any(math.isnan(value) for layer in figures.values() for value in layer.values())


def rank_one(tensor, field):
    if tensor.ndim < 2 or not tensor.numel():
        return tensor
    rows = tensor.reshape(-1, tensor.shape[-1])  # of a stack of matrices, all are of rank one
    return torch.from_numpy(deficient(*rows.shape, 1, rng(int(tensor.abs().sum() * 1e6)))).reshape(tensor.shape)


def test_rank_deficient_factors_are_aggregated(case):
    """Two clients of rank one whose mean is of rank two, on a server of rank one."""
    federation = federate(case, CLIENTS[:2], change=rank_one)
    after = federation.aggregate()
    assert all(torch.isfinite(tensor).all() for tensor in flatten(ModelState(after)).values())
    for name, layer in federation.server.items():
        if case.oracle is oracles.florg:  # NumPy's S has arbitrary directions where A Ãᵀ is singular
            factor = oracles.factor_of([numpy(federation.payloads[c][name]) for c in CLIENTS[:2]],
                                       [federation.weights[c] for c in CLIENTS[:2]])  # fmt: skip
            u, s, vh = np.linalg.svd(numpy(layer)["A"] @ factor.T, full_matrices=False)
            assert s[1] < 1e-12 * s[0]
            assert_close(case, after[name], {"A": u[:, :1] @ vh[:1] @ factor})
        elif case.oracle is oracles.florg_top_aligned:
            assert np.linalg.matrix_rank(after[name]["A"].numpy(), tol=1e-10) == 1
        else:
            assert_close(case, after[name], federation.oracle(case, name))


def test_a_client_that_dropped_out_is_missed_and_no_more(case):
    federation = federate(case)
    del federation.payloads[5], federation.weights[5]
    total = sum(federation.weights.values())
    federation.weights = {c: w / total for c, w in federation.weights.items()}
    after = federation.aggregate()
    for name in SIZES:
        assert_close(case, after[name], federation.oracle(case, name))


def test_an_upload_that_is_not_finite_is_an_error_that_names_the_client(case):
    federation = federate(case)
    for field in list(federation.payloads[8]["k"]):  # as the server reads it
        clean = federation.payloads[8]["k"][field]
        federation.payloads[8]["k"][field] = torch.where(torch.arange(clean.shape[-1]) == 1, math.nan, clean)
        with pytest.raises(TrainingError, match=f"client 8 diverged: {field} of k holds nan or inf"):
            federation.aggregate()
        federation.payloads[8]["k"][field] = clean


def test_an_aggregation_is_diagnosed_in_finite_figures_per_layer(case):
    federation = federate(case)
    figures = federation.method.diagnose(federation.server, federation.aggregate(), federation.uploads())
    assert list(figures) == list(SIZES)
    assert len({frozenset(layer) for layer in figures.values()}) == 1
    assert all(type(value) is float and math.isfinite(value) for layer in figures.values() for value in layer.values())
