import numpy as np
import pytest
import torch

from fedgram import CELoRA, FLoRG
from fedgram.engine.features import features_of
from fedgram.engine.shortcuts import shorten
from test_block import make_network
from tiny_models import FAMILIES, save_tiny


def plain_means(network, table, rows):
    """One sample at a time, through a base model without anything of fedgram's."""
    task = network.task
    task.configure_for(*task.given)
    base = getattr(task.loaded().double(), task.loaded().base_model_prefix)
    with torch.inference_mode():
        return torch.stack(
            [base(torch.tensor(table.ids[None, slice(*table.offsets[row : row + 2])].astype(int)))[0][0].mean(dim=0)
             for row in rows]
        )  # fmt: skip


@pytest.mark.parametrize("family", ["tiny", *FAMILIES])
def test_features_are_means_of_the_pretrained_backbone_over_real_tokens(family, tiny_backbone, tiny_data, tmp_path):
    """With shortcuts: the last layer of an encoder says nothing else of any token but the first, and padding is out."""
    backbone = tiny_backbone if family == "tiny" else save_tiny(family, tmp_path / family)
    network, data = make_network(backbone, tiny_data, CELoRA(rank=2))
    network.task.given = data.tokenizer, data, 0
    table, rows, state = data.split("train"), np.arange(12)[::-1].copy(), network.initial_state()
    shorten(network, table, "64-true")
    network.load_one(state)
    before, heeded = network.run(table, rows)[0]["logits"], []
    found = features_of(network, state, table, rows, 5, lambda: heeded.append(1))
    assert found.dtype == torch.float64
    assert len(heeded) == 3
    assert len(set(np.sort(table.lengths_of(rows))[:5])) > 1  # so that there is padding
    assert torch.equal(network.run(table, rows)[0]["logits"], before)  # the shortcut is back
    torch.testing.assert_close(found, plain_means(network, table, rows), rtol=0, atol=1e-9)


def test_a_start_that_is_taken_back_is_the_pretrained_backbone_too(tiny_backbone, tiny_data):
    of = []
    for method in (CELoRA(rank=2), FLoRG(rank=2)):
        network, data = make_network(tiny_backbone, tiny_data, method)
        of.append(features_of(network, network.initial_state(), data.split("train"), np.arange(6), 4))
    torch.testing.assert_close(of[0], of[1], rtol=0, atol=1e-7)
