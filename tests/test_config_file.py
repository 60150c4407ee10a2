"""Config files: what is no config is refused in one line that names the file, and is never printed."""

import bz2
import gzip
import tracemalloc
from pathlib import Path

import pytest

from fedgram.config_file import MOST_BYTES, parse_config, read_config
from fedgram.errors import UsageError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 20))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 20_000))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\n", "expected settings by name"),
        (b"", "got nothing"),
        (b"- a\n- b\n", "got a list"),
        (b"3", "got a value"),
        (gzip.compress(b"a: 1", mtime=0), "compressed (gzip)"),
        (bz2.compress(b"a: 1"), "compressed (bzip2)"),
        ("a: 1".encode("utf-16"), "UTF-16"),
        ("a: ü".encode("latin-1"), "no text in UTF-8"),
        (b"a: \0", "binary"),
        (b"a: \x07", "binary"),
        (b"#" * (MOST_BYTES + 1), "longer than 1,048,576 bytes"),
        (b"[" * 1000, "nested more than 50 levels"),
        (b"a: " + b"{b: " * 60 + b"1" + b"}" * 60, "nested more than 50 levels"),
        (CHAIN.encode(), "nested more than 50 levels"),
        (BOMB.encode(), "holds more than 100,000 values"),
        (MERGES.encode(), "holds more than 100,000 values"),
        (b"a: &a [*a]", "line 1: *a refers to what it stands in"),
        (b"a: *b", "undefined alias"),
        (b"a: [1", "line 2, column 1: is no valid YAML"),
        (b"a:\n\t- 1", "line 2, column 1: is no valid YAML"),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"a: 1\n---\nb: 2", "is no valid YAML"),
        (b"a: !!int x", "is no valid YAML"),
        (b"a: " + b"9" * 5000, "is no valid YAML"),
        (b"null: 1", "line 1: expected the name of a setting, got 'null'"),
        (b"a: 1\ntrainer:\n  no: 1\n", "line 3: expected the name of a setting below trainer, got 'no'"),
        (b"method: {init_args: {2: 1}}", "expected the name of a setting below method.init_args, got '2'"),
        (b"[a]: 1", "expected the name of a setting"),
        (b"trainer: {a: 1}\nb: 2\ntrainer: {c: 3}\n", "the key trainer stands in line 1 and in line 3"),
        (b"t:\n  a: 1\n  'a': 2\n", "the key t.a stands in line 2 and in line 3"),
        (b"t: {a: 1, a: 2}", "the key t.a stands in line 1 and in line 1"),
        (b"l:\n- a: 1\n  a: 2\n", "the key l..a stands in line 2 and in line 3"),
        (b"x-a: {b: 1, b: 2}", "the key x-a.b stands in"),
    ],
)
def test_what_is_no_config_is_one_line_within_bounds(tmp_path, content, said):
    path = tmp_path / "given.yaml"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as caught:
            read_config(path)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert said in message
    assert "\n" not in message
    assert len(message) < 400
    assert "root" not in message.removeprefix(str(path))


@pytest.mark.parametrize("name", ["no", "n" * 300, "\0", "~nobody_here/x", "."])
def test_a_config_that_cannot_be_opened_is_one_line(name):
    with pytest.raises(UsageError, match="can't be read"):
        read_config(Path(name))


def test_anchors_stand_below_a_key_that_begins_with_x():
    text = "x-common: &common {rounds: 3, seed: 1}\ntrainer:\n  <<: *common\n  rounds: 4\nx-more: [1]\n"
    assert parse_config(text, "a config") == {"trainer": {"rounds": 4, "seed": 1}}


def test_numbers_are_read_as_the_command_line_reads_them():
    assert parse_config("\ufeffa: 1e-3".lstrip("\ufeff"), "a config") == {"a": 0.001}
    assert parse_config("method: {init_args: {client_ranks: {4: 0.5, 2: 0.5}}}", "c") == {
        "method": {"init_args": {"client_ranks": {4: 0.5, 2: 0.5}}}
    }
