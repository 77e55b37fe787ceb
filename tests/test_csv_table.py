"""CSV files as columns of numbers or dates."""

from pathlib import Path

import numpy as np
import pytest

from pyro_arbuf.cli.csv_table import CsvTable, read_csv


@pytest.fixture
def table(tmp_path: Path):
    def make(text: str, encoding: str = "utf-8") -> CsvTable:
        path = tmp_path / "data.csv"
        path.write_text(text, encoding=encoding)
        return read_csv(path)

    return make


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_numbers_and_missing_cells_are_read(separator: str, table) -> None:
    lines = ["year,temp, rain ", "1980,1.5,NA", "", "1981, ,-2e3", "1982,nan,0"]
    read = table("\n".join(lines).replace(",", separator), "utf-8-sig")
    assert read.names == ("year", "temp", "rain") and read.lines == [2, 4, 5]
    columns = read.columns(["rain", "temp"])
    assert columns.columns == ["rain", "temp"] and len(columns) == 3
    np.testing.assert_array_equal(columns["rain"], [np.nan, -2000, 0])
    np.testing.assert_array_equal(columns["temp"], [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(columns.missing, [[True, False], [False, True], [False, True]])


@pytest.mark.parametrize("header", ["\nx;y", 'x;"y, in C"', "x;y, in C"])
def test_delimiter_is_told_from_other_marks_in_names(header: str, table) -> None:
    assert len(table(f"{header}\n0;1\n1;2\n").names) == 2


def test_dates_are_read_with_their_times(table) -> None:
    day = table("day,y\n2021-01-31,1\n,2\n2021-02-01 12:30,3\n2021-03,4\n").columns(["day"])["day"]
    expected = np.array(["2021-01-31", "NaT", "2021-02-01T12:30", "2021-03-01"], "datetime64[us]")
    np.testing.assert_array_equal(day, expected)


def test_rows_are_selected_and_joined(table) -> None:
    columns = table("a,b\n1,2\n3,4\n5,6\n").columns(["a", "b"])
    joined = columns.rows(np.array([True, False, True])).followed_by(columns.rows(np.array([1])))
    np.testing.assert_array_equal(joined.to_numpy().astype(float), [[1, 2], [5, 6], [3, 4]])


def test_quoted_cells_of_several_lines_are_counted_as_an_editor_does(table) -> None:
    with pytest.raises(ValueError, match=r"column 'y' of .*data\.csv must hold numbers.*; line 4 holds 'x'"):
        table('note,y\n"two\nlines",1\nnone,x\n').columns(["y"])


MISTAKES = {
    "word": (
        "a,b\n1,2\n3,four\n",
        r"column 'b' of .* must hold numbers, or dates.*; line 3 holds 'four'; leave the",
    ),
    "text": ("a,b\n1,oak\n3,\n4,elm\n", "column 'b' .* line 2 holds 'oak'; code categories of an outcome as 0, 1"),
    "day_first": ("a,b\n1,31.12.2021\n", r"column 'b' .* line 2 holds '31\.12\.2021'; write the year first"),
    "slashes": ("a,b\n1,2021/12/31\n", "column 'b' .* line 2 holds '2021/12/31'; write the year first"),
    "thousands": ("a;b\n1;2\n3;-1,234,500.5\n", r"holds '-1,234,500\.5'; write -1234500\.5 if commas stand between"),
    "comma": ("a;b\n1;2\n3;4,5\n", r"column 'b' .* line 3 holds '4,5'; write 3\.5 for 3,5"),
    "underscores": ("a,b\n1,2020_01\n2,2020_02\n", "column 'b' .* line 2 holds '2020_01'; write the year first"),
    "underscore": ("a,b\n1,1_000\n", "column 'b' .* line 2 holds '1_000'; leave the cell"),
    "nanoseconds": (
        "a,b\n1,2020-01-01T00:00:00.123456789\n",
        "column 'b' .* line 2 holds '2020.*'; write seconds with at most six decimals",
    ),
    "number_among_dates": (
        "a,b\n1,2021-01-31\n3,4\n",
        r"column 'b' of .* must hold dates like 2021-12-31; line 3 holds '4'",
    ),
    "date_among_numbers": ("a,b\n1,4\n3,2021-01-31\n", "column 'b' .* line 3 holds a date, where the rows before hold"),
    "no_such_day": ("a,b\n1,2021-02-30\n", "column 'b' .* line 2 holds '2021-02-30'"),
    "infinite": ("a,b\n1,inf\n", "column 'b' .* must hold finite numbers; line 2 holds 'inf'"),
    "no_column": ("a,c\n1,2\n", r"data\.csv has no column 'b'; its columns are: 'a', 'c'"),
    "cells": ("a,b\n1,2\n3\n", "line 3 of .* must have 2 cells, as its header has; got 1"),
    "twice": ("b,b\n1,2\n", "must name each column once; got 'b' more than once in line 1"),
    "no_rows": ("a,b\n", "must hold a line with the names of its columns, and rows; got 1 lines"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_column_and_the_line(case: str, table) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        table(text).columns(["b"])


def test_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a,b\n\xff\xfe,1\n")
    for name in ("nowhere.csv", "binary"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a CSV file in UTF-8"):
            read_csv(tmp_path / name)
