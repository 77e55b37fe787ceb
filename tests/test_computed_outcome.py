"""Outcomes that a program computes and records by `pyro.deterministic` are simulated like those that it draws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from program_cases import inputs

from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.random_state import seeded


def statistics(theta):
    y = theta.unsqueeze(-2) + torch.randn(*theta.shape[:-1], 50, 2)
    return torch.cat([y.mean(-2), y.var(-2)], -1)


def recorded(x, **event_dim):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("y", statistics(theta), **event_dim)


def drawn(x):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Delta(statistics(theta), event_dim=1))


def in_a_plate(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        noise = pyro.sample("noise", dist.Normal(0.0, 0.1).expand(x[..., 0].shape))
        pyro.deterministic("y", slope * x[..., 0] + noise)


def two_sites(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        rt = pyro.sample("rt", dist.LogNormal(slope * x[..., 0], 0.1))
        pyro.deterministic("fast", rt < 1.0)


def last_of_a_loop(x):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2]):
        pyro.deterministic(f"y_{i}", level + 0.1 * torch.randn(level.shape))


@pytest.mark.parametrize("event_dim", [{}, {"event_dim": 1}])
def test_recorded_statistics_are_those_that_a_point_mass_draws(event_dim):
    def program(x):
        return recorded(x, **event_dim)

    simulators = Simulator(program), Simulator(drawn)
    with_seed = []
    for simulator in simulators:
        with seeded(0):
            with_seed.append(simulator.draw(20, 1))
    assert simulators[0].single and simulators[0].dim_y == 4 and simulators[0].mode == simulators[1].mode == "inputs"
    assert torch.equal(with_seed[0].y, with_seed[1].y) and torch.equal(with_seed[0].latents, with_seed[1].latents)
    assert not simulators[0].has_density and simulators[0].integrated_out == ()


def test_a_recorded_number_of_each_trial_is_no_series():
    simulator = Simulator(in_a_plate, inputs)
    assert simulator.trials == "independent" and simulator.dim_y is None and simulator.mode == "inputs"
    assert simulator.integrated_out == ("noise",)
    drawn = simulator.draw(200, 3)
    assert drawn.y.shape == (200, 3, 1)
    residual = drawn.y[..., 0] - drawn.latents * drawn.x[..., 0]
    assert residual.std().item() == pytest.approx(0.1, rel=0.1)


def test_a_recorded_category_stands_beside_a_drawn_time():
    simulator = Simulator(two_sites, inputs, outcome=("fast", "rt"))
    assert simulator.outcomes == ("categorical(2)", "real")
    y = simulator.draw(50, 4).y
    assert torch.equal(y[..., 0], (y[..., 1] < 1.0).float())


def test_the_trials_of_a_loop_may_be_recorded():
    simulator = Simulator(last_of_a_loop)
    assert simulator.trials == "series" and simulator.draw(5, 4).y.shape == (5, 4, 1)


def test_other_recorded_sites_are_none_of_the_program():
    def program(x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.deterministic("doubled", 2 * theta)
        pyro.sample("y", dist.Normal(theta, 1.0))

    simulator = Simulator(program)
    assert simulator.has_density and simulator.integrated_out == () and [s.name for s in simulator.latents] == ["theta"]
