"""Attention without padding heeds the mask of the padded batch, and refuses what it can't heed."""

import pytest
import torch

from fedgram.backbone import attention
from fedgram.backbone.attention import UnknownAttentionError, within_samples
from test_attention import BOTH_WAYS, FORWARD, draw

LENGTHS = [2, 7, 5]


@pytest.fixture(params=["one node", "kernel"])
def way(request, monkeypatch):
    if request.param == "kernel":
        monkeypatch.setattr(attention, "_LONG", 0)


def mask_of(causal, window, width=9):
    """The mask of a padded batch: (n, 1, T, T)."""
    places = torch.arange(width)
    distance = places[:, None] - places
    seen = (distance < window) & (distance >= 0 if causal else distance > -window)
    return torch.stack([seen & (places < length) for length in LENGTHS]).unsqueeze(1)


def padded(tensor, width=9):
    return torch.stack([torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[-2]))
                        for part in tensor[0].split(LENGTHS, dim=-2)])  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [2, 3, 9])
def test_a_window_is_that_of_the_padded_batch(way, causal, window):
    tensors = [draw(2, sum(LENGTHS), 4, seed) for seed in range(3)]
    module, mask = FORWARD if causal else BOTH_WAYS, mask_of(causal, window)
    found, _ = within_samples(LENGTHS, LENGTHS, module, *tensors, mask, sliding_window=window)
    whole = torch.nn.functional.scaled_dot_product_attention(*map(padded, tensors), attn_mask=mask)
    expected = torch.cat([whole[i, :, :length] for i, length in enumerate(LENGTHS)], dim=1).transpose(0, 1)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)
    unmasked, _ = within_samples(LENGTHS, LENGTHS, module, *tensors, None)
    assert torch.allclose(found, unmasked, rtol=0, atol=1e-12) == (window == 9)


def test_the_gradients_heed_a_window():
    tensors = [draw(1, sum(LENGTHS), 3, seed).requires_grad_() for seed in range(3)]
    mask = mask_of(True, 2)
    assert torch.autograd.gradcheck(lambda *qkv: within_samples(LENGTHS, LENGTHS, FORWARD, *qkv, mask)[0], tensors)


def test_fillers_have_no_row_in_the_mask():
    tensors, mask = [draw(2, sum(LENGTHS) + 2, 4, seed) for seed in range(3)], mask_of(True, 2)
    with_fillers, _ = within_samples([*LENGTHS, 2], [*LENGTHS, 2], FORWARD, *tensors, mask)
    without, _ = within_samples(LENGTHS, LENGTHS, FORWARD, *(t[:, :, :-2] for t in tensors), mask)
    torch.testing.assert_close(with_fillers[:, :-2], without, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [("s_aux", torch.zeros(2)), ("softcap", 50.0), ("position_bias", torch.zeros(1)), ("new", True)],
)
def test_an_option_that_is_not_known_is_refused_and_not_dropped(option, value):
    tensors = [draw(2, sum(LENGTHS), 4, seed) for seed in range(3)]
    with pytest.raises(UnknownAttentionError, match=option):
        within_samples(LENGTHS, LENGTHS, FORWARD, *tensors, None, **{option: value})
    within_samples(LENGTHS, LENGTHS, FORWARD, *tensors, None, **{option: None})


@pytest.mark.parametrize("mask", [torch.zeros(3, 1, 9, 9), torch.ones(3, 2, 9, 9, dtype=torch.bool)])
def test_a_mask_of_a_models_own_is_refused(mask):
    tensors = [draw(2, sum(LENGTHS), 4, seed) for seed in range(3)]
    with pytest.raises(UnknownAttentionError, match="mask of its own"):
        within_samples(LENGTHS, LENGTHS, FORWARD, *tensors, mask)
