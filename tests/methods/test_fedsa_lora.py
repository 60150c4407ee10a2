import pytest
import torch

from fedgram.methods import FedSALoRA


def test_the_drift_is_measured_by_what_stood_before():
    before, after = ({"q": {"A": torch.tensor([[value, 0.0]]), "B": torch.zeros(3, 1)}} for value in (2.0, 5.0))
    (found,) = FedSALoRA(rank=1).diagnose(before, after, None).values()
    assert found == {"drift": pytest.approx(3 / 2)}
