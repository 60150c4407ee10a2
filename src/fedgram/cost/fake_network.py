"""A backbone with a method's adapters in it, of tensors that have shapes and no numbers.

What a step costs depends on shapes alone. So the real code runs on torch's fake tensors: `Method.install`, the
adapters, `ClientNetwork.run` and the backward pass. RoBERTa-large and Llama-3.2-3B take no memory and no time to
speak of, and a new method needs nothing of its own.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedgram.adapters import ClientLayer
from fedgram.backbone.padding_free import stack_of_layers
from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.methods import Method, RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.models import FederatedTask
from fedgram.models.loading import draw_network, positions, quiet, undrawn
from fedgram.models.padding import pad_id_of
from fedgram.seeding import isolated
from fedgram.state import ModelState, ServerState

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["batch_of", "client_round", "client_start", "cut", "equal_layers", "form_of", "longest_sample", "skeleton"]


@contextmanager
def skeleton(
    task: FederatedTask,
    config: "PretrainedConfig",
    method: Method,
    dtype: torch.dtype = torch.float32,
    clients_dtype: torch.dtype = torch.float32,
) -> Iterator[ClientNetwork]:
    """Have a task speak for a network without numbers for a while, in the place of the one that it may have.

    Args:
        task: the task.
        config: of the network with its head.
        method: whose adapters are put into it.
        dtype: the type of the frozen weights.
        clients_dtype: the type of adapters and head.
    """
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it writes tracebacks of what is told as an error
    own, level = task.network, log.level
    log.setLevel(logging.CRITICAL)
    try:
        with _drawn_once(task, config, dtype) as (mode, network):
            with mode, isolated(0, "skeleton"), quiet():
                task.network = network
                layers = method.install(network, seed=0)
            place, pad = torch.device("cpu"), pad_id_of(network)
            yield ClientNetwork(task, layers, place, clients_dtype, nullcontext, pad, method.shared_fields)
    finally:
        task.network = own
        log.setLevel(level)


_kept: dict[str, tuple[FakeTensorMode, Any]] = {}
"""The networks that were drawn last, as they were drawn, by all that they depend on: to draw one takes a while."""
_MOST_KEPT = 2
"""The weights' type of a run, and single precision, by which operations are counted."""


@contextmanager
def _drawn_once(
    task: FederatedTask, config: "PretrainedConfig", dtype: torch.dtype
) -> Iterator[tuple[FakeTensorMode, Any]]:
    """Yield a network and the mode of its tensors; whatever is done to its modules meanwhile is undone afterwards."""
    key = repr([type(task), task.settings, config.to_dict(), dtype])
    if key in _kept:
        mode, network = _kept.pop(key)  # so that nobody else has it meanwhile
    else:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, isolated(0, "skeleton"), quiet():
            network = _draw(task, config, dtype)
    drawn = {module: _attributes(module) for module in network.modules()}
    try:
        yield mode, network
    finally:
        for module, attributes in drawn.items():
            vars(module).clear()
            vars(module).update(attributes)
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = mode, network


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module, with its own tables of parameters, modules and hooks copied."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}


def _draw(task: FederatedTask, config: "PretrainedConfig", dtype: torch.dtype) -> Any:
    """Return the network of a configuration, which is not changed, frozen."""
    config = copy.deepcopy(config)
    config.use_cache = False
    with undrawn():
        return draw_network(task.auto_class, config, dtype).eval().requires_grad_(False)


def longest_sample(task: FederatedTask, config: "PretrainedConfig") -> int | None:
    """Return how many tokens a backbone has positions for; None where there is no limit."""
    with _drawn_once(task, config, torch.float32) as (_, network):
        return positions(network)


def client_round(clients: int, number: int = 2, last: int | None = None, cohort: int = 1) -> RoundContext:
    """Return a round of the first clients, that have last taken part in another: by default in the one before."""
    return RoundContext(number, 0, dict.fromkeys(range(cohort), number - 1 if last is None else last), clients)


def client_start(method: Method, state: ModelState, clients: int, number: int = 1) -> ModelState:
    """Return what the first of some clients starts a round from, of the model that training starts with."""
    ctx = client_round(clients, number)
    server = ServerState(state, method.server_start(state, clients))
    _, start = begin(method, server, state, NOTHING, method.context(server, 0, ctx))
    return method.pad(start, server, ctx)


def batch_of(network: ClientNetwork, samples: int, tokens: int) -> tuple[TokenTable, np.ndarray]:
    """Return samples of one length, none of whose tokens pads, and their rows."""
    token = 1 if network.pad_id == 0 else 0
    ids, offsets = np.full(samples * tokens, token, np.int32), np.arange(samples + 1) * tokens
    return TokenTable(ids, None, offsets, np.zeros(samples, np.int64)), np.arange(samples)


def equal_layers(network: ClientNetwork) -> nn.ModuleList | None:
    """Return the layers that a backbone consists of; None where they differ, or are not one stack."""
    stack = stack_of_layers(network.task.loaded())
    return None if stack is None or any(_form(layer) != _form(stack[0]) for layer in stack) else stack


def _form(layer: nn.Module) -> list[tuple[Any, ...]]:
    """Return what the cost of a layer depends on: its modules, and the shapes of their tensors."""
    return [
        (name, type(module), [(key, tuple(tensor.shape)) for key, tensor in _tensors(module)])
        for name, module in layer.named_modules()
    ]


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def form_of(value: Any) -> Any:
    """Return all that the operations of a network's part depend on: types, numbers, texts, and the shapes of tensors.

    What is none of these has a form of its own that equals no other, so that nothing is taken to be alike by mistake.
    """
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device | torch.Size):
        return value
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype, value.requires_grad)
    if isinstance(value, nn.Module):
        return type(value), form_of(vars(value))
    if isinstance(value, dict):
        return type(value), tuple((form_of(key), form_of(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(form_of, value))
    if isinstance(value, set | frozenset) and all(isinstance(item, str) for item in value):
        return type(value), tuple(sorted(value))
    return object()


def cut(network: ClientNetwork, layers: nn.ModuleList, depth: int) -> None:
    """Keep the first of a backbone's layers alone."""
    del layers[depth:]
    found = network.task.loaded().named_modules()
    network.layers = {name: module for name, module in found if isinstance(module, ClientLayer)}
