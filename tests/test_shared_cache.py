"""Caches that were prepared by somebody else, on a login node say, and that may be read and not written to."""

import os
import subprocess

import pytest

from fake_hub import running
from fedgram.data.reading import _unlocked_if_read_only
from test_full_disk import small_disk  # noqa: F401
from test_offline import machine, options, repositories  # noqa: F401


@pytest.mark.parametrize("is_writable", [True, False])
def test_data_of_the_hub_are_locked_where_somebody_may_write(tmp_path, monkeypatch, is_writable):
    from datasets import builder

    lock = builder.FileLock
    monkeypatch.setattr(os, "access", lambda path, mode: is_writable)
    with _unlocked_if_read_only(tmp_path):
        assert (builder.FileLock is lock) == is_writable
        with builder.FileLock(str(tmp_path / "lock")):
            assert (tmp_path / "lock").exists() == is_writable
    assert builder.FileLock is lock


@pytest.mark.slow
def test_a_read_only_cache_of_everything_is_used(machine, repositories, small_disk, tmp_path):  # noqa: F811
    shared = small_disk(50_000)
    arguments = options("--data", "GLUE", "--data.task", "rte")
    places = {"HF_HOME": str(shared / "hf"), "FEDGRAM_CACHE": str(shared / "cache")}
    with running(repositories) as server:
        places["HF_ENDPOINT"] = server.endpoint
        code, _, err = machine("prepare", *arguments, **places)
        assert code == 0, err
    subprocess.run(["mount", "-o", "remount,ro", str(shared)], check=True)
    code, _, err = machine("fit", *arguments, HF_HUB_OFFLINE="1", **places)
    assert code == 0, err
    assert "can't" not in err
    assert (tmp_path / "runs" / "rte-FLoRG" / "version_0" / "summary.json").exists()
    code, _, err = machine("fit", *arguments, "--data.max_length", "20", HF_HUB_OFFLINE="1", **places)
    assert code == 1
    assert f"fedgram: error: cannot write the cache {shared / 'cache' / 'tokens'} (Read-only file system); set" in err
