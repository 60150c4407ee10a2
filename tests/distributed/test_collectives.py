"""The collectives between real processes, over gloo on the loopback device."""

import pytest
import torch

from distributed.ranks import OWNERS, talk
from fedgram.distributed.collectives import Ranks


@pytest.fixture(scope="module", params=[2, 3])
def seen(request, nursery, tmp_path_factory):
    """What every rank saw."""
    folder = tmp_path_factory.mktemp(f"{request.param}-ranks")
    nursery.run(request.param, "distributed.ranks:write_what_is_seen", folder=str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def test_every_rank_sees_the_bits_of_one_process(seen):
    alone = talk(Ranks(), list(range(7)))
    for rank, own in enumerate(seen):
        assert (own["rank"], own["size"]) == (rank, len(seen))
        for key, expected in alone.items():
            if isinstance(expected, torch.Tensor):
                assert torch.equal(own[key], expected)
                assert own[key].dtype == expected.dtype
            else:
                assert own[key] == expected


def test_the_trouble_of_one_rank_stops_all_with_one_message(seen):
    last = len(seen) - 1
    for own in seen:
        assert own["disagree"].startswith(f"state: rank {last} differs from rank 0 in 1 of 2 tensors, the first is v;")
        assert own["diverged"].startswith("client 2 diverged: A of q holds nan or inf")
        assert "not finite" in own["infinite"]
        assert own["problem"] == "full disk"
        assert own["told"] == f"from {last}"


def test_the_clients_are_dealt_unevenly():
    assert 1 not in OWNERS[3]
    assert OWNERS[2].count(0) != OWNERS[2].count(1)
