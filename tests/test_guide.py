"""The amortised posterior as a guide, and refined against the conjugate program whose every answer is exact."""

import math

import gaussian_net
import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian_net import FIELDS, X, Y
from latent_nets import LATENTS, SCALAR, P
from pyro import poutine
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from samples import draw
from torch.testing import assert_close

from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.priors.gaussian import RATE, SHAPE, exact_log_evidence, exact_posterior, gaussian
from pyro_arbuf.programs.guide import AmortizedGuide
from pyro_arbuf.programs.refine import effective_sample_size, refine, resample, smooth_weights

PARAMETERS = ["AmortizedGuide.scale", "AmortizedGuide.shift"]
MODEL = poutine.condition(gaussian, {"y": Y})


@pytest.fixture(autouse=True)
def _no_parameters():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def net(build_model):
    return gaussian_net.wide(build_model(**FIELDS))


@pytest.fixture(scope="module")
def narrow_net(build_model):
    return gaussian_net.wide(build_model(**FIELDS), sd=0.05)


@pytest.fixture(scope="module")
def context(net):
    return net.condition(X, Y)


@pytest.fixture(scope="module")
def four_sites(build_model):
    return build_model(**SCALAR).condition(draw(5, 2), draw(5))


def log_prob_of(trace):
    trace.compute_log_prob()
    return sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample")


# The guide


def test_guide_has_the_sites_of_the_program_whatever_it_is_called_with(four_sites):
    guide = AmortizedGuide(four_sites)
    trace = poutine.trace(guide).get_trace(torch.zeros(3), anything=None)
    visible = [n for n, s in trace.nodes.items() if s["type"] == "sample" and not s["infer"].get("is_auxiliary")]
    assert visible == [latent.name for latent in LATENTS]
    for latent in LATENTS:
        value = trace.nodes[latent.name]["value"]
        assert value.shape == latent.shape and latent.support.check(value)
    assert list(pyro.get_param_store()) == []


@pytest.mark.parametrize("particles", [(), (7,), (7, 1)])
def test_density_of_the_guide_is_that_of_the_sites(four_sites, particles):
    guide = AmortizedGuide(four_sites)
    with pyro.plate_stack("particles", particles):
        trace = poutine.trace(guide).get_trace()
    values = {latent.name: trace.nodes[latent.name]["value"] for latent in LATENTS}
    assert values["rate"].shape == particles
    got = log_prob_of(trace)
    assert got.shape == particles
    assert_close(got, guide.posterior.log_prob_sites(values))


def test_guide_leaves_given_latents_to_the_program(net):
    guide = AmortizedGuide(net.condition(X, Y, latents={"tau": 1.3}))
    assert list(guide()) == ["mu"]


def test_given_latents_reach_the_program_at_their_values(net):
    """They were drawn from the prior, while the others were those of the given ones."""
    guide = AmortizedGuide(net.condition(X, Y, latents={"tau": 1.3}))
    found = Predictive(gaussian, guide=guide, num_samples=50)(X)
    assert_close(found["tau"].flatten(), torch.full((50,), 1.3), check_dtype=False)
    held = poutine.condition(gaussian, {"y": Y, "tau": torch.tensor(1.3)})
    for program in (MODEL, held):
        pyro.set_rng_seed(1)
        weights = Importance(program, guide, 20).run(X).log_weights
        pyro.set_rng_seed(1)
        expected = Importance(held, guide, 20).run(X).log_weights
        assert_close(torch.stack(weights), torch.stack(expected), rtol=1e-5, atol=1e-5)
    tuned = AmortizedGuide(net.condition(X, Y, latents={"tau": 1.3}), tunable=True)
    loss = SVI(held, tuned, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=4, vectorize_particles=True))
    assert math.isfinite(loss.step(X))


def test_guide_of_a_batch_is_refused(net):
    with pytest.raises(
        ValueError, match=r"one data set; got the batch shape \(2,\); make a guide of each, context\[i\]"
    ):
        AmortizedGuide(net.condition(X.expand(2, 3, 1), Y))


def test_tuned_guide_keeps_an_exact_density(four_sites):
    guide = AmortizedGuide(four_sites, tunable=True)
    guide()
    assert sorted(pyro.get_param_store()) == PARAMETERS
    shift, scale = draw(P, seed=4), draw(P, seed=5).exp()
    pyro.get_param_store()["AmortizedGuide.shift"], pyro.get_param_store()["AmortizedGuide.scale"] = shift, scale
    with pyro.plate("particles", 7):
        trace = poutine.trace(guide).get_trace()
    sites = {latent.name: trace.nodes[latent.name]["value"] for latent in LATENTS}
    untuned = (guide.posterior.unconstrain(sites) - shift) / scale
    jacobian = sum(part for _, part in guide.posterior.sites_and_jacobians(guide.posterior.unconstrain(sites)).values())
    assert_close(log_prob_of(trace), guide.posterior.log_prob(untuned) - scale.log().sum() - jacobian)


def test_tunable_guide_starts_at_the_posterior(context):
    pyro.set_rng_seed(3)
    plain = AmortizedGuide(context)()
    pyro.set_rng_seed(3)
    tunable = AmortizedGuide(context, tunable=True)()
    assert all(torch.equal(plain[name], tunable[name]) for name in plain)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_svi_tunes_the_guide_towards_the_posterior(net, elbo):
    guide = AmortizedGuide(net.condition(X, Y), tunable=True)
    svi = SVI(MODEL, guide, pyro.optim.Adam({"lr": 0.08}), elbo(num_particles=8, vectorize_particles=True))
    bound = elbo(num_particles=256, vectorize_particles=True)
    before = -bound.loss(MODEL, guide, X)
    for _ in range(25):
        svi.step(X)
    after = -bound.loss(MODEL, guide, X)
    exact = exact_log_evidence(Y).item()
    assert before + 0.3 < after < exact + 0.1
    assert all(weight.grad is None for weight in net.parameters())


def test_elbo_without_parameters_is_below_the_evidence(context):
    options = {"num_particles": 200, "vectorize_particles": True, "max_plate_nesting": 1}
    for elbo in (Trace_ELBO(**options), TraceEnum_ELBO(**options, strict_enumeration_warning=False)):
        bound = -elbo.loss(MODEL, AmortizedGuide(context), X)
        assert math.isfinite(bound) and bound < exact_log_evidence(Y).item()


def test_enumerated_latents_of_the_program_are_summed_out(context):
    @config_enumerate
    def program(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        sign = pyro.sample("sign", dist.Bernoulli(x.new_tensor(0.3)))
        with pyro.plate("trials", len(x)):
            pyro.sample("y", dist.Normal(mu * (2 * sign - 1), tau.rsqrt()), obs=Y)

    guide = AmortizedGuide(context)
    pyro.set_rng_seed(1)
    got = -TraceEnum_ELBO(max_plate_nesting=1).loss(program, guide, X)
    pyro.set_rng_seed(1)
    sites = guide()
    terms = [
        math.log(weight) + dist.Normal(sites["mu"] * sign, sites["tau"].rsqrt()).log_prob(Y).sum()
        for sign, weight in ((1.0, 0.3), (-1.0, 0.7))
    ]
    prior = dist.Gamma(2.0, 2.0).log_prob(sites["tau"]) + dist.Normal(0.0, 1.0).log_prob(sites["mu"])
    expected = prior + torch.logsumexp(torch.stack(terms), 0) - guide.posterior.log_prob_sites(sites)
    assert got == pytest.approx(expected.item(), abs=1e-6)


def test_importance_with_the_guide_estimates_the_evidence(context):
    importance = Importance(MODEL, AmortizedGuide(context), num_samples=200).run(X)
    weights = torch.stack(importance.log_weights)
    relative = (weights - weights.logsumexp(0) + math.log(200)).exp()
    error = relative.std().item() / math.sqrt(200)
    assert error < 0.2
    assert abs(importance.get_log_normalizer() - exact_log_evidence(Y)) < 4 * error


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_the_guide_draws_outcomes_at_its_draws(context, parallel):
    sites = ["tau", "mu", "y"]
    guide = AmortizedGuide(context)
    drawn = Predictive(gaussian, guide=guide, num_samples=40, return_sites=sites, parallel=parallel)(X)
    assert all(len(drawn[name].reshape(40, -1).unique(dim=0)) == 40 for name in sites)
    assert drawn["y"].reshape(40, -1).shape == (40, 3)


def test_two_tunable_guides_have_parameters_of_their_own(context, four_sites):
    guides = AmortizedGuide(context, tunable=True, name="one"), AmortizedGuide(four_sites, tunable=True, name="two")
    trace = poutine.trace(lambda: [guide() for guide in guides]).get_trace()
    assert {"tau", "mu", "rate", "shift", "share", "mix"} <= set(trace.nodes)
    assert sorted(pyro.get_param_store()) == ["one.scale", "one.shift", "two.scale", "two.shift"]
    assert pyro.param("one.shift").shape == (2,) and pyro.param("two.shift").shape == (P,)


# Refinement


def test_refined_evidence_is_exact_within_its_error(context):
    result = refine(gaussian, context, num_draws=4000, num_resampled=400, seed=1)
    assert result.log_evidence_standard_error < 0.1 and result.k_hat < 0.7
    assert abs(result.log_evidence - exact_log_evidence(Y)) < 4 * result.log_evidence_standard_error


def test_refined_weights_have_the_moments_of_the_exact_posterior(context):
    result = refine(gaussian, context, num_draws=4000, num_resampled=400, seed=1)
    exact = exact_posterior(Y)
    assert result.weights.shape == (4000,) and result.weights.sum().item() == pytest.approx(1.0)
    assert result.effective_sample_size == pytest.approx(1 / result.weights.square().sum().item())
    for name, mean in {"mu": exact.location, "tau": exact.shape / exact.rate}.items():
        got, spread = (result.weights * result.proposals[name]).sum(), result.proposals[name] - mean
        error = (result.weights * spread).square().sum().sqrt()
        assert abs(got - mean) < 4 * error


def test_resampled_draws_are_distinct_and_follow_the_weights(context):
    result = refine(gaussian, context, num_draws=4000, num_resampled=70, seed=1)
    rows = torch.stack([result.draws["tau"], result.draws["mu"]], -1)
    assert rows.shape == (70, 2) and len(rows.unique(dim=0)) == 70
    for name, kept in result.draws.items():
        proposals, w = result.proposals[name], result.weights
        mean = (w * proposals).sum()
        sd = (w * (proposals - mean) ** 2).sum().sqrt()
        assert abs(kept.mean() - mean) < 5 * sd / math.sqrt(70)
        assert 0.75 < kept.std() / sd < 1.35 and proposals.std() / sd > 2  # the heaviest alone: 0.4


DIM, SEEDS = 3, 20


@pytest.mark.parametrize(
    ("num_proposals", "sd", "size", "num_draws"),
    [(1000, 2.96, 100, 1000), (3000, 2.96, 300, 1000), (10_000, 1.97, 3000, 1000), (10_000, 1.97, 3000, 250)],
)
def test_resampled_draws_are_as_wide_as_the_exact_posterior(num_proposals, sd, size, num_draws):
    """Proposals from N(0, sd^2 I), target N(0, I): the sd of draws is 1, whatever the weights are worth."""
    sds, sizes, k_hats = [], [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        proposals = sd * torch.randn(num_proposals, DIM, dtype=torch.float64)
        log_weights = 0.5 * ((proposals / sd).square() - proposals.square()).sum(-1)
        smoothed, k_hat = smooth_weights(log_weights)
        kept = resample(smoothed, num_draws)
        assert kept.shape == (num_draws,)
        sds.append(proposals[kept, 0].std())
        sizes.append(effective_sample_size(smoothed))
        k_hats.append(k_hat)
    assert 0.8 < sum(sizes) / SEEDS / size < 1.25 and max(k_hats) < 0.7
    sds = torch.stack(sds)
    assert abs(sds.mean() - 1) < 3 * sds.std() / math.sqrt(SEEDS)


def test_few_draws_have_no_duplicates_and_many_repeat_by_their_weight():
    log_weights = torch.randn(1000, dtype=torch.float64)
    size = effective_sample_size(log_weights)
    assert len(resample(log_weights, int(0.1 * size)).unique()) == int(0.1 * size)
    counts = torch.bincount(resample(log_weights, 900), minlength=1000)
    assert counts.max() > 1 and ((counts - 900 * log_weights.softmax(0)).abs() < 1).all()


def test_refined_draws_are_as_wide_as_the_exact_posterior(context):
    exact = exact_posterior(Y)
    sd = (exact.rate / (exact.count * (exact.shape - 1))).sqrt()
    widths = []
    for seed in range(4):
        result = refine(gaussian, context, 4000, 700, seed=seed)
        assert 700 < result.effective_sample_size < 1000
        widths.append(result.draws["mu"].std() / sd)
    assert abs(torch.stack(widths).mean() - 1) < 0.06  # without replacement: 1.2


def test_more_draws_than_the_weights_are_worth_warn_once(context):
    with pytest.warns(
        UserWarning, match=r"effective sample size of 2\d\d, so the 500 draws .* num_draws = 2\d00"
    ) as caught:
        result = refine(gaussian, context, 1000, 500, seed=1)
    assert [warning.filename for warning in caught] == [__file__]
    assert len(result.draws["mu"]) == 500 and 150 < result.effective_sample_size < 300


@pytest.mark.parametrize("num_resampled", [280, 320, 360, 400, 440])
def test_proposals_to_take_are_enough(context, num_resampled):
    with pytest.warns(UserWarning, match="num_draws = ") as caught:
        result = refine(gaussian, context, 1000, num_resampled, seed=1)
    proposed = int(str(caught[0].message).rpartition(" ")[2])
    assert 0 <= proposed - 1000 * num_resampled / result.effective_sample_size < 100


def test_refined_posterior_shows_what_it_is_worth(context):
    result = refine(gaussian, context, 1000, 50, seed=1)
    assert repr(result).startswith("Refined(sites=['tau', 'mu'], num_draws=1000, k_hat=-0.")
    assert f"effective_sample_size={result.effective_sample_size:.0f}, log_evidence=-5." in repr(result)


def test_refinement_is_a_function_of_its_seed(context):
    state = torch.get_rng_state()
    first, again = (refine(gaussian, context, 2000, 50, seed=7) for _ in range(2))
    assert torch.equal(first.draws["mu"], again.draws["mu"]) and first.log_evidence == again.log_evidence
    assert torch.equal(torch.get_rng_state(), state)
    other = refine(gaussian, context, 2000, 50)
    assert not torch.equal(other.draws["mu"], first.draws["mu"])


def test_given_latents_are_held_in_the_program(net):
    tau = 1.3
    result = refine(gaussian, net.condition(X, Y, latents={"tau": tau}), 2000, 200, seed=1)
    assert list(result.draws) == ["mu"]
    exact = exact_posterior(Y)
    expected = exact_log_evidence(Y) + dist.Gamma(exact.shape, exact.rate).log_prob(torch.tensor(tau).double())
    assert abs(result.log_evidence - expected) < 4 * result.log_evidence_standard_error < 0.4
    prior = dist.Gamma(SHAPE, RATE).log_prob(torch.tensor(tau).double())
    assert abs(result.log_evidence - expected + prior) > 4 * result.log_evidence_standard_error


def test_padding_of_a_data_set_is_not_data(net):
    padded = net.condition([X[:2], X], [Y[:2], Y])[0]
    results = [refine(gaussian, c, 200, 50, seed=3) for c in (padded, net.condition(X[:2], Y[:2]))]
    assert results[0].log_evidence == pytest.approx(results[1].log_evidence, abs=1e-9)


def test_untrustworthy_weights_warn(narrow_net):
    with pytest.warns(UserWarning, match=r"k-hat = .* > 0.7: .* train the network longer, or run NUTS") as caught:
        result = refine(gaussian, narrow_net.condition(X, Y), 1000, 100, seed=1)
    assert result.k_hat > 0.7
    assert [warning.filename for warning in caught] == [__file__]


def test_draws_that_the_program_excludes_are_not_kept(net):
    def bounded(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Uniform(mu - 1.2, mu + 1.2, validate_args=False))

    result = refine(bounded, net.condition(X, Y), 4000, 300, seed=1)
    kept = result.draws["mu"]
    assert (result.weights == 0).sum() > 1000 and len(kept) == 300
    assert ((kept[:, None] - 1.2 < Y) & (kept[:, None] + 1.2 > Y)).all()


def test_impossible_data_are_refused(net):
    def impossible(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Uniform(mu * 0 + 5.0, mu * 0 + 6.0, validate_args=False))

    with pytest.raises(ValueError, match="impossible under it"):
        refine(impossible, net.condition(X, Y), 200, 50, seed=1)


def test_delta_as_outcome_is_said_to_have_no_density(net):
    def simulated(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), 1.0))
        mean = mu + 0 * x[..., 0]
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Delta(mean + torch.randn(mean.shape)))

    with pytest.raises(ValueError, match="or its outcome is a Delta, which has no density"):
        refine(simulated, net.condition(X, Y), 200, 50, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((50, 10), "num_draws must be an integer of at least 100; got 50"),
        ((1e3, 10), "num_draws must be an integer of at least 100; got 1000.0"),
        ((True, 10), "num_draws must be an integer of at least 100; got True"),
        ((200, 201), "num_resampled must be at most num_draws = 200; got 201; raise num_draws"),
        ((200, 0), "num_resampled must be an integer of at least 1; got 0"),
        ((200, 20.0), "num_resampled must be an integer of at least 1; got 20.0"),
    ],
)
def test_wrong_numbers_of_draws_are_refused(context, arguments, message):
    with pytest.raises(ValueError, match=message):
        refine(gaussian, context, *arguments)


def test_context_without_one_data_set_is_refused(net):
    for context in (net.condition(), net.condition(X.expand(2, 3, 1), Y)):
        with pytest.raises(ValueError, match="context must hold the observations of one data set"):
            refine(gaussian, context)


def test_other_program_or_context_is_refused(context):
    def real_tau(x):
        tau, mu = pyro.sample("tau", dist.Normal(1.0, 0.1)), pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(mu, tau.abs() * x.new_ones(x.shape[:-1])))

    with pytest.raises(ValueError, match="the program must have the network's latents"):
        refine(real_tau, context, 200, 50)
    with pytest.raises(ValueError, match=r"context must be what net.condition\(x, y\) returns; got function"):
        refine(context, gaussian)
    with pytest.raises(ValueError, match="program must be a Pyro program, a function of x; got NoneType"):
        refine(None, context)


def test_density_that_is_nan_is_explained(context):
    class Broken(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) * torch.where(self.loc > 0, torch.nan, 1.0)

    def program(x):
        tau = pyro.sample("tau", dist.Gamma(SHAPE, RATE))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", Broken(mu * x.new_ones(x.shape[:-1]), tau**-0.5 * x.new_ones(x.shape[:-1])))

    with pytest.raises(ValueError, match=r"density must be a number; got NaN at \d+ of 200 draws, as {'tau': "):
        refine(program, context, 200, 50, seed=1)


EQUAL = torch.zeros(1000, dtype=torch.float64)
ONE_ABOVE = EQUAL - 2000.0 * (torch.arange(1000) > 0)
FEW_FINITE = torch.where(torch.arange(1000) < 5, -torch.arange(1000.0, dtype=torch.float64), -math.inf)


@pytest.mark.parametrize(
    ("log_weights", "expected"), [(EQUAL, -math.inf), (ONE_ABOVE, math.inf), (FEW_FINITE, math.inf)]
)
def test_weights_without_a_tail_are_told_apart(log_weights, expected):
    smoothed, k_hat = smooth_weights(log_weights)
    assert k_hat == expected and torch.equal(smoothed, log_weights)


@pytest.mark.parametrize(("size", "shape"), [(200, 3.0), (1000, 1.5), (4000, 0.8)])
def test_smoothed_weights_are_those_of_arviz(size, shape):
    stats = pytest.importorskip("arviz.stats")
    log_weights = shape * torch.distributions.Exponential(1.0).sample((size,)).double() - 40.0
    smoothed, k_hat = smooth_weights(log_weights)
    expected, expected_k = stats.psislw(log_weights.numpy().copy())
    assert k_hat == pytest.approx(float(expected_k), abs=2e-2)
    assert_close(smoothed.log_softmax(0), torch.from_numpy(expected), rtol=0, atol=0.05)


def test_smoothing_leaves_the_order_and_the_body_alone():
    log_weights = 2 * torch.randn(1000, dtype=torch.float64) - 30.0
    smoothed, _ = smooth_weights(log_weights)
    order = log_weights.argsort()
    tail = math.ceil(3 * math.sqrt(1000))
    assert torch.equal(smoothed.argsort()[:-tail], order[:-tail]) and (smoothed[order].diff() >= 0).all()
    assert_close(smoothed[order[:-tail]], log_weights[order[:-tail]])
    assert smoothed.max() <= log_weights.max()


def test_posterior_of_the_guide_takes_orders(context):
    orders = torch.tensor([[1, 0], [0, 1]])
    assert torch.equal(AmortizedGuide(context, orders).posterior.orders, ArBufferPosterior(context, orders).orders)


def test_program_with_latents_that_are_not_amortised_is_refused_without_a_warning(build_model):
    net = build_model(**FIELDS | {"latents": gaussian_net.LATENTS[:1]})  # tau alone
    with pytest.raises(ValueError, match=r"\['mu'\] are integrated out"):
        refine(gaussian, net.condition(X, Y), 200, 50)
