"""Shipped programs, configurations from simulations, and finding the program of a network."""

import dataclasses
import typing

import pyro
import pyro.distributions as dist
import pytest
import tiny
import torch
from program_cases import inputs, line, one_vector

from pyro_arbuf.cli import PriorName
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors.ddm import ddm, draw_coherence
from pyro_arbuf.priors.gaussian import gaussian
from pyro_arbuf.programs import PROGRAMS, find_simulator, program_config, simulator_of
from pyro_arbuf.simulation import Simulator

SIZES = {name: getattr(tiny.CONFIG, name) for name in ("width", "num_layers", "num_heads", "embedding_width")}


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(line, inputs)


def network(simulator: Simulator, **fields: object) -> ArBufferModel:
    num_context = (0, 1) if simulator.single else (0, 5)
    return ArBufferModel(dataclasses.replace(program_config(simulator, num_context, **SIZES), **fields))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_shipped_program_is_vectorised_and_has_its_density(name: str) -> None:
    simulator, recipe = simulator_of(name), PROGRAMS[name]
    assert simulator.mode == "inputs" and simulator.integrated_out == ()
    assert simulator.single == (recipe.num_context == (0, 1))
    drawn = simulator.draw(3, 1 if simulator.single else 4)
    numbers = drawn.latents.split([latent.size for latent in simulator.latents], -1)
    values = {s.name: s.constrain(part)[0] for s, part in zip(simulator.latents, numbers, strict=True)}
    y = drawn.y[0] if simulator.dim_y is not None else drawn.y[0, :, 0]
    prior, joint = simulator.log_prior(values), simulator.log_joint(values, drawn.x[0], y)
    assert torch.isfinite(prior).all() and torch.isfinite(joint[0]) and not torch.isclose(prior, joint).any()


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_shipped_program_has_a_configuration(name: str) -> None:
    recipe = PROGRAMS[name]
    config = program_config(simulator_of(name), recipe.num_context, name)
    assert config.prior == name and config.num_context == recipe.num_context and config.num_latents >= 2


def test_command_line_knows_every_shipped_program() -> None:
    assert set(PROGRAMS) < set(typing.get_args(PriorName))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name must be one of \['gaussian', .*; got 'normal'"):
        simulator_of("normal")


# Configurations


def test_configuration_holds_what_the_simulator_measured(simulator: Simulator) -> None:
    config = program_config(simulator, (0, 30), "line", width=24)
    for name in ("dim_x", "dim_y", "latents", "outcome", "x_loc", "x_scale", "y_loc", "y_scale"):
        assert getattr(config, name) == getattr(simulator, name)
    assert (config.prior, config.width, config.num_context, config.num_targets) == ("line", 24, (0, 30), (1, 30))
    assert config.num_layers == 4 and config.buffer_size == 16


def test_ranges_are_those_of_simulations_outcomes_with_room(simulator: Simulator) -> None:
    config = program_config(simulator, (0, 30))
    drawn = simulator.draw(2000, 8)
    assert -0.01 <= config.x_range[0] <= 0 and 1 <= config.x_range[1] <= 1.01
    inside = (drawn.y > config.y_range[0]) & (drawn.y < config.y_range[1])
    assert inside.all() and config.y_range[1] - config.y_range[0] < 6 * (drawn.y.max() - drawn.y.min())


def test_configuration_uses_no_global_randomness_and_is_the_same_again(simulator: Simulator) -> None:
    state = torch.get_rng_state()
    config = program_config(simulator, (0, 30))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert program_config(simulator, (0, 30)) == config


def test_buffer_grows_with_the_latents() -> None:
    def program(x: torch.Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(theta.sum(-1), 1.0))

    assert program_config(Simulator(program), (0, 5)).buffer_size == 20


# The program of a network


def test_program_it_was_amortised_from_is_found(simulator: Simulator) -> None:
    net = network(simulator)
    net.simulator = simulator
    assert find_simulator(net) is simulator


def test_shipped_program_is_found_by_the_name_of_the_prior() -> None:
    found = find_simulator(network(simulator_of("ddm"), prior="ddm"))
    assert found.program is ddm and found.inputs is draw_coherence


def test_given_program_goes_first_with_the_inputs_that_are_known(simulator: Simulator) -> None:
    def same(x: torch.Tensor) -> torch.Tensor:
        return line(x)

    net = network(simulator)
    net.simulator = simulator
    found = find_simulator(net, same)
    assert found.program is same and found.inputs is inputs


def test_given_shipped_program_has_its_inputs() -> None:
    assert find_simulator(network(simulator_of("ddm")), ddm).inputs is draw_coherence


def test_given_program_keeps_the_networks_latents() -> None:
    net = network(Simulator(gaussian, latents=["mu"]))
    assert find_simulator(net, gaussian).integrated_out == ("tau",)


def test_unknown_program_says_how_to_give_one(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match=r"not known \(config.prior = 'mine'\); set net.simulator = pyro_arbuf.Sim"):
        find_simulator(network(simulator, prior="mine"))


def test_network_without_latents_has_no_program() -> None:
    with pytest.raises(ValueError, match="net must have latents; got a network without; amortize a program"):
        find_simulator(tiny.tiny_model())


def other_support(x: torch.Tensor) -> None:
    pyro.sample("slope", dist.Beta(2.0, 2.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(0.0, noise))


def test_program_with_other_supports_is_refused(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match="the program must have the network's latents"):
        find_simulator(network(simulator), other_support)


def test_program_with_other_inputs_is_refused() -> None:
    simulator = Simulator(line, lambda num_trials: torch.rand(num_trials, 2))
    with pytest.raises(
        ValueError, match=r"dim_x = 2 and dim_y = None; got .*, 1 and None; for its inputs set net.simu"
    ):
        find_simulator(network(simulator), line)


def test_simulator_that_does_not_fit_is_refused(simulator: Simulator) -> None:
    net = network(simulator)
    net.simulator = Simulator(one_vector)
    with pytest.raises(ValueError, match="the program must have the network's latents"):
        find_simulator(net)
