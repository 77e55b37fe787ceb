"""`pyro-arbuf predict`, run in this process on tiny networks."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from pyro_arbuf import ArBufferJoint, cli, load, random_orders, save
from pyro_arbuf.cli.prediction_task import values_at
from pyro_arbuf.cli.predictions import _digits
from pyro_arbuf.random_state import seeded

YEARS = "year,temp,rain,test\n1980,14.1,3,0\n1981,14.5,1,1\n1982,14.2,0,0\n1983,,2,0\n1984,14.9,4,1\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., list[str]]:
    """Runs `pyro-arbuf predict net data.csv` with arguments; returns what it printed, by lines."""
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text(YEARS)
    save(tiny.tiny_model(prior="gp-1d", x_range=(-2.0, 2.0)), "net")

    def call(*arguments: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["pyro-arbuf", "predict", "net", "data.csv", *arguments])
        capsys.readouterr()
        cli.main()
        return capsys.readouterr().out.splitlines()

    return call


ONE = ["--x", "year", "--y", "temp"]


def joint_of(held: list[int], at: list[float]) -> tuple[ArBufferJoint, np.ndarray]:
    """The joint of years, and what is known of those of the file, in Python."""
    years, temp = np.arange(1980.0, 1985.0), np.array([14.1, 14.5, 14.2, np.nan, 14.9])
    new = np.isnan(temp) | np.isin(years, held)
    x_new = np.concatenate([years[new], at])[:, None]
    net = load("net").in_units(x=[years[~new, None], x_new], y=temp[~new])
    context = net.condition(years[~new, None], temp[~new])
    orders = random_orders(len(x_new), 16) if len(x_new) > 1 else None
    return ArBufferJoint(context, x_new, orders), temp[new]


def test_empty_cells_and_values_are_predicted_as_in_python(run: Callable[..., list[str]]) -> None:
    head, *rows = run(*ONE, "--at", "1985:1986", "1990", "--draws", "50", "--seed", "3", "--interval", "0.8")
    assert head.split() == ["year", "mean", "sd", "10%", "90%"]
    joint, _ = joint_of([], [1985.0, 1986.0, 1990.0])
    with seeded(3):
        draws = joint.sample((50,)).double().numpy()
    low, high = np.quantile(draws, [0.1, 0.9], axis=0)
    expected = np.stack([[1983, 1985, 1986, 1990], draws.mean(0), draws.std(0, ddof=1), low, high], -1)
    np.testing.assert_allclose([[float(cell) for cell in row.split()] for row in rows], expected, rtol=1e-3)


@pytest.mark.parametrize(("held_out", "years"), [("2", [1982, 1984]), ("test", [1981, 1984])])
def test_held_out_rows_are_scored_jointly(held_out: str, years: list[int], run: Callable[..., list[str]]) -> None:
    *table, _, line = run(*ONE, "--held-out", held_out)
    assert [row.split()[0] for row in table[1:]] == [str(year) for year in sorted([*years, 1983])]
    joint, temp = joint_of(years, [])
    held = np.array([year != 1983 for year in sorted([*years, 1983])])
    scored = ArBufferJoint(joint.context, joint.x[held], random_orders(2, 16))
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", line)]
    together, alone = (d.log_prob(temp[held]).item() for d in (scored, scored.marginals()))
    assert numbers == pytest.approx([together, alone, abs(together - alone)], abs=2e-3)
    assert line.startswith("held out, 2 rows: joint log density") and ("higher" in line) == (together >= alone)


def test_draws_are_the_same_in_csv_and_netcdf(run: Callable[..., list[str]]) -> None:
    for name in ("draws.csv", "draws.nc"):
        run(*ONE, "--at", "1985", "--draws", "6", "--output", name)
    with open("draws.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["draw", "target", "year", "temp"] and len(rows) == 12
    assert [row["year"] for row in rows[:3]] == ["1983", "1985", "1983"]
    written = np.array([float(row["temp"]) for row in rows]).reshape(6, 2)
    with xr.open_datatree("draws.nc", engine="h5netcdf") as tree:
        np.testing.assert_allclose(tree["predictions"]["y"].values[0], written, rtol=1e-6)
        assert tree["predictions"]["target"].values.tolist() == [1983, 1985]
        assert tree["constant_data"]["input"].values.tolist() == ["year"]


def test_joint_is_drawn_from_once(run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, sample = [], ArBufferJoint.sample
    monkeypatch.setattr(ArBufferJoint, "sample", lambda self, *args: drawn.append(args) or sample(self, *args))
    run(*ONE, "--draws", "3", "--output", "draws.nc")
    assert len(drawn) == 1


def test_dates_are_inputs(run: Callable[..., list[str]], capsys: pytest.CaptureFixture) -> None:
    Path("data.csv").write_text("day,y\n2021-01-01,1.0\n2021-01-08,2.0\n2021-01-15,\n2021-01-22,1.5\n")
    _, *rows = run("--x", "day", "--y", "y", "--at", "2021-01-29:2021-02-10:7,2021-03-01", "--plot", "out.png")
    assert [row.split()[0] for row in rows] == ["2021-01-15", "2021-01-29", "2021-02-05", "2021-03-01"]
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_are_kept_in_the_network_s_units_where_asked(run: Callable[..., list[str]]) -> None:
    Path("data.csv").write_text("x,y\n-1,0.5\n1,0.5\n0,\n")
    _, row = run("--x", "x", "--y", "y", "--units", "keep", "--seed", "1")
    joint = ArBufferJoint(
        load("net").condition(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.5])), torch.zeros(1, 1)
    )
    with seeded(1):
        assert float(row.split()[1]) == pytest.approx(joint.sample((200,)).mean().item(), rel=1e-3)


def test_categories_have_shares_and_counts_are_integers(run: Callable[..., list[str]]) -> None:
    save(tiny.tiny_model(dim_y=2, outcomes=("categorical(3)", "count"), chained=True, prior="own"), "net")
    Path("data.csv").write_text("x,choice,number\n0.1,2,7\n0.2,0,1\n0.3,,\n")
    head, row = run("--x", "x", "--y", "choice", "number", "--draws", "40", "--output", "d.csv")
    assert "P(choice = 0)" in head and "number mean" in head
    shares = [float(cell) for cell in row.split()[1:4]]
    assert sum(shares) == pytest.approx(1.0, abs=2e-3)
    with open("d.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["choice"] for row in rows} <= {"0", "1", "2"} and all(row["number"].isdigit() for row in rows)
    assert np.mean([row["choice"] == "1" for row in rows]) == pytest.approx(shares[1], abs=1e-3)


def test_network_of_tables_takes_several_columns_with_missing_cells(run: Callable[..., list[str]]) -> None:
    save(tiny.tiny_model(inputs="rows", dim_x=3, column_width=8, prior="tabular"), "net")
    Path("data.csv").write_text("size,built,price\n50,1990-01-01,300\n80,,420\n70,2001-05-01,390\n60,1970-01-01,\n")
    head, row = run("--x", "size", "built", "--y", "price")
    assert head.split()[:3] == ["size", "built", "mean"] and row.split()[:2] == ["60", "1970-01-01"]
    with pytest.raises(SystemExit, match="--at is for one --x column; got 2; add rows to the file whose price is left"):
        run("--x", "size", "built", "--y", "price", "--at", "3")
    with pytest.raises(SystemExit, match="--plot needs one --x column"):
        run("--x", "size", "built", "--y", "price", "--plot", "out.png")


MISTAKES = {
    "no_column": (
        ["--x", "yr", "--y", "temp"],
        "data.csv has no column 'yr'; its columns are: 'year', 'temp', 'rain', 'test'",
    ),
    "input_missing": (
        ["--x", "temp", "--y", "rain"],
        "column 'temp' of data.csv must have a value in every row; line 5",
    ),
    "too_many": (["--x", "year", "rain", "--y", "temp"], "--x must name 1 columns for this network; got 2: year, rain"),
    "twice": (["--x", "year", "--y", "year"], "got 'year' twice"),
    "nothing": (["--x", "year", "--y", "rain"], "data.csv leaves nothing to predict, as every row has its rain"),
    "at": ([*ONE, "--at", "1985:x"], "--at must hold numbers, or rising ranges of at most 500 values.*; got '1985:x'"),
    "long": ([*ONE, "--at", "1:400", "401:900"], "at most 500 targets are predicted jointly; got 901"),
    "held_out": ([*ONE, "--held-out", "9"], "--held-out must be from 1 to the 4 observed rows; got 9"),
    "held_out_column": ([*ONE, "--held-out", "rain"], "column 'rain' of data.csv must say 1 or 0.*; line 2 holds '3'"),
    "suffix": ([*ONE, "--output", "d.xlsx"], r"--output must be a file that ends on \.csv, \.nc; got d\.xlsx"),
    "own_data": ([*ONE, "--output", "./data.csv"], r"--output must not be the file of the data, which would be lost"),
    "superscript": ([*ONE, "--held-out", "²"], r"data\.csv has no column '²'"),
    "underscore": ([*ONE, "--at", "1_985"], "--at must hold numbers, or rising ranges .*; got '1_985'"),
    "folder": ([*ONE, "--output", "no/d.csv"], r"--output must be in a folder that exists; got no/d\.csv; make the"),
    "plot_folder": ([*ONE, "--plot", "no/p.png"], r"--plot must be in a folder that exists; got no/p\.png"),
    "draws": ([*ONE, "--draws", "1"], "--draws must be at least 2; got 1"),
    "interval": ([*ONE, "--interval", "90"], "--interval must be a probability between 0 and 1; got 90"),
    "one_row": ([*ONE, "--held-out", "3"], "column 'temp' must hold at least 2 different observed values"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained_before_any_compute(case: str, run: Callable[..., list[str]]) -> None:
    arguments, message = MISTAKES[case]
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["data.csv", "net"]


def test_ranges_have_both_ends() -> None:
    numbers, dates = np.zeros(1), np.zeros(1, "datetime64[us]")
    np.testing.assert_allclose(values_at(["0:0.3:0.1", "-2,5"], numbers), [0, 0.1, 0.2, 0.3, -2, 5])
    got = values_at(["2021-01-01T06:00", "2021-01-01:2021-01-02:0.5"], dates)
    assert [str(value)[:13] for value in got] == ["2021-01-01T06", "2021-01-01T00", "2021-01-01T12", "2021-01-02T00"]
    for wrong in ("3:1", "1:2:0", "1:2:3:4", "nan", "1:inf", "0:1:1e-300", "today"):
        with pytest.raises(ValueError, match="--at must hold"):
            values_at([wrong], numbers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2021-07-01:2024-07-01:1y", ["2021-07-01", "2022-07-01", "2023-07-01", "2024-07-01"]),
        ("2020-02-29:2024-12-31:2y", ["2020-02-29", "2022-02-28", "2024-02-29"]),
        ("2021-01-31:2021-04-15:1m", ["2021-01-31", "2021-02-28", "2021-03-31"]),
        ("2021-01:2021-06:3m", ["2021-01-01", "2021-04-01"]),
        ("2021-01-01:2021-01-15:7d", ["2021-01-01", "2021-01-08", "2021-01-15"]),
        ("2021-01-01T06:00:2021-01-03T06:00", ["2021-01-01T06", "2021-01-02T06", "2021-01-03T06"]),
        ("2021-01-01 00:00:2021-01-01 12:00:6h", ["2021-01-01", "2021-01-01T06", "2021-01-01T12"]),
        ("2021-01-01T00:00:00:2021-01-29T00:00:00:14", ["2021-01-01", "2021-01-15", "2021-01-29"]),
        ("2021-01-01T06:00:2021-01-15T06:00:14", ["2021-01-01T06", "2021-01-15T06"]),
        ("2021-01-01T06:30:2021-03-01T06:30:1m", ["2021-01-01T06:30", "2021-02-01T06:30", "2021-03-01T06:30"]),
    ],
)
def test_ranges_of_dates_have_steps_of_the_calendar_and_ends_with_times(text: str, expected: list[str]) -> None:
    np.testing.assert_array_equal(
        values_at([text], np.zeros(1, "datetime64[us]")), np.array(expected, "datetime64[us]")
    )


@pytest.mark.parametrize(
    "text",
    [
        "2021:2025",
        "2021-01-31:2021-01-01:1m",
        "2021-01-01:2022-01-01:1.5m",
        "2021-01-01:2022-01-01:0y",
        "2021-01-01:2021-01-02T06:00",
        "x",
    ],
)
def test_ranges_of_dates_that_cannot_be_read_are_explained(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"--at must hold dates, or rising ranges .*2021-07-01:2025-07-01:1y, ends of one form"
    ):
        values_at([text], np.zeros(1, "datetime64[us]"))


def test_inputs_are_written_so_that_they_differ(run: Callable[..., list[str]]) -> None:
    numbers = [1_700_000_000_000 + 100 * i for i in range(9)]
    dates = [f"2020-01-01T00:00:{i // 4:02d}.{25 * (i % 4):02d}" for i in range(9)]
    for inputs, shown in ((numbers, "{}"), (dates, "{}0"), ([0.1 * i for i in range(9)], "{:.15g}")):
        rows = "".join(f"{x},{i if i < 6 else ''}\n" for i, x in enumerate(inputs))
        Path("data.csv").write_text(f"at,y\n{rows}")
        printed = run("--x", "at", "--y", "y", "--draws", "5", "--output", "out.csv")
        expected = [shown.format(x) for x in inputs[6:]]
        with open("out.csv", newline="") as file:
            assert [row["at"] for row in csv.DictReader(file)][:3] == expected
        assert [row.split()[0] for row in printed[1:4]] == expected


def test_summary_has_the_digits_of_its_standard_deviations(run: Callable[..., list[str]]) -> None:
    rows = "".join(f"{i},{101325 + 2 * (i % 3) if i < 6 else ''}\n" for i in range(9))
    Path("data.csv").write_text(f"at,y\n{rows}")
    printed = [[float(cell) for cell in row.split()] for row in run("--x", "at", "--y", "y", "--draws", "50")[1:4]]
    for _, mean, sd, low, high in printed:
        assert 101_300 < low < mean < high < 101_350 and 0.5 < (high - low) / (3.3 * sd) < 2


def test_indicators_as_pandas_writes_them_are_numbers(run: Callable[..., list[str]]) -> None:
    Path("data.csv").write_text("at,y\n0,1\n1,2\n2,1.5\n3,\n")
    plain = run("--x", "at", "--y", "y", "--draws", "5")
    Path("data.csv").write_text("at,y\nFalse,1\nTRUE,2\n2,1.5\n3,\n")
    assert run("--x", " at ", "--y", "y ", "--draws", "5") == plain
    assert len(run("--x", " at ", "--y", "y", "--draws", "5", "--at", "5")) == len(plain) + 1
    with pytest.raises(SystemExit, match="must name each column once"):
        run("--x", "at", "--y", "at ")


def test_columns_with_the_names_of_ours_are_kept_apart(run: Callable[..., list[str]]) -> None:
    Path("data.csv").write_text("mean,target\n0,1\n1,2\n2,1.5\n3,\n")
    head, row = run("--x", "mean", "--y", "target", "--draws", "5", "--output", "out.csv")
    assert head.split()[:3] == ["mean", "target", "mean"] and row.split()[0] == "3"
    with open("out.csv", newline="") as file:
        assert next(csv.reader(file)) == ["draw", "target_number", "mean", "target"]
    Path("data.csv").write_text("draw_number,draw\n0,1\n1,2\n2,1.5\n3,\n")
    run("--x", "draw_number", "--y", "draw", "--draws", "5", "--output", "out.csv")
    with open("out.csv", newline="") as file:
        assert next(csv.reader(file)) == ["draw_number_number", "target", "draw_number", "draw"]


@pytest.mark.parametrize(("interval", "ends"), [("0.001", ["49.95%", "50.05%"]), ("0.999", ["0.05%", "99.95%"])])
def test_ends_of_intervals_are_told_apart(interval: str, ends: list[str], run: Callable[..., list[str]]) -> None:
    head, _ = run(*ONE, "--draws", "5", "--interval", interval, "--plot", "out.png")
    assert head.split()[-2:] == ends


def test_a_target_without_spread_leaves_the_digits_of_the_others() -> None:
    assert _digits(np.array([[0.0, 1.0], [0.0, 4.0]])) == _digits(np.zeros((2, 1))) == 5
    assert _digits(np.array([[1e6], [1e6 + 0.1]])) == 11 and _digits(np.array([[np.nan], [np.inf]])) == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("at,y\n2020-01-01T00:00:00+02:00,1\n2020-01-02,2\n", "write dates without their time zone"),
        ("at,y\n1,no\n2,yes\n", "code categories of an outcome as 0, 1, ..."),
        ("my at,y\n1,2\n2,3\n", "its columns are: 'my at', 'y'"),
    ],
)
def test_cells_and_names_are_explained(data: str, message: str, run: Callable[..., list[str]]) -> None:
    Path("data.csv").write_text(data)
    with pytest.raises(SystemExit, match=re.escape(message)):
        run("--x", "at", "--y", "y")
