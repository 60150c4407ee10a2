"""Event files, cut and read back by TensorBoard."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from fedgram.runs.event_files import keep


@pytest.fixture
def file(tmp_path):
    """Two curves of three points each."""
    with SummaryWriter(tmp_path / "below") as writer:
        for step in range(3):
            writer.add_scalar("one", step / 2, step)
            writer.add_scalar("other", -step, step)
    (path,) = (tmp_path / "below").iterdir()
    return path


def curves(path):
    board = EventAccumulator(str(path.parent)).Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_what_counts_stays_as_it_was(file, tmp_path):
    before = EventAccumulator(str(file.parent)).Reload().Scalars("one")
    keep(tmp_path, lambda tag, step: tag == "one" or step < 1)
    assert curves(file) == {"one": [(0, 0.0), (1, 0.5), (2, 1.0)], "other": [(0, 0.0)]}
    assert EventAccumulator(str(file.parent)).Reload().Scalars("one") == before  # with the time that they were told


def test_a_file_of_which_all_counts_is_not_touched(file, tmp_path):
    before = file.stat()
    keep(tmp_path, lambda tag, step: True)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_wherever_a_kill_has_cut_a_file_whole_events_are_left(file, tmp_path):
    whole, lengths = file.read_bytes(), set()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        keep(tmp_path, lambda tag, step: True)
        kept = file.read_bytes()
        assert whole.startswith(kept)
        assert len(kept) <= length
        lengths.add(len(kept))
    assert len(lengths) == 1 + 1 + 6  # nothing, the version, and then one value after the other
    assert curves(file) == {"one": [(0, 0.0), (1, 0.5), (2, 1.0)], "other": [(0, 0.0), (1, -1.0), (2, -2.0)]}


def test_a_damaged_file_is_no_error(file, tmp_path):
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        first = int(random.integers(len(whole)))
        content[first : first + 8] = random.bytes(8) if random.integers(2) else bytes(8)
        file.write_bytes(content)
        keep(tmp_path, lambda tag, step: True)
        assert len(file.read_bytes()) <= len(content)
