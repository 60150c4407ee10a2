"""Every family of Transformers' sequence classification: right row by row, or refused in one line."""

import pytest
import torch

import backbones
import families

QUICK = (
    *("bert", "roberta", "llama", "mistral", "gemma2", "gpt_oss", "modernbert", "t5"),
    *("fnet", "big_bird", "longformer", "xlnet", "convbert", "falcon"),
)
"""One family of each kind, which every run of the tests tries."""


def cases():
    for family in families.families():
        slow = () if family in QUICK else (pytest.mark.slow,)
        yield pytest.param(family, marks=slow)


@pytest.mark.quick_cases(5)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", cases())
def test_a_family_answers_as_plain_transformers_does_or_is_refused_in_a_line(family, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        verdict = backbones.judge(family, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert verdict.runs or (verdict.reason and "\n" not in verdict.reason)
