import numpy as np
import pytest

from fedgram.comparison.selection import embolden, leading, select
from fedgram.comparison.tables import Cell, Column, Table
from fedgram.errors import ConfigurationError

NAN = float("nan")


def table_of(*rows):
    """Return a table of a name, an accuracy and seconds in each row."""
    columns = (
        Column("method", words=True, keys=("method",)),
        Column("accuracy", keys=("accuracy", "metric"), best="highest"),
        Column("seconds", rank=7, keys=("seconds",), best="lowest"),
        Column("p", keys=("p",)),
    )
    cells = (
        (
            Cell(name, value=name),
            Cell(f"{accuracy:.2f} ± 0.10", value=accuracy, shown=f"{accuracy:.2f}"),
            Cell(f"{seconds:.1f}", value=seconds),
            Cell("0.5", value=0.5),
        )
        for name, accuracy, seconds in rows
    )
    return Table("t", columns, tuple(cells))


TABLE = table_of(("b", 0.7, 3.0), ("a", 0.9, 2.0), ("c", NAN, 1.0))


def names(table):
    return "".join(row[0].text for row in table.rows)


def bold(table):
    return [(row[0].text, index) for row in table.rows for index, cell in enumerate(row) if cell.bold]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("accuracy", "bac"),
        ("-accuracy", "abc"),
        ("metric", "bac"),
        ("seconds", "cab"),
        ("-method", "cba"),
        ("p", "bac"),
    ],
)
def test_rows_are_sorted_by_a_column_the_unknown_last_either_way(sort, order):
    (table,) = select([TABLE], sort=sort)
    assert names(table) == order


def test_columns_are_those_asked_for_in_their_order_and_none_is_left_out_where_it_is_narrow():
    (table,) = select([TABLE], columns="seconds, method", sort="-seconds")
    assert [column.header for column in table.columns] == ["seconds", "method"]
    assert [[cell.text for cell in row] for row in table.rows] == [["3.0", "b"], ["2.0", "a"], ["1.0", "c"]]
    assert table.left_out(1) == []


def test_a_table_without_a_column_that_another_has_does_without():
    other = Table("u", TABLE.columns[:1], tuple(row[:1] for row in TABLE.rows))
    first, second = select([TABLE, other], columns="method,p", sort="accuracy")
    assert [len(first.columns), len(second.columns)] == [2, 1]
    assert names(second) == "bac"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"columns": "method,secnods"}, "--columns 'secnods': there is no such column; did you mean seconds? There"),
        ({"columns": "method,,p"}, "--columns '': there is no such column. There"),
        ({"sort": "-acuracy"}, "--sort 'acuracy': there is no such column; did you mean accuracy? There"),
        ({"sort": "--p"}, "--sort '-p': there is no such column; did you mean p? There"),
        ({"sort": "xyzzy"}, "--sort 'xyzzy': there is no such column. There"),
    ],
)
def test_an_unknown_column_is_refused_with_the_nearest_and_all_there_are(asked, message):
    with pytest.raises(ConfigurationError) as error:
        select([TABLE], **asked)
    assert str(error.value) == f"{message} are method, accuracy, seconds, p"


def test_the_best_of_each_column_that_has_one_is_bold():
    assert bold(embolden(TABLE, [True] * 3)) == [("a", 1), ("c", 2)]


def test_what_is_shown_alike_is_equally_good_and_of_rows_all_alike_none_is_the_best():
    table = table_of(("a", 0.7001, 2.04), ("b", 0.7002, 1.96), ("c", 0.69, 2.0))
    assert bold(embolden(table, [True] * 3)) == [("a", 1), ("b", 1)]


def test_rows_out_of_the_race_are_not_the_best_even_if_they_are_ahead():
    assert bold(embolden(TABLE, [True, False, True])) == [("c", 2)]


def test_one_row_alone_is_not_the_best():
    assert bold(embolden(table_of(("a", 0.5, 1.0)), [True])) == []
    assert leading([NAN, 0.5], ["-", "0.50"], lowest=False) == leading([], [], lowest=True) == frozenset()
    assert leading([0.5, 0.4, np.nan], ["0.50", "0.40", "-"], lowest=True) == {1}
