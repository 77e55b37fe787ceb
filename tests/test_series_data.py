"""Data of a series as they come: rows in another order, gaps, targets that do not follow; columns of other networks."""

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import tiny
import torch
import xarray as xr

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferPosterior, likelihood, log_evidence, random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors.ar1 import AR1, ar1
from pyro_arbuf.priors.multisensory import draw_trials, multisensory_rho1
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.simulator import Simulator

N = 12
RISE, GAP = r"x of a series must rise in column 0, .* sort the rows of x and y by it", "x of a series skips trials"


@pytest.fixture(scope="module")
def net() -> ArBufferModel:
    return pyro_arbuf.load("ar1")


@pytest.fixture
def series() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.arange(float(N))[:, None], AR1(torch.tensor(0.8), torch.tensor(1.0), N).sample()


@pytest.mark.parametrize("rows", [torch.arange(N).flip(0), torch.tensor([0, 2, 1, *range(3, N)]), torch.tensor([0, 0])])
def test_rows_in_another_order_are_refused(net, series, rows):
    x, y = (part[rows] for part in series)
    for call in (
        lambda: net.condition(x, y),
        lambda: net.condition([series[0], x], [series[1], y]),
        lambda: log_evidence(net, x, y),
        lambda: likelihood(net, x, {"phi": 0.8, "sigma": 1.0}),
        lambda: ArBufferJoint(net.condition(), x),
    ):
        with pytest.raises(ValueError, match=RISE):
            call()


@pytest.mark.parametrize("first", [1, 5, -1])
def test_trials_that_are_not_numbered_from_the_first_number_of_training_are_warned_of(net, series, first):
    x, y = series
    begins = r"begins with another number in column 0 than 0, .* number trials from 0"
    for call in (
        lambda: net.condition(x + first, y),
        lambda: net.condition([x, x[:0], x + first], [y, y[:0], y]),
        lambda: log_evidence(net, x + first, y),
        lambda: likelihood(net, x + first, {"phi": 0.8, "sigma": 1.0}),
        lambda: ArBufferJoint(net.condition(), x + first),
    ):
        with pytest.warns(UserWarning, match=begins) as caught:
            call()
        assert [each.filename for each in caught] == [__file__]
    ArBufferMarginals(net.condition(), x + first)  # each alone has no order
    net.condition([x, x[:0]], [y, y[:0]])
    three = pyro_arbuf.load("rescorla-wagner")
    with pytest.warns(UserWarning, match=begins):
        three.condition(torch.cat([x + first, torch.full((N, 2), 0.5)], 1), torch.zeros(N, 2))


def test_first_numbers_are_said_in_the_units_of_the_user(net, series):
    x, y = series
    dated = net.in_units(x_loc=1.0, x_scale=1.0)
    dated.condition(x + 1, y)
    with pytest.warns(UserWarning, match="than 1, with which .* number trials from 1"):
        dated.condition(x, y)


def test_missing_first_trials_are_warned_of_and_empty_contexts_are_like_none(net, series):
    x, y = series
    with pytest.warns(UserWarning, match="or its first trials are missing"):
        net.condition(x, y.masked_fill(x[:, 0] < 1, torch.nan), nan="drop")
    ragged = net.condition([x[:5], x[:0]], [y[:5], y[:0]])
    ArBufferJoint(ragged, torch.stack([x[5:8], x[:3]]))
    with pytest.warns(UserWarning, match="begins with another number"):
        ArBufferJoint(ragged, torch.stack([x[5:8], x[1:4]]))


def test_series_that_began_anywhere_or_at_another_number_are_taken_as_in_training():
    def begins(low: float, high: float) -> ArBufferModel:
        ranges = {"x_range": (low, high), "num_context": (0, 100), "buffer_size": 8}
        return tiny.tiny_model(sequential=True, lag_column=0, max_frequency=float(np.pi), **ranges)

    x, y = torch.arange(6.0)[:, None], torch.zeros(6)
    begins(-1.1, 111.1).condition(x + 3, y)  # from 0 to 5, at random
    one = begins(1 - 1.07, 108 + 1.07)
    one.condition(x + 1, y)
    with pytest.warns(UserWarning, match="number trials from 1"):
        one.condition(x, y)


def test_gaps_are_warned_of_and_are_not_refined(net, series):
    x, y = series
    missing = y.clone()
    missing[3:6] = torch.nan
    with pytest.warns(UserWarning, match=GAP) as caught:
        context = net.condition(x, missing, nan="drop")
    assert caught[0].filename == __file__
    ArBufferPosterior(context).sample((3,))
    with pytest.raises(ValueError, match="must hold a series without gaps to be scored by its program"):
        pyro_arbuf.refine(ar1, context)
    missing[3:] = torch.nan
    assert net.condition(x, missing, nan="drop").num_context == 3  # none is missing in between


def test_targets_follow_the_context_in_their_order(net, series):
    x, y = series
    context = net.condition([x[:6], x[:4]], [y[:6], y[:4]])
    ArBufferJoint(context, torch.stack([x[6:8], x[4:6]]))
    for targets in (x[7:], x[3:]):
        with pytest.warns(UserWarning, match=GAP) as caught:
            ArBufferJoint(net.condition(x[:6], y[:6]), targets)
        assert caught[0].filename == __file__
    ArBufferMarginals(context, x[9:].flip(0))  # of each alone
    ArBufferJoint(context[0], x[6:], orders=torch.arange(N - 6)[None])
    with pytest.raises(ValueError, match="orders must be that of the targets as given where they are a series"):
        ArBufferJoint(context[0], x[6:], orders=random_orders(N - 6, 2))


def test_latents_of_a_series_have_any_order(net, series):
    context = net.condition(*series)
    ArBufferPosterior(context, orders=random_orders(2, 2)).sample((3,))
    assert len(pyro_arbuf.calibrate(net, 5, num_draws=10, num_orders=2).ranks) == 5


def weekdays(n: int) -> torch.Tensor:
    return (torch.arange(n) + 2 * (torch.arange(n) // 5)).float()[:, None]


def correlated(x):
    phi = pyro.sample("phi", dist.Uniform(0.1, 0.9))
    distance = (x[..., 0, None] - x[..., None, :, 0]).abs()
    covariance = phi[..., None, None] ** distance + 1e-4 * torch.eye(x.shape[-2])
    return pyro.sample("y", dist.MultivariateNormal(torch.zeros(x.shape[-2]), covariance))


def test_days_without_weekends_have_no_gaps():
    net = (
        ArBufferModel(program_config(Simulator(correlated, weekdays, None, "y"), (0, 30))).requires_grad_(False).eval()
    )
    x, y = weekdays(24), torch.linspace(-1, 1, 24)
    ArBufferJoint(net.condition(x[:12], y[:12]), x[12:]).log_prob(y[12:])  # warnings are errors
    with pytest.raises(ValueError, match="x of a series must rise"):
        net.condition(x.flip(0), y)


def test_lists_of_tables_may_have_any_names_where_columns_are_the_network_s(series):
    net, y = pyro_arbuf.load("gp-1d-noisy"), torch.zeros(2)
    tables = [pd.DataFrame({name: [0.1, 0.2]}) for name in ("t", "time")]
    assert net.condition(tables, [y, y]).batch_shape == (2,)


def test_durations_of_an_outcome_need_a_unit():
    ddm, x = pyro_arbuf.load("ddm"), torch.full((3, 1), 0.2)
    times = pd.Series(pd.to_timedelta([0.5, 0.7, 0.6], unit="s"))
    with pytest.raises(ValueError, match=r"got durations; divide them by one, e\.g\. y / np\.timedelta64"):
        ddm.condition(x, times)
    torch.testing.assert_close(
        ddm.condition(x, times / np.timedelta64(1, "s")).y, ddm.condition(x, times.dt.total_seconds()).y
    )
    stated = ddm.in_units(y_scale=pd.Timedelta("1s")).condition(x, times)
    torch.testing.assert_close(stated.y, ddm.condition(x, times.dt.total_seconds()).y)


def test_durations_are_taken_in_units_of_durations_alone():
    ddm, x = pyro_arbuf.load("ddm"), torch.full((3, 1), 0.2)
    times = pd.Series(pd.to_timedelta([500, 700, 600], unit="ms"))
    with pytest.raises(ValueError, match="y must hold numbers in the network's unit; got durations"):
        ddm.in_units(y_scale=1000).condition(x, times)
    net, intensity = pyro_arbuf.load("psychometric"), pd.to_timedelta([0.1, 0.5, -0.4], unit="s").to_series()
    for unit in ({}, {"x_scale": 1000.0}):
        with pytest.raises(ValueError, match=r"x must hold numbers in the network's unit; got durations; .*x_scale="):
            net.in_units(**unit).condition(intensity.to_frame(), torch.ones(3).long())
    plain = net.condition(torch.tensor([[0.1], [0.5], [-0.4]]), torch.ones(3).long())
    stated = net.in_units(x_scale=pd.Timedelta("1s")).condition(intensity.to_frame(), torch.ones(3).long())
    torch.testing.assert_close(stated.x, plain.x)
    curve, spans = pyro_arbuf.load("gp-1d-noisy"), pd.to_timedelta([0, 40, 80], unit="h").to_numpy()
    fitted = curve.in_units(x=[spans, spans[:1]])
    torch.testing.assert_close(
        fitted.condition(spans[:, None], torch.zeros(3)).x.flatten(), torch.tensor([-2.0, 0.0, 2.0])
    )
    assert fitted.config.user_durations == (True, False) and fitted.in_units().config == curve.config


def test_rows_whose_labels_differ_are_warned_of():
    net = pyro_arbuf.load("gp-1d-noisy")
    frame = pd.DataFrame({"x": [0.1, np.nan, 0.3, 0.4, 0.5], "y": [1.0, 2.0, 3.0, np.nan, 5.0]}, index=list("abcde"))
    with pytest.warns(UserWarning, match="indices that differ: 'd' is in one of them alone; rows are paired as they"):
        net.condition(frame[["x"]].dropna(), frame.y.dropna())
    both = frame.dropna()
    net.condition(both[["x"]], both.y)  # warnings are errors
    net.condition(both[["x"]], both.y.reset_index(drop=True))
    net.condition(both[["x"]], both.y.to_numpy())


def test_the_remedy_for_categories_is_one(series):
    net, answers = pyro_arbuf.load("psychometric"), pd.Series(pd.Categorical(["no", "yes", "no"]))
    x = torch.tensor([[0.1], [0.5], [-0.4]])
    with pytest.raises(ValueError, match=r"\.map\(\{'no': 0, 'yes': 1\}\)\.astype\(int\)"):
        net.condition(x, answers)
    assert net.condition(x, answers.map({"no": 0, "yes": 1}).astype(int)).y.flatten().tolist() == [0, 1, 0]


def test_columns_of_a_program_go_by_their_names_and_ranges():
    net, x = pyro_arbuf.load("multisensory-rho1"), draw_trials(8)
    y = multisensory_rho1(x)
    table = pd.DataFrame(x.numpy(), columns=["r_type", "s_A", "s_V", "V_level"])
    context = net.condition(table, y)
    ArBufferJoint(context, table[:3])
    ArBufferJoint(context, table[:3].set_axis(list("abcd"), axis=1))  # other names say nothing
    with pytest.raises(ValueError, match=r"in the same order, \['r_type', .*; got \['s_A', 'r_type'"):
        ArBufferJoint(context, table[["s_A", "r_type", "s_V", "V_level"]])
    with pytest.warns(UserWarning, match=r"x\[\.\.\., 0\] lies outside the trained range \[-0\.01, 1\.01\]"):
        net.condition(x + torch.tensor([1.0, 0, 0, 0]), y)


def test_a_program_without_inputs_says_what_x_is():
    with pytest.warns(UserWarning, match=r"no inputs, for which x holds zeros: give torch\.zeros\(n, 1\)"):
        pyro_arbuf.load("gaussian").condition(torch.ones(3, 1), torch.zeros(3))


def test_rows_and_dimensions_of_xarray_are_compared(series):
    net, (x, y) = pyro_arbuf.load("ddm"), (part.numpy() for part in series)
    trial = {"trial": np.arange(N)}
    inputs = xr.DataArray(0 * x, dims=("trial", "column"), coords=trial)
    outcomes = xr.DataArray(np.abs(y) + 0.4, dims="trial", coords=trial)
    net.condition(inputs, outcomes)
    with pytest.raises(ValueError, match=r"coordinates of 'trial' in different orders; give y\.sel\(trial=x\.trial\)"):
        net.condition(inputs, outcomes[::-1])
    batch = inputs.expand_dims(subject=2), outcomes.expand_dims(subject=2)
    assert net.condition(*batch).batch_shape == (2,)
    with pytest.raises(ValueError, match=r"in the same order; got \('subject', 'trial', 'column'\) and"):
        net.condition(batch[0], batch[1].transpose("trial", "subject"))


def test_no_trials_have_no_evidence_and_a_seed_is_a_number(series):
    net, (x, y) = pyro_arbuf.load("ddm"), series
    with pytest.raises(ValueError, match="x must hold at least one trial to have an evidence"):
        log_evidence(net, x[:0], y[:0])
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; got None"):
        log_evidence(net, 0 * x, y, seed=None)


def test_counts_beyond_the_trained_ones_are_warned_of_by_checks_too():
    net = pyro_arbuf.load("gaussian")
    few = {"num_datasets": 5, "num_trials": 110}
    for check in (pyro_arbuf.calibrate, pyro_arbuf.tarp):
        with pytest.warns(UserWarning, match=r"num_trials lies outside the trained range \[0, 100\]") as caught:
            check(net, **few, num_draws=20)
        assert caught[0].filename == __file__


def test_an_evidence_error_is_that_of_its_number_of_trials():
    net = pyro_arbuf.load("gaussian")
    pyro_arbuf.measure_evidence_error(net, num_datasets=5, num_trials=3, num_draws=100)
    assert net.config.evidence_trials == 3
    nets = {"one": net, "other": net}
    with pytest.warns(UserWarning, match=r"of \['one', 'other'\] were measured on .* fewer trials") as caught:
        pyro_arbuf.compare_evidence(nets, torch.zeros(10, 1), torch.randn(10), num_orders=4)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fewer trials.*")
        pyro_arbuf.compare_evidence(nets, torch.zeros(4, 1), torch.randn(4), num_orders=4)


@pytest.mark.parametrize("scored", ["joint", "likelihood"])
def test_targets_of_a_series_that_are_left_out_before_others_are_warned_of(scored):
    net, x = pyro_arbuf.load("ar1"), torch.arange(12.0)[:, None]
    y = torch.randn(12, generator=torch.Generator().manual_seed(1))
    if scored == "joint":
        score, y = ArBufferJoint(net.condition(x[:4], y[:4]), x[4:], nan="drop").log_prob, y[4:]
    else:
        score = likelihood(net, x, {"phi": 0.5, "sigma": 1.0}, nan="drop").log_prob
    inner, last = y.clone(), y.clone()
    inner[3], last[-2:] = torch.nan, torch.nan
    score(last)  # warnings are errors
    with pytest.warns(UserWarning, match="x of a series skips trials"):
        score(inner)
