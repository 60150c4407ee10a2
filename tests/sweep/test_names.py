"""Names, nulls and odd values of sweeps: nothing leaves its folder, and no line of a SLURM script is added."""

import re
import subprocess
from pathlib import Path

import pytest

from fedgram.cli.lightning import build
from fedgram.errors import ConfigurationError, FedgramError
from fedgram.sweep.array import write_array
from fedgram.sweep.plan import read_sweep


def sweep_file(folder: Path, text: str, name: str = "sweep.yaml") -> Path:
    (folder / "base.yaml").write_text("trainer: {rounds: 1}\n")
    path = folder / name
    path.write_text(f"base: base.yaml\n{text}")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid: {method: {'..': {}}}", "must be the name of one folder"),
        ("grid: {method: {'.': {}}}", "must be the name of one folder"),
        (f"grid: {{method: {{{'n' * 300}: {{}}}}}}", "must have at most 200 bytes"),
        ("set: {1: 2}", "set: expected the name of a setting, got 1"),
        ("set: [a]", "set: expected settings by name"),
        ("where: 3", "where: expected a list of rules, got 3"),
        ("grid: [1]", "grid: expected settings by name"),
        ("small: {set: [a]}", "small: set: expected settings by name"),
        ("base: 3", "the key base stands in line 1 and in line 2"),
        ("set: {a: 1}\nset: {b: 1}", "the key set stands in line 2 and in line 3"),
        ("grid:\n" + "".join(f"  a.x{i}: {list(range(10))}\n" for i in range(12)), "asks for 1,000,000,000,000 runs"),
        ("set: {a: " + "[" * 100 + "]" * 100 + "}", "nested more than 50 levels"),
    ],
)
def test_what_is_no_sweep_is_one_line(tmp_path, text, said):
    with pytest.raises(ConfigurationError) as caught:
        read_sweep(sweep_file(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["@x", "0x", "a: b: c", "[", "2020-01-01", "*x"])
def test_a_label_may_be_any_text(tmp_path, label):
    sweep = read_sweep(sweep_file(tmp_path, f"grid: {{data.x: {{'{label}': {{}}, y: {{}}}}}}\nx-a: 1"))
    assert all(re.fullmatch(r"[\w.=+,-]+", point.name) for point in sweep.points)


def test_null_in_a_sweep_is_null_for_texts_too(tmp_path, config):
    plan = "set: {trainer.name: null, data.validation_path: null, trainer.local_steps: null, method.alpha: .inf}"
    (point,) = read_sweep(sweep_file(tmp_path, plan)).points
    assert [setting.partition("=")[2] for setting in point.settings if "=" in setting] == ["!!null"] * 3 + [".inf"]
    built = build(["--config", str(config), *(s for s in point.settings if "=" in s and "alpha" not in s)])
    assert (built.trainer.settings.name, built.trainer.settings.local_steps) == (None, None)
    assert built.arguments["datamodule"].extra_paths["validation"] is None


@pytest.mark.parametrize("key", ["data.label", "data.path", "trainer.seed", "trainer.default_root_dir", "model.dtype"])
def test_null_in_a_sweep_is_refused_where_a_value_is_needed(tmp_path, config, key):
    (point,) = read_sweep(sweep_file(tmp_path, f"set: {{{key}: null}}")).points
    with pytest.raises(FedgramError, match=rf"{key}: expected .*, got null"):
        build(["--config", str(config), *(s for s in point.settings if "=" in s)])


@pytest.mark.parametrize("name", ["a\nb.yaml", "a\n#SBATCH --wrap=x\n.yaml", "...yaml", "a\tb.yaml"])
def test_a_sweep_is_not_called_what_no_folder_is(tmp_path, name):
    with pytest.raises(ConfigurationError, match="the name of the sweep"):
        read_sweep(sweep_file(tmp_path, "", name))


@pytest.mark.parametrize(
    ("name", "root"),
    [("plain", "runs"), ("two words; touch hurt", "my runs; touch hurt"), ("$(touch hurt)", "50% `id`")],
)
def test_a_script_for_slurm_holds_names_as_names(tmp_path, monkeypatch, name, root):
    monkeypatch.chdir(tmp_path)
    write_array(Path("a b.sbatch"), name, Path(root), ["echo", "srun-of", name], [0, 1], 2)
    lines = Path("a b.sbatch").read_text().splitlines()
    jobs = [line for line in lines if line.startswith("#SBATCH --job-name")]
    assert jobs == [f"#SBATCH --job-name={re.sub(r'[^a-z]', '_', name)}"]
    output = root.replace("%", "%%")
    assert f'#SBATCH --output="{output}/slurm-%A_%a.out"' in lines
    assert sum(line.startswith("#SBATCH") for line in lines) == 10
    script = Path("a b.sbatch").read_text().replace("eval", "echo")
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    assert not Path("hurt").exists()


@pytest.mark.parametrize("root", ["a\n#SBATCH --wrap=x", 'a"b', "a\\b"])
def test_a_folder_that_would_add_lines_to_a_script_is_refused(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="--default_root_dir must not hold"):
        write_array(Path("x.sbatch"), "x", Path(root), ["echo"], [0], 1)
    with pytest.raises(ConfigurationError, match="--slurm must not hold"):
        write_array(Path("x\ny.sbatch"), "x", Path("runs"), ["echo"], [0], 1)
    assert not list(tmp_path.iterdir())
