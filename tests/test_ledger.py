import torch

from fedgram.ledger import Ledger, Traffic
from fedgram.state import Payload


def payload(adapter, head=None):
    return Payload({"q": {"A": adapter}}, {} if head is None else {"out": {"weight": head}})


def test_payloads_are_counted_from_their_tensors_by_direction_and_part():
    ledger = Ledger()
    ledger.record("up", payload(torch.zeros(2, 3), torch.zeros(5, dtype=torch.float64)))
    ledger.record("up", payload(torch.zeros(4, 3, dtype=torch.float16), torch.zeros(5)))
    ledger.record("down", payload(torch.zeros(7)))
    assert ledger.entries == {
        ("up", "adapter"): Traffic(2, 6 + 12, 24 + 24),
        ("up", "head"): Traffic(2, 10, 40 + 20),
        ("down", "adapter"): Traffic(1, 7, 28),
    }
    assert ledger.total("up") == Traffic(4, 28, 108)
    assert ledger.total("down") == Traffic(1, 7, 28)


def test_tensors_of_no_single_layer_are_counted_with_the_adapters():
    ledger = Ledger()
    ledger.record("up", Payload({"q": {"A": torch.zeros(2, 3)}}, whole={"sizes": torch.zeros(4, dtype=torch.float64)}))
    ledger.record("up", Payload(whole={"mask": torch.ones(4, dtype=torch.uint8)}))  # it has no numbers, but bytes
    assert ledger.entries == {("up", "adapter"): Traffic(2, 6 + 4, 24 + 32 + 4)}


def test_a_part_that_does_not_travel_leaves_no_entry_and_totals_of_nothing_are_zero():
    ledger = Ledger()
    ledger.record("up", payload(torch.zeros(2)))
    assert list(ledger.entries) == [("up", "adapter")]
    assert ledger.total("down") == Traffic()
    assert list(ledger.entries) == [("up", "adapter")]  # asking adds none
    ledger.record("down", Payload({"q": {}, "v": {}}))  # layers of which nothing is sent
    assert list(ledger.entries) == [("up", "adapter")]


def test_ledgers_add_up_and_the_added_one_stays():
    one, other = Ledger(), Ledger()
    one.record("up", payload(torch.zeros(2)))
    other.record("up", payload(torch.zeros(3), torch.zeros(1)))
    one.add(other)
    one.add(other)
    assert one.entries == {("up", "adapter"): Traffic(3, 8, 32), ("up", "head"): Traffic(2, 2, 8)}
    assert other.entries == {("up", "adapter"): Traffic(1, 3, 12), ("up", "head"): Traffic(1, 1, 4)}


def test_rows_are_sorted_and_can_be_read_back():
    ledger = Ledger()
    ledger.record("up", payload(torch.zeros(2), torch.zeros(1)))
    ledger.record("down", payload(torch.zeros(3)))
    rows = ledger.rows()
    assert rows == [
        {"direction": "down", "part": "adapter", "clients": 1, "parameters": 3, "bytes": 12},
        {"direction": "up", "part": "adapter", "clients": 1, "parameters": 2, "bytes": 8},
        {"direction": "up", "part": "head", "clients": 1, "parameters": 1, "bytes": 4},
    ]
    assert Ledger.of(rows).entries == ledger.entries
    as_csv_has_them = [{key: str(value) for key, value in row.items()} for row in rows]
    assert Ledger.of(as_csv_has_them).entries == ledger.entries
