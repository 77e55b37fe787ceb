"""Arrays, tables and dates give what the tensor of the same numbers gives, wherever inputs and outcomes are taken."""

import datetime
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from samples import draw
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.inference.data import read_table
from pyro_arbuf.inference.dates import as_dates
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.consistency import subset_gap
from pyro_arbuf.programs.evidence import log_evidence
from pyro_arbuf.workflow.datatree import to_datatree
from pyro_arbuf.workflow.loo import exact_loo

N, M = 5, 6
X, Y, X_NEW, Y_NEW = draw(N, 2), draw(N, seed=1), draw(M, 2, seed=2), draw(M, seed=3)


def frame(x: Tensor) -> pd.DataFrame:
    return pd.DataFrame(x.numpy(), columns=["a", "b"], index=range(7, 7 + len(x)))


KINDS = {  # how inputs and outcomes come
    "numpy": (lambda x: x.numpy(), lambda y: y.numpy()),
    "pandas": (frame, lambda y: pd.Series(y.numpy(), index=range(7, 7 + len(y)))),
    "nullable": (lambda x: frame(x).astype("Float64"), lambda y: pd.Series(y.numpy()).astype("Float64")),
    "xarray": (lambda x: xr.DataArray(x.numpy(), dims=("t", "column")), lambda y: xr.DataArray(y.numpy(), dims="t")),
    "reversed_view": (lambda x: x.flip(0).numpy()[::-1], lambda y: y.flip(0).numpy()[::-1]),
}


@pytest.mark.filterwarnings("ignore:.*rests on few")
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_tables_are_the_tensors_of_their_numbers(kind: str, scalar_model: ArBufferModel) -> None:
    as_x, as_y = KINDS[kind]
    net = scalar_model.in_units(x_loc=(1.0, 2.0), y_scale=3.0)
    assert net.in_units(y=as_y(Y)).config == net.in_units(y=Y).config
    context, own = net.condition(X, Y), net.condition(as_x(X), as_y(Y))
    assert_close((own.x, own.y), (context.x, context.y), rtol=0, atol=0)
    ragged = net.condition([as_x(X), as_x(X[:2])], [as_y(Y), as_y(Y[:2])])
    assert ragged.batch_shape == (2,) and torch.equal(ragged.x[0], context.x[0])
    tensor, table = ArBufferJoint(context, X_NEW), ArBufferJoint(own, as_x(X_NEW))
    assert torch.equal(table.x, tensor.x)
    y = as_y(Y_NEW)
    for query in ("log_prob", "log_prob_factors", "log_prob_conditionals", "pit"):
        assert_close(getattr(table, query)(y), getattr(tensor, query)(Y_NEW), rtol=0, atol=0)
    assert_close(
        table.condition([1, 2], as_y(Y_NEW[:2])).log_prob(Y_NEW[:4]),
        tensor.condition([1, 2], Y_NEW[:2]).log_prob(Y_NEW[:4]),
    )
    for query in ("log_prob", "cdf"):
        ours, theirs = ArBufferMarginals(own, as_x(X_NEW)), ArBufferMarginals(context, X_NEW)
        assert_close(getattr(ours, query)(y), getattr(theirs, query)(Y_NEW), rtol=0, atol=0)
    xr.testing.assert_equal(exact_loo(net, as_x(X), as_y(Y)), exact_loo(net, X, Y))
    assert log_evidence(net, as_x(X), as_y(Y), 3) == log_evidence(net, X, Y, 3)
    assert subset_gap(net, as_x(X), as_y(Y), 2) == subset_gap(net, X, Y, 2)
    tree = to_datatree(table, observed=y, num_samples=2, seed=0)
    np.testing.assert_array_equal(tree["observed_data"]["y"].values, Y_NEW.numpy())


def test_integers_and_booleans_are_numbers(scalar_model: ArBufferModel) -> None:
    table = pd.DataFrame({"a": np.arange(N), "b": np.arange(N) > 2})
    context = scalar_model.condition(table, np.arange(N, dtype=np.int8))
    assert_close(context.x[0, :, 1], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    assert context.x.dtype == torch.float64 and context.y[0, 4, 0] == 4


def test_float32_network_takes_tables(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model().float()
    context = net.condition(frame(X), Y.numpy())
    d = ArBufferJoint(context, frame(X_NEW))
    assert context.x.dtype == d.sample().dtype == torch.float32


def test_sites_come_as_columns_in_any_order(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(dim_y=2, outcomes=("categorical(3)", "real"), outcome=("choice", "rt"), chained=True)
    choice, rt = torch.tensor([0, 2, 1, 1, 0]), Y
    expected = net.condition(X, {"choice": choice, "rt": rt})
    table = pd.DataFrame({"rt": rt.numpy(), "choice": choice.numpy()})
    for y in ({"rt": table["rt"], "choice": table["choice"]}, table, table[["choice", "rt"]]):
        assert torch.equal(net.condition(X, y).y, expected.y)


DATES = pd.date_range("2020-02-28 06:00", periods=N, freq="36h")
ZONED = DATES.tz_localize("UTC").tz_convert("Asia/Tokyo")


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_dates_are_days_and_come_back_as_dates(zone: str | None, build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(dim_x=1, x_range=(-2.0, 2.0))
    days = torch.tensor((DATES - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1), dtype=torch.float64)
    dates = pd.DataFrame({"day": ZONED if zone else DATES})
    units = net.in_units(x=dates)
    assert units.config.user_dates == (True,) and units.config.user_x_loc == net.in_units(x=days).config.user_x_loc
    context = units.condition(dates, Y)
    assert_close(context.x, torch.linspace(-2, 2, N, dtype=torch.float64)[None, :, None], rtol=0, atol=1e-9)
    assert torch.equal(units.condition(days[:, None], Y).x, context.x)
    values = DATES.to_numpy()[:, None]
    joint = ArBufferJoint(context, values)
    assert torch.equal(joint.x, days[:, None])
    constant = to_datatree(joint, num_samples=2)["constant_data"]
    np.testing.assert_array_equal(constant["x"].values, values)
    assert constant["x_context"].dtype.kind == "M"
    stated = net.in_units(x_range=(DATES[0], DATES[-1].to_pydatetime()))
    assert stated.config == units.config


def test_dates_and_durations_are_stated_by_what_python_has(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(dim_x=1)
    for loc, scale in (
        (datetime.date(1970, 1, 3), datetime.timedelta(hours=12)),
        (np.datetime64("1970-01-03"), np.timedelta64(12, "h")),
        (datetime.datetime(1970, 1, 3, 9, tzinfo=datetime.timezone(datetime.timedelta(hours=9))), 0.5),
    ):
        config = net.in_units(x_loc=loc, x_scale=scale).config
        assert (config.user_x_loc, config.user_x_scale, config.user_dates) == ((2.0,), (0.5,), (True,))


def test_a_table_may_hold_a_date_beside_a_number(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(x_range=(-2.0, 2.0))
    table = pd.DataFrame({"day": DATES, "depth": np.arange(N) * 0.1})
    units = net.in_units(x=[table, table[:3]])
    assert units.config.user_dates == (True, False)
    swapped = table[["depth", "day"]]
    with pytest.raises(ValueError, match=r"x must hold numbers, as the network's units are not of dates.*in_units"):
        units.condition(swapped, Y)
    joint = ArBufferJoint(units.condition(table, Y), table)
    assert to_datatree(joint, num_samples=2)["constant_data"]["x"].dtype.kind == "f"


def test_numbers_where_dates_are_spoken_are_refused_but_days_in_tensors_are_not(
    build_model: Callable[..., ArBufferModel],
) -> None:
    net = build_model(dim_x=1, x_range=(-2.0, 2.0)).in_units(
        x_range=(pd.Timestamp("1980-01-01"), pd.Timestamp("2030-01-01"))
    )
    with pytest.raises(ValueError, match="x must hold dates, as the network's units do; got numbers"):
        net.condition(np.array([[1990], [1995]]), np.array([0.1, 0.2]))
    days = torch.tensor([[7305.0]], dtype=torch.float64)
    stamps = pd.DataFrame({"day": pd.to_datetime(["1990-01-01"])})
    pairs = [net.condition(x, np.array([0.1])).x for x in (days, stamps)]
    torch.testing.assert_close(*pairs)


SQUARE = np.array([[1.0, 2.0], [3.0, 4.0]])


def test_a_dimension_or_a_row_called_columns_makes_no_table(scalar_model: ArBufferModel) -> None:
    array = xr.DataArray(SQUARE, dims=("rows", "columns"), coords={"columns": ["a", "b"]})
    read = read_table("x", array)
    np.testing.assert_array_equal(read.numbers, SQUARE)
    assert read.labels == ("a", "b") and torch.equal(
        scalar_model.condition(array, SQUARE[0]).x[0], torch.tensor(SQUARE)
    )
    series = pd.Series(SQUARE[0], index=["rows", "columns"])
    np.testing.assert_array_equal(read_table("y", series).numbers, SQUARE[0])


def test_masked_numbers_and_dates_are_missing(scalar_model: ArBufferModel) -> None:
    for values in (np.array([1.0, 1e20, 3.0]), np.array([1, 2, 3])):
        masked = np.ma.array(values, mask=[0, 1, 0])
        np.testing.assert_array_equal(read_table("y", masked).numbers, [1.0, np.nan, 3.0])
    dates = np.ma.array(np.array(["1970-01-02", "2020-01-02"], dtype="datetime64[D]"), mask=[0, 1])
    np.testing.assert_array_equal(read_table("x", dates).numbers, [1.0, np.nan])
    context = scalar_model.condition(X[:3], np.ma.array([1.0, 1e20, 3.0], mask=[0, 1, 0]), nan="drop")
    assert context.num_context == 2


@pytest.mark.parametrize("utc", [True, False])
def test_dates_beyond_nanoseconds_come_back(utc: bool, build_model: Callable[..., ArBufferModel]) -> None:
    stamps = np.array(["1500-01-01", "1600-01-01", "2500-06-01"], dtype="datetime64[us]")
    table = pd.DataFrame({"day": pd.to_datetime(pd.Series(stamps), utc=utc)})
    numbers = read_table("x", table).numbers[:, 0]
    np.testing.assert_array_equal(numbers, stamps.astype("datetime64[D]").astype(float))
    np.testing.assert_array_equal(as_dates(numbers), stamps)
    net = build_model(dim_x=1, x_range=(-2.0, 2.0)).in_units(x=table)
    tree = to_datatree(ArBufferJoint(net.condition(table, Y[:3]), table), num_samples=2)
    np.testing.assert_array_equal(tree["constant_data"]["x"].values[:, 0], stamps)


def test_units_of_a_table_go_by_the_names_of_its_columns(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(dim_y=2, outcome=("rt", "confidence"))
    table = pd.DataFrame({"confidence": 100 + Y.numpy(), "rt": 2 * Y.numpy() + 1})
    by_site = {name: table[name] for name in table}
    assert net.in_units(y=table).config == net.in_units(y=by_site).config
    assert net.in_units(y=[table, table[["rt", "confidence"]]]).config.user_y_loc[1] > 90


def test_a_list_of_dates_and_numbers_has_no_units(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(dim_x=1, x_range=(-2.0, 2.0))
    dates, days = pd.DataFrame({"day": DATES}), torch.tensor([[18000.0], [20000.0]])
    with pytest.raises(ValueError, match=r"x\[1\]\[..., 0\] must hold dates, as a table before it does; got numbers"):
        net.in_units(x=[dates, pd.DataFrame({"day": [2020.0, 2021.0]})])
    assert net.in_units(x=[days, dates, days]).config.user_dates == (True,)


def test_units_are_stated_by_a_series_too(scalar_model: ArBufferModel) -> None:
    means = frame(X).mean()
    assert scalar_model.in_units(x_loc=means).config == scalar_model.in_units(x_loc=tuple(means)).config


def test_missing_dates_and_numbers_are_missing() -> None:
    table = pd.DataFrame({"day": [DATES[0], pd.NaT], "count": pd.array([1, None], dtype="Int64")})
    numbers = read_table("x", table).numbers
    assert np.isnan(numbers[1]).all() and not np.isnan(numbers[0]).any()
    assert np.isnat(as_dates(numbers[:, 0])[1]) and as_dates(numbers[:, 0])[0] == np.datetime64(DATES[0])


REFUSED = {
    "dates_without_units": (
        lambda n: n.condition(pd.DataFrame({"day": DATES}), Y),
        "the network's units are not of dates",
    ),
    "series_as_x": (lambda n: n.condition(pd.Series(Y.numpy()), Y), r"got \(5,\).*use x.to_frame\(\)"),
    "array_as_x": (lambda n: n.condition(Y.numpy(), Y), r"use x\[:, None\]"),
    "too_many_columns": (
        lambda n: n.condition(frame(X), Y),
        r"the columns \['a', 'b'\]: choose 1 of them by x\[\[...\]\]",
    ),
    "words": (
        lambda n: n.condition(pd.DataFrame({"who": ["a"] * N}), Y),
        "column 'who' of x must hold numbers or dates",
    ),
    "categories": (lambda n: n.condition(X[:, :1], pd.Series(["a"] * N).astype("category")), "code categories as 0, 1"),
    "table_as_y": (lambda n: n.condition(X[:, :1], frame(X)), r"y must be one column.*table\['a'\]"),
    "table_in_a_list": (
        lambda n: n.condition([X[:, :1]], [frame(X)[["a"]]]),
        r"y\[0\] must be one column.*table\['a'\]",
    ),
    "table_for_units_of_one_outcome": (lambda n: n.in_units(y=frame(X)), r"y must be one column.*table\['a'\]"),
    "one_number_as_y": (lambda n: n.condition(X[:1, :1], np.array(2.0)), r"y must have shape \(\*batch, points\)"),
    "date_as_scale": (
        lambda n: n.in_units(x_scale=pd.Timestamp("2020-01-01")),
        "x_scale must be a number or a duration",
    ),
    "dates_as_y": (lambda n: n.condition(X[:, :1], DATES), "y must hold numbers; got dates; dates can be inputs"),
    "missing_x": (lambda n: n.condition(np.full((N, 1), np.nan), Y), "x must be finite; got 5 NaN"),
    "missing_y": (lambda n: n.condition(X[:, :1], pd.Series([1, None, 2, 3, 4], dtype="Int64")), "y must be finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_are_no_inputs_or_outcomes_are_refused(case: str, build_model: Callable[..., ArBufferModel]) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call(build_model(dim_x=1))


def test_the_users_own_array_may_change_afterwards(scalar_model: ArBufferModel) -> None:
    x, y, new = X.numpy().copy(), Y.numpy().copy(), X_NEW.numpy().copy()
    context = scalar_model.condition(x, y)
    joint = ArBufferJoint(context, new)
    expected = joint.log_prob(Y_NEW)
    for part in (x, y, new):
        part[:] = 7.0
    assert torch.equal(context.y[0, :, 0], Y) and torch.equal(joint.log_prob(Y_NEW), expected)


def test_neither_pandas_nor_xarray_is_imported() -> None:
    code = "import sys, pyro_arbuf; assert not {'pandas', 'xarray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
