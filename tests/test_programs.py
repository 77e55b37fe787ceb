"""Shipped programs, configurations from simulations, and finding the program of a network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import tiny
import torch
from program_cases import inputs, line, one_vector

from pyro_arbuf import amortize, load
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors.ddm import ddm, draw_coherence
from pyro_arbuf.priors.gaussian import gaussian
from pyro_arbuf.priors.psychometric import psychometric
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sources import find_simulator, shipped_programs, simulator_of

SIZES = {name: getattr(tiny.CONFIG, name) for name in ("width", "num_layers", "num_heads", "embedding_width")}


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(line, inputs)


def network(simulator: Simulator, **fields: object) -> ArBufferModel:
    num_context = (0, 1) if simulator.single else (0, 5)
    return ArBufferModel(dataclasses.replace(program_config(simulator, num_context, **SIZES), **fields))


@pytest.mark.parametrize("name", shipped_programs())
def test_every_shipped_program_is_vectorised_and_has_its_density(name: str) -> None:
    simulator, recipe = simulator_of(name), shipped_programs()[name]
    assert simulator.mode == "inputs" and simulator.integrated_out == ()
    assert simulator.single == (recipe.num_context == (0, 1))
    drawn = simulator.draw(3, 1 if simulator.single else 4)
    numbers = drawn.latents.split([latent.size for latent in simulator.latents], -1)
    values = {s.name: s.constrain(part)[0] for s, part in zip(simulator.latents, numbers, strict=True)}
    y = drawn.y[0] if simulator.dim_y is not None else drawn.y[0, :, 0]
    prior, joint = simulator.log_prior(values), simulator.log_joint(values, drawn.x[0], y)
    assert torch.isfinite(prior).all() and torch.isfinite(joint[0]) and not torch.isclose(prior, joint).any()


@pytest.mark.parametrize("name", shipped_programs())
def test_every_shipped_program_has_a_configuration(name: str) -> None:
    recipe = shipped_programs()[name]
    config = program_config(simulator_of(name), recipe.num_context, name)
    assert config.prior == name and config.num_context == recipe.num_context and config.num_latents >= 2


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name must be one of \['gaussian', .*; got 'normal'"):
        simulator_of("normal")


# Configurations


def test_configuration_holds_what_the_simulator_knows(simulator: Simulator) -> None:
    config = program_config(simulator, (0, 30), "line", width=24)
    for name in ("dim_x", "dim_y", "latents", "outcome"):
        assert getattr(config, name) == getattr(simulator, name)
    assert (config.prior, config.width, config.num_context, config.num_targets) == ("line", 24, (0, 30), (1, 30))
    assert config.num_layers == 4 and config.buffer_size == 16


def test_inputs_and_outcomes_are_standardised_by_simulations(simulator: Simulator) -> None:
    config = program_config(simulator, (0, 30))
    assert config.x_loc == pytest.approx((0.5,), abs=0.02) and config.x_scale == pytest.approx((0.289,), abs=0.01)
    low, middle, high = simulator.draw(2000, 8).y.flatten().quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert config.y_loc == pytest.approx((middle,), abs=0.03)
    assert config.y_scale == pytest.approx(((high - low) / 1.349,), rel=0.1)


def drift(x: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(1.0, 0.1))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0], 1.0))


@pytest.mark.parametrize("largest", [60, 1])
def test_inputs_that_grow_with_the_trials_are_standardised_at_the_largest_number(largest: int) -> None:
    config = program_config(Simulator(drift, lambda n: torch.arange(float(n))[:, None]), (0, largest))
    last = largest - 1
    assert config.x_range == pytest.approx((-0.01 * last, 1.01 * last), rel=1e-3)
    assert config.x_loc == pytest.approx((last / 2,)) and config.y_loc == pytest.approx((last / 2,), abs=1.0)
    if last:
        assert config.x_scale == pytest.approx((17.3,)) and config.y_scale == pytest.approx((25.0,), rel=0.2)
        assert config.y_range[1] > 65


def test_ranges_of_inputs_are_those_of_every_column() -> None:
    def regression(x: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(slope * x[..., 0], 1.0))

    def inputs(num_trials: int) -> torch.Tensor:
        return torch.stack([torch.arange(float(num_trials)), torch.full((num_trials,), 5.0)], -1)

    config = program_config(Simulator(regression, inputs), (0, 11))
    (low, high), constant = config.x_range
    assert (low, high) == pytest.approx((-0.1, 10.1), rel=1e-3) and constant == (5.0, 5.0)


def test_standardising_many_trials_keeps_few_numbers_at_a_time() -> None:
    asked = []

    def many(num_trials: int) -> torch.Tensor:
        asked.append(num_trials)
        return torch.rand(num_trials, 1)

    simulator = Simulator(line, many)
    draw, sizes = simulator.draw, []
    simulator.draw = lambda *size: sizes.append(size) or draw(*size)
    config = program_config(simulator, (0, 20_000))
    assert max(a * b for a, b in sizes) <= 10**6 and sum(a for a, _ in sizes) == 256
    assert config.x_loc == pytest.approx((0.5,), abs=0.02)


def offset(number: float) -> Callable[[torch.Tensor], None]:
    def program(x: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(slope + number, 1.0))

    return program


@pytest.mark.parametrize("number", [1e9, -1e7, 5e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outcomes_that_float32_cannot_tell_apart_are_an_error(number: float, dtype: torch.dtype) -> None:
    program = offset(torch.tensor(number, dtype=dtype))
    with pytest.raises(
        ValueError, match=r"the outcome 'y' must vary by more than 1e-05 of its distance from zero, .*subt"
    ):
        program_config(Simulator(program, inputs), (0, 5))


def test_inputs_that_float32_cannot_tell_apart_are_an_error() -> None:
    simulator = Simulator(offset(0.0), lambda n: 1.7e9 + torch.arange(n, dtype=torch.float64)[:, None])
    with pytest.raises(ValueError, match=r"each column of the inputs must vary by more than 1e-05 .*; got 1.7e"):
        program_config(simulator, (0, 5))


def test_latents_that_float32_cannot_tell_apart_are_an_error() -> None:
    def program(x: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.tensor(1e9, dtype=torch.float64), 100.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(slope - 1e9, 1.0))

    with pytest.raises(ValueError, match="the latent 'slope' must vary by more than 1e-05 of its distance from zero"):
        Simulator(program, inputs)


def test_heavy_tails_leave_the_scales_alone() -> None:
    def program(x: torch.Tensor) -> None:
        theta = pyro.sample("theta", dist.Cauchy(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Cauchy(0.0 * theta, 1.0))

    config = program_config(Simulator(program), (0, 30))
    assert config.y_scale == pytest.approx((2 / 1.349,), rel=0.1)
    assert config.latents[0].scale == pytest.approx((2 / 1.349,), rel=0.1) and abs(config.latents[0].loc[0]) < 0.2


def test_outcomes_that_are_mostly_equal_have_a_scale() -> None:
    def program(x: torch.Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            hit = (torch.rand(theta.shape[:-1] + x.shape[-2:-1]) < 0.02).float()
            pyro.sample("y", dist.Delta(hit * (3 + theta)))

    with pytest.warns(UserWarning, match="9[78]% of the simulated values of 'y' equal 0, and a density has no such"):
        simulator = Simulator(program)
    assert program_config(simulator, (0, 30)).y_scale == pytest.approx((0.43,), rel=0.3)


def test_ranges_are_those_of_simulations_outcomes_with_room(simulator: Simulator) -> None:
    config = program_config(simulator, (0, 30))
    drawn = simulator.draw(2000, 8)
    assert -0.02 <= config.x_range[0] <= 0 and 1 <= config.x_range[1] <= 1.02
    inside = (drawn.y > config.y_range[0]) & (drawn.y < config.y_range[1])
    assert inside.all() and config.y_range[1] - config.y_range[0] < 6 * (drawn.y.max() - drawn.y.min())


@pytest.mark.parametrize(("dim_y", "num_frequencies"), [(2, 16), (3, 16), (4, 0), (10, 0)])
def test_one_observation_of_many_dimensions_is_embedded_without_waves(dim_y: int, num_frequencies: int) -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(dim_y), 1.0).to_event(1))
        return pyro.sample("y", dist.Normal(theta, 1.0).to_event(1))

    simulator = Simulator(program)
    assert program_config(simulator, (0, 1)).num_y_frequencies == num_frequencies
    assert program_config(simulator, (0, 1), num_y_frequencies=5).num_y_frequencies == 5


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
    assert find_simulator(network(simulator_of("ddm"), prior="ddm"), ddm).inputs is draw_coherence


def test_shipped_program_with_other_inputs_is_not_checked_at_those_of_the_shipped_network(tmp_path: Path) -> None:
    """Its network had the shipped name, so that checks of a loaded one ran where it was not trained."""
    options = {"num_context": (0, 8), "steps": 1, "start_from": None, "report": False, "folder": tmp_path}
    net = amortize(psychometric, lambda n: 0.2 * torch.rand(n, 1), **options)
    assert find_simulator(net).inputs(100).max() < 0.2
    assert find_simulator(net, psychometric).inputs(100).max() < 0.2
    again = load(tmp_path)
    assert again.config.prior == "pyro_arbuf.priors.psychometric.psychometric"
    with pytest.raises(ValueError, match="program of this network is not known"):
        find_simulator(again)
    with pytest.raises(ValueError, match="a program alone does not say how to draw them"):
        find_simulator(again, psychometric)


@pytest.mark.filterwarnings("ignore:Site 'tau' is integrated out but shared")
def test_given_program_keeps_the_networks_latents() -> None:
    net = network(Simulator(gaussian, latents=["mu"]))
    assert find_simulator(net, gaussian).integrated_out == ("tau",)


def test_unknown_program_says_how_to_give_one(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match=r"not known \(config.prior = 'mine'\); set net.simulator = pyro_arbuf.Sim"):
        find_simulator(network(simulator, prior="mine"))


def test_network_without_latents_has_no_program() -> None:
    with pytest.raises(ValueError, match="net must have latents; got a network without; amortize a program"):
        find_simulator(tiny.tiny_model())


def test_given_simulator_is_taken(simulator: Simulator) -> None:
    assert find_simulator(network(simulator), simulator) is simulator


def test_program_alone_does_not_say_how_to_draw_the_inputs_of_a_loaded_network(simulator: Simulator) -> None:
    with pytest.raises(
        ValueError, match=r"was trained with inputs \(dim_x = 1, .*pass program=pyro_arbuf.Simulator\(prog"
    ):
        find_simulator(network(simulator), line)

    def of_two_columns(x: torch.Tensor) -> torch.Tensor:
        return line(x[..., 1:])

    net = network(Simulator(of_two_columns, lambda num_trials: torch.rand(num_trials, 2)))
    with pytest.raises(
        ValueError, match=r"was trained with inputs \(dim_x = 2, .*pass program=pyro_arbuf.Simulator\(prog"
    ):
        find_simulator(net, of_two_columns)


def other_support(x: torch.Tensor) -> None:
    pyro.sample("slope", dist.Beta(2.0, 2.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(0.0, noise))


def other_shape(x: torch.Tensor) -> None:
    pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(0.0, noise))


def other_outcome(x: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope[..., None] * torch.ones(2), noise[..., None]).to_event(1))


DIFFERENT = {
    "support": (
        other_support,
        r"'slope' must have shape \(\) and be any real number; got .*between 0.0 and 1",
    ),
    "shape": (
        other_shape,
        r"'slope' must have shape \(\) and be any real .*; got shape \(3,\), any real number; use",
    ),
    "outcome": (other_outcome, "outcome must be a number, as the network's; got a vector of 2; use the program that"),
    "names": (
        one_vector,
        r"latents in its order, \['slope', 'noise'\]; got \['theta'\]; choose them by pyro_arbuf.Simul",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_program_that_differs_from_the_network_s_is_explained_in_words(simulator: Simulator, case: str) -> None:
    program, message = DIFFERENT[case]
    with pytest.raises(ValueError, match=message) as caught:
        find_simulator(network(simulator), Simulator(program, inputs))
    assert "Latent(" not in str(caught.value)


def test_latents_in_another_order_are_explained(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match=r"in its order, \['slope', 'noise'\]; got \['noise', 'slope'\]; choose"):
        find_simulator(network(simulator), Simulator(line, inputs, latents=["noise", "slope"]))


def test_program_with_other_inputs_is_refused(simulator: Simulator) -> None:
    wide = Simulator(line, lambda num_trials: torch.rand(num_trials, 2))
    with pytest.raises(ValueError, match=r"inputs of 2 columns, as the network; got 1; give those by pyro_arbuf.Simul"):
        find_simulator(network(wide), simulator)


def test_simulator_that_does_not_fit_is_refused(simulator: Simulator) -> None:
    net = network(simulator)
    net.simulator = Simulator(one_vector)
    with pytest.raises(ValueError, match="the program must have the network's latents"):
        find_simulator(net)
