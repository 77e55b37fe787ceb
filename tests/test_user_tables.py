"""Tables of a user: any columns, rows and units, standardised by their context; densities in the user's units."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import tiny
import torch
import xarray as xr
from samples import draw
from torch import Tensor
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.inference.context import Context, encode_pairs
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.preprocessing import TableStatistics, table_statistics
from pyro_arbuf.workflow.check_model import ModelCheckWarning, check_model
from pyro_arbuf.workflow.datatree import to_datatree
from pyro_arbuf.workflow.loo import exact_loo

EXACT = {"rtol": 1e-9, "atol": 1e-9}
B, N, K, M, D, MAX_D = 2, 9, 4, 6, 3, 5
ROWS = {"inputs": "rows", "dim_x": MAX_D, "column_width": 8, "num_inducing": 3, "num_context": (0, 40)}
ORDERS = random_orders(M, 3)
NAMES = ["size", "age", "rooms"]


def rows_net(**fields: object) -> ArBufferModel:
    """A network of tables whose blocks and head do something."""
    net = tiny.tiny_model(**ROWS, max_frequency=4.0, **fields).double().requires_grad_(False)
    for parameter in net.head.parameters():
        parameter *= 2
    for block in (*net.backbone.blocks, *net.embedder.rows.blocks, net.embedder.rows.spread):
        block.out.weight *= 3
    return net


@pytest.fixture(scope="module", params=[None, 2], ids=["scalar", "vector"])
def net(request: pytest.FixtureRequest) -> ArBufferModel:
    return rows_net(dim_y=request.param)


@pytest.fixture(scope="module")
def scalar_net() -> ArBufferModel:
    return rows_net()


def inputs(*shape: int, seed: int) -> Tensor:
    """Columns far from standard, `(*shape, D)`, with a few missing cells."""
    x = draw(*shape, D, seed=seed)
    x = torch.stack([1990 + 12 * x[..., 0], x[..., 1].exp() / 50, x[..., 2].round()], -1)
    return x.masked_fill(draw(*shape, D, seed=seed + 50) > 1.4, torch.nan)


def outcomes(net: ArBufferModel, *shape: int, seed: int) -> Tensor:
    dim_y = net.config.dim_y or 1
    y = draw(*shape, dim_y, seed=seed) * torch.tensor([4e4, 0.02])[:dim_y] + torch.tensor([2e5, -7.0])[:dim_y]
    return net.config.squeeze_outcome(y)


def full(net: ArBufferModel, y: Tensor) -> Tensor:
    return y.unsqueeze(-1) if net.config.dim_y is None else y


class Case:
    """A user's table, and what training showed of it: the same, standardised by hand."""

    def __init__(self, net: ArBufferModel, kind: str):
        self.net = net
        batch = () if kind in ("one", "none") else (B,)
        self.x, self.y = inputs(*batch, M, seed=3), outcomes(net, *batch, M, seed=5)
        x, y, length = inputs(B, N, seed=1), outcomes(net, B, N, seed=2), None
        if kind == "ragged":
            length = torch.tensor([N, N - 3])
            self.context = net.condition([x[0], x[1, : N - 3]], [y[0], y[1, : N - 3]])
        elif kind == "dropped":
            gone = torch.zeros(B, N, dtype=torch.bool)
            gone[0, [1, 4]] = gone[1, [0, N - 1]] = True
            hidden = y.masked_fill(gone if net.config.dim_y is None else gone.unsqueeze(-1), torch.nan)
            self.context = net.condition(x, hidden, nan="drop")
            x, y = (part[~gone].view(B, N - 2, *part.shape[2:]) for part in (x, y))
        elif kind == "none":
            x, y = x[:1, :0, :1], y[:1, :0]
            self.context = net.condition()
        elif kind == "one":
            x, y = x[:1], y[:1]
            self.context = net.condition(x[0], y[0])
        else:
            self.context = net.condition(x, y)
        self.statistics = table_statistics(x, full(net, y), length)
        x, y = self.statistics.map_x(x), self.statistics.map_y(full(net, y))
        if length is not None:
            x[1, N - 3 :] = y[1, N - 3 :] = 0.0
        shape = torch.Size(batch)
        with torch.no_grad():
            self.plain = encode_pairs(net, x, y, length, shape, shape, (), False)
        self.by_hand = TableStatistics(*(part.view(*shape, *part.shape[1:]) for part in self.statistics))
        self.standard_x = self.by_hand.map_x(self.x)
        self.standard_y = net.config.squeeze_outcome(self.by_hand.map_y(full(net, self.y)))
        self.jacobian = self.by_hand.y_scale.log().sum((-2, -1))  # of one target, `(*batch,)`


KINDS = ("batch", "one", "ragged", "dropped", "none")
QUERIES = {  # of a joint and a value: densities, and how many targets each of them counts
    "log_prob": (lambda d, y: d.log_prob(y), M),
    "orders": (lambda d, y: ArBufferJoint(d.context, d.x, ORDERS, 2).log_prob(y), M),
    "factors": (lambda d, y: d.log_prob_factors(y), 1),
    "exact": (lambda d, y: ArBufferJoint(d.context, d.x, buffer_size=1).log_prob(y), M),
    "conditionals": (lambda d, y: d.log_prob_conditionals(y), 1),
    "marginals": (lambda d, y: d.marginals().log_prob(y), M),
    "marginal_factors": (lambda d, y: d.marginals().log_prob_factors(y), 1),
    "pit": (lambda d, y: d.pit(y).flatten(len(d.batch_shape)), 0),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_density_of_a_table_is_that_of_the_standardised_one_minus_the_jacobian(net, kind, query):
    case, (ask, count) = Case(net, kind), QUERIES[query]
    expected = ask(ArBufferJoint(case.plain, case.standard_x), case.standard_y)
    jacobian = case.jacobian if expected.dim() == case.jacobian.dim() else case.jacobian.unsqueeze(-1)
    got = ask(ArBufferJoint(case.context, case.x), case.y)
    assert expected.isfinite().all() and (count == 0 or kind == "none" or jacobian.abs().min() > 1)
    assert_close(got, expected - count * jacobian, **EXACT)


def test_draws_moments_and_quantiles_come_back(net):
    case = Case(net, "ragged")
    own, plain = ArBufferJoint(case.context, case.x), ArBufferJoint(case.plain, case.standard_x)

    def restored(y: Tensor) -> Tensor:
        return net.config.squeeze_outcome(case.by_hand.restore_y(full(net, y)))

    for ask in (lambda d: d.sample((5,)), lambda d: d.marginals().sample((5,)), lambda d: d.moments(4).mean):
        torch.manual_seed(1)
        expected = restored(ask(plain))
        torch.manual_seed(1)
        assert_close(ask(own), expected, **EXACT)
    u = torch.rand(M, *own.event_shape[1:], dtype=torch.float64)
    assert_close(own.marginals().icdf(u), restored(plain.marginals().icdf(u)), **EXACT)
    assert_close(own.marginals().cdf(own.marginals().icdf(u)), u.expand(B, *u.shape), rtol=0, atol=1e-7)
    if net.config.dim_y is None:
        assert_close(own.marginals().mean, restored(plain.marginals().mean), **EXACT)
        scale = case.by_hand.y_scale.squeeze(-1)
        assert_close(own.marginals().variance, plain.marginals().variance * scale**2, **EXACT)


def test_a_dropped_target_has_no_jacobian(net):
    case = Case(net, "batch")
    hidden, standard = case.y.clone(), case.standard_y.clone()
    hidden[0, 2] = standard[0, 2] = torch.nan
    for law in (ArBufferJoint, ArBufferMarginals):
        own, plain = law(case.context, case.x, nan="drop"), law(case.plain, case.standard_x, nan="drop")
        count = torch.tensor([M - 1, M])
        assert_close(own.log_prob(hidden), plain.log_prob(standard) - count * case.jacobian, **EXACT)
        factors = own.log_prob_factors(hidden)
        assert factors[0, 2] == 0
        assert_close(factors.sum(-1), own.log_prob(hidden), **EXACT)


def loo_by_hand(net: ArBufferModel, x: Tensor, y: Tensor) -> Tensor:
    """Every row scored by a context of the others."""
    parts = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        law = ArBufferMarginals(net.condition(x[others], y[others]), x[i : i + 1])
        parts.append(law.log_prob(y[i : i + 1]))
    return torch.stack(parts)


@pytest.mark.parametrize("units", [False, True])
def test_exact_loo_conditions_on_the_rest_and_standardises_by_it(net, units):
    net = net.in_units(y_loc=3.0, y_scale=50.0) if units else net
    x, y = inputs(B, N, seed=1), outcomes(net, B, N, seed=2)
    found = exact_loo(net, [x[0], x[1, :5]], [y[0], y[1, :5]])
    expected = torch.cat([loo_by_hand(net, x[0], y[0]), loo_by_hand(net, x[1, :5], y[1, :5])])
    assert_close(torch.as_tensor(found.elpd_i.values), expected, **EXACT)


def test_statistics_stay_those_of_the_original_context(net):
    case = Case(net, "ragged")
    own, plain = ArBufferJoint(case.context, case.x), ArBufferJoint(case.plain, case.standard_x)
    rest = [1, 2, 4, 5]
    got = own.condition([0, 3], case.y[:, [0, 3]])
    expected = plain.condition([0, 3], case.standard_y[:, [0, 3]]).log_prob(case.standard_y[:, rest])
    assert_close(got.log_prob(case.y[:, rest]), expected - len(rest) * case.jacobian, **EXACT)
    assert_close(got.condition([1], case.y[:, [2]]).context.statistics, case.context.statistics)


def test_affine_changes_of_columns_change_nothing_and_of_y_the_jacobian_alone(net):
    case = Case(net, "ragged")
    loc, scale = torch.tensor([-4.0, 1e3, 0.1]), torch.tensor([1e-3, 7.0, 1e4])
    x, y = inputs(B, N, seed=1), outcomes(net, B, N, seed=2)
    xs, ys = [x[0], x[1, : N - 3]], [y[0], y[1, : N - 3]]
    changed = net.condition([loc + scale * part for part in xs], [5 + 1e-3 * part for part in ys])
    joint = ArBufferJoint(changed, loc + scale * case.x)
    expected = ArBufferJoint(case.context, case.x).log_prob(case.y) - M * (net.config.dim_y or 1) * np.log(1e-3)
    assert_close(joint.log_prob(5 + 1e-3 * case.y), expected, rtol=1e-7, atol=1e-7)


def test_order_of_columns_changes_nothing(net):
    case, order = Case(net, "batch"), [2, 0, 1]
    context = net.condition(inputs(B, N, seed=1)[..., order], outcomes(net, B, N, seed=2))
    got = ArBufferJoint(context, case.x[..., order], buffer_size=2).log_prob(case.y)
    assert_close(got, ArBufferJoint(case.context, case.x, buffer_size=2).log_prob(case.y), rtol=0, atol=1e-8)


def test_units_come_first_and_then_the_context_s(net):
    case = Case(net, "ragged")
    y_loc, y_scale = [2e5, -3.0][: net.config.dim_y or 1], [100.0, 0.5][: net.config.dim_y or 1]
    units = net.in_units(y_loc=y_loc, y_scale=y_scale)
    x, y = inputs(B, N, seed=1), outcomes(net, B, N, seed=2)
    context = units.condition([x[0], x[1, : N - 3]], [y[0], y[1, : N - 3]])
    own = ArBufferJoint(case.context, case.x)
    joint = ArBufferJoint(context, case.x)  # where there are rows, they say what the units are
    assert_close(joint.log_prob(case.y), own.log_prob(case.y), rtol=1e-7, atol=1e-7)
    torch.manual_seed(1)
    drawn = own.sample()
    torch.manual_seed(1)
    assert_close(joint.sample(), drawn, rtol=1e-7, atol=1e-7)
    empty = ArBufferMarginals(units.condition(), case.x)
    in_network = (full(net, case.y) - torch.tensor(y_loc)) / torch.tensor(y_scale)
    plain = ArBufferMarginals(net.condition(), case.x).log_prob(net.config.squeeze_outcome(in_network))
    assert_close(empty.log_prob(case.y), plain - M * np.log(y_scale).sum(), **EXACT)
    stated = net.in_units(x_loc=1990.0, x_scale=12.0)
    got = ArBufferMarginals(stated.condition(), case.x).log_prob(case.y)
    assert_close(got, ArBufferMarginals(net.condition(), (case.x - 1990.0) / 12.0).log_prob(case.y), **EXACT)


def test_a_table_of_fewer_columns_is_compared_with_its_own_ranges():
    net = rows_net(x_range=((-8.0, 8.0),) * MAX_D)
    x = torch.linspace(-1, 1, 5).double()[:, None].expand(5, 2)
    assert net.condition(x, torch.arange(5.0)).num_context == 5


def test_a_context_without_rows_takes_any_number_of_columns(scalar_net):
    for context in (scalar_net.condition(), scalar_net.condition(torch.zeros(0, 4).double(), torch.zeros(0).double())):
        for number in (1, D, MAX_D):
            x, y = draw(2 * K + 1, number, seed=3), draw(2 * K + 1, seed=4)
            joint = ArBufferJoint(context, x)  # which absorbs twice
            assert joint.log_prob(y).isfinite() and joint.sample().isfinite().all()
            assert joint.log_prob_conditionals(y).isfinite().all()
            grown = joint.condition([0, 1], y[:2])
            assert grown.context.num_columns == number and grown.log_prob(y[2:]).isfinite()


def same(net: ArBufferModel, context: Context, like: Context) -> None:
    x, y = inputs(*like.batch_shape, M, seed=3), outcomes(net, *like.batch_shape, M, seed=5)
    assert_close(ArBufferJoint(context, x).log_prob(y), ArBufferJoint(like, x).log_prob(y), **EXACT)


def test_statistics_go_along_with_indexing_expanding_moving_and_pickling(scalar_net):
    context = Case(scalar_net, "ragged").context
    assert isinstance(context.statistics, TableStatistics) and context.statistics.y_scale.dtype == torch.float64
    assert not context.x[1, N - 3 :].any() and not context.y[1, N - 3 :].any()  # padding is 0 whatever the map
    same(scalar_net, pickle.loads(pickle.dumps(context)), context)
    same(scalar_net, context.to("cpu"), context)
    x, y = inputs(B, N, seed=1), outcomes(scalar_net, B, N, seed=2)
    alone = [scalar_net.condition(x[0], y[0]), scalar_net.condition(x[1, : N - 3], y[1, : N - 3])]
    for b in range(B):
        same(scalar_net, context[b], alone[b])
        same(scalar_net, list(context)[b], alone[b])
    repeated = context[torch.tensor([[1, 0, 1], [0, 0, 1]])]
    values = ArBufferJoint(repeated, inputs(M, seed=3)).log_prob(outcomes(scalar_net, M, seed=5))
    each = [ArBufferJoint(c, inputs(M, seed=3)).log_prob(outcomes(scalar_net, M, seed=5)) for c in alone]
    assert_close(values, torch.stack(each)[torch.tensor([[1, 0, 1], [0, 0, 1]])], **EXACT)
    wide = ArBufferJoint(context.expand(4, B), inputs(M, seed=3)).expand((3, 4, B))
    assert_close(wide.log_prob(outcomes(scalar_net, M, seed=5)), torch.stack(each).expand(3, 4, B), **EXACT)
    column = context[torch.arange(B)[:, None]]  # (B, 1), beside a batch of targets
    grid = ArBufferJoint(column, inputs(3, M, seed=8))
    y_grid = outcomes(scalar_net, M, seed=5)
    rows = [ArBufferJoint(c, inputs(3, M, seed=8)).log_prob(y_grid) for c in alone]
    assert_close(grid.log_prob(y_grid), torch.stack(rows), **EXACT)
    grown = grid.condition([1], y_grid[[1]]).log_prob(y_grid[[0, 2, 3, 4, 5]])
    others = [ArBufferJoint(c, inputs(3, M, seed=8)).condition([1], y_grid[[1]]) for c in alone]
    assert_close(grown, torch.stack([d.log_prob(y_grid[[0, 2, 3, 4, 5]]) for d in others]), **EXACT)


def test_a_frame_and_its_numbers_are_one_table_in_float32_too(scalar_net):
    x, y = inputs(B, N, seed=1)[0].numpy(), outcomes(scalar_net, B, N, seed=2)[0].numpy()
    frame = pd.DataFrame(x, columns=NAMES).assign(rooms=lambda t: t["rooms"].astype("Int64"), price=y)
    new, value = pd.DataFrame(inputs(M, seed=3).numpy(), columns=NAMES), outcomes(scalar_net, M, seed=5)
    context = scalar_net.condition(frame[NAMES], frame["price"])
    assert context.labels.columns == tuple(NAMES) and context.num_columns == D
    exact = ArBufferJoint(context, new)
    plain = ArBufferJoint(Case(scalar_net, "one").context, exact.x)
    assert_close(exact.log_prob(value), plain.log_prob(value), **EXACT)
    coarse = copy.deepcopy(scalar_net).float()
    day = pd.to_datetime("2020-01-01") + pd.to_timedelta(np.arange(N), unit="h")
    frame, later = frame.assign(size=day), new.assign(size=day[:M] + pd.to_timedelta(1, unit="D"))
    nets = (scalar_net, coarse)
    found = [ArBufferJoint(each.condition(frame[NAMES], frame["price"]), later).log_prob(value) for each in nets]
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-3)  # hours beside days since 1970, standardised in float64


def test_gradients_of_a_live_context_reach_the_statistics(scalar_net):
    x, y = inputs(5, seed=1).nan_to_num(2.0), outcomes(scalar_net, 5, seed=2) / 1e4
    parts = [x, y, inputs(3, seed=3).nan_to_num(2.0), outcomes(scalar_net, 3, seed=5) / 1e4]
    scale = torch.tensor([12.0, 0.02, 1.0]).double()

    def density(x: Tensor, y: Tensor, x_target: Tensor, y_target: Tensor) -> Tensor:
        context = scalar_net.condition(x * scale, y)
        return ArBufferJoint(context, x_target * scale, buffer_size=2).log_prob(y_target)

    given = [(part / scale if part.dim() == 2 else part).requires_grad_() for part in parts]
    assert scalar_net.condition(*given[:2]).live
    assert torch.autograd.gradcheck(density, given, eps=1e-6, atol=1e-5)


def test_what_is_sampled_is_what_is_scored(scalar_net):
    case, shift = Case(scalar_net, "one"), 0.2
    joint = ArBufferJoint(case.context, case.x[:3], random_orders(3, 2), 2)  # absorbs once
    step = shift * case.by_hand.y_scale.squeeze()
    torch.manual_seed(2)
    draws = joint.sample((800,))
    ratio = (joint.log_prob(draws + step) - joint.log_prob(draws)).exp()  # of mean 1 under the law that is scored
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 800**0.5 and ratio.std() < 2


def test_data_in_context_and_event_are_found(scalar_net):
    x, y = inputs(N, seed=1), outcomes(scalar_net, N, seed=2)
    context = scalar_net.condition(x, y)

    def model(targets: Tensor, observed: Tensor) -> None:
        pyro.sample("y", ArBufferJoint(context, targets), obs=observed)

    assert x[:3].isnan().any()
    with pytest.warns(ModelCheckWarning, match="3 of 3 .* count twice"):
        check_model(model, x[:3], y[:3])
    assert not check_model(model, inputs(3, seed=3), y[:3])


def test_datatree_has_the_user_s_numbers(scalar_net):
    x, y = inputs(N, seed=1), outcomes(scalar_net, N, seed=2)
    tree = to_datatree(ArBufferJoint(scalar_net.condition(x, y), inputs(M, seed=3)), num_samples=3)
    constants = tree["constant_data"]
    assert_close(torch.as_tensor(constants["y_context"].values), y, **EXACT)
    statistics = table_statistics(x[None], y[None, :, None])
    inside = statistics.map_x(x[None])[0].abs() < 4
    shown = torch.as_tensor(constants["x_context"].values)
    assert_close(shown[inside], x[inside], rtol=1e-8, atol=1e-8)
    assert torch.equal(shown.isnan(), x.isnan())
    empty = to_datatree(ArBufferJoint(scalar_net.condition(), inputs(M, seed=3)), num_samples=3)
    assert empty["constant_data"]["x"].shape == (M, D)


def test_traces_and_transforms_give_what_eager_code_gives(scalar_net):
    x, y = inputs(B, N, seed=1)[0], outcomes(scalar_net, B, N, seed=2)[0]
    target, value = inputs(B, M, seed=3)[0], outcomes(scalar_net, B, M, seed=5)[0]

    def density(y: Tensor) -> Tensor:
        return ArBufferJoint(scalar_net.condition(x, y, nan="drop"), target).log_prob(value)

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    traced = torch.jit.trace(density, (y,), check_trace=False)
    hidden = y.clone()
    hidden[3] = torch.nan
    for each in (y, hidden):
        assert_close(traced(each), density(each), **EXACT)
    leaf = y.clone().requires_grad_()
    (expected,) = torch.autograd.grad(density(leaf), leaf)
    assert_close(torch.func.grad(density)(y), expected, **EXACT)


def test_code_of_the_page_runs_and_the_page_is_short(scalar_net):
    page = (Path(__file__).parent.parent / "docs" / "tables.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {"net": copy.deepcopy(scalar_net).float()}
    warnings.filterwarnings("ignore", message="num_context")
    exec(compile(block, "docs/tables.md", "exec"), names)
    assert names["total"].mean() > 1e5 and names["density"].isfinite()  # pyright: ignore
    assert len(page.splitlines()) <= 60


GOOD = {"size": [50.0, 60, 70, 80], "age": [1.0, 5, 2, 9]}
Y = pd.Series([1.0, 2, 4, 3])
CITY = pd.DataFrame(GOOD).assign(city=["a", "b", "a", "c"])
DAYS = pd.DataFrame({"day": pd.date_range("2020-01-01", periods=4)})


def torch_days(net: ArBufferModel) -> Tensor:
    """The days of `DAYS` as a tensor, which may stand beside dates."""
    return net.condition(DAYS, Y).maps.user_x(net.condition(DAYS, Y).x)[0]


WRONG = {
    "no_column": (
        lambda net: net.condition(pd.DataFrame(index=range(4)), Y),
        r"1 to 5 columns; the table has no column",
    ),
    "no_columns": (lambda net: net.condition(draw(4, 0), Y), r"got \(4, 0\); the network takes 1 to 5 columns"),
    "series": (lambda net: net.condition(pd.Series(GOOD["size"]), Y), "to_frame"),
    "text": (lambda net: net.condition(CITY, Y), "'city'.*numbers"),
    "texts": (
        lambda net: net.condition(CITY.assign(street=CITY.city), Y),
        r"columns \['city', 'street'\] of x .*dtype",
    ),
    "text_in_targets": (
        lambda net: ArBufferJoint(net.condition(pd.DataFrame(GOOD), Y), CITY[["size", "city"]]),
        "'city' of x must hold numbers",
    ),
    "too_many": (lambda net: net.condition(draw(4, 6), Y), "1 to 5 columns"),
    "too_many_targets": (lambda net: ArBufferJoint(net.condition(), draw(4, 6)), "1 to 5 columns"),
    "infinite": (lambda net: net.condition(torch.full((4, 2), torch.inf), Y), "infinite"),
    "infinite_target": (lambda net: ArBufferJoint(net.condition(), torch.full((4, 2), torch.inf)), "infinite"),
    "fewer": (lambda net: ArBufferJoint(net.condition(pd.DataFrame(GOOD), Y), draw(2, 1)), "2 columns.*'size'.*got 1"),
    "more": (lambda net: ArBufferMarginals(net.condition(draw(4, 2), Y), draw(2, 3)), "2 columns.*got 3"),
    "other_names": (lambda net: ArBufferJoint(net.condition(pd.DataFrame(GOOD), Y), CITY[["size"]]), "'age'"),
    "other_order": (
        lambda net: ArBufferJoint(net.condition(pd.DataFrame(GOOD), Y), pd.DataFrame(GOOD)[["age", "size"]]),
        "same order",
    ),
    "uneven_list": (lambda net: net.condition([draw(4, 2), draw(4, 3)], [Y, Y]), r"\[2, 3\]"),
    "uneven_names": (lambda net: net.condition([pd.DataFrame(GOOD), CITY[["age", "size"]]], [Y, Y]), r"x\[1\]"),
    "dates_then_numbers": (
        lambda net: ArBufferJoint(net.condition(DAYS, Y), pd.DataFrame({"day": [2020.0, 2021.0]})),
        r"x\[..., 0\] must hold dates, as the context does; got numbers",
    ),
    "numbers_then_dates": (
        lambda net: ArBufferJoint(net.condition(torch_days(net).numpy(), Y).expand((2,)), DAYS),
        r"x\[..., 0\] must hold numbers, as the context does; got dates",
    ),
    "dates_and_numbers_in_a_list": (
        lambda net: net.condition([torch_days(net), DAYS, DAYS.assign(day=1.0)], [Y, Y, Y]),
        r"x\[2\]\[..., 0\] must hold numbers|x\[2\]\[..., 0\] must hold dates",
    ),
    "units_of_x": (lambda net: net.in_units(x=pd.DataFrame(GOOD)), "standardise them"),
    "range_of_x": (lambda net: net.in_units(x_range=(0.0, 1.0)), "standardise them"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables_are_refused_with_what_is_wrong(scalar_net, case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call(scalar_net)


def test_days_in_tensors_go_with_dates(scalar_net):
    context = scalar_net.condition(DAYS, Y)
    days = torch_days(scalar_net)
    for given in (context, scalar_net.condition(days, Y), context.expand((3,))[0]):
        tables = [ArBufferMarginals(given, each).log_prob(Y) for each in (DAYS, days)]
        assert_close(tables[0], tables[1], **EXACT)


def test_densities_of_a_network_in_float32_are_float32():
    net = rows_net().float()
    x, y = draw(N, 2, seed=1).float(), draw(N, seed=2).float()
    joint = ArBufferJoint(net.condition(x, y), x[:M])
    assert joint.log_prob(y[:M]).dtype == joint.log_prob_conditionals(y[:M]).dtype == torch.float32


def test_outcomes_far_from_zero_are_warned_of_in_float32():
    net, x, y = rows_net(), draw(N, 2, seed=1), 1.7e9 + 10 * draw(N, seed=2)
    net.condition(x, y)
    with pytest.warns(UserWarning, match="float32 cannot tell outcomes apart.*subtract the location") as caught:
        net.float().condition(x, y)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="float32 cannot tell outcomes apart"):
        net.float().in_units(y_loc=1.7e9, y_scale=1e5).condition(x, y)


def test_outcomes_outside_the_trained_range_are_told_of_in_words_of_a_table():
    net = rows_net(y_range=(-3.0, 3.0)).in_units(y_loc=2.0, y_scale=50.0)
    x, y = draw(N, 2, seed=1), 100 * draw(N, seed=2)
    joint = ArBufferJoint(net.condition(x, y), x[:M])
    with pytest.warns(UserWarning, match=r"range \[-3.0, 3.0\] of numbers that their context standardises") as caught:
        joint.log_prob(y[:M] + 1e4)
    assert "x=[" not in str(caught[0].message) and "net.in_units(y_loc=..., y_scale=...)" in str(caught[0].message)


def test_left_out_rows_whose_rest_has_equal_outcomes_are_warned_of(scalar_net):
    with pytest.warns(UserWarning, match="no two different values") as caught:
        exact_loo(scalar_net, draw(4, 2, seed=1), torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=torch.float64))
    assert len(caught) == 1 and caught[0].filename == __file__


ODD: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str | None]] = {
    "constant_column": (lambda x, y: (x.index_fill(1, torch.tensor([1]), 7.0), y), None),
    "missing_column": (lambda x, y: (x.index_fill(1, torch.tensor([1]), torch.nan), y), None),
    "all_missing": (lambda x, y: (torch.full_like(x, torch.nan), y), None),
    "duplicated_rows": (lambda x, y: (x[[0, 0, 1, 1, 2]], y[[0, 0, 1, 1, 2]]), None),
    "same_column_twice": (lambda x, y: (x[:, [0, 1, 0]], y), None),
    "two_rows": (lambda x, y: (x[:2], y[:2]), None),
    "one_row": (lambda x, y: (x[:1], y[:1]), "no two different values"),
    "equal_outcomes": (lambda x, y: (x[:2], y[[0, 0]]), "no two different values"),
    "many_rows": (lambda x, y: (x.repeat(6, 1), y.repeat(6)), "num_context lies outside"),
}


NUISANCE: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {  # of rows and outcomes; the rows' columns
    "constant_column": lambda x, y: (x.index_fill(1, torch.tensor([2]), 7.0), y),
    "missing_column": lambda x, y: (x.index_fill(1, torch.tensor([2]), torch.nan), y),
    "missing_cells": lambda x, y: (x.where(torch.arange(len(x)).unsqueeze(-1) % 5 > 0, torch.nan), y),
    "duplicated_rows": lambda x, y: (x.repeat_interleave(2, 0), y.repeat_interleave(2)),
    "same_column_twice": lambda x, y: (x[:, [0, 1, 0]], y),
}


@pytest.fixture(scope="module")
def shipped() -> ArBufferModel:
    return pyro_arbuf.load("tabular").double()


@pytest.mark.parametrize("case", NUISANCE)
def test_odd_tables_cost_the_shipped_network_little(shipped, case):
    x, new = draw(40, D, seed=1), draw(8, D, seed=3)
    y, ahead = (1990 + 4 * each[:, 0] + 0.4 * draw(len(each), seed=5) for each in (x, new))
    plain = ArBufferJoint(shipped.condition(x, y), new)
    x, y = NUISANCE[case](x, y)
    new = new[:, [0, 1, 0]] if case == "same_column_twice" else new
    odd = ArBufferJoint(shipped.condition(x, y), new).log_prob(ahead)
    assert abs(odd - plain.log_prob(ahead)) / 8 < 0.5
    assert (odd - torch.distributions.Normal(y.mean(), y.std()).log_prob(ahead).sum()) / 8 > 1


def test_order_of_columns_changes_nothing_of_the_shipped_network(shipped):
    x, order = draw(20, 16, seed=1), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    y, new, ahead = draw(20, seed=2), draw(4, 16, seed=3), draw(4, seed=4)
    densities = [
        ArBufferJoint(shipped.condition(each, y), targets).log_prob(ahead)
        for each, targets in ((x, new), (x[:, order], new[:, order]))
    ]
    assert_close(*densities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ODD)
def test_odd_tables_have_finite_densities_and_warn_where_these_mean_little(scalar_net, case):
    change, message = ODD[case]
    x, y = change(inputs(N, seed=1), 5 + draw(N, seed=2))
    target = inputs(M, seed=3).index_fill(0, torch.tensor([1]), torch.nan)  # a row without any cell among them
    if message is None:
        context = scalar_net.condition(x, y)
    else:
        with pytest.warns(UserWarning, match=message) as caught:
            context = scalar_net.condition(x, y)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="num_context with absorbed")
        joint = ArBufferJoint(context, target)
    assert joint.log_prob(5 + draw(M, seed=4)).isfinite() and joint.sample((2,)).isfinite().all()
    assert joint.marginals().mean.isfinite().all()


def test_rows_in_another_order_are_refused():
    frame = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0) ** 2}, index=list("abcdefgh"))
    y = pd.Series(np.linspace(0, 1, 8), index=frame.index)
    net = rows_net()
    for shuffled in (frame.sample(frac=1, random_state=1), frame[::-1]):
        with pytest.raises(ValueError, match=r"rows in the same order; .* give y.loc\[x.index\]"):
            net.condition(shuffled, y)
        with pytest.raises(ValueError, match="rows in the same order"):
            net.condition([frame, shuffled], [y, y])
        with pytest.raises(ValueError, match="rows in the same order"):
            exact_loo(net, shuffled, y)
    net.condition(frame, y.reset_index(drop=True))  # another index says nothing
    joint = ArBufferJoint(net.condition(frame, y), frame[:3])
    with pytest.raises(ValueError, match="rows in the same order"):
        joint.log_prob(y[:3][::-1])
    assert joint.log_prob(y[:3]) == joint.log_prob(y[:3].to_numpy()) == joint.expand([1]).log_prob(y[:3])[0]


def test_one_row_as_a_series_is_told_from_one_column():
    frame = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0) ** 2})
    ctx = rows_net().condition(frame, torch.linspace(0, 1, 8, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"use x.to_frame\(\) if it is one column, table.iloc\[\[i\]\] if it is one row"
    ):
        ArBufferJoint(ctx, frame.iloc[0])
    assert ArBufferJoint(ctx, frame.iloc[[0]]).event_shape == (1,)


def test_infinite_cells_are_named_by_their_columns():
    frame = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0), "c": np.arange(8.0)})
    frame.loc[2, "b"] = np.inf
    with pytest.raises(ValueError, match=r"got 1 infinite of 24 values, in the columns \['b'\]; make them NaN"):
        rows_net().condition(frame, torch.linspace(0, 1, 8, dtype=torch.float64))


def test_units_of_a_table_are_stated_for_as_many_columns_as_it_has():
    net = pyro_arbuf.load("tabular").in_units(x_loc=[90.0, 1960.0], x_scale=[30.0, 35.0])
    assert net.config.user_x_loc[:3] == (90.0, 1960.0, 0.0) and net.config.user_x_scale[:3] == (30.0, 35.0, 1.0)
    with pytest.raises(ValueError, match="x_loc must be one number, or 16 of them; got 17"):
        pyro_arbuf.load("tabular").in_units(x_loc=[0.0] * 17)


class Column:
    """A column of a polars table: numbers whose dtype is no NumPy dtype."""

    dtype = "Float64"

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self.numbers


class PolarsTable:
    """What a table of polars has of what is asked."""

    def __init__(self, **parts: Column) -> None:
        self.parts, self.columns = parts, list(parts)

    def __len__(self) -> int:
        return N

    def __getitem__(self, label: str) -> Column:
        return self.parts[label]

    def to_numpy(self) -> np.ndarray:
        return np.stack([column.numbers for column in self.parts.values()], -1)

    def equals(self, other: "PolarsTable") -> bool:
        if not isinstance(other, PolarsTable):
            raise TypeError("expected 'other' to be a 'DataFrame'")
        return False


def test_tables_of_polars_are_those_of_their_numbers(scalar_net):
    x, y = draw(N, 2, seed=1), draw(N, seed=2)
    table = PolarsTable(a=Column(x[:, 0].numpy()), b=Column(x[:, 1].numpy()))
    context = scalar_net.condition(table, y.numpy())
    assert context.labels.columns == ("a", "b") and torch.equal(context.x, scalar_net.condition(x, y).x)
    assert torch.equal(scalar_net.condition(table, Column(y.numpy())).y, context.y)


def test_columns_of_xarray_go_by_their_names(scalar_net):
    x = xr.DataArray(draw(N, 2, seed=1).numpy(), dims=("row", "column"), coords={"column": ["a", "b"]})
    context = scalar_net.condition(x, draw(N, seed=2))
    ArBufferJoint(context, x[:M])
    ArBufferJoint(context, x[:M].values)
    with pytest.raises(
        ValueError, match=r"in the same order, \['a', 'b'\]; got \['b', 'a'\]; .* xarray array by x\.sel$"
    ):
        ArBufferJoint(context, x[:M].sel(column=["b", "a"]))


@pytest.mark.parametrize("level", [0.3, 1234.5678])
def test_what_rounding_leaves_of_equal_numbers_is_no_variation(scalar_net, level):
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(5), N).sum(1))
    assert len(shares.unique()) > 1
    x, y = draw(N, 2, seed=1), draw(N, seed=2)
    found = [torch.cat([x, each[:, None]], -1) for each in (shares, torch.ones_like(shares))]
    joints = [ArBufferJoint(scalar_net.condition(each, y), each[:M]) for each in found]
    assert_close(*(joint.log_prob(y[:M]) for joint in joints), rtol=1e-9, atol=1e-9)
    with pytest.warns(UserWarning, match="no two different values"):
        context = scalar_net.condition(x, level * shares)
    assert context.statistics.y_scale.item() == 1


def test_a_stated_unit_is_enough_for_one_row(scalar_net):
    context = scalar_net.in_units(y_loc=3e5, y_scale=1e5).condition(draw(1, 2, seed=1), 2.8e5 + draw(1, seed=2))
    assert ArBufferMarginals(context, draw(1, 2, seed=3)).mean.item() > 1e3
    scalar_net.condition()  # 0 and 1 rows are trained with


def test_remedies_are_those_of_what_was_given(scalar_net):
    frame = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0) ** 2})
    context = scalar_net.condition(frame, torch.linspace(0, 1, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"use x\[:, None\] if it is one column, x\[None\] if it is one row$"):
        ArBufferJoint(context, frame.to_numpy()[0])
    with pytest.raises(
        ValueError, match=r"got list; use np.stack\(\[each.to_numpy\(\) for each in x\]\), the batch in"
    ):
        ArBufferJoint(context, [frame, frame])
    with pytest.raises(ValueError, match=r"use x\.to_pandas\(\)$"):
        scalar_net.condition(type("Arrow", (), {"to_pandas": None})(), frame["a"])
