"""From a source to a network with a head: pretrained weights, or random ones of the same shape."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedgram.errors import ConfigurationError
from fedgram.models.sources import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["cast", "draw_network", "key_of", "load_network", "positions", "quiet", "undrawn"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Transformers: that a head starts untrained is what this program is for."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()  # those of downloads, which may take minutes; a file that is there has none
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def draw_network(auto_class: str, config: "PretrainedConfig", dtype: torch.dtype) -> nn.Module:
    """Return a network with random weights, made in the type that they shall have: no larger copy exists meanwhile."""
    import transformers

    return getattr(transformers, auto_class).from_config(config, dtype=dtype)


@contextmanager
def undrawn() -> Iterator[None]:
    """Have networks made with weights that nobody has drawn: where there are no numbers, starts can't look at them."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def load_network(
    auto_class: str, source: Source, config: "PretrainedConfig", dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network with the source's weights, and what Transformers reports of them.

    A head or a pooler that the source came without is random.

    Args:
        auto_class: the name of Transformers' class for the task, such as AutoModelForSequenceClassification.
        source: where the weights are.
        config: the model's configuration, with what the task wants of it.
        dtype: the type of the weights.

    Returns:
        the network, and the keys that were missing, of another shape (mismatched) or unexpected in the source.

    Raises:
        ConfigurationError: weights of the base model are missing, or have other shapes than the configuration says.
    """
    import transformers

    options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    options |= source.options | {"dtype": dtype}
    network, report = getattr(transformers, auto_class).from_pretrained(source.place, **options)
    name = network.base_model_prefix
    if _random_in_base(report, f"{name}."):
        # LlamaForQuestionAnswering and its like call their base "transformer" where the published weights call it
        # "model", and so find none of them. The base model's own class does.
        setattr(network, name, None)
        base, base_report = transformers.AutoModel.from_pretrained(source.place, **options)
        setattr(network, name, base)
        if random := _random_in_base(base_report, ""):
            raise ConfigurationError(
                f"{source.place} lacks {len(random)} weights of a {type(base).__name__}, or has them in another shape "
                f"({random[0]}, ...); give a folder whose weights fit its config.json"
            )
        report = _merged(report, base_report, f"{name}.")
    return network, report


def _merged(report: dict[str, Iterable[Any]], base: dict[str, Iterable[Any]], prefix: str) -> dict[str, Any]:
    """Return a report of a network whose base model was loaded apart: of the head by one, of the base by the other."""
    kinds = ("missing_keys", "mismatched_keys")
    own = {kind: [key for key in map(key_of, report[kind]) if not key.startswith(prefix)] for kind in kinds}
    return {**{k: own[k] + [prefix + key for key in map(key_of, base[k])] for k in kinds}, "unexpected_keys": []}


def key_of(key: Any) -> str:
    """Return the name of a weight in a report, which gives one of another shape with its shapes."""
    return key if isinstance(key, str) else str(key[0])


def _random_in_base(report: dict[str, Iterable[Any]], prefix: str) -> list[str]:
    """Return the base model's weights that were drawn and not loaded, a pooler's left out: many models have none."""
    random = [key_of(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]]
    return sorted(key for key in random if key.startswith(prefix) and "pooler" not in key)


def positions(network: nn.Module) -> int | None:
    """Return how many tokens a network has positions for; None where there is no limit, which XLNet calls -1.

    RoBERTa and its like begin behind the pad token's id. What OPT leaves out at the start of its table is not counted
    in ``max_position_embeddings``, and Llama has no table.
    """
    config: Any = network.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    tables = (module for name, module in network.named_modules() if name.endswith("position_embeddings"))
    padding = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return None if limit is None or limit < 0 else int(limit) - (int(padding[0]) + 1 if padding else 0)


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of all weights in place; buffers are widened at most.

    Rotary frequencies are such a buffer: rounded to half precision they would shift every position. Experts are
    multiplied one after the other in float64, for which torch has no grouped product.
    """
    choose: Any = getattr(network, "set_experts_implementation", None)  # which networks of Transformers have
    if dtype == torch.float64 and choose is not None:
        choose("eager")
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(torch.promote_types(buffer.dtype, dtype))
