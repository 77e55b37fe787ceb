"""Draws, statistics and arguments out of MCMC, Importance and dictionaries."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Importance, Predictive
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.mcmc import RandomWalkKernel

from pyro_arbuf.workflow.posterior_draws import read_fit

Y = torch.tensor([0.3, -0.1, 0.8])


def model(y, sd=1.0):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def other(y):
    model(y)


def importance(num_samples, log_weights=None):
    done = Importance(model, num_samples=num_samples).run(Y, sd=2.0)
    if log_weights is not None:
        done.log_weights = log_weights
    return done


def test_mcmc_keeps_chains_statistics_and_arguments():
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=3, num_chains=1, disable_progbar=True)
    mcmc.run(Y, sd=2.0)
    mcmc._diagnostics[0]["divergences"] = [1, 4]
    fit = read_fit(mcmc, None, (), None)
    assert fit.draws["mu"].shape == (5,) and fit.num_chains == 1
    assert fit.per_draw["diverging"].tolist() == [False, True, False, False, True]
    assert 0 <= float(fit.per_chain["acceptance_rate"]) <= 1
    assert (fit.model, fit.args, fit.kwargs) == (model, (Y,), {"sd": 2.0})


def test_any_kernel_will_do():
    mcmc = MCMC(RandomWalkKernel(model), num_samples=4, warmup_steps=2, disable_progbar=True)
    mcmc.run(Y)
    fit = read_fit(mcmc, None, (), None)
    assert fit.draws["mu"].shape == (4,) and fit.model is model
    assert set(fit.per_draw) == set() and set(fit.per_chain) == {"acceptance_rate"}


@pytest.mark.filterwarnings("ignore:num_chains=2 is more than")
def test_divergences_are_those_of_their_chain():
    mcmc = MCMC(NUTS(model), num_samples=3, num_chains=2, disable_progbar=True)
    mcmc._samples = {"mu": torch.arange(6.0).view(2, 3)}
    mcmc._diagnostics = [{"divergences": [0]}, {"divergences": [2]}]
    fit = read_fit(mcmc, other, (Y,), None)
    assert fit.per_draw["diverging"].view(2, 3).tolist() == [[True, False, False], [False, False, True]]
    assert (fit.model, fit.args, fit.kwargs) == (other, (Y,), {})


def test_importance_keeps_its_weights():
    done = importance(4)
    fit = read_fit(done, None, (), None)
    torch.testing.assert_close(fit.per_draw["log_weight"], torch.stack(done.log_weights))
    mu = fit.draws["mu"]
    expected = torch.stack([dist.Normal(m, 2.0).log_prob(Y).sum() for m in mu])
    torch.testing.assert_close(fit.per_draw["log_weight"], expected)
    assert (fit.model, fit.args, fit.kwargs) == (model, (Y,), {"sd": 2.0})


def test_systematic_resampling_repeats_draws_by_their_weight_up_to_one():
    weights = torch.tensor([0.07, 0.33, 0.0, 0.6])
    done = importance(4, list(weights.log()))
    mu = torch.stack([trace.nodes["mu"]["value"] for trace in done.exec_traces])
    for _ in range(5):
        fit = read_fit(done, None, (), 50)
        counts = (fit.draws["mu"][:, None] == mu).sum(0)
        assert fit.per_draw == {} and counts.sum() == 50
        assert ((counts - 50 * weights).abs() < 1).all()


def test_resampling_refuses_weights_without_information():
    with pytest.raises(ValueError, match="finite one and no NaN"):
        read_fit(importance(2, [torch.tensor(torch.nan), torch.tensor(0.0)]), None, (), 5)


def test_draws_of_a_guide_lose_what_the_guide_added():
    guide = AutoDiagonalNormal(model)
    guide(Y)
    draws = Predictive(guide, num_samples=6)(Y)
    fit = read_fit(draws, None, (), None)
    assert set(fit.draws) == {"mu"} and fit.draws["mu"].shape == (6,)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (MCMC(NUTS(model), num_samples=2), "MCMC that has not run"),
        (Importance(model, num_samples=2), "Importance that has not run"),
        (torch.zeros(3), "got Tensor"),
        ({}, "draws must map names"),
    ],
)
def test_draws_of_no_known_kind_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        read_fit(draws, None, (), None)
