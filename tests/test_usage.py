import pytest

from fedgram.cli.usage import explain

OPTIONS = ["trainer.rounds", "trainer.clients", "method"]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "unrecognized arguments: --trainer.round=3",
            "there is no option 'trainer.round'; did you mean trainer.rounds?",
        ),
        ("unrecognized arguments: --zzz 3", "there is no option 'zzz'. See fedgram fit --help"),
        (
            "the following arguments are required: fit.method",
            "fedgram fit needs a method, a model and data, and has no",
        ),
        ("the following arguments are required: a, b-c", "a, b-c must be given; see fedgram"),
        ('Parser key "config": no', "config: no"),
        ("x" * 1000, "xxx"),
        ("anything\n   else", "anything else"),
    ],
)
def test_a_parser_message_becomes_one_line(message, line):
    said = explain(message, OPTIONS, "fedgram" if "required" in message else "fedgram fit")
    assert said.startswith(line)
    assert "\n" not in said
    assert len(said) <= 300
