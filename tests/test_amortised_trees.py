"""What amortised inference returns, as a DataTree: posteriors with and without their program, corrected draws."""

import re

import outcome_programs
import pyro
import pyro.distributions as dist
import pytest
import series_programs
import torch
from latent_nets import LATENTS
from program_posteriors import one_vector, posterior_of

import pyro_arbuf
from pyro_arbuf import ArBufferPosterior, calibrate, change_prior, refine, to_datatree
from pyro_arbuf.priors.ddm import ddm
from pyro_arbuf.priors.gaussian import gaussian

N = 12


@pytest.fixture(scope="module")
def data():
    """Inputs `(N, 1)`, outcomes `(N,)`, and their posterior by the shipped network."""
    torch.manual_seed(0)
    x = torch.zeros(N, 1)
    y = gaussian(x)
    return x, y, ArBufferPosterior(pyro_arbuf.load("gaussian").condition(x, y))


def test_a_posterior_alone_has_draws_their_density_and_its_data(data):
    _, y, posterior = data
    tree = to_datatree(posterior, num_samples=50, seed=1)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    assert tree["posterior/mu"].dims == ("chain", "draw") and tree["posterior/mu"].shape == (1, 50)
    draws = {name: torch.from_numpy(tree["posterior"][name].values[0]) for name in ("tau", "mu")}
    density = posterior.log_prob_sites(draws)
    torch.testing.assert_close(torch.from_numpy(tree["sample_stats/lp"].values[0]), density, rtol=1e-4, atol=1e-4)
    assert tree["observed_data/y"].dims == ("trial",) and tree["observed_data/y"].values.tolist() == y.tolist()
    assert tree["constant_data/x"].dims == ("trial", "input") and tree["constant_data/x"].shape == (N, 1)
    assert (
        to_datatree(posterior, num_samples=50, seed=1)["posterior"].equals(tree["posterior"])
        and to_datatree(posterior)["posterior"].sizes["draw"] == 1000
    )


def test_its_program_gives_everything_that_a_fit_has(data):
    x, y, posterior = data
    tree = to_datatree(posterior, gaussian, num_samples=20, seed=1)
    assert set(tree.children) == {
        *("posterior", "sample_stats", "posterior_predictive", "observed_data", "log_likelihood", "log_prior")
    }
    assert tree["posterior_predictive/y"].dims == ("chain", "draw", "trials")
    tau, mu = (torch.from_numpy(tree["posterior"][name].values[0])[:, None] for name in ("tau", "mu"))
    expected = torch.distributions.Normal(mu, tau.rsqrt()).log_prob(y)
    torch.testing.assert_close(torch.from_numpy(tree["log_likelihood/y"].values[0]), expected)
    given = to_datatree(posterior, gaussian, x, num_samples=20, seed=1)
    assert given["log_prior"].equals(tree["log_prior"])


def test_given_latents_are_fixed_in_the_program(data):
    x, y, posterior = data
    context = posterior.context.model.condition(x, y, latents={"tau": torch.tensor(100.0)})
    tree = to_datatree(ArBufferPosterior(context), gaussian, num_samples=300, seed=1)
    assert list(tree["posterior"].data_vars) == ["mu"] and list(tree["log_likelihood"].data_vars) == ["y"]
    assert tree["constant_data/tau"].item() == pytest.approx(100.0) and list(tree["log_prior"].data_vars) == ["mu"]
    residual = replicated(tree) - torch.from_numpy(tree["posterior/mu"].values[0])[:, None]
    assert residual.std() == pytest.approx(0.1, rel=0.05)


def test_units_of_the_user_are_those_of_the_data(data):
    x, y, posterior = data
    scaled = posterior.context.model.in_units(y_loc=3.0, y_scale=2.0)
    tree = to_datatree(ArBufferPosterior(scaled.condition(x, 2 * y.double() + 3)), num_samples=3)
    torch.testing.assert_close(torch.from_numpy(tree["observed_data/y"].values).float(), 2 * y + 3)
    with pytest.warns(UserWarning, match="log_likelihood of a program are in the program's units, not in those"):
        program = to_datatree(ArBufferPosterior(scaled.condition(x, 2 * y.double() + 3)), gaussian, num_samples=3)
    torch.testing.assert_close(torch.from_numpy(program["observed_data/y"].values).float(), y)


def test_data_sets_of_different_lengths_stand_in_a_dimension_of_their_own(data):
    x, y, posterior = data
    several = posterior.context.model.condition([x, x[:3]], [y, y[:3]])
    tree = to_datatree(ArBufferPosterior(several), num_samples=5, dims={"mu": ["subject"]})
    assert tree["posterior/tau"].dims == ("chain", "draw", "data_set")
    assert tree["posterior/mu"].dims == ("chain", "draw", "subject") and tree["sample_stats/lp"].shape == (1, 5, 2)
    found = torch.from_numpy(tree["observed_data/y"].values)
    assert found.shape == (2, N) and found[1].isnan().sum() == N - 3 and tree["constant_data/x"].shape == (2, N, 1)
    with pytest.raises(ValueError, match="must be of the observations of one data set; got batch shape"):
        to_datatree(ArBufferPosterior(several), gaussian)


def test_vector_latents_and_outcomes_of_several_sites_have_their_dimensions(build_model):
    outcomes = ("categorical(3)", "real")
    net = build_model(dim_y=2, latents=LATENTS, outcomes=outcomes, outcome=("choice", "rt"), chained=True)
    y = torch.stack([torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.3, 0.4, 0.5])], -1)
    tree = to_datatree(ArBufferPosterior(net.condition(torch.zeros(3, 2), y)), num_samples=4)
    assert tree["observed_data/choice"].values.tolist() == [0, 2, 1] and tree["observed_data/rt"].dims == ("trial",)
    for latent in LATENTS:
        assert tree["posterior"][latent.name].shape == (1, 4, *latent.shape)
    prior = to_datatree(ArBufferPosterior(net.condition()), num_samples=4)
    assert set(prior.children) == {"posterior", "sample_stats"}
    several = net.condition([torch.zeros(3, 2), torch.zeros(1, 2)], [y, y[:1]])
    found = to_datatree(ArBufferPosterior(several), num_samples=2)["observed_data/choice"].values
    assert found[0].tolist() == [0.0, 2.0, 1.0] and (found[1] != found[1]).tolist() == [False, True, True]


def test_corrected_draws_keep_their_proposals_and_weights(data):
    x, y, posterior = data
    found = refine(gaussian, posterior.context, 300, 40, seed=1)
    tree = to_datatree(found)
    assert tree["posterior/mu"].values[0].tolist() == found.draws["mu"].tolist()
    assert tree["proposals/mu"].shape == (1, 300) and tree.attrs["k_hat"] == found.k_hat
    torch.testing.assert_close(torch.from_numpy(tree["proposals/log_weight"].values[0]).exp(), found.weights)
    full = to_datatree(found, pyro.condition(gaussian, {"y": y}), x, coords={"trials": range(1, N + 1)})
    assert full["log_likelihood/y"].dims == ("chain", "draw", "trials") and "proposals" in full.children
    changed = change_prior(gaussian, posterior.context, 100, 200, seed=1)
    assert to_datatree(changed).attrs["method"] == changed.method == "weights"


def test_diagnostics_make_their_own_tree(data):
    found = calibrate(data[2].context.model, 20, 19, 4, program=gaussian)
    assert to_datatree(found).identical(found.to_datatree())
    for wrong in ({"num_samples": 3}, {"coords": {"draw": range(20)}}, {"model": gaussian}, {"seed": 1}):
        with pytest.raises(ValueError, match="a Calibration makes its own tree, and takes no other argument"):
            to_datatree(found, **wrong)


def test_what_a_posterior_does_not_take_is_refused(data):
    _, _, posterior = data
    with pytest.raises(ValueError, match=r"takes num_samples, .*; got \['prior'\] too; give its program as the model"):
        to_datatree(posterior, prior={"mu": torch.zeros(3)})
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1; got 0"):
        to_datatree(posterior, num_samples=0)
    with pytest.raises(ValueError, match="observed is for an ArBufferJoint alone"):
        to_datatree(posterior, gaussian, observed=torch.zeros(3))
    with pytest.raises(ValueError, match=r"got batch shape \(\) and 0 observations"):
        to_datatree(ArBufferPosterior(posterior.context.model.condition()), gaussian)
    with pytest.raises(ValueError, match=r"must hold exactly the model's latents \['boundary', 'drift', 'ndt'"):
        to_datatree(posterior, ddm)


def test_a_latent_called_as_a_trial_of_a_loop_is_no_outcome(data):
    def program(x):
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        mu = pyro.sample("mu", dist.Normal(0.0, (0.25 * tau).rsqrt()))
        pyro.sample("y_0", dist.Normal(100.0, 1.0))
        with pyro.plate("trials", len(x)):
            pyro.sample("y", dist.Normal(mu, tau.rsqrt()))

    tree = to_datatree(data[2], program, num_samples=3)
    assert list(tree["observed_data"].data_vars) == ["y"] and "log_likelihood" not in tree.children


@pytest.mark.parametrize(("first", "last"), [(1, N), (0, N - 2), (0, N)])
def test_a_loop_whose_sites_are_not_numbered_as_the_trials_is_refused(first, last, data):
    def program(x):
        mu = pyro.sample("mu", dist.Normal(0.0, pyro.sample("tau", dist.Gamma(2.0, 2.0))))
        for i in range(first, last + 1):
            pyro.sample(f"y_{i}", dist.Normal(mu, 1.0))

    got = "no y_0" if first else f"no y_{N - 1}" if last < N - 1 else f"y_{N} too"
    message = f"at y_0 to y_{N - 1}; got {got}; number them from 0"
    with pytest.raises(ValueError, match=re.escape(message)):
        to_datatree(data[2], program, num_samples=3)


def replicated(tree, name="y"):
    return torch.from_numpy(tree["posterior_predictive"][name].values[0])


@pytest.mark.parametrize("kind", outcome_programs.PROGRAMS)
def test_programs_of_every_kind_of_outcome_give_a_tree(kind):
    program, outcome, _ = outcome_programs.PROGRAMS[kind]
    posterior, y = posterior_of(program, outcome_programs.inputs, outcome=outcome)
    tree = to_datatree(posterior, program, num_samples=5, seed=1)
    names = [outcome] if isinstance(outcome, str) else list(outcome)
    assert list(tree["observed_data"].data_vars) == list(tree["log_likelihood"].data_vars) == names
    for d, name in enumerate(names):
        own = y if len(names) == 1 else y[:, d]
        assert torch.equal(torch.from_numpy(tree["observed_data"][name].values).float(), own)
        assert replicated(tree, name).shape == (5, *own.shape)
    assert all(values.isfinite().all() for values in tensors(tree["log_likelihood"]))


def tensors(group):
    return [torch.from_numpy(values.values) for values in group.data_vars.values()]


@pytest.mark.filterwarnings("ignore:the model ran for one posterior draw and failed")  # the one by its covariance
@pytest.mark.parametrize("kind", series_programs.SERIES)
def test_series_have_one_joint_density(kind):
    program = series_programs.SERIES[kind]
    posterior, y = posterior_of(program, series_programs.inputs)
    tree = to_datatree(posterior, program, num_samples=5, seed=1)
    assert "log_likelihood" not in tree.children and replicated(tree).shape == (5, 4)
    assert torch.equal(torch.from_numpy(tree["observed_data/y"].values), y)
    phi, sigma = (torch.from_numpy(tree["posterior"][name].values[0]) for name in ("phi", "sigma"))
    expected = series_programs.AR1(phi, sigma, 4, validate_args=False).log_prob(y)
    found = torch.from_numpy(tree["joint_log_likelihood/y"].values[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_series_of_several_sites_and_of_vectors_have_a_dimension_of_trials():
    posterior, _ = posterior_of(series_programs.learner, series_programs.inputs, outcome=("choice", "reward"))
    tree = to_datatree(posterior, series_programs.learner, num_samples=5)
    assert tree["observed_data/choice"].dims == ("trial",) and replicated(tree, "reward").shape == (5, 4)
    assert set(tree["joint_log_likelihood"].data_vars) == {"choice", "reward"}


def test_outcome_of_one_vector_is_one_observation():
    posterior, y = posterior_of(one_vector)
    tree = to_datatree(posterior, one_vector, num_samples=5)
    assert tree["observed_data/y"].values.tolist() == y[0].tolist() and replicated(tree).shape == (5, 3)
    assert tree["log_likelihood/y"].shape == (1, 5, 3)  # its numbers are independent given a


def test_programs_without_a_density_give_replicated_data():
    class NoDensity(dist.Normal):
        def log_prob(self, value):
            raise NotImplementedError

    def program(x):
        a = pyro.sample("a", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", NoDensity(a, 1.0))

    posterior, _ = posterior_of(program)
    tree = to_datatree(posterior, program, num_samples=5)
    assert set(tree.children) == {"posterior", "sample_stats", "posterior_predictive", "observed_data", "log_prior"}


@pytest.mark.parametrize("program", [series_programs.random_intercept, series_programs.intercept_of_each_trial])
def test_what_is_integrated_out_is_drawn_in_replicated_data_and_has_no_density(program):
    posterior, _ = posterior_of(program, series_programs.inputs, latents=["slope"])
    tree = to_datatree(posterior, program, num_samples=5)
    assert set(tree.children) == {"posterior", "sample_stats", "posterior_predictive", "observed_data"}
    assert list(tree["posterior"].data_vars) == ["slope"] and replicated(tree).shape == (5, 4)


def test_computed_outcomes_are_refused_with_what_to_do():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        return pyro.deterministic("y", torch.stack([a, a + torch.randn(())]), event_dim=1)

    posterior, y = posterior_of(program)
    with pytest.raises(ValueError, match=r"got 'y', which is computed .*; call to_datatree\(posterior\) without"):
        to_datatree(posterior, program)
    assert to_datatree(posterior, num_samples=5)["observed_data/y"].values.tolist() == y.tolist()


def test_an_outcome_called_x_is_no_input():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("x", dist.Normal(a, 1.0))

    posterior, y = posterior_of(program, outcome="x")
    tree = to_datatree(posterior, num_samples=5, dims={"x": ["row"], "inputs": ["row", "column"]})
    assert torch.equal(torch.from_numpy(tree["observed_data/x"].values), y)
    assert tree["constant_data/inputs"].dims == ("row", "column")
