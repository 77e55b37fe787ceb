"""Evidence, its comparison and the two consistency checks, each against its definition computed by other means."""

import copy
import math

import gaussian_net
import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian_net import FIELDS
from latent_nets import VECTOR
from samples import draw
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.priors.gaussian import exact_log_evidence, gaussian
from pyro_arbuf.programs.consistency import self_consistency, subset_gap
from pyro_arbuf.programs.evidence import NOT_RESOLVED, compare_evidence, log_evidence

N, R, B = 7, 5, 2
X, Y = torch.zeros(N, 1, dtype=torch.float64), draw(N, seed=1)


@pytest.fixture(scope="module")
def net(build_model):
    return gaussian_net.wide(build_model(**FIELDS))


@pytest.fixture(scope="module")
def vector_net(build_model):
    return build_model(**VECTOR)


def measured(net, rmse, shift=0.0):
    """A copy whose evidence is off by `rmse`, as its card says, and whose outcomes have another location."""
    other = copy.deepcopy(net)
    other.replace_measured(evidence_rmse=rmse)
    if shift:
        with torch.no_grad():
            other.head.out.bias.view(3, -1)[1] += shift
    return other


def density_of(net, x, y, order, buffer_size=None):
    """Log density of the targets one after the other in an order, empty context."""
    factors = ArBufferJoint(net.condition(), x[order], torch.arange(len(order))[None], buffer_size)
    return factors.log_prob_factors(y[order]).sum(-1)


# Evidence


@pytest.mark.parametrize("buffer_size", [None, 2])
def test_evidence_is_the_mixture_of_the_densities_of_random_orders(net, buffer_size):
    got = log_evidence(net, X, Y, R, buffer_size, seed=3)
    orders = random_orders(N, R, 3)
    densities = torch.stack([density_of(net, X, Y, order, buffer_size) for order in orders])
    assert_close(got.value, torch.logsumexp(densities, 0) - math.log(R))
    relative = (densities - got.value).exp()
    assert_close(got.standard_error, relative.std() / math.sqrt(R))
    assert not got.value.requires_grad


@pytest.mark.filterwarnings("ignore:the log evidence rests on few of its 5 orders")
def test_evidence_of_vector_outcomes_and_of_a_batch(vector_net):
    x, y = draw(N, 2), draw(B, N, 3, seed=2)
    got = log_evidence(vector_net, x, y, R)
    assert got.value.shape == got.standard_error.shape == (B,)
    alone = [log_evidence(vector_net, x, row, R) for row in y]
    assert_close(got.value, torch.stack([evidence.value for evidence in alone]))
    assert_close(got.standard_error, torch.stack([evidence.standard_error for evidence in alone]))


def test_evidence_is_a_function_of_its_seed(net):
    state = torch.get_rng_state()
    first, again, other = (log_evidence(net, X, Y, R, seed=seed).value for seed in (0, 0, 1))
    assert torch.equal(first, again) and first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_one_order_has_no_standard_error(net):
    message = "num_orders must be an integer of at least 2; got 1"
    with pytest.raises(ValueError, match=message):
        log_evidence(net, X, Y, 1)
    with pytest.raises(ValueError, match=message):
        compare_evidence({"a": measured(net, 0.1), "b": measured(net, 0.1)}, X, Y, 1)


def test_error_of_the_evidence_covers_the_spread_between_seeds(net):
    """A network to which one order is worth e^8 of another: its error over orders was 1 nat at most."""
    far, values, errors = measured(net, 0.0, 8.0), [], []
    for seed in range(20):
        with pytest.warns(UserWarning, match=r"the log evidence rests on few of its 16 orders: .* is [12]\.") as caught:
            got = log_evidence(far, X, Y, 16, seed=seed)
        assert [warning.filename for warning in caught] == [__file__]
        values.append(got.value)
        errors.append(got.standard_error)
    spread = torch.stack(values).std()
    assert spread > 3 and spread < torch.stack(errors).mean() < 3 * spread


@pytest.mark.parametrize("damaged", ["x", "y"])
def test_data_that_are_no_numbers_have_no_evidence(net, damaged):
    data = {"x": X.clone(), "y": Y.clone()}
    data[damaged][2] = torch.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=f"{damaged} must be finite; got 1 NaN"):
        log_evidence(net, **data)


# Comparison


def compare(rmse_a, rmse_b, shift, net):
    return compare_evidence({"a": measured(net, rmse_a), "b": measured(net, rmse_b, shift)}, X, Y, R, seed=2)


def test_comparison_holds_the_evidence_of_each_in_the_same_orders(net):
    result = compare(0.1, 0.2, 1.5, net)
    a, b = (log_evidence(measured(net, 0.0, shift), X, Y, R, seed=2) for shift in (0.0, 1.5))
    assert_close(result.evidence["a"].value, a.value)
    assert_close(result.evidence["b"].standard_error, b.standard_error)
    best, other = ("a", "b") if a.value > b.value else ("b", "a")
    assert result.difference[best] == 0 and result.error[best] == 0
    assert result.difference[other] == pytest.approx(abs(a.value - b.value).item())


def test_error_combines_the_paired_orders_and_both_networks(net):
    result = compare(0.1, 0.2, 1.5, net)
    orders = random_orders(N, R, 2)
    relative = []
    for shift in (0.0, 1.5):
        p = torch.stack([density_of(measured(net, 0.0, shift), X, Y, order) for order in orders]).exp()
        relative.append(p / p.mean())
    paired = (relative[0] - relative[1]).std().item() / math.sqrt(R)
    assert max(result.error.values()) == pytest.approx(1.96 * math.sqrt(paired**2 + 0.1**2 + 0.2**2))


def test_equal_networks_have_no_paired_error(net):
    result = compare(0.0, 0.0, 0.0, net)
    assert max(result.error.values()) == 0 and result.verdict == NOT_RESOLVED


def test_verdict_names_the_best_beyond_the_error(net):
    result = compare(0.0, 0.0, 5.0, net)
    assert result.difference["b"] > result.error["b"] and result.verdict == "a"
    turned = compare_evidence({"b": measured(net, 0.0, 5.0), "a": measured(net, 0.0)}, X, Y, R, seed=2)
    assert turned.verdict == "a" and turned.difference["b"] == pytest.approx(result.difference["b"])


def test_verdict_is_not_resolved_within_the_error_of_either_network(net):
    for rmse in ((1e3, 0.0), (0.0, 1e3)):
        assert compare(*rmse, 5.0, net).verdict == NOT_RESOLVED == "not resolved"


@pytest.mark.filterwarnings("ignore:the log evidence of 'far' rests on few of its 5 orders")
def test_one_rival_within_the_error_leaves_the_verdict_open(net):
    nets = {"best": measured(net, 0.5), "far": measured(net, 0.0, 8.0), "near": measured(net, 0.5, 0.01)}
    result = compare_evidence(nets, X, Y, R)
    best = min(result.difference, key=result.difference.get)
    assert best in ("best", "near") and result.verdict == NOT_RESOLVED
    del nets["near"]
    assert compare_evidence(nets, X, Y, R).verdict == "best"


@pytest.mark.filterwarnings("ignore:the log evidence of 'b' rests on few of its 5 orders")
def test_networks_of_unmeasured_error_are_not_resolved_however_far_apart(net):
    message = r"the networks \['a'\] do not say how far off .* 'not resolved'. Measure it by .*measure_evidence_error"
    with pytest.warns(UserWarning, match=message) as caught:
        result = compare_evidence({"a": net, "b": measured(net, 0.1, 5.0)}, X, Y, R)
    assert [warning.filename for warning in caught if "do not say" in str(warning.message)] == [__file__]
    assert max(result.difference.values()) > 10 and max(result.error.values()) == math.inf
    assert result.verdict == NOT_RESOLVED and "['a'] do not say how far off" in result.reason


def test_open_verdict_says_why(net):
    assert compare(0.0, 0.0, 5.0, net).reason == ""
    assert compare(1e3, 0.0, 5.0, net).reason == "the difference to 'a' lies within its error for ['b']"


def test_outcomes_that_are_no_numbers_name_no_winner(net):
    nets, y = {"a": measured(net, 0.1), "b": measured(net, 0.1, 5.0)}, Y.clone()
    y[2] = torch.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="y must be finite; got 1 NaN"):
        compare_evidence(nets, X, y, R)


@pytest.mark.parametrize("name", ["a", "b"])
def test_network_whose_evidence_is_no_number_names_no_winner(net, name):
    nets = {"a": measured(net, 0.1), "b": measured(net, 0.1)}
    with torch.no_grad():
        nets[name].head.out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=f"evidence of every model must be a finite number .*'{name}': nan"):
        compare_evidence(nets, X, Y, R)


def shifted(x):
    """The Gaussian program with outcomes 3 higher."""
    tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), (0.25 * tau).rsqrt()))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(mu + 3.0, tau.rsqrt()))


def test_programs_give_their_evidence_by_importance_sampling(net):
    x, y = X[:3], Y[:3]
    programs = {"a": gaussian, "b": shifted}
    result = compare_evidence({"a": net, "b": net}, x, y, R, programs=programs, num_draws=2000)
    for name, moved in (("a", y), ("b", y - 3.0)):
        value, error = result.evidence[name]
        assert abs(value - exact_log_evidence(moved)) < 4 * error < 1.0
    assert result.verdict == "a" and result.reason == ""
    errors = math.hypot(*(result.evidence[name].standard_error for name in programs))
    assert result.error["b"] == pytest.approx(1.96 * errors)


def test_one_program_is_compared_with_a_measured_network(net):
    nets = {"a": net, "b": measured(net, 0.5, 5.0)}
    result = compare_evidence(nets, X[:3], Y[:3], R, programs={"a": gaussian}, num_draws=1000)
    own = (result.evidence["a"].standard_error, result.evidence["b"].standard_error, 0.5)
    assert max(result.error.values()) == pytest.approx(1.96 * math.hypot(*own)) and result.verdict == "a"


def test_untrustworthy_importance_sampling_is_not_resolved(build_model, net):
    nets = {"a": gaussian_net.wide(build_model(**FIELDS), sd=0.05), "b": measured(net, 0.0, 5.0)}
    result = compare_evidence(nets, X[:3], Y[:3], R, programs={"a": gaussian}, num_draws=500)
    assert result.verdict == NOT_RESOLVED and "where k-hat is above 0.7: {'a': " in result.reason


def test_programs_that_cannot_give_an_evidence_are_named(net):
    class Simulated(dist.Normal):
        def log_prob(self, value):
            raise NotImplementedError

    def simulated(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", Simulated(mu, tau.rsqrt()))

    nets = {"a": measured(net, 0.1), "b": measured(net, 0.1)}
    with pytest.raises(ValueError, match=r"programs\['b'\] must give the evidence .*Simulated has no log_prob. Leave"):
        compare_evidence(nets, X, Y, R, programs={"b": simulated}, num_draws=100)
    with pytest.raises(ValueError, match=r"programs must be a dict of programs by the names of nets, .*; got \['c'\]"):
        compare_evidence(nets, X, Y, R, programs={"c": gaussian})
    with pytest.raises(ValueError, match=r"num_draws must be an integer of at least 100; got 1000\.0"):
        compare_evidence(nets, X, Y, R, programs={"a": gaussian}, num_draws=1000.0)


@pytest.mark.parametrize("count", [4.0, True])
def test_counts_that_are_no_integers_are_refused(net, count):
    def message(name, least):
        return f"{name} must be an integer of at least {least}; got {count!r}"

    with pytest.raises(ValueError, match=message("num_orders", 2)):
        log_evidence(net, X, Y, count)
    with pytest.raises(ValueError, match=message("num_orders", 2)):
        compare_evidence({"a": measured(net, 0.1), "b": measured(net, 0.1)}, X, Y, count)
    with pytest.raises(ValueError, match=message("num_draws", 2)):
        self_consistency(net, X, Y, count)
    with pytest.raises(ValueError, match=message("num_splits", 1)):
        subset_gap(net, X, Y, count)


def test_one_network_is_not_compared(net):
    with pytest.raises(ValueError, match=r"at least two models to compare, by name; got \['a'\]"):
        compare_evidence({"a": net}, X, Y, R)


def test_networks_of_different_data_are_not_compared(net, vector_net):
    with pytest.raises(ValueError, match=r"nets must be of the same data, .*'a': \(1, None\), 'b': \(2, "):
        compare_evidence({"a": net, "b": vector_net}, X, Y, R)
    with pytest.raises(ValueError, match="nets must be a dict of at least two models to compare, by name; got list"):
        compare_evidence([net, net], X, Y, R)


def test_sites_in_different_orders_need_names(build_model):
    one, other = (measured(build_model(dim_y=2, outcome=sites), 0.1) for sites in (("a", "b"), ("b", "a")))
    x, values = torch.zeros(3, one.config.dim_x), {"a": torch.zeros(3), "b": torch.ones(3)}
    found = compare_evidence({"one": one, "other": other}, x, values, R)
    assert_close(found.evidence["other"].value, log_evidence(other, x, values, R).value)
    with pytest.raises(ValueError, match="y must be a dict of outcomes by site, as nets have them in different orders"):
        compare_evidence({"one": one, "other": other}, x, torch.stack(list(values.values()), -1), R)


def test_inputs_that_are_no_tensor_are_refused(net):
    with pytest.raises(ValueError, match=r"x and y must be tensors \(\*batch, n, 1\) .*; got \d+ of them and Tensor"):
        log_evidence(net, X.tolist(), Y)
    with pytest.raises(ValueError, match="one data set, a tensor; got list"):
        self_consistency(net, X.tolist(), Y)


@pytest.mark.parametrize(
    "check", [lambda net, *data: compare_evidence({"a": net, "b": net}, *data), self_consistency, subset_gap]
)
def test_several_data_sets_at_once_are_refused(net, check):
    with pytest.raises(ValueError, match=r"\(n, D_x\) of one data set, a tensor; got \(2, 7, 1\); take one at a time"):
        check(net, X.expand(B, N, 1), Y.expand(B, N))
    with pytest.raises(ValueError, match=r"y must be the outcomes \(7,\) of one data set, .* got \(2, 7\); take one"):
        check(net, X, Y.expand(B, N))


# Self-consistency


def test_self_consistency_is_prior_times_likelihood_over_posterior(net):
    result = self_consistency(net, X, Y, num_draws=20, program=gaussian, seed=4)
    pyro.set_rng_seed(4)
    posterior = ArBufferPosterior(net.condition(X, Y))
    sites = posterior.sites(posterior.sample((20,)))
    tau, mu = sites["tau"], sites["mu"]
    prior = dist.Gamma(2.0, 2.0).log_prob(tau) + dist.Normal(0.0, (0.25 * tau).rsqrt()).log_prob(mu)
    likelihood = torch.stack(
        [
            ArBufferMarginals(net.condition(latents={"tau": t, "mu": m}), X).log_prob(Y)
            for t, m in zip(tau, mu, strict=True)
        ]
    )
    expected = prior + likelihood - posterior.log_prob_sites(sites)
    assert_close(result.values, expected)
    assert result.mean == pytest.approx(expected.mean().item())
    assert result.standard_deviation == pytest.approx(expected.std().item())


def test_self_consistency_leaves_the_random_state_alone(net):
    state = torch.get_rng_state()
    first, again = (self_consistency(net, X, Y, 5, gaussian).values for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)


def test_self_consistency_knows_shipped_programs_by_name(net, build_model, scalar_model):
    assert_close(self_consistency(net, X, Y, 5).values, self_consistency(net, X, Y, 5, gaussian).values)
    unknown = build_model(**FIELDS | {"prior": "mine"})
    with pytest.raises(ValueError, match=r"config.prior = 'mine'.*set net.simulator"):
        self_consistency(unknown, X, Y)
    with pytest.raises(ValueError, match="net must have latents"):
        self_consistency(scalar_model, X, Y)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 2; got 1"):
        self_consistency(net, X, Y, num_draws=1)


# Consistency of subsets


@pytest.mark.parametrize("num_targets", [6, 7])
def test_subset_gap_is_its_definition(net, num_targets):
    x, y, splits, half = X[:num_targets], Y[:num_targets], 4, num_targets // 2
    got = subset_gap(net, x, y, splits, seed=3)
    dropped, reordered = [], []
    for order in random_orders(num_targets, splits, 3):
        a, b = order[:half], order[half:]
        alone = [density_of(net, x, y, part) for part in (a, b)]
        after = [density_of(net, x, y, torch.cat(parts)) for parts in ((a, b), (b, a))]
        b_given_a, a_given_b = after[0] - alone[0], after[1] - alone[1]
        dropped.append(alone[0] - (alone[1] + a_given_b - b_given_a))
        reordered.append(alone[0] - density_of(net, x, y, a.flip(0)))
    for value, gaps in ((got.dropped, dropped), (got.reordered, reordered)):
        assert value == pytest.approx(torch.stack(gaps).square().mean().sqrt().item() / half)
        assert value > 1e-4


def test_subset_gap_of_vector_outcomes(vector_net):
    gap = subset_gap(vector_net, draw(5, 2), draw(5, 3, seed=2), 2)
    assert gap.dropped > 0 and gap.reordered > 0


def test_subset_gap_needs_two_targets_in_each_half(net):
    with pytest.raises(ValueError, match="at least 4 targets to be split; got 3"):
        subset_gap(net, X[:3], Y[:3])
