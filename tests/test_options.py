"""Options are taken by their whole names, and texts as they are typed."""

import pytest
import yaml

from fedgram.cli.usage import FedgramParser
from fedgram.data import FederatedData
from fedgram.errors import FedgramError
from fedgram.optim import ClientOptimizer

DATA = "--data=TextClassificationData"
ODD = ["null", "~", "yes", "NO", "1", "01", "2e-5", "0x1", "a: b", "{a: b}", "- a", "a #b", "'q'", "&a", "[a", "-", ""]


@pytest.fixture(scope="module")
def parser():
    parser = FedgramParser(prog="fedgram fit")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(FederatedData, "data", required=True)
    parser.add_subclass_arguments(ClientOptimizer, "optimizer")
    parser.add_argument("--name", type=str, default="x")
    parser.add_argument("--root", type=str | None, default=None)
    parser.add_argument("--width", type=int | str, default=1)
    return parser


@pytest.mark.parametrize("form", ["{}={}", "{} {}"], ids=["equals sign", "two arguments"])
@pytest.mark.parametrize("text", [*ODD, "[a]", "[a, 1]"])
def test_a_text_is_what_was_typed(parser, text, form):
    def given(option, value):
        return [f"{option}={value}"] if "=" in form else [option, value]

    names = ["--data.path", "--data.init_args.label", "--name"]
    if text.startswith("- "):  # which argparse takes for an option where it stands alone
        form = "{}={}"
    found = parser.parse_args([DATA, *(part for name in names for part in given(name, text))])
    assert [found.data.init_args.path, found.data.init_args.label, found.name] == [text] * 3
    assert all(type(value) is str for value in (found.data.init_args.path, found.name))


@pytest.mark.parametrize("text", [text for text in ODD if text != "null"])
def test_a_text_that_may_be_left_out_is_what_was_typed_but_for_null(parser, text):
    found = parser.parse_args([DATA, "--data.path=x", f"--data.validation_path={text}", f"--root={text}"])
    assert (found.data.init_args.validation_path, found.root) == (text, text)
    found = parser.parse_args([DATA, "--data.path=x", "--data.validation_path=null", "--root=null"])
    assert (found.data.init_args.validation_path, found.root) == (None, None)


@pytest.mark.parametrize(
    ("typed", "columns"),
    [
        ("title: body", "title: body"),
        ("null", "null"),
        ("[premise, hypothesis]", ["premise", "hypothesis"]),
        ("[yes, 1]", ["yes", "1"]),
        ('["[a]", "b: c"]', ["[a]", "b: c"]),
        ("[a: b]", "[a: b]"),
        ("[a", "[a"),
    ],
)
def test_columns_are_a_text_or_a_list_of_texts(parser, typed, columns):
    assert parser.parse_args([DATA, "--data.path=x", "--data.text", typed]).data.init_args.text == columns


def test_other_types_are_read_as_yaml(parser):
    options = [
        "--optimizer=AdamW",
        "--optimizer.lr=2e-5",
        "--optimizer.betas=[0.5, 0.75]",
        "--optimizer.keep_state=yes",
    ]
    partition = ["--data.partition=Dirichlet", "--data.partition.rho=5e-1"]
    found = parser.parse_args(
        [DATA, "--data.path=x", *options, "--data.max_train_samples=null", *partition, "--width=3"]
    )
    optimizer = found.optimizer.init_args
    assert (optimizer.lr, optimizer.betas, optimizer.keep_state) == (2e-5, (0.5, 0.75), True)
    assert found.data.init_args.max_train_samples is None
    assert (found.data.init_args.partition.init_args.rho, found.width) == (0.5, 3)


def test_a_config_means_what_it_quotes_and_is_written_so(parser, tmp_path):
    words = {"path": "null", "label": "~", "text": "[a]", "validation_path": "null", "test_path": "1"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "TextClassificationData", "init_args": words}}))
    for _ in range(2):  # the second time from what the first was written as
        found = parser.parse_args([f"--config={path}"])
        assert {key: found.data.init_args[key] for key in words} == words
        path.write_text(parser.dump(found))


@pytest.mark.parametrize("key", ["path", "label", "text", "config_name"])
@pytest.mark.parametrize("word", ["yes", "1", "2e-5", "{a: b}", "[1]", "null"])
def test_a_config_that_yaml_reads_otherwise_is_one_line_that_tells_how_to_quote(parser, tmp_path, key, word):
    if (key, word) == ("config_name", "null"):
        return  # which is allowed
    path = tmp_path / "config.yaml"
    given = ["data:", "  class_path: TextClassificationData", "  init_args:", f"    {key}: {word}"]
    path.write_text("\n".join([*given, *(["    path: x"] if key != "path" else [])]))
    with pytest.raises(FedgramError, match=rf"data\.{key}") as caught:
        parser.parse_args([f"--config={path}"])
    assert "\n" not in str(caught.value)
    assert (key, word) == ("path", "null") or "quotes" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("fit", "--trainer.round=3", "trainer.rounds"),
        ("fit", "--ckpt=last", "ckpt_path"),
        ("fit", "--data.batch=3", "batch_size"),
        ("fit", "--data.partition=Dirichlet --data.partition.min=3", "min_samples"),
        ("fit", "--print_conf", "print_config"),
        ("cost", "--mark", "markdown"),
        ("predict", "--out=x", "output"),
        ("validate", "--trainer.prec=64-true", "trainer.precision"),
        ("methods", "--mark", "markdown"),
        ("compare", "--metr=f1", "metric"),
        ("sweep", "--jo=2", "jobs"),
    ],
)
def test_an_abbreviated_option_is_refused_with_the_whole_name(fedgram, config, command, option, meant):
    base = [config] if command == "sweep" else [] if command in ("compare", "methods") else ["--config", config]
    code, out, err = fedgram(command, *base, *option.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"did you mean {meant}?" in err


def test_the_help_says_what_the_weight_decay_is(fedgram):
    help_text = " ".join(fedgram("fit", "--optimizer.help", "AdamW")[1].split())
    assert "0, the default of every optimizer here" in help_text
    assert "(type: float, default: 0.0)" in help_text.rpartition("--optimizer.weight_decay")[2][:300]
