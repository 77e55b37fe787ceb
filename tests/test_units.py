"""Units change a density by exactly the Jacobian and nothing else; draws and moments by the affine map."""

import copy
import datetime
import math
import pickle
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from samples import draw, draw_outcomes
from torch import Tensor
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.consistency import subset_gap
from pyro_arbuf.programs.evidence import log_evidence
from pyro_arbuf.workflow.check_model import check_model
from pyro_arbuf.workflow.datatree import to_datatree
from pyro_arbuf.workflow.loo import exact_loo, loo_conditionals

N, M, B = 5, 6, 2
X_LOC, X_SCALE = torch.tensor([2000.0, -3.0], dtype=torch.float64), torch.tensor([12.0, 0.3], dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-10}
EPOCH, DAY = [datetime.date(1970, 1, 1)] * 2, datetime.timedelta(days=1)


class Case(NamedTuple):
    fields: dict[str, object]
    loc: tuple[float | None, ...]
    scale: tuple[float | None, ...]


CASES = {
    "scalar": Case({}, (14.3,), (0.4,)),
    "vector": Case({"dim_y": 3}, (14.3, -2.0, 100.0), (0.4, 3.0, 20.0)),
    "with-count": Case({"dim_y": 2, "outcomes": ("real", "count"), "chained": True}, (14.3, None), (0.4, None)),
    "standardised": Case({"y_loc": (0.5,), "y_scale": (1.7,)}, (14.3,), (0.4,)),
}


class Pair(NamedTuple):
    """One network twice: as it was trained, and in a user's units, with the maps between the two."""

    plain: ArBufferModel
    units: ArBufferModel
    loc: Tensor
    scale: Tensor

    @property
    def jacobian(self) -> float:
        return self.scale.log().sum().item()

    def x(self, x: Tensor) -> Tensor:
        return X_LOC + X_SCALE * x

    def y(self, y: Tensor) -> Tensor:
        return self.loc + self.scale * y

    def outcomes(self, *shape: int, seed: int = 1) -> Tensor:
        y = draw_outcomes(self.plain.config, *shape, seed=seed)
        return y[..., 0] if self.plain.config.dim_y is None else y


def make_pair(build_model: Callable[..., ArBufferModel], case: str) -> Pair:
    fields, loc, scale = CASES[case]
    plain = build_model(**fields)
    units = plain.in_units(x_loc=X_LOC, x_scale=X_SCALE.tolist(), y_loc=loc, y_scale=scale)
    parts = [
        torch.tensor([d if v is None else v for v in part], dtype=torch.float64)
        for part, d in ((loc, 0.0), (scale, 1.0))
    ]
    return Pair(plain, units, *(part[0] if plain.config.dim_y is None else part for part in parts))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, build_model: Callable[..., ArBufferModel]) -> Pair:
    return make_pair(build_model, request.param)


CONTEXTS = ("ragged", "empty")


def contexts(pair: Pair, kind: str) -> tuple[Context, Context]:
    """A context of the plain network, and of the other the same in the user's units."""
    if kind == "empty":
        return pair.plain.condition(), pair.units.condition()
    x, y = draw(B, N, 2), pair.outcomes(B, N)
    if kind == "ragged":
        xs, ys = [x[0], x[1, :3]], [y[0], y[1, :3]]
        return pair.plain.condition(xs, ys), pair.units.condition([pair.x(a) for a in xs], [pair.y(a) for a in ys])
    x, y = (x[0], y[0]) if kind == "one" else (x, y)
    return pair.plain.condition(x, y), pair.units.condition(pair.x(x), pair.y(y))


def joints(pair: Pair, kind: str, **options: object) -> tuple[ArBufferJoint, ArBufferJoint]:
    plain, units = contexts(pair, kind)
    x = draw(M, 2, seed=3)
    return ArBufferJoint(plain, x, **options), ArBufferJoint(units, pair.x(x), **options)


ORDERS = random_orders(M, 3)
DENSITIES = {  # of a value, and how many targets the result counts
    "log_prob": (lambda d, y: d.log_prob(y), M),
    "orders": (lambda d, y: ArBufferJoint(d.context, d.x, ORDERS, 2).log_prob(y), M),
    "order_spread": (lambda d, y: ArBufferJoint(d.context, d.x, ORDERS).order_spread(y).log_prob_orders, M),
    "factors": (lambda d, y: d.log_prob_factors(y), 1),
    "conditionals": (lambda d, y: d.log_prob_conditionals(y), 1),
    "marginals": (lambda d, y: d.marginals().log_prob(y), M),
    "marginal_factors": (lambda d, y: d.marginals().log_prob_factors(y), 1),
    "rest": (lambda d, y: d.condition([0, 3], y[[0, 3]]).log_prob(y[[1, 2, 4, 5]]), M - 2),
    "pit": (lambda d, y: d.pit(y), 0),
    "cdf": (lambda d, y: d.marginals().cdf(y), 0),
}


@pytest.mark.filterwarnings("ignore:the joint log density rests on few")
@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("query", DENSITIES)
def test_units_change_a_density_by_the_jacobian_and_nothing_else(pair: Pair, kind: str, query: str) -> None:
    ask, count = DENSITIES[query]
    plain, units = joints(pair, kind)
    y = pair.outcomes(M, seed=5)
    expected = ask(plain, y)
    assert expected.abs().max() > 1e-3
    assert_close(ask(units, pair.y(y)), expected - count * pair.jacobian, **EXACT)


VALUES = {
    "sample": lambda d: d.sample((4,)),
    "sample_by_orders": lambda d: ArBufferJoint(d.context, d.x, ORDERS, 2).sample((4,)),
    "marginals": lambda d: d.marginals().sample((4,)),
    "mean": lambda d: d.marginals().mean,
    "icdf": lambda d: d.marginals().icdf(torch.linspace(0.1, 0.9, d.event_shape.numel()).double().view(d.event_shape)),
    "moments": lambda d: d.moments(7).mean,
    "rest": lambda d: d.condition([1], d.sample().narrow(len(d.batch_shape), 1, 1)).sample(),
}


@pytest.mark.parametrize("query", VALUES)
def test_draws_and_means_and_quantiles_are_mapped(pair: Pair, query: str) -> None:
    if query == "mean" and pair.plain.config.outcomes:
        pytest.skip("dimensions that are chained have no mean in closed form")
    results = []
    for d in joints(pair, "ragged"):
        torch.manual_seed(3)
        results.append(VALUES[query](d))
    assert_close(results[1], pair.y(results[0]), **EXACT)


def test_variances_are_mapped_by_the_square_of_the_scale(pair: Pair) -> None:
    plain, units = joints(pair, "batch")
    if not pair.plain.config.outcomes:
        assert_close(units.marginals().variance, plain.marginals().variance * pair.scale**2, **EXACT)
    moments = []
    for d in (plain, units):
        torch.manual_seed(3)
        moments.append(d.moments(7))
    assert_close(moments[1].variance, moments[0].variance * pair.scale**2, **EXACT)
    scales = pair.scale.expand(plain.event_shape).flatten()
    assert_close(moments[1].covariance, moments[0].covariance * scales[:, None] * scales, **EXACT)


def test_a_dropped_target_has_no_jacobian(pair: Pair) -> None:
    y = pair.outcomes(M, seed=5)
    y[2] = torch.nan
    for make in (ArBufferJoint, ArBufferMarginals):
        context, own = contexts(pair, "batch")
        x = draw(M, 2, seed=3)
        plain, units = make(context, x, nan="drop"), make(own, pair.x(x), nan="drop")
        assert_close(units.log_prob(pair.y(y)), plain.log_prob(y) - (M - 1) * pair.jacobian, **EXACT)
        factors = units.log_prob_factors(pair.y(y))
        kept = torch.arange(M) != 2
        assert (factors[:, 2] == 0).all()
        assert_close(factors[:, kept], plain.log_prob_factors(y)[:, kept] - pair.jacobian, **EXACT)
    joint = ArBufferJoint(own, pair.x(x), nan="drop")
    assert joint.pit(pair.y(y))[:, 2].isnan().all()
    assert (joint.log_prob(torch.full_like(y, torch.nan)) == 0).all()


def test_draws_by_rsample_and_their_gradients_are_mapped(build_model: Callable[..., ArBufferModel]) -> None:
    pair = make_pair(build_model, "vector")
    x = draw(N, 2)
    own = pair.x(x)
    gradients, results = [], []
    for net, inputs, y in ((pair.plain, x, pair.outcomes(N)), (pair.units, own, pair.y(pair.outcomes(N)))):
        inputs = inputs.clone().requires_grad_()
        torch.manual_seed(4)
        drawn = ArBufferJoint(net.condition(inputs, y), inputs[:4], rsample=True).rsample((3,))
        results.append(drawn)
        gradients.append(torch.autograd.grad((drawn / (1 if net is pair.plain else pair.scale)).sum(), inputs)[0])
    assert_close(results[1], pair.y(results[0]), **EXACT)
    assert_close(gradients[1], gradients[0] / X_SCALE, **EXACT)


@pytest.mark.parametrize("case", ["scalar", "vector"])
def test_gradients_of_a_live_context_are_those_by_the_users_units(
    case: str, build_model: Callable[..., ArBufferModel]
) -> None:
    pair = make_pair(build_model, case)
    x, y, target, value = draw(N, 2), pair.outcomes(N), draw(M, 2, seed=3), pair.outcomes(M, seed=5)
    plain = [part.clone().requires_grad_() for part in (x, y, target, value)]
    units = [part.clone().requires_grad_() for part in (pair.x(x), pair.y(y), pair.x(target), pair.y(value))]
    gradients = []
    for net, (x_, y_, target_, value_) in ((pair.plain, plain), (pair.units, units)):
        context = net.condition(x_, y_)
        assert context.live
        density = ArBufferJoint(context, target_).log_prob(value_)
        gradients.append(torch.autograd.grad(density, (x_, y_, target_, value_)))
    scales = (X_SCALE, pair.scale, X_SCALE, pair.scale)
    for inner, own, scale in zip(*gradients, scales, strict=True):
        assert inner.abs().min() > 0
        assert_close(own, inner / scale, **EXACT)


def test_leave_one_out_and_evidence_are_densities_in_the_users_units(pair: Pair) -> None:
    x, y = draw(B, N, 2), pair.outcomes(B, N)
    lists = ([x[0], x[1, :3]], [y[0], y[1, :3]])
    own = ([pair.x(part) for part in lists[0]], [pair.y(part) for part in lists[1]])
    plain, units = exact_loo(pair.plain, *lists), exact_loo(pair.units, *own)
    np.testing.assert_allclose(units.elpd_i, plain.elpd_i - pair.jacobian, rtol=1e-10)
    assert float(units.elpd) == pytest.approx(float(plain.elpd) - 8 * pair.jacobian)
    both = ((pair.plain, x, y), (pair.units, pair.x(x), pair.y(y)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rests on few")
        evidence = [log_evidence(net, a, b, 4) for net, a, b in both]
    assert_close(evidence[1].value, evidence[0].value - N * pair.jacobian, **EXACT)
    assert_close(evidence[1].standard_error, evidence[0].standard_error, **EXACT)
    gaps = [subset_gap(net, a[0], b[0], 3) for net, a, b in both]
    assert gaps[1] == pytest.approx(gaps[0])


def test_full_conditionals_of_a_pyro_model_are_in_the_users_units(build_model: Callable[..., ArBufferModel]) -> None:
    pair = make_pair(build_model, "scalar")
    y = pair.outcomes(M, seed=5)
    found = []
    for joint, value in zip(joints(pair, "one"), (y, pair.y(y)), strict=True):

        def model(value: Tensor, joint: ArBufferJoint = joint) -> None:
            level = pyro.sample("level", pyro.distributions.Normal(0.0, 1.0))
            pyro.sample("y", joint.expand(level.shape), obs=value)

        found.append(loo_conditionals(model, {"level": torch.zeros(2, dtype=torch.float64)}, value))
    assert_close(found[1].log_likelihood["y"], found[0].log_likelihood["y"] - pair.jacobian, **EXACT)
    assert_close(found[1].ratio_gap["y"], found[0].ratio_gap["y"], rtol=1e-8, atol=1e-8)


def test_data_used_twice_are_found_in_the_users_units(build_model: Callable[..., ArBufferModel]) -> None:
    pair = make_pair(build_model, "scalar")
    x, y = pair.x(draw(N, 2)), pair.y(pair.outcomes(N))
    context = pair.units.condition(x, y)

    def model(y: Tensor) -> None:
        pyro.sample("y", ArBufferJoint(context, x), obs=y)

    with pytest.warns(UserWarning, match=f"{N} of {N} observed pairs"):
        check_model(model, y)


def test_a_tree_holds_data_and_draws_in_the_users_units(build_model: Callable[..., ArBufferModel]) -> None:
    pair = make_pair(build_model, "vector")
    _, joint = joints(pair, "ragged")
    y = pair.y(pair.outcomes(B, M, seed=5))
    tree = to_datatree(joint, observed=y, num_samples=3, seed=0)
    constant = tree["constant_data"]
    np.testing.assert_allclose(constant["x"].values, joint.x.expand(B, M, 2))
    np.testing.assert_allclose(constant["x_context"].values[0], pair.x(draw(B, N, 2))[0])
    np.testing.assert_allclose(constant["y_context"].values[1, :3], pair.y(pair.outcomes(B, N))[1, :3])
    assert np.isnan(constant["y_context"].values[1, 3:]).all() and np.isnan(constant["x_context"].values[1, 3:]).all()
    density = tree["joint_log_likelihood"]["y"].values
    np.testing.assert_allclose(density, joint.log_prob(y))


def test_units_share_the_weights_and_keep_the_network_as_it_was(build_model: Callable[..., ArBufferModel]) -> None:
    plain = build_model(dim_y=3)
    plain.simulator = object()
    before, state = plain.config, torch.get_rng_state()
    units = plain.in_units(x_scale=2.0, y_loc=(1.0, 2.0, 3.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(units) is ArBufferModel and units.simulator is plain.simulator and units.training == plain.training
    assert plain.config is before and before.unit_map is None
    pairs = zip(plain.state_dict(keep_vars=True).items(), units.state_dict(keep_vars=True).items(), strict=True)
    assert all(a == b and s is t for (a, s), (b, t) in pairs)
    units.train()
    assert not plain.training
    units.extra = torch.nn.Linear(1, 1)
    assert not hasattr(plain, "extra")


def test_units_replace_the_former_ones_and_are_taken_away(scalar_model: ArBufferModel) -> None:
    first = scalar_model.in_units(x_loc=3.0, y_loc=2.0)
    second = first.in_units(y_scale=5.0)
    assert (
        second.config.user_x_loc is None and second.config.user_y_loc == (0.0,) and second.config.user_y_scale == (5.0,)
    )
    assert second.in_units().config == scalar_model.config
    assert scalar_model.in_units(y_loc=0.0, y_scale=1.0).config.unit_map is None


def test_units_are_pickled_copied_saved_and_loaded(build_model: Callable[..., ArBufferModel], tmp_path) -> None:
    units = build_model(x_range=(-2.0, 2.0)).in_units(
        x_range=((np.datetime64("2020-01-01"), np.datetime64("2021-01-01")), (0.1, 0.3)), y_loc=1 / 3, y_scale=0.1
    )
    assert units.config.user_dates == (True, False)
    pyro_arbuf.save(units, tmp_path / "net")
    x = torch.tensor([18300.0, 0.2], dtype=torch.float64).expand(3, 2)
    y = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
    expected = ArBufferJoint(units.condition(x, y), x).log_prob(y)
    loaded = pyro_arbuf.load(tmp_path / "net").double()
    assert loaded.config == units.config
    assert_close(ArBufferJoint(loaded.condition(x, y), x).log_prob(y), expected, rtol=0, atol=1e-5)
    for again in (pickle.loads(pickle.dumps(units)), copy.deepcopy(units)):
        assert_close(ArBufferJoint(again.condition(x, y), x).log_prob(y), expected, **EXACT)
    context = pickle.loads(pickle.dumps(units.condition(x, y)))
    assert_close(ArBufferJoint(context, x).log_prob(y), expected, **EXACT)


def test_data_are_put_onto_what_the_network_was_trained_on(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(x_range=((-2.0, 2.0), (5.0, 6.0)), dim_y=3, y_loc=(0.5, 0.0, 1.0), y_scale=(1.7, 1.0, 3.0))
    x, new = draw(B, N, 2) * X_SCALE + X_LOC, draw(M, 2, seed=7) * X_SCALE + X_LOC
    y = 5 * draw(B, N, 3, seed=8) + 9
    y[0, 1, 2] = torch.nan
    units = net.in_units(x=[x, new.numpy()], y=y)
    rows = torch.cat([x.flatten(0, 1), new])
    inside = units.config.unit_map.network_x(rows, torch.float64)
    assert_close(inside.aminmax(dim=0), (torch.tensor([-2.0, 5.0]), torch.tensor([2.0, 6.0])), check_dtype=False)
    z = units.config.unit_map.network_y(y, torch.float64).flatten(0, 1)
    mean, sd = z.nanmean(0), torch.stack([c[~c.isnan()].std() for c in z.unbind(-1)])
    assert_close(mean, torch.tensor([0.5, 0.0, 1.0]).double(), **EXACT)
    assert_close(sd, torch.tensor([1.7, 1.0, 3.0], dtype=torch.float64), **EXACT)
    units.condition(x, torch.nan_to_num(y))  # at the ends of the range: a warning would be an error


def test_discrete_dimensions_have_no_units(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(**CASES["with-count"].fields)
    y = draw_outcomes(net.config, 9) * torch.tensor([4.0, 1.0])
    fitted = net.in_units(y=y).config
    assert fitted.user_y_loc[1] == 0 and fitted.user_y_scale[1] == 1
    assert fitted.user_y_scale[0] == pytest.approx(y[:, 0].std().item())


def test_joint_density_on_years_and_degrees_is_that_of_a_hand_made_map() -> None:
    net = pyro_arbuf.load("gp-1d-noisy")
    years = torch.linspace(1980, 2030, 60, dtype=torch.float64)
    degrees = 14.3 + 0.4 * torch.sin(years / 5) + 0.01 * (years - 2000)
    seen = torch.arange(60) % 3 > 0
    units = net.in_units(x=[years[seen], years[~seen]], y=degrees[seen])
    d = ArBufferJoint(units.condition(years[seen, None], degrees[seen]), years[~seen, None])
    mean, sd = degrees[seen].mean(), degrees[seen].std()
    x, y = ((years - 2005) / 12.5).float()[:, None], ((degrees - mean) / sd).float()
    by_hand = ArBufferJoint(net.condition(x[seen], y[seen]), x[~seen]).log_prob(y[~seen]) - 20 * sd.log()
    assert d.log_prob(degrees[~seen]).item() == pytest.approx(by_hand.item(), abs=1e-4)  # of 112 nats in float32
    dates = (years - 1970) * 365.25
    stamps = (dates * 86400).round().long().numpy().astype("datetime64[s]")
    by_date = net.in_units(x=stamps[:, None], y=degrees[seen])
    d = ArBufferJoint(by_date.condition(stamps[seen, None], degrees[seen]), stamps[~seen, None])
    assert d.log_prob(degrees[~seen]).item() == pytest.approx(by_hand.item(), abs=1e-4)


def test_warnings_speak_the_users_units_and_point_to_the_caller(build_model: Callable[..., ArBufferModel]) -> None:
    plain = build_model(x_range=(-2.0, 2.0), y_range=(-4.0, 4.0))
    span = (np.datetime64("2020-01-01"), np.datetime64("2030-01-01"))
    net = plain.in_units(x_range=(span, (0.0, 1.0)), y_loc=10.0, y_scale=0.5)
    day, y = torch.tensor([[18300.0, 0.5]]).double(), torch.tensor([10.0]).double()
    for x, value, text in (
        (day + torch.tensor([9000.0, 0.0]), y, "x[..., 0] lies outside the trained range 2020-01-01 to 2030-01-01"),
        (day + torch.tensor([0.0, 3.0]), y, "x[..., 1] lies outside the trained range [0, 1]"),
        (day, y + 3, "y lies outside the trained range [8, 12]"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net.condition(x, value)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert text in str(caught[0].message) and "net.in_units(x=[x_obs, x_new], y=y_obs)" in str(caught[0].message)


TWO = draw(N, 2)
REFUSED = {
    "gradients": ({"x": TWO.clone().requires_grad_()}, "use x.detach()"),
    "gradients_in_a_list": ({"y": [TWO[:, 0].clone().requires_grad_()]}, r"use y\[0\].detach()"),
    "one_row": ({"x": TWO[:1]}, "column 0 of x must hold at least 2 finite numbers, .* got 1 of them"),
    "one_value": ({"y": TWO[:1, 0]}, "y must hold at least 2 finite numbers"),
    "all_missing": ({"y": torch.full((3,), torch.nan)}, "y must hold at least 2 finite numbers"),
    "infinite": ({"y": torch.tensor([1.0, 2.0, torch.inf])}, "y must hold at least 2 finite numbers"),
    "constant_y": ({"y": torch.ones(3)}, "y must vary"),
    "constant_x": ({"x": torch.ones(3, 2)}, "column 0 of x must range from a lower to a higher number"),
    "nan_in_x": ({"x": TWO.masked_fill(TWO > -1e9, torch.nan)}, "column 0 of x must hold .* got 0 of them"),
    "infinite_x": ({"x": TWO.masked_fill(TWO > 0, torch.inf)}, "of x must hold .* got infinite ones"),
    "columns": ({"x": TWO[:, :1]}, r"x must have 2 columns, the last dimension; got shape \(5, 1\)"),
    "two_ways_x": ({"x": TWO, "x_range": (0, 1)}, "the units of x must be given in one way"),
    "two_ways_y": ({"y": TWO[:, 0], "y_scale": 2.0}, "the units of y must be given in one way"),
    "numbers_as_data": ({"x": (1980, 2030)}, r"x\[0\] must be a tensor, an array or a table"),
    "reversed": ({"x_range": (1, 0)}, "must range from a lower to a higher number"),
    "three_ends": ({"x_range": (1, 2, 3)}, "x_range must be a pair"),
    "word": ({"x_range": ("1980", "2030")}, "x_range must hold finite numbers or dates; got '1980'"),
    "scale_of_zero": ({"y_scale": 0.0}, "y_scale must be positive"),
    "too_many": ({"y_scale": (1.0, 2.0)}, "y_scale must be one number, or 1 of them"),
    "infinite_loc": ({"y_loc": math.inf}, "y_loc must hold finite numbers"),
    "date_of_y": ({"y_loc": np.datetime64("2020-01-01")}, "y_loc must hold finite numbers"),
    "dates_as_y": ({"y": np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]")}, "y must hold numbers"),
    "too_fine": ({"y_loc": 1e6, "y_scale": 1.0}, "float32 cannot tell outcomes apart"),
    "too_fine_fitted": ({"y": 1e6 + TWO[:, 0]}, "subtract the location from y"),
    "empty_list": ({"x": []}, "x must hold data; got an empty list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_units_that_cannot_be_are_refused(case: str, build_model: Callable[..., ArBufferModel]) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build_model(x_range=(-2.0, 2.0)).in_units(**arguments)


def test_days_since_1970_are_dates(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(x_range=((-2.0, 2.0), (-2.0, 2.0)))
    for stated in ({"x_loc": EPOCH, "x_scale": [DAY, DAY]}, {"x_loc": EPOCH}):
        dated = net.in_units(**stated)
        days = np.array([["1970-01-01"] * 2, ["1970-01-02"] * 2], dtype="datetime64[D]")
        context = dated.condition(days, torch.tensor([0.0, 1.0]))
        assert_close(context.observations[0].squeeze(0), torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double())
    with pytest.raises(ValueError, match="durations must be of a fixed length, as of days or seconds; got 1 years"):
        net.in_units(x_scale=[np.timedelta64(1, "Y")] * 2)


def test_units_that_a_network_cannot_have_are_refused(build_model: Callable[..., ArBufferModel]) -> None:
    with pytest.raises(ValueError, match=r"does not declare its trained range.*state x_loc and x_scale"):
        build_model().in_units(x=TWO)
    with pytest.raises(ValueError, match=r"was trained at 0 only.*state x_loc and x_scale"):
        build_model(x_range=((-1.0, 1.0), (0.0, 0.0))).in_units(x_range=(0.0, 1.0))
    counts = build_model(chained=True, outcomes=("count",))
    with pytest.raises(ValueError, match="y_loc and y_scale must be for real numbers"):
        counts.in_units(y_scale=2.0)
    with pytest.raises(ValueError, match="y must be a real number to have units"):
        counts.in_units(y=torch.arange(5.0))
    with pytest.raises(ValueError, match="user_y_loc and user_y_scale must be 0 and 1"):
        build_model(chained=True, outcomes=("count",), user_y_loc=(1.0,), user_y_scale=(1.0,))


def test_a_traced_density_is_that_of_the_users_units(build_model: Callable[..., ArBufferModel]) -> None:
    pair = make_pair(build_model, "vector")
    _, joint = joints(pair, "empty")
    y = pair.y(pair.outcomes(M, seed=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(joint.log_prob, (y,), check_trace=False)
    other = pair.y(pair.outcomes(M, seed=6))
    assert_close(traced(other), joint.log_prob(other), **EXACT)


def test_a_plate_indexes_contexts_in_the_users_units(build_model: Callable[..., ArBufferModel]) -> None:
    pair = make_pair(build_model, "scalar")
    (plain, units), x, y = contexts(pair, "ragged"), draw(M, 2, seed=3), pair.outcomes(M, seed=5)
    for index in (1, torch.tensor([1, 1, 0]), slice(1, 2)):
        density = ArBufferJoint(units[index], pair.x(x)).log_prob(pair.y(y))
        assert_close(density, ArBufferJoint(plain[index], x).log_prob(y) - M * pair.jacobian, **EXACT)
