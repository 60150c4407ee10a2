import doctest
import re

import pytest
from rich.console import Console

from fedgram.cost import Cost, Estimate, Memory, Setting, Size, tables
from fedgram.cost.tables import header, markdown, rich_tables, short

SETTING = Setting("owner/model", None, "qnli", 2, 128, 8, 104_743, 20, 20, 10, 655, 4, auto=False, precision="32-true")
LARGE = Size(353_468_416, 1_051_650, 1_413_873_664, 4_206_600)
COST = Cost(
    method="FedExLoRA-factored",
    trained=Size(1_146_880, 1_051_650, 4_587_520, 4_206_600),
    up_first=Size(1_146_880, 1_051_650, 4_587_520, 4_206_600),
    up=Size(1_146_880, 1_051_650, 4_587_520, 4_206_600),
    down_first=Size(1_146_880, 1_051_650, 4_587_520, 4_206_600),
    down=LARGE,
    all_up=LARGE * 20,
    all_down=LARGE * 200,
    step_flops=1_269_000_000_000,
    round_flops=16_624_000_000_000_000,
    all_flops=166_240_000_000_000_000,
    server_flops=106_000_000,
    memory=Memory(14_260_310_528, 4_849_033_344, 37_191_680, 4),
)


def shown(estimate, width=100):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(*rich_tables(estimate), sep="\n")
    return capture.get()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00 k"),
        (99_949, "99.9 k"),
        (99_951, "100 k"),
        (1e18, "1.00 E"),
        (3e21, "3000 E"),
    ],
)
def test_numbers_have_three_digits(number, text):
    assert short(number) == text


def test_tables_are_readable_at_100_columns():
    text = shown(Estimate(SETTING, (COST,)))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("FedExLoRA-factored") == 3
    assert "…" not in text
    for figure in (
        "353,468,416",
        "1,051,650",
        "8.79 MB",
        "284 GB",
        "1.27 T",
        "16.6 P",
        "166 P",
        "106 M",
        "33.7 GB",
        "4.85 GB",
    ):
        assert figure in text


def test_markdown_has_the_same_figures():
    cells = [line for line in markdown(Estimate(SETTING, (COST,))) if line.startswith("| FedExLoRA-factored")]
    assert len(cells) == 3
    figures = re.findall(r"[\d,.]+(?: [kMGTPE]?B?)?(?= |$)", shown(Estimate(SETTING, (COST,))).split("─")[-1])
    assert figures
    text = shown(Estimate(SETTING, (COST,)))
    for cell in " ".join(cells).split("|"):
        assert cell.strip() in text


def test_a_header_says_what_the_costs_are_about():
    assert header(SETTING) == [
        "owner/model, 32-true",
        "qnli: 2 labels, batches of 8 samples of 128 tokens, 104,743 training samples",
        "20 clients, 20 a round, 10 rounds, 655 local steps a client and round",
    ]


def test_what_is_not_known_is_said():
    setting = Setting(**{**vars(SETTING), "samples": None, "local_steps": None, "auto": True, "shape": "shape:model"})
    estimate = Estimate(setting, (Cost(**{**vars(COST), "round_flops": None, "all_flops": None}),))
    text = shown(estimate)
    assert "owner/model (by shape:model, which comes with fedgram), 32-true" in text
    assert "- local steps" in text
    assert "give --samples or trainer.local_steps" in text
    assert "trainer.clients_per_block is auto: a run chooses it" in text
    assert re.search(r"1\.27 T +- +- +106 M", text)


def test_what_only_training_can_tell_is_shown_as_a_range():
    least = {"down": Size(300, 10, 1200, 40), "all_down": Size(3000, 100, 12_000, 400)}
    cost = Cost(**{**vars(COST), "least": least, "unknown": "how many experts there will be"})
    estimate = Estimate(SETTING, (COST, cost))
    text, lines = shown(estimate), markdown(estimate)
    assert max(map(len, text.splitlines())) <= 100
    assert [text.count(cell) for cell in ("≤ 353,468,416", "≤ 1.42 GB")] == [1, 1]
    (row,) = [line for line in lines if "12.4 kB - 284 GB" in line]
    assert row.count(" - ") == 1
    (note,) = [line for line in lines if "only training can tell" in line]
    assert note == (
        "- FedExLoRA-factored: only training can tell how many experts there will be; all clients send 7,090,401,320 "
        "parameters (28,361,605,280 bytes) and are sent 3,100 to 70,904,013,200 parameters (12,400 to "
        "283,616,052,800 bytes)"
    )
    assert " ".join(note[2:].split()) in " ".join(text.split())
    plain = estimate.as_dict()["costs"]
    assert plain[0]["least"] == {}
    assert plain[1]["least"]["all_down"]["adapter"] == 3000
    assert plain[1]["unknown"] == "how many experts there will be"


def test_plain_types_hold_all():
    plain = Estimate(SETTING, (COST,)).as_dict()
    assert plain["setting"]["backbone"] == "owner/model"
    assert plain["costs"][0]["down"]["adapter"] == 353_468_416
    assert plain["costs"][0]["memory"]["total"] == 14_260_310_528 + 4 * 4_849_033_344 + 37_191_680


def test_sizes_add_up():
    one = Size(1, 2, 4, 8)
    assert one * 3 + one == Size(4, 8, 16, 32)
    assert (one.parameters, one.bytes) == (3, 12)


def test_examples_in_the_docstrings():
    assert doctest.testmod(tables).failed == 0
    assert doctest.testmod(tables).attempted > 0
