"""Outcomes of every kind: categories, counts and vectors that mix kinds, from the head to the distributions."""

import dataclasses
import itertools
import math

import pytest
import reference
import torch
from conftest import CONFIG, random_model
from samples import draw_outcomes
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.discrete import CategoricalPredictive, CountPredictive
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.network.predictives import GaussianMixture

EXACT = {"rtol": 1e-9, "atol": 1e-9}
B, S, K, N, M = 2, 3, 4, 5, 6
MIXED = ("categorical(3)", "real", "count")
UNITS = {"y_loc": (0.0, 0.4, 1.1), "y_scale": (1.0, 1.7, 0.6)}
KINDS = {
    "choice": {"outcomes": ("categorical(2)",)},
    "category": {"outcomes": ("categorical(4)",)},
    "count": {"outcomes": ("count",)},
    "count_in_units": {"outcomes": ("count",), "y_loc": (1.2,), "y_scale": (0.7,), "num_y_frequencies": 3},
    "pair": {"dim_y": 2},
    "vector_in_units": {"dim_y": 3, **UNITS, "num_y_frequencies": 3},
    "mixed": {"dim_y": 3, "outcomes": MIXED},
    "mixed_in_units": {
        "dim_y": 3,
        "outcomes": MIXED[1:] + MIXED[:1],
        "y_loc": (0.4, 1.1, 0.0),
        "y_scale": (1.7, 0.6, 1.0),
    },
    "gaussian_head": {"dim_y": 3, "outcomes": MIXED, "head": "gaussian"},
    "vector_of_one": {"dim_y": 1, "outcomes": ("categorical(3)",)},
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, seed: int = 0, **fields: object) -> ArBufferModel:
    return random_model(dataclasses.replace(CONFIG, chained=True, **KINDS[kind] | fields), seed)


def weights(net: ArBufferModel) -> dict:
    """The network's weights, and what the reference reads beside them."""
    config = net.config
    found = dict(net.state_dict()) | {"kinds": list(config.outcomes or ("real",) * (config.dim_y or 1))}
    if config.y_loc is not None:
        found |= {"y_loc": net.embedder.y_loc, "y_scale": net.embedder.y_scale}
    return found


def draw_inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, CONFIG.dim_x, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_user(net: ArBufferModel, y: Tensor) -> Tensor:
    return net.config.squeeze_outcome(y)


def condition(net: ArBufferModel, *batch: int, num_context: int = N) -> Context:
    y = draw_outcomes(net.config, *batch, num_context, seed=7)
    return net.condition(draw_inputs(*batch, num_context, seed=5), as_user(net, y))


def joint(net: ArBufferModel, num_targets: int = M, *batch: int, **options: object) -> ArBufferJoint:
    return ArBufferJoint(condition(net, *batch), draw_inputs(num_targets, seed=3), **options)


# Equal to the reference -----------------------------------------------------------------------------------------------


@of_every_kind
@pytest.mark.parametrize("num_targets", [K - 1, M, 2 * K + 1])
@pytest.mark.parametrize("batch", [(), (B,)], ids=["one", "batch"])
def test_density_equals_the_reference(kind: str, num_targets: int, batch: tuple[int, ...]) -> None:
    net, orders = build(kind), random_orders(num_targets, 2)
    d = joint(net, num_targets, *batch, orders=orders)
    y = draw_outcomes(net.config, S, *batch, num_targets)
    given = (d.context.x.view(*batch, N, -1), d.context.y.view(*batch, N, -1))
    for s in range(S):
        expected = reference.log_prob(weights(net), 2, *given, d.x, y[s], orders.tolist(), K)
        assert_close(d.log_prob(as_user(net, y[s])), expected, **EXACT)
    assert_close(d.log_prob(as_user(net, y))[-1], d.log_prob(as_user(net, y[-1])), **EXACT)


@of_every_kind
def test_draws_equal_the_reference_for_the_same_noise(kind: str) -> None:
    net, order = build(kind), torch.arange(2 * K + 1).flip(0)
    d = joint(net, 2 * K + 1, orders=order[None])
    torch.manual_seed(3)
    y = d.sample()
    torch.manual_seed(3)
    uniform = torch.rand(2 * K + 1, net.config.dim_y or 1, dtype=torch.float64)
    noise = (uniform, torch.randn_like(uniform))
    expected = reference.sample(weights(net), 2, d.context.x[0], d.context.y[0], d.x, order.tolist(), K, *noise)
    assert_close(y.double(), as_user(net, expected), **EXACT)


@of_every_kind
def test_conditionals_equal_the_reference(kind: str) -> None:
    net = build(kind)
    d, y = joint(net), draw_outcomes(net.config, M)
    nothing = draw_inputs(0), draw_outcomes(net.config, 0)
    found = d.log_prob_conditionals(as_user(net, y))
    for i in range(M):
        rest = [j for j in range(M) if j != i]
        pairs = torch.cat([d.context.x[0], d.x[rest]]), torch.cat([d.context.y[0], y[rest]])
        predictive = reference.predictive(weights(net), 2, *pairs, *nothing, d.x[[i]], [0])
        assert_close(found[i], predictive.log_prob(y[[i]]).sum(), **EXACT)


@of_every_kind
def test_score_of_training_equals_the_marginals_with_an_empty_buffer(kind: str) -> None:
    net = build(kind)
    marginals = ArBufferMarginals(condition(net), draw_inputs(M, seed=3))
    y = draw_outcomes(net.config, M)
    expected = reference.predictive(
        weights(net),
        2,
        marginals.context.x[0],
        marginals.context.y[0],
        draw_inputs(0),
        draw_outcomes(net.config, 0),
        marginals.x,
        [0] * M,
    )
    assert_close(marginals.log_prob_factors(as_user(net, y)), expected.log_prob(y).sum(-1), **EXACT)
    assert_close(marginals.cdf(as_user(net, y)), as_user(net, expected.cdf(y)), **EXACT)


# Laws -----------------------------------------------------------------------------------------------------------------


def test_all_outcomes_of_a_categorical_joint_sum_to_one() -> None:
    net = build("category")
    d = joint(net, 5, orders=random_orders(5, 3), buffer_size=2)
    every = torch.tensor(list(itertools.product(range(4), repeat=5)))
    assert_close(d.log_prob(every).exp().sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)


def test_all_counts_of_a_joint_sum_to_one() -> None:
    net = build("count_in_units", head_width=5)
    d = joint(net, 2, orders=torch.tensor([[0, 1], [1, 0]]))
    draws = d.sample((2000,))
    largest = int(8 * draws.max()) + 60
    every = torch.cartesian_prod(torch.arange(largest), torch.arange(largest)).double()
    assert d.log_prob(every).exp().sum().item() == pytest.approx(1.0, abs=2e-3)


@of_every_kind
@pytest.mark.parametrize("num_targets", [3, K + 1])
def test_what_is_sampled_is_what_is_scored(kind: str, num_targets: int) -> None:
    """Draws of the joint p and of the marginals q: under their mixture, the share 2 q / (p + q) averages to one."""
    net = build(kind)
    d = joint(net, num_targets, orders=random_orders(num_targets, 2))
    other, num_draws = d.marginals(), 3000
    drawn, back = d.sample((num_draws,)), other.sample((num_draws,))
    assert bool(d.support.check(drawn).all()) and bool(d.support.check(back).all())
    of_draws, of_back = (2 * torch.sigmoid(other.log_prob(y) - d.log_prob(y)) for y in (drawn, back))
    error = ((of_draws.var() + of_back.var()) / num_draws).sqrt()
    assert (of_draws.mean() + of_back.mean() - 2).abs() < 4.5 * error
    assert of_draws.std() > 0.01  # else the test says nothing


@of_every_kind
def test_pit_of_draws_is_uniform(kind: str) -> None:
    net = build(kind)
    d = joint(net, K + 1)
    u = d.pit(d.sample((3000,)), seed=1)
    assert u.shape == (3000, *d.event_shape) and bool(((u >= 0) & (u <= 1)).all())
    flat = u.flatten(1)
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    gap = (flat[..., None] < grid).double().mean(0) - grid
    assert gap.abs().max() < 4.5 * 0.5 / 3000**0.5
    correlation = torch.corrcoef(flat.T) - torch.eye(flat.shape[1], dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / 3000**0.5


def test_pit_is_the_same_for_the_same_seed() -> None:
    d = joint(build("count"))
    y = d.sample()
    assert torch.equal(d.pit(y, seed=3), d.pit(y, seed=3)) and not torch.equal(d.pit(y, seed=3), d.pit(y, seed=4))


@pytest.mark.parametrize("kind", ["vector_in_units", "mixed", "mixed_in_units"])
def test_a_dimension_reads_no_later_one(kind: str) -> None:
    net = build(kind)
    features = torch.randn(4, net.config.width, dtype=torch.float64)
    predictive = net.head(features)
    y = draw_outcomes(net.config, 4).requires_grad_()
    for d, e in itertools.product(range(3), repeat=2):
        changed = y.detach().clone()
        changed[:, e] = (changed[:, e] + 1) % 3
        moved = (predictive.log_prob(changed) - predictive.log_prob(y.detach()))[:, d].abs().max()
        assert (moved > 1e-6) if d >= e else (moved == 0)
    (gradient,) = torch.autograd.grad(predictive.log_prob(y)[:, 0].sum(), y)
    assert (gradient[:, 1:] == 0).all()


# Predictives ----------------------------------------------------------------------------------------------------------


def mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    log_weights = torch.tensor([[0.3, 0.3, 0.4]], dtype=dtype).log()
    means, sds = torch.tensor([[11.5129, 0.2, 3.0]], dtype=dtype), torch.tensor([[1e-3, 0.9, 0.02]], dtype=dtype)
    return GaussianMixture(log_weights.requires_grad_(), means.requires_grad_(), sds.requires_grad_())


def test_counts_sum_to_one_and_have_their_moments() -> None:
    counts = CountPredictive(mixture())
    k = torch.arange(400_000.0, dtype=torch.float64)[:, None]
    mass = counts.log_prob(k).exp().detach()
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert_close(counts.cdf(k).detach(), mass.cumsum(0), **EXACT)
    mean = (mass * k).sum().item()
    assert counts.mean.item() == pytest.approx(mean, rel=1e-6)
    assert counts.variance.item() == pytest.approx((mass * k * k).sum().item() - mean**2, rel=1e-6)
    assert_close(counts.icdf(counts.cdf(k[:60]).detach() - 1e-9)[:40], k[:40], **EXACT)


@pytest.mark.parametrize("count", [0.0, 1.0, 20.0, 1e3, 1e5, 3e6])
def test_large_counts_in_float32_are_exact_and_have_gradients(count: float) -> None:
    single, double = mixture(torch.float32), mixture()
    found = CountPredictive(single).log_prob(torch.tensor([count]))
    expected = CountPredictive(double).log_prob(torch.tensor([count], dtype=torch.float64))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    parameters = (single.log_weights, single.means, single.sds)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found.sum(), parameters))


def test_what_is_no_count_and_no_category_has_no_probability() -> None:
    wrong = torch.tensor([-1.0, 0.5, math.inf], dtype=torch.float64)
    assert (CountPredictive(mixture()).log_prob(wrong) == -math.inf).all()
    categories = CategoricalPredictive(torch.log_softmax(torch.randn(1, 3, dtype=torch.float64), -1))
    assert (categories.log_prob(torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)) == -math.inf).all()
    assert categories.log_prob(torch.arange(3.0, dtype=torch.float64)).exp().sum().item() == pytest.approx(1.0)


# What users see -------------------------------------------------------------------------------------------------------


def test_draws_and_supports_are_those_of_pyro() -> None:
    category, count, mixed = (joint(build(kind)) for kind in ("category", "count", "mixed"))
    assert category.sample().dtype == torch.int64 and count.sample().dtype == torch.float64
    assert category.support.is_discrete and count.support.is_discrete and not mixed.support.is_discrete
    assert not any(d.has_enumerate_support or d.has_rsample for d in (category, count, mixed))
    y = category.sample((3,))
    assert_close(category.log_prob(y), category.log_prob(y.double()), **EXACT)
    assert category.marginals().probs.shape == (M, 4)
    assert_close(category.marginals().probs.sum(-1), torch.ones(M, dtype=torch.float64), **EXACT)
    assert joint(build("mixed")).marginals().probs.shape == (M, 3)
    with pytest.raises(AttributeError, match=r"probs is for categories; this network's outcome holds counts"):
        count.marginals().probs  # noqa: B018


def test_choices_may_be_booleans() -> None:
    net = build("choice")
    y = torch.tensor([True, False, True, True, False])
    d = ArBufferJoint(net.condition(draw_inputs(N), y), draw_inputs(N))
    assert_close(d.log_prob(y), d.log_prob(y.long()), **EXACT)


WRONG = {
    "category": (torch.tensor([0.0, 4.0, 1.0, 1.0, 2.0]), r"y must hold the categories 0 to 3; got \[4.0\]"),
    "choice": (torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0]), r"y must hold the categories 0 to 1; got \[0.5\]"),
    "count": (torch.tensor([0.0, -1.0, 1.0, 1.0, 2.5]), r"y must hold counts 0, 1, 2, ...; got \[-1.0, 2.5\]"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_outcomes_of_another_kind_are_refused(kind: str) -> None:
    net, (y, message) = build(kind), WRONG[kind]
    with pytest.raises(ValueError, match=message):
        net.condition(draw_inputs(N), y)
    with pytest.raises(ValueError, match=message):
        joint(net, N).log_prob(y)


def test_mixed_outcomes_of_another_kind_name_the_dimension() -> None:
    net = build("mixed")
    y = draw_outcomes(net.config, N)
    y[2, 2] = -3.0
    with pytest.raises(ValueError, match=r"y\[..., 2\] must hold counts"):
        net.condition(draw_inputs(N), y)


def test_discrete_draws_have_no_derivative() -> None:
    d = joint(build("count"), rsample=True)
    with pytest.raises(NotImplementedError, match="draws of categories and counts have no derivative"):
        d.rsample()


def test_missing_outcomes_of_every_kind_are_dropped() -> None:
    for kind in KINDS:
        net = build(kind)
        y = draw_outcomes(net.config, M)
        without = joint(net, M, orders=torch.arange(M)[None], nan="drop")
        y[2] = torch.nan
        keep = [i for i in range(M) if i != 2]
        d = ArBufferJoint(without.context, without.x[keep], torch.arange(M - 1)[None])
        assert_close(without.log_prob(as_user(net, y)), d.log_prob(as_user(net, y[keep])), **EXACT)


def test_moments_of_a_vector_are_those_of_draws() -> None:
    marginals = joint(build("mixed")).marginals()
    with pytest.raises(NotImplementedError, match=r"moments"):
        marginals.mean  # noqa: B018
    assert joint(build("choice")).moments(100).mean.shape == (M,)


@of_every_kind
def test_gradients_to_inputs_and_context_are_those_of_finite_differences(kind: str) -> None:
    net = build(kind)
    y_context, y = draw_outcomes(net.config, 3, seed=2), draw_outcomes(net.config, 3)

    def density(x_context: Tensor, x: Tensor) -> Tensor:
        d = ArBufferJoint(net.condition(x_context, as_user(net, y_context)), x, buffer_size=2)
        return d.log_prob(as_user(net, y))

    inputs = (draw_inputs(3, seed=8).requires_grad_(), draw_inputs(3, seed=9).requires_grad_())
    assert torch.autograd.gradcheck(density, inputs)


def test_kinds_are_read_from_their_names() -> None:
    assert outcome_of("categorical(7)").num_categories == 7 and outcome_of("real").num_categories == 0
    for text in ("categorical", "categorical(1)", "real(3)", "binary", "categorical(x)", 3):
        with pytest.raises(ValueError, match="outcomes must"):
            outcome_of(text)


def test_configuration_names_the_kind_of_every_dimension() -> None:
    config = ModelConfig(dim_y=3, outcomes=MIXED)
    assert ModelConfig.from_json(config.to_json()) == config and not config.all_real
    with pytest.raises(ValueError, match="outcomes must name the kinds of all 2 dimensions"):
        ModelConfig(dim_y=2, outcomes=MIXED)
    with pytest.raises(ValueError, match="chained=False is for real outcomes"):
        ModelConfig(outcomes=("count",), chained=False)
