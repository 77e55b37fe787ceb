"""What amortised inference returns, as a DataTree: posteriors with and without their program, corrected draws."""

import pyro
import pytest
import torch
from latent_nets import LATENTS

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


def test_given_latents_are_put_into_the_program(data):
    x, y, posterior = data
    context = posterior.context.model.condition(x, y, latents={"tau": torch.tensor(2.0)})
    tree = to_datatree(ArBufferPosterior(context), gaussian, num_samples=10)
    assert list(tree["posterior"].data_vars) == ["mu"] and tree["observed_data/tau"].item() == pytest.approx(2.0)


def test_units_of_the_user_are_those_of_the_data(data):
    x, y, posterior = data
    scaled = posterior.context.model.in_units(y_loc=3.0, y_scale=2.0)
    tree = to_datatree(ArBufferPosterior(scaled.condition(x, 2 * y.double() + 3)), num_samples=3)
    torch.testing.assert_close(torch.from_numpy(tree["observed_data/y"].values).float(), 2 * y + 3)
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
    for wrong in ({"num_samples": 3}, {"coords": {"draw": range(20)}}, {"model": gaussian}):
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
