"""From settings to costs, without weights and without data.

The real code runs on fake tensors (`fedgram.cost.fake_network`), so that the figures are those of a run's ledger, and
of its client_flops and server_flops for samples of one length.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedgram.cohort import local_step_count, sample
from fedgram.cost.client_flops import TrainingFlops, Work, flops_by_round
from fedgram.cost.fake_network import batch_of, client_start, cut, equal_layers, longest_sample, skeleton
from fedgram.cost.figures import Cost, Estimate, Memory, Payloads, Setting, Size
from fedgram.cost.flop_counter import countable
from fedgram.cost.server_flops import server_flops
from fedgram.cost.traffic import Traffic, bounded
from fedgram.data import FederatedData
from fedgram.data.base import positive
from fedgram.engine.block_size import COPIES, held_bytes, saved_bytes
from fedgram.engine.network import ClientNetwork
from fedgram.engine.precision import WEIGHTS
from fedgram.errors import ConfigurationError
from fedgram.hub import is_hub_name, why_offline
from fedgram.methods import Method
from fedgram.methods.known import known_methods
from fedgram.models import FederatedTask
from fedgram.models.sources import find_source, shape_of
from fedgram.seeding import numpy_generator
from fedgram.settings import TrainerSettings
from fedgram.state import Payload, split

if TYPE_CHECKING:
    from transformers import PretrainedConfig


__all__ = ["Announce", "estimate", "every_method", "find_payloads", "silent"]

Announce = Callable[[str, int, int], None]
"""Takes the name of the method that is counted next, its number, and how many there are."""

MOST_LABELS = 10_000
"""Descriptions of data are counted by making one for each client."""
_SAMPLES = 32
"""Samples of every class of a client that has enough of them to tell all that it can about its data."""


def silent(name: str, number: int, count: int) -> None:
    """Announce nothing."""


def every_method(like: Method) -> dict[str, Method]:
    """Return every method by name, with its defaults, but for rank, alpha and target_modules: those of another."""
    common = {"rank": like.rank, "alpha": like.alpha, "target_modules": like.target_modules}
    kinds: list[Any] = list(known_methods())
    return {
        name: kind(**common, **settings)
        for kind in kinds
        for name, settings in (kind.variants or {kind.__name__: {}}).items()
    }


def estimate(
    settings: TrainerSettings,
    model: FederatedTask,
    data: FederatedData,
    methods: Mapping[str, Method],
    tokens: int | None = None,
    labels: int | None = None,
    samples: int | None = None,
    announce: Announce = silent,
) -> Estimate:
    """Return what a run would cost with each of some methods.

    Args:
        settings: of the run; neither devices nor ranks are looked for.
        model: the task and its backbone, of which the configuration alone is read.
        data: the data, which is not read.
        methods: the methods, by the names that their costs shall have.
        tokens: of every sample; if not given the data's max_length, or what the backbone has positions for.
        labels: of the head; if not given what the data says, or 2.
        samples: of the train split, where the data does not say.
        announce: is called before each method is counted.

    Raises:
        ConfigurationError: a setting is out of range, or a method does not fit the backbone.
        NotCountableError: a backbone or a method can't be run on fake tensors.
    """
    config, setting = describe(settings, model, data, tokens, labels, samples)
    about = _about(settings, model, data, config, setting)
    return Estimate(setting, tuple(_cost(name, method, about) for name, method in _announced(methods, announce)))


def find_payloads(
    settings: TrainerSettings,
    model: FederatedTask,
    data: FederatedData,
    methods: Mapping[str, Method],
    labels: int | None = None,
    announce: Announce = silent,
) -> dict[str, Payloads]:
    """Return what is sent with each of some methods, by name, and nothing that takes longer (see `estimate`)."""
    config, setting = describe(settings, model, data, labels=labels)
    about = _about(settings, model, data, config, setting)
    found = {}
    for name, method in _announced(methods, announce):
        with countable(f"{name} on {model.backbone!r}"), skeleton(model, config, method, *about.types) as network:
            found[name] = _payloads(method, network, about)
    return found


def _announced(methods: Mapping[str, Method], announce: Announce) -> Iterator[tuple[str, Method]]:
    for number, (name, method) in enumerate(methods.items(), 1):
        announce(name, number, len(methods))
        yield name, method


def describe(
    settings: TrainerSettings,
    model: FederatedTask,
    data: FederatedData,
    tokens: int | None = None,
    labels: int | None = None,
    samples: int | None = None,
) -> tuple["PretrainedConfig", Setting]:
    """Return the backbone's configuration, and what costs depend on besides the method; arguments as of `estimate`."""
    labels = positive("labels", labels) or _labels_of(data)
    if labels > MOST_LABELS:
        raise ConfigurationError(f"labels must be at most {MOST_LABELS:,} where costs are asked for, got {labels}")
    config, shape = _config(model, labels)
    samples = positive("samples", samples) or data.known_samples
    auto = settings.clients_per_block == "auto"
    return config, Setting(
        backbone=model.backbone,
        shape=shape,
        data=data.name,
        labels=int(config.num_labels),
        tokens=_tokens(model, config, positive("tokens", tokens), data.max_length),
        batch_size=data.batch_size,
        samples=samples,
        clients=settings.clients,
        cohort=settings.cohort_size,
        rounds=settings.rounds,
        local_steps=_local_steps(settings, samples, data.batch_size),
        clients_per_block=1 if auto else int(settings.clients_per_block),
        auto=auto,
        precision=settings.precision,
    )


def _tokens(model: FederatedTask, config: "PretrainedConfig", asked: int | None, most: int) -> int:
    limit = longest_sample(model, config)
    if asked is not None and limit is not None and asked > limit:
        raise ConfigurationError(
            f"tokens must be at most the {limit} positions of {model.backbone!r}, got {asked}; samples can't be longer"
        )
    return asked or (most if limit is None else min(most, limit))


def _labels_of(data: FederatedData) -> int:
    try:
        return int(getattr(data, "num_labels", 2))
    except ConfigurationError:  # not known before the data is read
        return 2


def _config(model: FederatedTask, labels: int) -> tuple["PretrainedConfig", str | None]:
    """Return the backbone's configuration; of a model of the hub that is not in its cache, by the shape if it has one.

    Returns:
        The configuration, and the shape if it is of one.
    """
    from huggingface_hub import try_to_load_from_cache

    source, settings = find_source(model.backbone), model.head_settings(labels)
    if is_hub_name(source.place) and not isinstance(try_to_load_from_cache(source.place, "config.json"), str):
        shape = shape_of(source.place)
        if shape is not None:
            return model.read_config(shape, **settings), shape
        why_offline()  # else its libraries would try for half a minute
    return model.read_config(**settings), None


def _local_steps(settings: TrainerSettings, samples: int | None, batch_size: int) -> int | None:
    """Return the steps of a client in a round, whose share of the samples is as large as that of all others."""
    if settings.local_steps is None and samples is None:
        return None
    share = math.ceil(Fraction(samples or 0, settings.clients))
    return local_step_count(share, batch_size, settings.local_epochs, settings.local_steps)


def _cohorts(setting: Setting, seed: int) -> Iterator[np.ndarray]:
    """Yield the clients of every round, ascending: those of the run itself."""
    for number in range(1, setting.rounds + 1):
        yield np.array(sample(seed, number, setting.clients, setting.cohort))


@dataclass(frozen=True)
class _About:
    """What the costs of all methods have in common."""

    settings: TrainerSettings
    model: FederatedTask
    config: "PretrainedConfig"
    setting: Setting
    cohorts: Sequence[np.ndarray]
    has_classes: bool

    @property
    def types(self) -> tuple[torch.dtype, torch.dtype]:
        """Of the frozen weights, and of what clients train."""
        precision = self.settings.precision
        own = torch.float64 if precision == "64-true" else torch.float32
        return WEIGHTS.get(precision, self.model.weights_dtype), own


def _about(
    settings: TrainerSettings,
    model: FederatedTask,
    data: FederatedData,
    config: "PretrainedConfig",
    setting: Setting,
) -> _About:
    cohorts = list(_cohorts(setting, settings.seed))
    return _About(settings, model, config, setting, cohorts, has_classes=hasattr(type(data), "num_labels"))


def _cost(name: str, method: Method, about: _About) -> Cost:
    setting, model, config = about.setting, about.model, about.config
    flops = flops_by_round(model, config, method, setting.tokens, setting.clients, setting.rounds)
    in_rounds = [_round_flops(each, about) for each in flops]
    all_flops = None if None in in_rounds else sum(each or 0 for each in in_rounds)
    with countable(f"{name} on {model.backbone!r}"), skeleton(model, config, method, *about.types) as network:
        sent = _payloads(method, network, about)
        own = client_start(method, network.initial_state(), setting.clients)
        trained = Size.of(split(own, method.trained_fields)[0])
        server = server_flops(method, network.layers, setting.clients, setting.cohort)
        held, kept = _held_and_kept(network, setting)
    uploads = sent.most["up"].bytes * setting.cohort
    return Cost(
        method=name,
        trained=trained,
        **sent.most,
        step_flops=round(Fraction(sum(each.of(_work(setting, 1)) for each in flops), setting.rounds)),
        round_flops=None if all_flops is None else round(Fraction(all_flops, setting.rounds)),
        all_flops=all_flops,
        server_flops=server,
        memory=Memory(held, kept + COPIES * trained.bytes, uploads, setting.clients_per_block),
        unknown=sent.unknown,
        least=sent.least,
    )


def _payloads(method: Method, network: ClientNetwork, about: _About) -> Payloads:
    """Return what is sent by a method whose adapters a network has, by the names that `Cost` has for it."""
    found: dict[str, dict[str, Size]] = {}
    for bound, own in bounded(method).items():
        traffic = Traffic.of(own, network, about.setting, about.settings.seed)
        all_up, all_down = traffic.of_all(about.cohorts)
        once = _told_once(own, about)
        told = {"once": once, "all_up": all_up + once * about.setting.clients, "all_down": all_down}
        found[bound] = traffic.usual() | told
    most = found["most"]
    least = {name: size for name, size in found.get("least", most).items() if size != most[name]}
    return Payloads(most, least, method.unknown if least else "")


def _told_once(method: Method, about: _About) -> Size:
    """Return what a client tells about its data, if its method asks for it: at least of one sample, at most of many."""
    if not method.describes_data:
        return Size()
    classes, each = (1, 1) if method.bound == "least" else (about.setting.labels, _SAMPLES)
    width = int(about.config.get_text_config().hidden_size)
    features = torch.from_numpy(numpy_generator(0, "description").normal(size=(each * classes, width)))
    labels = torch.arange(classes).repeat(each)
    if about.setting.labels == 1:  # a regression's targets
        labels = labels.double()
    elif not about.has_classes:
        labels = labels[:, None]
    return Size.of(Payload(whole=method.describe(features, labels, 0, 0)))


def _work(setting: Setting, steps: int) -> Work:
    """Return the work of local steps on full batches."""
    samples = steps * setting.batch_size
    return Work(steps, samples, samples * setting.tokens, samples * setting.tokens**2)


def _round_flops(flops: TrainingFlops, about: _About) -> int | None:
    """Return the operations of all clients of a round, whose last batch of each pass may be smaller than the others."""
    setting, settings = about.setting, about.settings
    if setting.local_steps is None:
        return None
    if settings.local_steps is not None:
        return setting.cohort * flops.of(_work(setting, settings.local_steps))
    seen = Fraction(setting.samples or 0, setting.clients) * (settings.local_epochs or 1)
    each = flops.of(Work(0, 1, setting.tokens, setting.tokens**2))
    return round(setting.cohort * (setting.local_steps * flops.step + seen * each))


def _held_and_kept(network: ClientNetwork, setting: Setting) -> tuple[int, int]:
    """Return the bytes that are held once, and those that a client's forward pass keeps.

    They are found by one layer and by two, where all are equal. The network is cut for that, and stays so.
    """

    def found() -> tuple[int, int]:
        state = network.initial_state()
        network.share(state)
        kept = saved_bytes(network, state, *batch_of(network, setting.batch_size, setting.tokens))
        return held_bytes(network), kept  # in this order: a forward pass makes copies that are held

    layers = equal_layers(network)
    if layers is None or len(layers) <= 2:
        return found()
    depth = len(layers)
    cut(network, layers, 2)
    two = found()
    cut(network, layers, 1)
    one = found()
    held, kept = (first + (depth - 1) * (second - first) for first, second in zip(one, two, strict=True))
    return held, kept
