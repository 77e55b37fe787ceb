"""Pyro's own kinds of checks, on every kind of outcome: shapes, wrappers, handlers, scores, tracing, pickle."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import Predictive
from pyro.util import check_site_shape
from pyro_cases import DISCRETE, NETS, REAL, Case, draw, make_case
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.model import ArBufferModel

S = 4
ZERO = torch.zeros((), dtype=torch.float64)
REAL_ONLY = pytest.mark.parametrize("case", REAL, indirect=True)
NOT_DISCRETE = pytest.mark.parametrize("case", [name for name in NETS if name not in DISCRETE], indirect=True)


@pytest.fixture(scope="module", params=NETS)
def case(request: pytest.FixtureRequest, build_model: Callable[..., ArBufferModel]) -> Case:
    return make_case(request.param, build_model)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def observed(case: Case) -> None:
    """A latent offset of the targets' inputs, one for all subjects."""
    offset = pyro.sample("offset", dist.Normal(ZERO, 1.0))
    with case.plates():
        pyro.sample("y", case.joint(case.x + offset[..., None, None]), obs=case.y)


def log_prob_at(case: Case, offset: Tensor) -> Tensor:
    """`(*batch,)`, of the observation, at one offset."""
    return case.joint(case.x + offset).log_prob(case.y)


def trace_of(model: Callable, *args: object) -> poutine.Trace:
    trace = poutine.trace(model).get_trace(*args)
    trace.compute_log_prob()
    return trace


# Shapes and wrappers


def test_shape_of_a_sample_is_promised_and_scored(case: Case) -> None:
    d = case.joint()
    for sample_shape in ((), (S,), (S, 1)):
        y = d.sample(sample_shape)
        assert y.shape == d.shape(sample_shape) == sample_shape + case.y.shape
        assert d.log_prob(y).shape == sample_shape + case.batch
        assert d.support.check(y).all()


@pytest.mark.parametrize("expand", [ArBufferJoint.expand, ExpandedDistribution])
def test_expanded_joint_scores_as_the_plain_one(case: Case, expand: Callable) -> None:
    d = case.joint()
    wide = expand(d, torch.Size([3, S, *case.batch]))
    y = wide.sample()
    assert y.shape == (3, S, *case.y.shape) and case.is_new(y, 3 * S * case.batch.numel())
    close(wide.log_prob(y), d.log_prob(y))
    close(wide.log_prob(case.y), d.log_prob(case.y).expand(wide.batch_shape))


def test_expand_by_adds_dimensions_on_the_left(case: Case) -> None:
    d = case.joint().expand_by([S])
    assert type(d) is ArBufferJoint and d.batch_shape == (S, *case.batch) and d.sample().shape == (S, *case.y.shape)


def test_to_event_moves_the_batch_into_the_event(case: Case) -> None:
    d = case.joint()
    independent, y = d.expand_by([S]).to_event(), d.sample((3, S))
    assert independent.batch_shape == () and independent.event_dim == 1 + len(case.batch) + case.event_dim
    assert independent.sample((3,)).shape == (3, S, *case.y.shape)
    close(independent.log_prob(y), d.log_prob(y).flatten(1).sum(1))


def test_mask_leaves_out_elements_of_the_batch(case: Case) -> None:
    d, mask = case.joint().expand_by([S]), torch.tensor([True, False, True, True]).view(S, *(1 for _ in case.batch))
    y = d.sample()
    close(d.mask(mask).log_prob(y), case.joint().log_prob(y) * mask)
    assert d.mask(False).log_prob(y).eq(0).all() and d.mask(False).log_prob(y).shape == d.batch_shape
    assert d.mask(mask).to_event(1).sample().shape == y.shape


@REAL_ONLY
def test_transformed_joint_scores_by_change_of_variables(case: Case) -> None:
    scale = torch.tensor(2.5, dtype=torch.float64)
    d = dist.TransformedDistribution(case.joint(), [AffineTransform(1.0, scale)])
    log_jacobian = scale.log() * case.y[(0,) * len(case.batch)].numel()
    assert d.batch_shape == case.batch and d.sample((S,)).shape == (S, *case.y.shape)
    close(d.log_prob(1.0 + scale * case.y), case.joint().log_prob(case.y) - log_jacobian)


def test_nested_plates_expand_the_joint(case: Case) -> None:
    """Contexts for 3 studies (of subjects), expanded over 5 occasions outside."""
    studies = case.condition(3)
    left = -1 - len(case.batch)

    def model() -> None:
        with pyro.plate("occasions", 5, dim=left - 1), pyro.plate("studies", 3, dim=left), case.plates():
            pyro.sample("y", case.joint(context=studies))

    site = trace_of(model).nodes["y"]
    assert site["value"].shape == (5, 3, *case.y.shape) and site["log_prob"].shape == (5, 3, *case.batch)
    check_site_shape(site, max_plate_nesting=2 + len(case.batch))
    for i in range(3):
        close(site["log_prob"][:, i], case.joint(context=studies[i]).log_prob(site["value"][:, i]))


def test_subsampled_plate_indexes_the_context_and_scales(case: Case) -> None:
    studies = case.condition(5)
    left = -1 - len(case.batch)

    def model() -> Tensor:
        with pyro.plate("studies", 5, subsample_size=3, dim=left) as chosen, case.plates():
            pyro.sample("y", case.joint(context=studies[chosen]), obs=case.y)
        return chosen

    trace = trace_of(model)
    chosen = trace.nodes["_RETURN"]["value"]
    assert len(chosen.unique()) == 3
    expected = sum(case.joint(context=studies[i]).log_prob(case.y).sum() for i in chosen.tolist())
    close(trace.log_prob_sum(), expected * 5 / 3)


# Handlers


def test_condition_observes_the_joint(case: Case) -> None:
    def model() -> None:
        with case.plates():
            pyro.sample("y", case.joint())

    trace = trace_of(poutine.condition(model, data={"y": case.y}))
    assert trace.nodes["y"]["is_observed"]
    close(trace.log_prob_sum(), case.joint().log_prob(case.y).sum(), 0.0)


def test_replay_repeats_a_draw(case: Case) -> None:
    def model() -> None:
        with case.plates():
            pyro.sample("y", case.joint())

    first = trace_of(model)
    second = trace_of(poutine.replay(model, trace=first))
    assert torch.equal(second.nodes["y"]["value"], first.nodes["y"]["value"])
    assert torch.equal(second.log_prob_sum(), first.log_prob_sum())


def test_block_hides_the_joint(case: Case) -> None:
    trace = trace_of(poutine.block(observed, hide=["y"]), case)
    assert "y" not in trace.nodes and "offset" in trace.nodes


def test_scale_multiplies_the_density(case: Case) -> None:
    trace = trace_of(poutine.scale(observed, scale=0.3), case)
    close(trace.nodes["y"]["log_prob"], 0.3 * log_prob_at(case, trace.nodes["offset"]["value"]))


def test_mask_handler_leaves_the_observation_out(case: Case) -> None:
    trace = trace_of(poutine.mask(observed, mask=False), case)
    assert trace.nodes["y"]["log_prob_sum"] == 0


def test_do_cuts_the_joint_from_the_density(case: Case) -> None:
    def model() -> Tensor:
        with case.plates():
            y = pyro.sample("y", case.joint())
            pyro.sample("z", dist.Normal(y.double(), 1.0).to_event(case.event_dim), obs=torch.zeros(y.shape))
        return y

    nodes = trace_of(poutine.do(model, data={"y": case.y})).nodes
    assert torch.equal(nodes["_RETURN"]["value"], case.y)
    close(nodes["z"]["log_prob_sum"], dist.Normal(case.y.double(), 1.0).log_prob(ZERO).sum())
    fresh = nodes["y"]  # Pyro leaves a draw that nothing depends on
    same = fresh["value"] == case.y
    assert not (same.any() if case.is_real else same.all())
    close(fresh["log_prob"], case.joint().log_prob(fresh["value"]), 0.0)


def test_lift_makes_a_parameter_a_latent(case: Case) -> None:
    def model() -> None:
        offset = pyro.param("offset", ZERO.clone())
        with case.plates():
            pyro.sample("y", case.joint(case.x + offset), obs=case.y)

    trace = trace_of(poutine.lift(model, prior={"offset": dist.Normal(ZERO, 1.0)}))
    offset = trace.nodes["offset"]["value"]
    close(trace.log_prob_sum(), log_prob_at(case, offset).sum() + dist.Normal(ZERO, 1.0).log_prob(offset))


def test_every_site_has_the_shape_that_its_plates_say(case: Case) -> None:
    trace = trace_of(observed, case)
    for name in ("offset", "y"):
        check_site_shape(trace.nodes[name], max_plate_nesting=len(case.batch))
    assert "log_prob" in trace.format_shapes()


# Predictive


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_have_samples_then_plates_then_targets(case: Case, parallel: bool) -> None:
    draws = Predictive(poutine.uncondition(observed), num_samples=S, parallel=parallel)(case)
    assert draws["y"].shape == (S, *case.y.shape)
    assert draws["y"].dtype == case.y.dtype and case.is_new(draws["y"], S * case.batch.numel())


def test_predictive_pairs_every_draw_with_its_own_latent(case: Case) -> None:
    posterior = {"offset": draw(S, *(1 for _ in case.batch), seed=5)}
    predictive = Predictive(poutine.uncondition(observed), posterior, parallel=True)
    site = predictive.get_vectorized_trace(case).nodes["y"]
    densities = site["fn"].log_prob(site["value"])
    assert densities.shape == (S, *case.batch)
    for offset, y, density in zip(posterior["offset"].flatten(), site["value"], densities, strict=True):
        close(density, case.joint(case.x + offset).log_prob(y))


# Score, tracing


ENTRIES = {
    "x": lambda case, latent: case.joint(case.x + latent).log_prob(case.y),
    "y": lambda case, latent: case.joint().log_prob(case.moved(case.y, -latent)),
    "context": lambda case, latent: case.joint(context=case.condition(shift=latent)).log_prob(case.y),
}
ENTERING = pytest.mark.parametrize(  # a latent that enters where it says: categories and counts cannot be shifted
    ("case", "entry"),
    [(name, entry) for name in NETS for entry in ENTRIES if entry != "y" or name not in DISCRETE],
    indirect=["case"],
)


@ENTERING
def test_score_equals_finite_differences(case: Case, entry: str) -> None:
    density = ENTRIES[entry]
    latent = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: density(case, t), latent, eps=1e-5, atol=1e-5, rtol=1e-6)
    (score,) = torch.autograd.grad(density(case, latent).sum(), latent)
    assert score.abs() > 0.1  # else the test says nothing


@ENTERING
def test_traced_density_equals_the_eager_one_elsewhere(case: Case, entry: str) -> None:
    density = ENTRIES[entry]
    latent, other = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, -0.7))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        # A TracerWarning of ours would be an error here. Pyro turns the check of the trace off as well.
        traced = torch.jit.trace(lambda t: density(case, t), latent, check_trace=False)
    for value in (latent, other, other):
        got, expected = traced(value), density(case, value)
        close(got, expected)
        gradients = (torch.autograd.grad(v.sum(), value)[0] for v in (got, expected))
        close(*gradients, tolerance=1e-8)
    assert (density(case, latent) - density(case, other)).abs().min() > 0.01


# Values


def test_density_is_bitwise_the_same_twice(case: Case) -> None:
    y = case.joint().sample((S,))
    assert torch.equal(case.joint().log_prob(y), case.joint().log_prob(y))


@pytest.mark.parametrize("copied", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_of_wrapped_joints_score_and_draw_the_same(case: Case, copied: Callable) -> None:
    d = case.joint(rsample=case.is_real).expand_by([S])
    for wrapped in (d, d.to_event(1), d.mask(torch.ones(d.batch_shape, dtype=torch.bool))):
        again, y = copied(wrapped), wrapped.sample()
        assert type(again) is type(wrapped) and again.shape() == wrapped.shape()
        assert again.has_rsample == wrapped.has_rsample == case.is_real
        close(again.log_prob(y), wrapped.log_prob(y), 0.0)
        draws = []
        for one in (wrapped, again):
            pyro.set_rng_seed(7)
            draws.append(one.sample())
        assert torch.equal(*draws)


@NOT_DISCRETE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_single_precision_latent_meets_a_double_precision_network(case: Case, dtype: torch.dtype) -> None:
    shift = torch.tensor(0.25, dtype=dtype, requires_grad=True)
    y = case.moved(case.y.to(dtype), shift)
    got = case.joint().log_prob(y)
    assert got.dtype == torch.float32
    close(got.double(), case.joint().log_prob(y.double()), 1e-4)
    got.sum().backward()
    assert shift.grad.dtype == dtype and shift.grad.isfinite()


@pytest.mark.parametrize("case", DISCRETE, indirect=True)
def test_observations_may_be_integers_or_integral_floats(case: Case) -> None:
    expected = case.joint().log_prob(case.y)
    assert expected.dtype == torch.float64
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.float64, torch.float32, torch.float16):
        got = case.joint().log_prob(case.y.to(dtype))
        close(got.double(), expected, 1e-4)
        half = torch.promote_types(dtype, torch.float32)
        assert got.dtype == (half if dtype.is_floating_point else torch.float64)


def test_draws_have_the_dtype_and_the_support_of_pyros_own(case: Case) -> None:
    d = case.joint()
    y = d.sample((S,))
    assert y.dtype == case.y.dtype
    assert not d.has_enumerate_support and d.support.event_dim == case.event_dim
    assert d.support.is_discrete == (not case.is_real and case.event_dim == 1)
    for wrapped in (d.expand_by([S]), d.expand_by([S]).to_event(1), d.mask(True)):
        assert wrapped.sample().dtype == case.y.dtype and not wrapped.has_enumerate_support
        assert wrapped.support.check(y).all()
    assert d.sample((0,)).shape == (0, *case.y.shape) and d.support.check(d.sample((0,))).shape == (0, *case.batch)
    assert d.log_prob(d.sample((0,))).shape == (0, *case.batch)
