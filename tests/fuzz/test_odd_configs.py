"""Whatever a configuration says: it runs, or is refused in one line that names the key, and nothing is half-written."""

from pathlib import Path

import pytest
import yaml
from config_maker import SECTIONS, Case, keys, make_cases, null_cases
from config_run import fit
from warm_parent import Outcome, WarmParent

ODD = 300
SEED = 17


def base_settings(backbone: str, data: Path, cache: Path) -> dict:
    """Return a configuration that trains in a moment."""
    source = {"path": str(data), "batch_size": 2, "max_length": 16, "cache_dir": str(cache), "max_train_samples": 8}
    settings = {"rounds": 1, "clients": 2, "local_steps": 1, "accelerator": "cpu", "loggers": False, "threads": 1}
    return {
        "trainer": {**settings, "evaluate_at_start": False},
        "method": {"class_path": "FLoRG", "init_args": {"rank": 2}},
        "model": {"class_path": "TextClassification", "init_args": {"backbone": backbone}},
        "data": {"class_path": "TextClassificationData", "init_args": source},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-3}},
    }


def verdict(case: Case, outcome: Outcome) -> str:
    """Return what is wrong with what became of a configuration; nothing where it is right."""
    if outcome.kind != "returned":
        return f"{outcome.kind}: {outcome.message[-500:]} {outcome.trace[-1500:]}"
    found = outcome.value
    whole = any(Path(file).name == "summary.json" for file in found["files"])
    if found["code"] == 0:
        return "it ran" if case.must_fail else "" if whole else "it ran and left no summary"
    if found["files"] and "fedgram: error: round " not in found["err"]:  # in which training broke down
        return f"refused, and left {found['files'][:3]}"
    lines = [line for line in found["err"].splitlines() if line.startswith("fedgram: error: ")]
    if len(lines) != 1 or found["err"].splitlines()[-1:] != lines or len(lines[0]) > 700:
        return f"no single line: {found['err'][:1500]}"
    if not any(name in lines[0] for name in case.names):
        return f"names no key: {lines[0]}"
    return ""


@pytest.mark.slow
def test_every_configuration_runs_or_is_refused_in_one_line(tiny_backbone, tiny_data, tmp_path):
    parent = WarmParent()
    cases = make_cases(base_settings(tiny_backbone, tiny_data, tmp_path / "cache"), ODD, SEED)
    assert len(cases) >= ODD + 62
    wrong, ran = {}, 0
    for number, case in enumerate(cases):
        config = tmp_path / f"{number}.yaml"
        config.write_text(yaml.safe_dump(case.settings, allow_unicode=True))
        outcome = parent.call(fit, str(config), str(tmp_path / f"run_{number}"))
        ran += outcome.kind == "returned" and outcome.value["code"] == 0
        if complaint := verdict(case, outcome):
            wrong[case.note] = complaint
    assert not wrong, "\n\n".join(f"{note}\n    {complaint}" for note, complaint in wrong.items())
    assert ran > 20  # or all were refused for one reason


def test_every_key_has_a_case():
    noted = {case.note for case in null_cases({section: {} for section in SECTIONS})}
    assert {f"{key}: null" for key, _ in keys()} <= noted
    assert dict(keys())["trainer.name"]
    assert not dict(keys())["trainer.keep_last"]
    assert len(noted) >= 62


FAILED = {"code": 2, "out": "", "err": "fedgram: error: trainer.seed: expected\n", "files": []}


@pytest.mark.parametrize(
    ("outcome", "must_fail", "complaint"),
    [
        (Outcome("returned", FAILED), True, ""),
        (Outcome("returned", FAILED | {"code": 0}), True, "it ran"),
        (Outcome("returned", FAILED | {"code": 0, "files": ["a/summary.json"]}), False, ""),
        (Outcome("returned", FAILED | {"code": 0, "files": ["a/x"]}), False, "it ran and left no summary"),
        (Outcome("returned", FAILED | {"files": ["a/config.yaml"]}), True, "refused, and left"),
        (Outcome("returned", FAILED | {"err": "Traceback\nValueError: seed\n"}), True, "no single line"),
        (Outcome("returned", FAILED | {"err": "fedgram: error: seed\nand more\n"}), True, "no single line"),
        (Outcome("returned", FAILED | {"err": "fedgram: error: lr is odd\n"}), True, "names no key"),
        (Outcome("raised", message="no", trace="ValueError"), True, "raised"),
        (Outcome("hung"), True, "hung"),
    ],
)
def test_what_is_wrong_is_seen(outcome, must_fail, complaint):
    found = verdict(Case("seed", {}, ("seed",), must_fail), outcome)
    assert found.startswith(complaint)
    assert bool(found) == bool(complaint)
