"""Pyro's inference on outcomes of every kind: the joint as an observed site and, where it is real, as a latent one."""

import functools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    MCMC,
    NUTS,
    SVI,
    Importance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from pyro.ops.stats import effective_sample_size
from pyro_cases import DISCRETE, MIXED, NETS, REAL, Case, make_case
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_arbuf.model import ArBufferModel

S = 4
REAL_ONLY = pytest.mark.parametrize("case", REAL, indirect=True)
DISCRETE_ONLY = pytest.mark.parametrize("case", DISCRETE | MIXED, indirect=True)
ZERO, STEP = torch.zeros((), dtype=torch.float64), 0.3
PRIOR = dist.Normal(ZERO, 1.0)
# Pyro traces by torch.jit, which torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")


@pytest.fixture(scope="module", params=NETS)
def case(request: pytest.FixtureRequest, build_model: Callable[..., ArBufferModel]) -> Case:
    return make_case(request.param, build_model)


@pytest.fixture
def program(request: pytest.FixtureRequest) -> tuple[Callable, ...]:
    return PROGRAMS[request.param]


@pytest.fixture(autouse=True)
def _no_parameters() -> None:
    pyro.clear_param_store()


def close(got: Tensor | float, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(torch.as_tensor(got, dtype=torch.float64), expected, rtol=1e-9, atol=tolerance)


def normal(loc: Tensor) -> dist.Normal:
    return dist.Normal(loc, STEP)


# The joint as an observed site: a latent offset of the targets' inputs, one for all subjects


def observed(case: Case) -> None:
    offset = pyro.sample("offset", PRIOR)
    with case.plates():
        pyro.sample("y", case.joint(case.x + offset[..., None, None]), obs=case.y)


def observed_density(case: Case, offset: Tensor) -> Tensor:
    return PRIOR.log_prob(offset) + case.joint(case.x + offset).log_prob(case.y).sum()


def observed_guide(case: Case, around: Callable = normal) -> Tensor:
    return pyro.sample("offset", around(pyro.param("loc", ZERO + 0.2)))


# The joint as a latent site, observed with noise


def latent(case: Case) -> None:
    with case.plates():
        f = pyro.sample("f", case.joint())
        pyro.sample("z", dist.Normal(f, 1.0).to_event(case.event_dim), obs=case.y)


def latent_density(case: Case, f: Tensor) -> Tensor:
    return case.joint().log_prob(f).sum() + dist.Normal(f, 1.0).log_prob(case.y).sum()


def latent_guide(case: Case, around: Callable = normal) -> Tensor:
    loc = pyro.param("loc", 0.2 * torch.ones_like(case.y))
    with case.plates():
        return pyro.sample("f", around(loc).to_event(case.event_dim))


PROGRAMS = {"observed": (observed, observed_guide, observed_density), "latent": (latent, latent_guide, latent_density)}
PAIRS = [(case, program) for case in NETS for program in PROGRAMS if case in REAL or program == "observed"]
SITES = pytest.mark.parametrize(("case", "program"), PAIRS, indirect=True)


def make_elbo(elbo: type, case: Case, vectorised: bool, **options: object) -> ELBO:
    """With S particles, for a model in which nothing is enumerated."""
    return elbo(
        num_particles=S,
        vectorize_particles=vectorised,
        max_plate_nesting=len(case.batch),
        strict_enumeration_warning=False,
        **options,
    )


def elbo_by_hand(elbo: type, density: Callable, case: Case, drawn: list[Tensor]) -> Tensor:
    """Mean over the particles that the guide has drawn, one after the other."""
    loc = pyro.param("loc")
    guide = dist.Normal(loc, STEP)
    particles = torch.cat([z.reshape(-1, *loc.shape) for z in drawn])
    assert len(particles) == len(particles.unique(dim=0)) == S
    if elbo is TraceMeanField_ELBO and density is observed_density:  # the only pair of a known divergence
        likelihood = torch.stack([density(case, z) - PRIOR.log_prob(z) for z in particles])
        return likelihood.mean() - kl_divergence(guide, PRIOR)
    return torch.stack([density(case, z) - guide.log_prob(z).sum() for z in particles]).mean()


@SITES
@pytest.mark.parametrize("vectorised", [False, True], ids=["plain", "vectorised"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO])
def test_elbo_and_its_gradient_equal_those_by_hand(
    case: Case, elbo: type, vectorised: bool, program: tuple[Callable, ...]
) -> None:
    model, guide, density = program
    drawn = []
    loss = make_elbo(elbo, case, vectorised).loss_and_grads(model, lambda case: drawn.append(guide(case)), case)
    parameter = pyro.get_param_store()._params["loc"]
    got, parameter.grad = parameter.grad, None
    assert len(drawn) == (1 if vectorised else S)
    expected = elbo_by_hand(elbo, density, case, drawn)
    close(loss, -expected.detach())
    close(got, -torch.autograd.grad(expected, parameter)[0])


TRACED = [
    (Trace_ELBO, JitTrace_ELBO, "observed"),
    (TraceGraph_ELBO, JitTraceGraph_ELBO, "latent"),
    (TraceMeanField_ELBO, JitTraceMeanField_ELBO, "observed"),
    (TraceEnum_ELBO, JitTraceEnum_ELBO, "latent"),
]
OBSERVED = [(*elbos, "observed") for *elbos, _ in TRACED]


@pytest.mark.parametrize(
    ("case", "elbo", "traced_elbo", "name"),
    [(case, *each) for case in NETS for each in (TRACED if case in REAL else OBSERVED)],
    indirect=["case"],
)
def test_traced_elbo_equals_the_eager_one_elsewhere(case: Case, elbo: type, traced_elbo: type, name: str) -> None:
    model, guide = (functools.partial(f, case) for f in PROGRAMS[name][:2])
    guide = functools.partial(guide, around=dist.Delta)  # nothing random, whatever a trace makes of it
    eager, traced = make_elbo(elbo, case, True), make_elbo(traced_elbo, case, True, ignore_jit_warnings=True)
    results = []
    for objective, shift in ((traced, 0.0), (traced, 0.5), (eager, 0.0)):
        guide()
        parameter = pyro.get_param_store()._params["loc"]
        parameter.data += shift
        parameter.grad = None
        results.append((objective.loss_and_grads(model, guide), parameter.grad))
    before, got, expected = results
    close(got[0], torch.tensor(expected[0], dtype=torch.float64))
    close(got[1], expected[1])
    assert abs(before[0] - got[0]) > 0.01


def test_enumerated_choice_of_context_equals_the_sum_by_hand(case: Case) -> None:
    """Every subject has one of 3 contexts."""
    choices, weights = case.condition(3), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    subjects = tuple(torch.arange(size) for size in case.batch)

    @config_enumerate
    def model() -> None:
        with case.plates():
            choice = pyro.sample("choice", dist.Categorical(weights))
            pyro.sample("y", case.joint(context=choices[(choice, *subjects)]), obs=case.y)

    each = torch.stack([case.joint(context=choices[i]).log_prob(case.y) for i in range(3)], -1)
    expected = (each + weights.log()).logsumexp(-1).sum()
    elbos = (TraceEnum_ELBO, functools.partial(JitTraceEnum_ELBO, ignore_jit_warnings=True))
    for elbo in elbos:
        close(elbo(max_plate_nesting=len(case.batch)).loss(model, lambda: None), -expected)
    if case.batch:
        assert (each[0] - each[1]).abs().max() > 0.01  # else mixing up the subjects would pass


# rsample


def gradients(case: Case, num_repeats: int, num_particles: int, rsample: bool) -> Tensor:
    """Independent estimates of the ELBO's gradient for a guide that shifts the inputs of its joint."""

    def guide() -> None:
        offset = pyro.param("offset", ZERO.clone())
        with case.plates():
            pyro.sample("f", case.joint(case.x + offset, rsample=rsample))

    def model() -> None:
        with case.plates():
            f = pyro.sample("f", dist.Normal(torch.zeros_like(case.y), 3.0).to_event(case.event_dim))
            pyro.sample("z", dist.Normal(f, 1.0).to_event(case.event_dim), obs=case.y)

    elbo = Trace_ELBO(num_particles, max_plate_nesting=len(case.batch), vectorize_particles=True)
    results = []
    for _ in range(num_repeats):
        pyro.clear_param_store()
        elbo.loss_and_grads(model, guide)
        results.append(pyro.get_param_store()._params["offset"].grad)
    return torch.stack(results)


@REAL_ONLY
def test_pathwise_gradient_has_the_mean_of_the_score_function_one(case: Case) -> None:
    pathwise, score = gradients(case, 8, 40, rsample=True), gradients(case, 8, 300, rsample=False)
    errors = torch.stack([g.std() / len(g) ** 0.5 for g in (pathwise, score)])
    assert (pathwise.mean() - score.mean()).abs() < 5 * errors.norm()
    assert pathwise.mean().abs() > 5 * errors[0]  # else the test says nothing


# Draws without a derivative


@DISCRETE_ONLY
def test_guide_of_discrete_draws_has_the_score_function_gradient(case: Case) -> None:
    """Of one draw: (log p - log q) times the score of q."""
    drawn = []

    def guide() -> None:
        offset = pyro.param("offset", ZERO + 0.2)
        with case.plates():
            drawn.append(pyro.sample("f", case.joint(case.x + offset)))

    def model() -> None:
        with case.plates():
            pyro.sample("f", case.joint())

    loss = Trace_ELBO(max_plate_nesting=len(case.batch)).loss_and_grads(model, guide)
    offset = pyro.get_param_store()._params["offset"]
    got, offset.grad = offset.grad, None
    q, p = case.joint(case.x + offset).log_prob(drawn[0]), case.joint().log_prob(drawn[0])
    close(loss, -(p - q).sum().detach())
    close(got, -torch.autograd.grad(((p - q).detach() * q).sum(), offset)[0])


@DISCRETE_ONLY
@pytest.mark.parametrize("make", [lambda d: NUTS(d), lambda d: AutoNormal(d)()], ids=["nuts", "autoguide"])
def test_a_discrete_latent_of_gradients_is_an_error_that_says_so(case: Case, make: Callable) -> None:
    def model() -> None:
        with case.plates():
            pyro.sample("f", case.joint())

    ours = "outcomes that hold categories or counts cannot be latents of NUTS"
    pyros = "Continuous inference cannot handle discrete sample site 'f'"  # of what says that it is discrete
    with pytest.raises((NotImplementedError, ValueError), match=f"{ours}|{pyros}"):
        made = make(model)
        MCMC(made, num_samples=1, warmup_steps=1, disable_progbar=True).run()


# Autoguides


@SITES
@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_autoguide_is_fitted(case: Case, autoguide: type, program: tuple[Callable, ...]) -> None:
    model = program[0]
    guide = autoguide(model)
    guide(case)  # makes its parameters
    before = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.step(case))
    after = dict(pyro.get_param_store().items())
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(p.dtype == torch.float64 and p.isfinite().all() for p in after.values())
    name = "offset" if model is observed else "f"
    assert guide.median(case)[name].shape == (() if model is observed else case.y.shape)


def test_second_derivatives_take_attention_by_plain_products(case: Case) -> None:
    density, step = PROGRAMS["observed"][2], 1e-3
    point = torch.tensor(0.3, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        curvature = torch.autograd.functional.hessian(lambda offset: density(case, offset), point)
    below, at, above = (density(case, point + move) for move in (-step, 0.0, step))
    torch.testing.assert_close(curvature, (below - 2 * at + above) / step**2, rtol=1e-3, atol=1e-3)


# MCMC


WALKS = {"eager": (False, "observed"), "jit": (True, "observed"), "latent": (False, "latent")}


@pytest.mark.parametrize(
    ("case", "walk"),
    [(case, walk) for case in NETS for walk in WALKS if case in REAL or walk != "latent"],
    indirect=["case"],
)
def test_nuts_walks_on_the_potential_of_the_model(case: Case, walk: str) -> None:
    jit, name = WALKS[walk]
    model, _, density = PROGRAMS[name]
    kernel = NUTS(model, max_tree_depth=3, jit_compile=jit, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=6, warmup_steps=6, disable_progbar=True)
    mcmc.run(case)
    (name, draws), *_ = mcmc.get_samples().items()
    assert len(draws.unique(dim=0)) > 1 and kernel.step_size > 1e-3
    point = draws[-1].detach().requires_grad_()
    energy = kernel.potential_fn({name: point})
    expected = -density(case, point)
    close(energy, expected)
    close(*(torch.autograd.grad(v, point)[0] for v in (energy, expected)))


def shifted(case: Case) -> None:
    shift = pyro.sample("shift", PRIOR)
    with case.plates():
        pyro.sample("y", case.joint(), obs=case.y - shift)


def test_nuts_posterior_equals_quadrature(build_model: Callable[..., ArBufferModel]) -> None:
    case = make_case("scalar", build_model)
    kernel = NUTS(shifted, max_tree_depth=2, jit_compile=True, ignore_jit_warnings=True)  # twice as fast here
    mcmc = MCMC(kernel, num_samples=400, warmup_steps=60, disable_progbar=True)
    mcmc.run(case)
    draws = mcmc.get_samples(group_by_chain=True)["shift"]
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    density = (PRIOR.log_prob(axis) + case.joint().log_prob(case.y - axis[:, None])).softmax(0)
    for statistic in (torch.clone, torch.square):
        drawn, exact = statistic(draws), (statistic(axis) * density).sum()
        error = drawn.std() / effective_sample_size(drawn, 0, 1) ** 0.5
        assert (drawn.mean() - exact).abs() < 5 * error < 0.5


@pytest.mark.parametrize("disable_validation", [True, False])
@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_chain_survives_where_the_potential_is_nan(case: Case, disable_validation: bool) -> None:
    visited = []

    def model() -> None:
        position = pyro.sample("position", dist.Normal(ZERO + 0.5, 1.0))
        visited.append(position.item())
        with case.plates():
            pyro.sample("y", case.joint(case.x + position.log()), obs=case.y)

    start = init_to_value(values={"position": ZERO + 0.4})
    plates = len(case.batch)  # else Pyro runs the model on a draw of the prior
    kernel = NUTS(
        model, step_size=0.5, adapt_step_size=False, max_tree_depth=3, max_plate_nesting=plates, init_strategy=start
    )
    settings = {"disable_progbar": True, "disable_validation": disable_validation}
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=1, **settings)
    mcmc.run()
    draws = mcmc.get_samples()["position"]
    assert (draws > 0).all() and len(draws.unique()) > 1
    assert min(visited) < 0  # else the test says nothing


def all_at_once(cases: list[Case]) -> None:
    offset = pyro.sample("offset", PRIOR)
    for i, case in enumerate(cases):
        with case.plates(f"subjects{i}"):
            pyro.sample(f"y{i}", case.joint(case.x + offset), obs=case.y)


def test_spawned_chains_run_side_by_side_on_all_cases(
    build_model: Callable[..., ArBufferModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.multiprocessing.cpu_count", lambda: 3)  # else Pyro runs them one after the other
    cases = [make_case(name, build_model) for name in NETS]
    kernel = NUTS(functools.partial(all_at_once, cases), max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=6, warmup_steps=4, num_chains=2, mp_context="spawn", disable_progbar=True)
    assert type(mcmc.sampler).__name__ == "_MultiSampler"
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["offset"]
    assert draws.shape == (2, 6) and draws.isfinite().all()
    assert not torch.isclose(draws[0], draws[1]).any()


# Importance


def importance_guide(case: Case) -> None:
    pyro.sample("offset", dist.Normal(ZERO + 0.1, STEP))


def test_importance_weights_equal_those_by_hand(case: Case) -> None:
    q = dist.Normal(ZERO + 0.1, STEP)
    importance = Importance(observed, importance_guide, num_samples=S).run(case)
    offsets = [trace.nodes["offset"]["value"] for trace in importance.exec_traces]
    weights = [observed_density(case, z) - q.log_prob(z) for z in offsets]
    close(torch.stack(importance.log_weights), torch.stack(weights))
    assert importance.get_ESS() >= 1


def test_vectorised_importance_weights_equal_those_by_hand(case: Case) -> None:
    q = dist.Normal(ZERO + 0.1, STEP)
    weights, trace, _ = vectorized_importance_weights(
        observed, importance_guide, case, num_samples=S, max_plate_nesting=len(case.batch)
    )
    offsets = trace.nodes["offset"]["value"].flatten()
    close(weights, torch.stack([observed_density(case, z) - q.log_prob(z) for z in offsets]))


def test_psis_diagnostic_is_finite(case: Case) -> None:
    k = psis_diagnostic(observed, importance_guide, case, num_particles=80, max_plate_nesting=len(case.batch))
    assert math.isfinite(k)


# Networks


@pytest.fixture
def own(request: pytest.FixtureRequest, case: Case, build_model: Callable[..., ArBufferModel]) -> Case:
    """The case with a network of its own, which a test may change."""
    return make_case(request.node.callspec.params["case"], build_model)


def test_trainable_network_takes_the_step_of_its_gradient(own: Case) -> None:
    own.net.requires_grad_(True)

    def model() -> None:
        pyro.module("net", own.net)
        with own.plates():
            pyro.sample("y", own.joint(context=own.condition()), obs=own.y)

    parameters = dict(own.net.named_parameters())
    before = [p.detach().clone() for p in parameters.values()]
    density = own.joint(context=own.condition()).log_prob(own.y).sum()
    expected = torch.autograd.grad(density, list(parameters.values()), allow_unused=True, materialize_grads=True)
    loss = SVI(model, lambda: None, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO()).step()
    close(loss, -density.detach())
    assert set(pyro.get_param_store().keys()) == {f"net$$${name}" for name in parameters}
    for parameter, old, gradient in zip(parameters.values(), before, expected, strict=True):
        close(parameter.detach(), old + 1e-3 * gradient)
    assert sum(bool((g.abs() > 1e-6).any()) for g in expected) > 20


def test_frozen_network_stays_out_of_fitting(case: Case) -> None:
    def model() -> None:
        pyro.module("net", case.net)
        observed(case)

    before = [p.clone() for p in case.net.parameters()]
    svi = SVI(model, lambda: observed_guide(case), pyro.optim.SGD({"lr": 1e-2}), Trace_ELBO())
    for _ in range(2):
        svi.step()
    assert set(pyro.get_param_store().keys()) == {"loc"}
    assert all(p.grad is None and not p.requires_grad for p in case.net.parameters())
    assert all(torch.equal(p, old) for p, old in zip(case.net.parameters(), before, strict=True))


class Holder(PyroModule):
    """Holds a network, as users' models do."""

    def __init__(self, case: Case):
        super().__init__()
        self.net, self.case = case.net, case

    def forward(self) -> None:
        pyro.sample("touch", dist.Normal(self.net.head.norm.weight.sum(), 1.0))  # reads a weight through Pyro
        with self.case.plates():
            pyro.sample("y", self.case.joint(), obs=self.case.y)


def test_frozen_network_in_a_pyro_module_stays_frozen(own: Case) -> None:
    poutine.trace(Holder(own)).get_trace().log_prob_sum()
    assert not pyro.get_param_store().keys()
    assert not any(p.requires_grad for p in own.net.parameters())


def test_network_that_pyro_makes_trainable_is_an_error(own: Case) -> None:
    """`to_pyro_module_` turns every weight that is read into a parameter of Pyro, frozen or not."""
    holder = Holder(own)
    to_pyro_module_(holder)
    with pytest.raises(RuntimeError, match=r"the model is trainable but this Context .* freeze the model"):
        poutine.trace(holder).get_trace().log_prob_sum()


def test_trace_of_an_observed_joint_is_bitwise_the_same_twice(case: Case) -> None:
    conditioned = poutine.condition(observed, data={"offset": ZERO + 0.1})
    first, second = (poutine.trace(conditioned).get_trace(case).log_prob_sum() for _ in range(2))
    assert torch.equal(first, second)
