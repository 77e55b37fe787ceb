"""The shipped models score what their records and cards say."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from scipy.stats import kstest
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf import random_orders
from pyro_arbuf.checkpoint import find_model
from pyro_arbuf.cli.evaluate import evaluate
from pyro_arbuf.network.latents import pad_outcome
from pyro_arbuf.priors.recipes import RECIPES, RecordingRecipe
from pyro_arbuf.programs.sources import shipped_programs, simulator_of
from pyro_arbuf.random_state import seeded

# What recordings train is scored by benchmarks/eeg.py, as the package does not ship them.
NAMES = [name for name in pyro_arbuf.shipped_models() if not isinstance(RECIPES.get(name), RecordingRecipe)]
OF_FUNCTIONS = pytest.mark.parametrize("name", [name for name in NAMES if name not in shipped_programs()])
OF_PROGRAMS = pytest.mark.parametrize("name", [name for name in NAMES if name in shipped_programs()])


@pytest.mark.parametrize("name", NAMES)
def test_validation_score_is_the_recorded_one(name, capsys):
    evaluate(name)
    score = json.loads(capsys.readouterr().out.splitlines()[-1])["validation"]
    recorded = json.loads((find_model(name) / "training.json").read_text())["validation"]
    assert score == pytest.approx(recorded, abs=2e-3)


@OF_PROGRAMS
def test_posterior_and_likelihood_beat_the_prior(name):
    net, simulator = pyro_arbuf.load(name), simulator_of(name)
    assert net.latents == tuple(latent.name for latent in simulator.latents)
    with seeded(3):
        drawn = simulator.draw(64, min(50, net.config.num_context[1]))
    y = drawn.y if net.config.dim_y is not None else drawn.y.squeeze(-1)
    density = pyro_arbuf.ArBufferPosterior(net.condition(drawn.x, y)).log_prob(drawn.latents)
    gain = density - pyro_arbuf.ArBufferPosterior(net.condition()).log_prob(drawn.latents)
    assert gain.mean() > 4 * gain.std() / 8 > 0
    free = pyro_arbuf.ArBufferPosterior(net.condition())
    told = pyro_arbuf.likelihood(
        net, drawn.x, free.sites(drawn.latents)
    )  # of trials that depend on each other, a joint
    gain = told.log_prob(y) - type(told)(net.condition(), drawn.x).log_prob(y)
    assert gain.mean() > 4 * gain.std() / 8 > 0


@OF_FUNCTIONS
def test_joint_beats_independent_marginals_on_its_prior(name):
    net = pyro_arbuf.load(name)
    x, y = RECIPES[net.config.prior].prior(64, 8 + 16, torch.Generator().manual_seed(5))
    y = y.squeeze(-1)
    joint = pyro_arbuf.ArBufferJoint(net.condition(x[:, :8], y[:, :8]), x[:, 8:])
    y = y[:, 8:]
    gain = (joint.log_prob(y) - joint.marginals().log_prob(y)) / 16
    assert gain.mean() > 4 * gain.std() / 8 > 0


@pytest.mark.slow
@OF_FUNCTIONS
def test_gap_to_the_oracle_is_the_one_of_the_card(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    quality, oracle = (importlib.import_module(module) for module in ("quality", "oracle"))
    net, gaps = pyro_arbuf.load(name), []
    if net.config.prior not in oracle.PRIORS:
        pytest.skip("the prior has no exact prediction")
    for num_context in (8, 16, 32, 64, 128):
        task = quality.draw_functions(net.config.prior, 64, num_context, 16)
        best = oracle.oracle_log_prob(net.config.prior, *task)
        gaps.append((best - quality.model_log_prob(net, task, random_orders(16, 16), 16, 16, "")) / 16)
    gaps = torch.stack(gaps)
    card = next(row for row in (find_model(name) / "README.md").read_text().splitlines() if row.startswith("| mean |"))
    stated = float(card.split("|")[-3].split("(")[0])
    assert abs(gaps.mean() - stated) < 4 * (gaps.var(1) / 64).sum().sqrt() / 5


def check_law(joint, draws, values):
    """Draws `(n, *batch, ...)` are uniform and independent along the chain, whose derivative is the reported density.

    Args:
        joint: Of one order, in float64.
        draws: What was sampled.
        values: From draws to outcomes as the joint takes them.
    """
    u = joint.pit(values(draws))
    u = u[..., 0] if u.dim() > draws.dim() else u
    u = u.flatten(1).double()
    pvalues = [kstest(column.numpy(), "uniform").pvalue for column in u.unbind(-1)]
    assert min(pvalues) > 1e-3 / len(pvalues)
    correlation = torch.corrcoef(u.T) - torch.eye(u.shape[-1], dtype=u.dtype)
    assert correlation.abs().max() < 5.5 * len(u) ** -0.5
    some = draws[:5].clone()
    for at in range(some.shape[-1]):
        leaf = some[..., at].clone().requires_grad_()
        moved = torch.cat([some[..., :at], leaf.unsqueeze(-1), some[..., at + 1 :]], -1)
        pit = joint.pit(values(moved))
        pit = pit[..., 0] if pit.dim() > draws.dim() else pit
        (slope,) = torch.autograd.grad(pit[..., at].sum(), leaf)
        factors = joint.log_prob_factors(values(some))[..., at]
        assert_close(slope.log(), factors, rtol=1e-6, atol=1e-6)
    assert_close(joint.log_prob_factors(values(some)).sum(-1), joint.log_prob(values(some)), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y lies outside the trained range")  # a draw of 2,000 may be far in the tail
@OF_FUNCTIONS
@pytest.mark.parametrize("num_targets", [6, 19])
def test_sampled_law_of_functions_is_the_scored_law(name, num_targets):
    net = pyro_arbuf.load(name).double()
    x, y = RECIPES[net.config.prior].prior(1, 8 + num_targets, torch.Generator().manual_seed(7))
    x, y = x[0].double(), y[0, :, 0].double()
    joint = pyro_arbuf.ArBufferJoint(net.condition(x[:8], y[:8]), x[8:])
    with seeded(3):
        draws = joint.sample((2000,))
    check_law(joint, draws, lambda y: y)


@pytest.mark.slow
@OF_PROGRAMS
def test_sampled_law_of_programs_is_the_scored_law(name):
    net, simulator = pyro_arbuf.load(name).double(), simulator_of(name)
    with seeded(3):
        drawn = simulator.draw(1, min(20, net.config.num_context[1]))
    x, y = drawn.x[0].double(), net.config.squeeze_outcome(drawn.y[0]).double()
    posterior = pyro_arbuf.ArBufferPosterior(net.condition(x, y))
    dim_y = net.config.dim_y
    with seeded(4):
        draws = posterior.sample((2000,))
    check_law(posterior._joint, draws, lambda u: u if dim_y is None else pad_outcome(u, dim_y))
    if len(x) > 1 and dim_y is None and net.config.all_real:  # tests of outcomes have the law of discrete ones
        joint = pyro_arbuf.ArBufferJoint(net.condition(x[:-5], y[:-5]), x[-5:])
        with seeded(5):
            draws = joint.sample((2000,))
        check_law(joint, draws, lambda y: y)
