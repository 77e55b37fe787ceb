"""What tables say of their columns and rows: names, kinds and indices, of contexts, targets and outcomes."""

import pickle
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, to_datatree
from pyro_arbuf.inference.chain import grow_context

CHANNELS = list("ABCDEFG")
HOURS = pd.date_range("2021-01-01", periods=24, freq="h")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tabular():
    return pyro_arbuf.load("tabular")


@pytest.fixture(scope="module")
def eeg():
    return pyro_arbuf.load("eeg")


# Rows


def test_rows_that_dropna_has_shifted_are_warned_of(tabular):
    frame = pd.DataFrame({"y": RNG.normal(size=31)})
    frame["lag"] = frame["y"].shift(1)
    frame.loc[30, "y"] = np.nan  # to be forecast
    x, y = frame[["lag"]].dropna(), frame["y"].dropna()  # as long, and one trial apart
    with pytest.warns(UserWarning, match="indices that differ: 30 is in one of them alone"):
        tabular.condition(x, y)
    with pytest.warns(UserWarning, match="indices that differ"):
        tabular.condition([x], [y])
    whole = frame.dropna()
    tabular.condition(whole[["lag"]], whole["y"])
    tabular.condition(x, y.to_numpy())


def test_new_tables_beside_rows_of_other_labels_are_taken(tabular):
    x, y = pd.DataFrame({"a": RNG.normal(size=9)}), pd.Series(RNG.normal(size=9))
    tabular.condition(x, y.set_axis(RNG.permutation(18)[:9]))  # of a split at random, beside what a scaler returned
    ArBufferJoint(tabular.condition(x, y), x[:4]).log_prob(pd.Series(np.zeros(4), index=range(3, 7)))
    tabular.condition(x, y.set_axis(HOURS[:9]))
    tabular.condition(x.set_axis(range(100, 109)), y)


def test_rows_of_xarray_are_compared_with_those_of_pandas(tabular):
    names = [f"s{i}" for i in range(9)]
    x = xr.DataArray(RNG.normal(size=(9, 2)), dims=("obs", "column"), coords={"obs": names, "column": ["a", "b"]})
    y = pd.Series(RNG.normal(size=9), index=names)
    tabular.condition(x, y)
    with pytest.raises(ValueError, match="rows in the same order"):
        tabular.condition(x, y[::-1])


# Columns


def test_columns_along_another_dimension_are_refused(tabular):
    rows = RNG.normal(size=(12, 3))
    x = xr.DataArray(rows, dims=("obs", "column"), coords={"column": list("abc")})
    context = tabular.condition(x, rows[:, 0])
    ArBufferMarginals(context, x[:3])
    with pytest.raises(ValueError, match=r"along the last dimension; .* use x.transpose\(..., 'column'\)"):
        ArBufferMarginals(context, x[:3].T)


def test_dimensions_of_an_outcome_in_another_order_are_refused(eeg):
    y = pd.DataFrame(10 * RNG.normal(size=(40, 7)).cumsum(1), columns=CHANNELS)
    x = pd.DataFrame({"t": np.arange(40) / 192})
    turned = y[CHANNELS[::-1]]
    joint = ArBufferJoint(eeg.condition(x[:30], y[:30]), x[30:])
    assert joint.log_prob(y[30:]) == joint.log_prob(y[30:].to_numpy())
    for call in (
        lambda: joint.log_prob(turned[30:]),
        lambda: eeg.condition([x[:30], x[:30]], [y[:30], turned[:30]]),
    ):
        with pytest.raises(ValueError, match=r"columns of .* in the same order, \['A', .*; got \['G'"):
            call()
    joint.log_prob(y[30:].set_axis(range(7), axis=1))  # other names say nothing
    named = xr.DataArray(y[:7], dims=("time", "channel"), coords={"channel": CHANNELS})
    seven = ArBufferJoint(eeg.condition(x[7:20], y[7:20]), x[:7])
    assert seven.log_prob(named) == seven.log_prob(y[:7].to_numpy())
    with pytest.raises(ValueError, match=r"y must have its columns along the last dimension; .* y.transpose"):
        seven.log_prob(named.T)
    names = list(eeg.config.outcome)
    for each in (y.set_axis(names, axis=1), y.set_axis(names, axis=1)[names[::-1]]):  # those of the network do
        eeg.condition(x, each)


def test_names_of_an_outcome_without_sites_are_kept():
    net = pyro_arbuf.load("rescorla-wagner")
    x = np.stack([np.arange(20), np.full(20, 0.6), np.full(20, 0.4)], 1)
    y = pd.DataFrame({"choice": RNG.integers(2, size=20), "reward": RNG.integers(2, size=20)})
    joint = ArBufferJoint(net.condition(x[:15], y[:15]), x[15:])
    joint.log_prob(y[15:])
    with pytest.raises(ValueError, match="y must have the columns of the context in the same order"):
        joint.log_prob(y[15:][["reward", "choice"]])


# Kinds


def test_dates_with_and_without_a_time_zone_are_not_mixed(tabular):
    plain = pd.DataFrame({"t": HOURS})
    aware = plain.assign(t=HOURS.tz_localize("America/New_York"))
    y = np.sin(np.arange(24) / 4)
    net = pyro_arbuf.load("gp-1d-noisy").in_units(x=aware, y=y)
    for context in (net.condition(aware, y), tabular.condition(aware, y)):
        assert len(ArBufferMarginals(context, aware[3:5]).mean) == 2
        ArBufferMarginals(context, aware["t"].dt.tz_convert(None).to_numpy()[3:5, None])  # of NumPy, in UTC
        with pytest.raises(ValueError, match=r"must hold dates with a time zone, .* got dates; give all of them"):
            ArBufferMarginals(context, plain[3:5])
    for call in (
        lambda: net.in_units(x=[aware, plain]),
        lambda: net.in_units(x=[plain.to_numpy(), aware, plain]),
        lambda: net.condition([aware, plain], [y, y]),
        lambda: tabular.condition([aware, plain], [y, y]),
    ):
        with pytest.raises(ValueError, match=r"must hold dates with a time zone, .* got dates"):
            call()


def test_durations_and_numbers_are_not_mixed(tabular):
    spans = pd.DataFrame({"d": pd.to_timedelta(np.arange(24), unit="h")})
    context = tabular.condition(spans, np.arange(24.0))
    assert len(ArBufferMarginals(context, spans[3:5]).mean) == 2
    with pytest.raises(ValueError, match=r"must hold durations, .* got numbers; .* by x / pd.Timedelta\('1D'\)"):
        ArBufferMarginals(context, pd.DataFrame({"d": [3.0, 4.0]}))
    days = tabular.condition(spans / pd.Timedelta("1D"), np.arange(24.0))
    assert torch.equal(days.x, context.x)


# Remedies that work


def test_numbers_in_other_dtypes_are_explained_by_the_call_that_helps(tabular):
    x = pd.DataFrame({"a": RNG.normal(size=3)})
    for y, remedy, mended in (
        (pd.Series([Decimal("1.5"), Decimal("2"), Decimal("3")]), "pd.to_numeric", pd.to_numeric),
        (pd.Series([1.0, None, 3.0], dtype=object), "pd.to_numeric", pd.to_numeric),
        (pd.Series([1, pd.NA, 3], dtype=object), "pd.to_numeric", pd.to_numeric),
        (pd.Series([1, 0, 1], dtype="category"), r"\.astype\(float\)", lambda y: y.astype(float)),
        (pd.Series(["yes", "no", pd.NA], dtype="string"), "code categories as 0, 1", lambda y: y.map({"yes": 1.0})),
    ):
        with pytest.raises(ValueError, match=f"y must hold numbers; got the dtype .*{remedy}"):
            tabular.condition(x, y)
        with warnings.catch_warnings():  # of a context of so few rows
            warnings.simplefilter("ignore")
            tabular.condition(x, mended(y), nan="drop")
    with pytest.raises(ValueError, match="to_timestamp"):
        tabular.condition(pd.DataFrame({"m": pd.period_range("2020-01", periods=3, freq="M")}), np.ones(3))
    with pytest.raises(ValueError, match=r"use pd.DataFrame\(x\)"):
        tabular.condition({"a": np.ones(3)}, np.ones(3))


def test_units_are_fitted_to_what_is_known_of_a_column():
    net = pyro_arbuf.load("gp-1d-noisy")
    x = pd.DataFrame({"t": HOURS.to_series().mask(np.arange(24) == 5)})
    assert net.in_units(x=x).config == net.in_units(x=x.dropna()).config
    with pytest.raises(ValueError, match=r"column 0 of x must hold at least 2 .*; got 1 of them; .* x_range=\(low"):
        net.in_units(x=x[4:6])
    with pytest.raises(ValueError, match=r"at least 2 finite numbers, .* state y_loc and y_scale"):
        net.in_units(y=np.ones(1))
    with pytest.raises(ValueError, match=r"got '2018-01-31'; write a date as pd.Timestamp"):
        net.in_units(x_range=("2018-01-31", "2022-12-31"))
    with pytest.raises(ValueError, match=r"x must be finite; .* drop their rows of x and y"):
        net.condition(np.array([[0.0], [np.nan]]), np.ones(2), nan="drop")


def test_names_of_inputs_are_those_of_a_tree(tabular):
    x = pd.DataFrame({"rain": RNG.normal(size=12), "temp": RNG.normal(size=12)})
    joint = ArBufferJoint(tabular.condition(x[:9], np.arange(9.0)), x[9:])
    tree = to_datatree(joint, num_samples=2)
    assert tree["constant_data"]["input"].values.tolist() == ["rain", "temp"]
    named = to_datatree(joint, num_samples=2, coords={"input": ["a", "b"]})
    assert named["constant_data"]["input"].values.tolist() == ["a", "b"]
    numbered = x.set_axis([0, 1], axis=1)
    joint = ArBufferJoint(tabular.condition(numbered[:9], np.arange(9.0)), numbered[9:])
    assert to_datatree(joint, num_samples=2)["constant_data"].sel(input=0).sizes["target"] == 3
    plain = to_datatree(ArBufferJoint(tabular.condition(x[:9].to_numpy(), np.arange(9.0)), x[9:]), num_samples=2)
    assert plain["constant_data"]["input"].values.tolist() == [0, 1]


def test_whole_contexts_keep_their_labels(tabular):
    x = pd.DataFrame({"a": RNG.normal(size=9), "b": RNG.normal(size=9)})
    context = tabular.condition(x, np.arange(9.0))
    longer = grow_context(context, torch.zeros(2, 2), torch.zeros(2, 1), torch.Size())
    for each in (longer, context.to(torch.device("cpu")), context.expand([3])[0], pickle.loads(pickle.dumps(context))):
        assert each.labels == context.labels == (("a", "b"), ("numbers", "numbers"), ())
