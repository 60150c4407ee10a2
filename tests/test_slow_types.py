import math

import pytest
import torch

from fedgram.engine import slow_types
from fedgram.engine.slow_types import slowdown
from fedgram.models import TextClassification
from test_trainer import fit  # noqa: F401


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "multiplies" in record.getMessage()]


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_a_run_on_a_cpu_that_is_slow_in_bfloat16_warns_once_with_the_remedy(fit, caplog, monkeypatch, precision):  # noqa: F811
    monkeypatch.setattr(slow_types, "slowdown", lambda dtype: {torch.bfloat16: 7.2}[dtype])
    fit(rounds=1, precision=precision)
    assert warnings_of(caplog) == [
        f"trainer.precision is {precision}, but this CPU multiplies 7 times slower in bfloat16 than in float32, as it "
        "has no instructions for that; remedy: --trainer.precision 32-true"
    ]
    caplog.clear()
    monkeypatch.setattr(slow_types, "slowdown", lambda dtype: 0.6)
    fit(rounds=1, precision=precision)
    assert warnings_of(caplog) == []


class _Network:
    def __init__(self, dtype, device="cpu"):
        self.task, self.device = TextClassification("x"), torch.device(device)
        self.task.layer = torch.nn.Linear(2, 2, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_a_slow_type_warn_as_well(caplog, monkeypatch, dtype):
    monkeypatch.setattr(slow_types, "slowdown", lambda asked: 3.0 if asked == dtype else 1.0)
    slow_types.warn_of_slow_type(_Network(dtype), "32-true")
    (message,) = warnings_of(caplog)
    assert message.startswith(f"model.dtype is {str(dtype)[6:]}, but this CPU multiplies 3 times slower")
    assert message.endswith("remedy: --model.dtype float32")


def test_neither_gpus_nor_wide_types_are_tried(caplog, monkeypatch):
    monkeypatch.setattr(slow_types, "slowdown", lambda dtype: 9.0)
    slow_types.warn_of_slow_type(_Network(torch.float32), "32-true")
    slow_types.warn_of_slow_type(_Network(torch.float64), "64-true")
    slow_types.warn_of_slow_type(_Network(torch.bfloat16, "meta"), "bf16-true")
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("onednn", [True, False])
def test_a_trial_finds_a_ratio(monkeypatch, onednn):
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert 0 < slowdown(torch.bfloat16) < math.inf
