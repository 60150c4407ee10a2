import pytest

from fedgram.usage import explain

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
            "Parser key \"method\":\n  <class 'fedgram.methods.base.Method'>\n  Option 'init_sdt' is not accepted",
            "method has no option 'init_sdt'; did you mean init_std?",
        ),
        (
            "Parser key \"method\":\n  <class 'fedgram.methods.base.Method'>\n  Option 'when' is not accepted",
            "this method has no option 'when', FeDeRA has: choose that, and give --method before its options",
        ),
        (
            "Parser key \"data\":\n  Subtypes: [<class 'fedgram.data.base.FederatedData'>, <class 'NoneType'>]\n"
            "Parser key \"partition\":\n  Subtypes: [<class 'fedgram.data.partition.Partition'>, <class 'NoneType'>]\n"
            "Option 'rho' is not accepted\n - Expected a <class 'NoneType'>",
            "this data.partition has no option 'rho', Dirichlet has: choose that, and give --data.partition before",
        ),
        (
            "Parser key \"trainer.rounds\":\n  Expected a <class 'int'>. Got value: x",
            "trainer.rounds: expected int, got 'x'",
        ),
        (
            "Parser key \"data\":\n  Problem with given class_path 'fedgram.GLUE':\n"
            "  the following arguments are required: task\n  - Expected a <class 'NoneType'>",
            "data.task must be given; fedgram fit --data.help CLASS says what it is",
        ),
        ("anything\n   else", "anything else"),
    ],
)
def test_a_parser_message_becomes_one_line(message, line):
    said = explain(message, OPTIONS, "fedgram fit")
    assert said.startswith(line)
    assert "\n" not in said
