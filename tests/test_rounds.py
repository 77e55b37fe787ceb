"""A second round for one observation: what it simulates from, and what the network then says."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_arbuf
from pyro_arbuf import ArBufferPosterior, amortize, log_evidence
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs import training_rounds, truncated_prior
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.truncated_prior import TruncatedSimulator, draw_latents, find_region
from pyro_arbuf.random_state import seeded

TINY = {"width": 8, "num_heads": 2, "num_layers": 1, "mlp_width": 8, "embedding_width": 8, "num_components": 3}
SHORT = TINY | {"num_context": (0, 1), "steps": 4, "start_from": None, "report": False}
X, Y = torch.zeros(1, 1), torch.tensor([[0.3, -0.2]])


def rotated(x):
    theta = pyro.sample("theta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    mean = torch.stack([theta.sum(-1), theta[..., 0] - theta[..., 1]], -1)
    return pyro.sample("y", dist.Normal(mean, scale.unsqueeze(-1)).to_event(1))


@pytest.fixture
def few_walkers(monkeypatch):
    for name, value in {"NUM_DRAWS": 200, "NUM_WALKERS": 40, "NUM_SWEEPS": 12, "FIRST_KEPT": 6}.items():
        monkeypatch.setattr(truncated_prior, name, value)


@pytest.fixture
def untrained():
    with seeded(0):
        simulator = Simulator(rotated)
        net = ArBufferModel(program_config(simulator, (0, 1), **TINY)).eval().requires_grad_(False)
        return simulator, net.condition(X, Y)


def test_walkers_draw_what_rejection_from_the_prior_draws(untrained, monkeypatch):
    monkeypatch.setattr(truncated_prior, "NUM_WALKERS", 500)
    simulator, context = untrained
    torch.manual_seed(0)
    prior, region = simulator.draw(5_000, 1).latents, find_region(simulator, context)
    region = region._replace(least=region.log_ratio(prior).quantile(0.7).item())
    wanted, found = prior[region.holds(prior)], draw_latents(region)
    assert len(wanted) == pytest.approx(1_500, abs=2)
    assert bool(region.holds(found).all())
    far = (prior.mean(0) - wanted.mean(0)).abs().max()
    assert far > 0.15  # truncation matters
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.15, rtol=0.0)
    torch.testing.assert_close(found.mT.cov(), wanted.mT.cov(), atol=0.2, rtol=0.0)


def test_the_region_holds_the_posterior_and_is_part_of_the_region_before(untrained):
    simulator, context = untrained
    torch.manual_seed(0)
    region = find_region(simulator, context)
    draws = ArBufferPosterior(context).sample((2000,))
    assert region.holds(draws).double().mean() > 0.99
    nothing = region._replace(least=math.inf)
    assert not bool(region._replace(before=nothing).holds(draws).any())


def test_a_posterior_outside_the_region_of_the_rounds_before_is_explained(few_walkers, untrained):
    simulator, context = untrained
    torch.manual_seed(0)
    region = find_region(simulator, context)._replace(least=torch.inf)
    with pytest.raises(ValueError, match="must lie in the region of the rounds before it; got 0 of 80 draws in it"):
        draw_latents(region)


def test_a_truncated_simulator_draws_its_latents_from_the_pool(few_walkers, untrained):
    simulator, context = untrained
    torch.manual_seed(0)
    region = find_region(simulator, context)
    pool = draw_latents(region)
    truncated = TruncatedSimulator(simulator, region, pool)
    drawn = truncated.draw(50, 1)
    assert bool((drawn.latents[:, None] == pool).all(-1).any(-1).all())
    assert drawn.y.shape == (50, 1, 2)
    scale = pool.std(0)
    torch.testing.assert_close(torch.tensor(truncated.latents[0].scale), scale[:2], rtol=0.01, atol=0.0)
    with pytest.raises(ValueError, match="truncated prior is known up to a factor"):
        truncated.log_prior({})


def test_amortize_for_one_observation_gives_a_network_of_that_one_alone(few_walkers, tmp_path, capsys):
    net = amortize(rotated, observation=(X, Y), num_simulations=60, folder=tmp_path, **SHORT)
    printed = capsys.readouterr().out
    assert "round 1 of 2" in printed and "round 2 of 2" in printed
    torch.testing.assert_close(torch.tensor(net.config.observation), Y)
    again = pyro_arbuf.load(tmp_path)
    assert again.config == net.config
    first = pyro_arbuf.load(tmp_path / "round_1")
    assert first.config.observation is None
    assert isinstance(net.simulator, TruncatedSimulator)
    draws = ArBufferPosterior(net.condition(X, Y)).sample((5,))
    assert draws.shape == (5, 3)
    with pytest.warns(UserWarning, match="which is one observation"):
        net.condition(X, Y + 0.1)
    with pytest.raises(ValueError, match="evidence needs a network of the program's whole prior"):
        log_evidence(net, X, Y)
    weights = (tmp_path / "round_1" / "model.safetensors").read_bytes()
    longer = SHORT | {"steps": 300}  # the first round would move on, and the second one from it
    on = amortize(rotated, observation=(X, Y), num_simulations=60, folder=tmp_path, resume=True, **longer)
    assert on.config.observation == net.config.observation
    assert (tmp_path / "round_1" / "model.safetensors").read_bytes() == weights


def test_simulations_of_the_first_round_that_lie_inside_are_kept(few_walkers, monkeypatch):
    sources = []
    train = training_rounds.train_network
    monkeypatch.setattr(
        "pyro_arbuf.programs.training_rounds.train_network",
        lambda source, *rest: sources.append(source) or train(source, *rest),
    )
    torch.manual_seed(0)
    net = amortize(rotated, observation=(X, Y), num_simulations=60, **SHORT)
    first, second = (source.simulations.drawn for source in sources)
    inside = net.simulator.region.holds(first.latents)
    assert int(inside.sum()) > 0
    torch.testing.assert_close(second.latents[-int(inside.sum()) :], first.latents[inside])
    assert len(second.latents) == len(first.latents) + int(inside.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": Y}, "observation must be a pair"),
        ({"observation": (X, Y), "rounds": 1}, "rounds must be an integer of at least 2"),
        ({"observation": (X, Y[:, :1])}, "y must have shape"),
        ({"observation": (X, Y * math.nan)}, "y must"),
    ],
)
def test_what_cannot_be_an_observation_is_refused_before_training(change, message, monkeypatch):
    monkeypatch.setattr("pyro_arbuf.programs.training_rounds.fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        amortize(rotated, **SHORT | change)


def test_programs_whose_prior_cannot_be_truncated_are_refused_before_training(monkeypatch):
    def hidden_scale(x):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        theta = pyro.sample("theta", dist.Normal(0.0, scale))
        return pyro.sample("y", dist.Normal(theta.unsqueeze(-1).expand(*theta.shape, 2), 1.0).to_event(1))

    monkeypatch.setattr("pyro_arbuf.programs.training_rounds.fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="prior of the latents must not depend on sites that are integrated out"):
        amortize(hidden_scale, latents=["theta"], observation=(X, Y), **SHORT)
    with pytest.raises(ValueError, match=r"observation needs a program with latents.*latents=\[\]"):
        amortize(rotated, latents=[], observation=(X, Y), **SHORT)


def test_checks_on_the_whole_prior_refuse_a_network_of_one_observation(build_model):
    from sum_of_two import FIELDS, with_program

    net = with_program(build_model(**FIELDS, observation=((0.3,), (0.1,))))
    x, y = torch.zeros(2, 1), torch.tensor([0.3, 0.1])
    with pytest.raises(ValueError, match=r"check_observation needs a network of the program's whole prior"):
        pyro_arbuf.check_observation(net, x, y)
    for check, data in ((pyro_arbuf.calibrate, ()), (pyro_arbuf.tarp, ()), (pyro_arbuf.local_c2st, (x, y))):
        with pytest.raises(ValueError, match="need a network of the program's whole prior"):
            check(net, *data)


def test_latents_of_the_prior_are_drawn_without_the_simulator():
    calls = []

    def program(x):
        theta = pyro.sample("theta", dist.Normal(1.0, 2.0))
        calls.append(float(theta))
        return pyro.sample("y", dist.Normal(torch.tensor([float(theta), 0.0]), 1.0).to_event(1))

    simulator = Simulator(program, vectorized=False)
    del calls[:]
    torch.manual_seed(0)
    drawn = simulator.draw_prior(400)
    assert calls == [] and drawn.shape == (400, 1)
    assert drawn.mean() == pytest.approx(1.0, abs=0.4) and drawn.std() == pytest.approx(2.0, abs=0.3)
    batch = Simulator(rotated).draw_prior(500)
    assert batch.shape == (500, 3) and batch[:, :2].std() == pytest.approx(1.0, abs=0.1)
