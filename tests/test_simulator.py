"""Simulations of programs in all three ways of running them, and the densities of programs."""

import functools
import math
import re
from collections.abc import Iterator

import numpy
import program_cases
import pyro
import pyro.distributions as dist
import pytest
import torch
from program_cases import LINES, inputs, line, one_vector, sampled_line
from pyro import poutine
from samples import draw

from pyro_arbuf.priors.two_moons import TwoMoons, two_moons
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.simulator import Simulator

MODES = pytest.mark.parametrize("mode", LINES)


@pytest.fixture(scope="module")
def simulators() -> dict[str, Simulator]:
    """The straight line, by the way it is run."""
    return {mode: Simulator(program, inputs) for mode, program in LINES.items()}


@pytest.fixture
def _double() -> Iterator[None]:
    """Programs make their constants in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def within_five_standard_errors(values, expected):
    return ((values.mean(0) - expected).abs() <= 5 * values.std(0) / len(values) ** 0.5).all()


# How a program is run


@MODES
def test_program_is_run_in_the_fastest_way_it_can(mode, simulators):
    assert simulators[mode].mode == mode


@MODES
@pytest.mark.parametrize("num_trials", [1, 6])
def test_simulations_have_latents_inputs_and_outcomes_of_every_data_set(mode, num_trials, simulators):
    drawn = simulators[mode].draw(3, num_trials)
    assert [t.shape for t in drawn] == [(3, 2), (3, num_trials, 1), (3, num_trials, 1)]
    assert all(t.dtype == torch.float32 for t in drawn)
    assert len(drawn.latents.unique()) == 6 and len(drawn.y.unique()) == 3 * num_trials


@MODES
def test_inputs_are_drawn_for_every_data_set_or_shared_where_they_must_be(mode, simulators):
    x = simulators[mode].draw(3, 6).x
    assert len(x.unique()) == (6 if mode == "datasets" else 18)
    assert ((x >= 0) & (x < 1)).all()


@MODES
def test_one_data_set_can_be_drawn(mode, simulators):
    assert [t.shape for t in simulators[mode].draw(1, 4)] == [(1, 2), (1, 4, 1), (1, 4, 1)]


@MODES
def test_simulations_have_the_law_of_the_program(mode, simulators):
    pieces = [simulators[mode].draw(40, 3) for _ in range(10)]
    latents, x, y = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    slope, log_noise = latents.unbind(-1)
    assert within_five_standard_errors(latents, torch.tensor([0.0, -1.0]))
    assert within_five_standard_errors((latents - torch.tensor([0.0, -1.0])) ** 2, torch.tensor([1.0, 0.25**2]))
    residual = (y - slope[:, None, None] * x).squeeze(-1) / log_noise.exp()[:, None]
    assert within_five_standard_errors(residual, 0.0)
    assert within_five_standard_errors(residual**2, 1.0)
    assert within_five_standard_errors(residual[:, 1:] * residual[:, :-1], 0.0)
    assert within_five_standard_errors(residual[1:] * residual[:-1], 0.0)


@MODES
def test_latents_are_standardised_by_prior_draws(mode, simulators):
    slope, noise = simulators[mode].latents
    size = 256 if mode == "loop" else 2048
    assert abs(slope.loc[0]) < 5 / size**0.5 and abs(noise.loc[0] + 1) < 5 * 0.25 / size**0.5
    assert abs(slope.scale[0] - 1) < 5 / (2 * size) ** 0.5 + 5e-3
    assert abs(noise.scale[0] / 0.25 - 1) < 5 / (2 * size) ** 0.5 + 5e-3


def test_locations_far_from_zero_are_as_exact_as_their_scales():
    def program(x):
        shift = pyro.sample("shift", dist.Normal(1000.3, 0.02))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(10132.5 + 0 * x[..., 0] + shift - 1000.3, 1.0))

    simulator = Simulator(program, lambda n: 2019.6 + 0.8 * torch.rand(n, 1))
    (shift,) = simulator.latents
    assert shift.loc == pytest.approx((1000.3,), abs=0.004)
    config = program_config(simulator, (0, 10))
    assert config.y_loc == pytest.approx((10132.5,), abs=0.1) and config.x_loc == pytest.approx((2020.0,), abs=0.02)
    assert config.x_range == pytest.approx((2019.592, 2020.408), abs=0.01)
    assert 10120 < config.y_range[0] < 10129 and 10136 < config.y_range[1] < 10145


def rarely(number):
    """A line whose outcomes are, in one of 400 data sets, some other number."""

    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        broken = torch.where(slope > 2.807, number, 0.0)
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(slope * x[..., 0] + broken, 1.0))

    return program


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_rare_simulations_that_are_not_finite_are_drawn_anew(number):
    simulator = Simulator(rarely(number), inputs)
    drawn = [simulator.draw(400, 3) for _ in range(10)]
    assert all(torch.isfinite(part).all() for simulations in drawn for part in simulations)
    assert max(simulations.latents.max() for simulations in drawn) <= 2.807


def test_frequent_ones_are_explained():
    broken = []
    simulator = Simulator(lambda x: rarely(math.inf)(x * torch.nan if broken else x), inputs)
    broken.append(True)
    with pytest.raises(ValueError, match="got NaN or infinite ones in y of 40 of 40 data sets; bound the prior, or"):
        simulator.draw(40, 3)


def fails(program, share, how):
    """A program that raises, or gives NaN, for a share of its data sets."""
    bound = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * share)).item()

    def rare(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        if bool((slope > bound).any()):
            how()
        return program(x, slope)

    return rare


def raises(error):
    def how():
        raise error

    return how


def vectorised(x, slope):
    sample_line(x, slope * x[..., 0])


def one_by_one(x, slope):
    sample_line(x, (1.0 if slope.item() > 0 else -1.0) * slope.abs() * x[..., 0])


ERRORS = [
    torch.linalg.LinAlgError("not positive-definite"),
    numpy.linalg.LinAlgError("singular"),
    ValueError("negative"),
    ZeroDivisionError("zero"),
    OverflowError("too large"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("program", [vectorised, one_by_one])
def test_program_that_raises_for_few_data_sets_is_drawn_anew_and_counted(program, error):
    simulator = Simulator(fails(program, 2e-3, raises(error)), inputs)
    assert simulator.mode == ("inputs" if program is vectorised else "loop") and simulator.failure_share == 0
    torch.manual_seed(0)
    drawn = [simulator.draw(200, 2) for _ in range(10 if program is vectorised else 6)]
    assert all(len(simulations.latents) == 200 for simulations in drawn)
    assert max(simulations.latents.max() for simulations in drawn) <= 2.88
    assert simulator.failed > 0 and simulator.failure_share == simulator.failed / simulator.simulated < 0.01


def test_draws_are_a_function_of_the_seed_whatever_failed_before():
    simulator, drawn = Simulator(fails(vectorised, 2e-3, raises(ValueError("negative"))), inputs), []
    for warm_up in (0, 3, 8):
        for _ in range(warm_up):
            simulator.draw(200, 2)
        torch.manual_seed(5)
        drawn.append([simulator.draw(400, 2) for _ in range(3)])
    assert simulator.failed > 0
    assert all(torch.equal(a.y, b.y) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))


def test_program_that_always_fails_after_its_probes_stops_at_once():
    runs, broken = [], []

    def program(x):
        runs.append(0)
        if broken:
            raise RuntimeError("no license")
        sample_line(x, pyro.sample("slope", dist.Normal(0.0, 1.0)))

    simulator = Simulator(program, inputs)
    runs.clear()
    broken.append(True)
    with pytest.raises(ValueError, match="it raised RuntimeError: no license; bound the prior, or clamp"):
        simulator.draw(32, 3)
    assert len(runs) < 30


def test_more_than_one_in_a_hundred_stops_within_ten_thousand():
    share = torch.tensor(0.0)

    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sample_line(x, torch.where(torch.rand(slope.shape) < share, torch.nan, slope))

    simulator = Simulator(program, inputs)
    share.fill_(0.004)
    for _ in range(15):
        simulator.draw(1000, 1)
    assert 0.002 < simulator.failure_share < 0.006
    simulator, _ = Simulator(program, inputs), share.fill_(0.03)
    with pytest.raises(ValueError, match=r"\(1\d\d of \d\d\d\d data sets failed so far, and 1% may\)"):
        for _ in range(15):
            simulator.draw(1000, 1)


def test_error_that_is_a_mistake_of_the_program_is_shown_as_it_is():
    broken = []

    def program(x):
        sample_line(x, pyro.sample("slope", dist.Normal(0.0, 1.0)) + ([][0] if broken else 0.0))

    simulator = Simulator(program, inputs)
    broken.append(True)
    with pytest.raises(IndexError):
        simulator.draw(4, 3)


def test_program_that_looks_its_values_up_is_run_one_by_one():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sign = {True: 1.0, False: -1.0}[(slope > 0).tolist()]  # of many, a list, which is no key
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(sign * x[..., 0], 1.0))

    assert Simulator(program, inputs).mode == "loop"


def test_program_without_inputs_gets_zeros():
    def program(x):
        sample_line(x, pyro.sample("slope", dist.Normal(0.0, 1.0)))

    simulator = Simulator(program)
    assert simulator.dim_x == 1 and (simulator.draw(2, 3).x == 0).all()
    config = program_config(simulator, (0, 5))
    assert config.x_loc == (0.0,) and config.x_scale == (1.0,)


def test_several_features_reach_their_trials():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            mean = slope.unsqueeze(-1) * x[..., :2]
            pyro.sample("y", dist.Normal(mean, 1e-3).to_event(1))

    simulator = Simulator(program, lambda num_trials: torch.randn(num_trials, 3))
    drawn = simulator.draw(4, 5)
    assert simulator.mode == "inputs" and simulator.dim_x == 3 and simulator.dim_y == 2
    assert (drawn.y - drawn.latents[:, :, None] * drawn.x[..., :2]).abs().max() < 0.01


@pytest.mark.filterwarnings("ignore:Site 'level' is inside the plate")
def test_plate_of_two_dimensions_leaves_room_for_the_data_sets():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("levels", 2, dim=-2):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        sample_line(x, slope + 0.0 * level.sum((-2, -1), keepdim=bool(slope.dim())))

    simulator = Simulator(program)
    assert simulator.nesting == 2 and simulator.draw(3, 4).y.shape == (3, 4, 1)


# Programs that broadcast, but wrongly


def sample_line(x, mean, sd=0.1):
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(mean, sd))


def reads_all_data_sets(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sample_line(x, slope + 0.3 * slope.mean())


def reads_the_first_data_set(x):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    sample_line(x, slope.reshape(-1, 2)[0, 0])


def reverses_data_sets(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sample_line(x, slope.flip(0) if slope.dim() else slope)


def shares_its_noise(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sample_line(x, slope + torch.randn(x.shape[-2]))


def shares_an_offset(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sample_line(x, slope + torch.randn(()))


def shares_a_scale(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sample_line(x, slope, torch.randn(()).exp())


def normalises_over_data_sets(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    sample_line(x, 0.0, scale / (1.0 + scale.sum()))


WRONG = [
    reads_all_data_sets,
    reads_the_first_data_set,
    reverses_data_sets,
    shares_its_noise,
    shares_an_offset,
    shares_a_scale,
    normalises_over_data_sets,
]


@pytest.mark.filterwarnings("ignore:The trials of a data set depend on each other")
@pytest.mark.parametrize("program", WRONG, ids=lambda program: program.__name__)
def test_program_that_mixes_data_sets_is_run_one_by_one(program):
    assert Simulator(program).mode == "loop"


def test_program_that_reads_the_inputs_of_the_first_data_set_gets_the_same_for_all():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sample_line(x, slope * x.reshape(-1, x.shape[-2])[0])

    assert Simulator(program, inputs).mode == "datasets"


@pytest.mark.filterwarnings("ignore:Site 'noise' is integrated out but shared")
def test_nuisance_sites_do_not_stand_in_the_way_of_running_many_at_once():
    assert Simulator(line, inputs, latents=["slope"]).mode == "inputs"


# One observation per data set


def test_program_of_one_observation_is_recognised_and_vectorised():
    simulator = Simulator(one_vector)
    assert simulator.single and simulator.dim_y == 2 and simulator.mode == "inputs"
    drawn = simulator.draw(2000, 1)
    assert [t.shape for t in drawn] == [(2000, 2), (2000, 1, 1), (2000, 1, 2)]
    residual = drawn.y[:, 0] - drawn.latents
    assert within_five_standard_errors(residual, 0.0) and within_five_standard_errors(residual**2, 0.25)


def test_one_scalar_observation():
    def program(x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0))

    simulator = Simulator(program)
    assert simulator.single and simulator.dim_y is None and simulator.mode == "inputs"
    assert simulator.draw(3, 1).y.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("program", "sizes", "message"),
    [
        (one_vector, (3, 2), "num_trials must be 1, as the program has one observation; got 2"),
        (line, (3, 0), "num_trials must be an integer of at least 1; got 0"),
        (line, (0, 3), "num_datasets must be an integer of at least 1; got 0"),
        (line, (2.0, 3), "num_datasets must be an integer of at least 1; got 2.0"),
        (line, (2, torch.tensor(3.0)), r"num_trials must be an integer of at least 1; got tensor\(3.\)"),
        (line, (True, 3), "num_datasets must be an integer of at least 1; got True"),
    ],
)
def test_wrong_sizes_are_explained(program, sizes, message):
    with pytest.raises(ValueError, match=message):
        Simulator(program, inputs).draw(*sizes)


# Side effects and inputs


def test_outcome_needs_nothing_but_sample():
    assert Simulator(sampled_line, inputs).mode == "inputs"


def test_making_a_simulator_uses_no_global_randomness_and_gives_the_same_again():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = Simulator(line, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = Simulator(line, inputs)
    assert first.latents == second.latents and first.mode_reason == second.mode_reason


@MODES
def test_draws_are_those_of_the_global_generator(mode, simulators):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(simulators[mode].draw(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0].y, drawn[2].y)


def test_draws_carry_no_graph_of_the_program_s_parameters():
    weight = torch.ones((), requires_grad=True)

    def program(x):
        sample_line(x, weight * pyro.sample("slope", dist.Normal(0.0, 1.0)))

    assert not Simulator(program).draw(2, 3).y.requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_simulator_does_not_care_whether_gradients_are_on(grad, simulators):
    with torch.set_grad_enabled(grad):
        simulator = Simulator(line, inputs)
        torch.manual_seed(2)
        drawn = simulator.draw(2, 3)
    torch.manual_seed(2)
    assert torch.equal(drawn.y, simulators["inputs"].draw(2, 3).y) and simulator.latents == simulators["inputs"].latents


def test_an_enclosing_program_sees_no_site_of_a_simulation():
    simulator = Simulator(line, inputs)
    values = {"slope": torch.zeros(2), "noise": torch.ones(2)}

    def enclosing():
        simulator.draw(2, 3)
        simulator.log_joint(values, torch.zeros(3, 1), torch.zeros(3))

    assert set(poutine.trace(enclosing).get_trace().nodes) == {"_INPUT", "_RETURN"}


def test_simulator_says_what_it_is(simulators):
    assert repr(simulators["loop"]) == "Simulator(latents=['slope', 'noise'], outcome='y', mode='loop')"


# Densities

X, Y = torch.rand(4, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64), draw(4)
VALUES = {"slope": draw(3, seed=1), "noise": draw(3, seed=2).exp()}


def line_prior():
    return dist.Normal(0.0, 1.0).log_prob(VALUES["slope"]) + dist.LogNormal(-1.0, 0.25).log_prob(VALUES["noise"])


def line_likelihood():
    outcomes = dist.Normal(VALUES["slope"][:, None] * X[:, 0], VALUES["noise"][:, None])
    return outcomes.log_prob(Y).sum(-1)


@MODES
def test_log_prior_is_the_density_of_the_latents(mode, _double):
    simulator = Simulator(LINES[mode], inputs)
    assert simulator.mode == mode
    torch.testing.assert_close(simulator.log_prior(VALUES), line_prior(), rtol=1e-12, atol=1e-12)


@MODES
def test_log_joint_is_prior_times_likelihood(mode, _double):
    got = Simulator(LINES[mode], inputs).log_joint(VALUES, X, Y)
    torch.testing.assert_close(got, line_prior() + line_likelihood(), rtol=1e-12, atol=1e-12)


@MODES
def test_densities_use_no_global_randomness(mode, simulators):
    values = {name: value.float() for name, value in VALUES.items()}
    state = torch.get_rng_state()
    simulators[mode].log_prior(values)
    assert torch.equal(torch.get_rng_state(), state)


def test_order_of_the_values_does_not_matter(simulators):
    swapped = dict(reversed(VALUES.items()))
    assert torch.equal(simulators["inputs"].log_prior(swapped), simulators["inputs"].log_prior(VALUES))


def test_log_joint_of_one_observation(_double):
    theta, y = 0.5 * draw(3, 2).tanh(), draw(1, 2, seed=4) / 5
    got = Simulator(two_moons).log_joint({"theta": theta}, torch.zeros(1, 1), y)
    torch.testing.assert_close(got, TwoMoons(theta).log_prob(y[0]) - 2 * torch.tensor(2.0).log())


def test_program_that_broadcasts_only_with_inputs_of_every_data_set_has_its_density(_double):
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.25))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(slope.reshape(*x.shape[:-2], 1) * x[..., 0], noise))

    simulator = Simulator(program, inputs)
    got = simulator.log_joint(VALUES, X, Y)
    assert simulator.mode == "inputs"
    torch.testing.assert_close(got, line_prior() + line_likelihood(), rtol=1e-12, atol=1e-12)


@MODES
def test_scale_and_mask_of_sites_count(mode, _double):
    def program(x):
        with poutine.scale(scale=0.5), poutine.mask(mask=torch.tensor(True)):
            return LINES[mode](x)

    with pytest.warns(UserWarning, match="are scaled or masked; simulations ignore that"):
        simulator = Simulator(program, inputs)
    got = simulator.log_joint(VALUES, X, Y)
    torch.testing.assert_close(got, 0.5 * (line_prior() + line_likelihood()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of_number", [False, True])
def test_prior_that_depends_on_the_inputs_is_told_and_has_no_density_of_its_own(of_number):
    def program(x):
        mean = float(x.shape[-2]) if of_number else x[..., 0].mean()  # run one by one
        slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
        theta = pyro.sample("theta", dist.Normal(mean + 0 * slope, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(theta + slope, 1.0))

    with pytest.warns(UserWarning, match=r"The prior of \['theta'\] depends on the inputs of the trials, or on"):
        simulator = Simulator(program, inputs, vectorized=of_number)
    with pytest.raises(ValueError, match=r"does not depend on the inputs; got one that does for \['theta'\]"):
        simulator.log_prior({"theta": torch.zeros(2), "slope": torch.zeros(2)})


@pytest.mark.parametrize("alone", [False, True])
def test_outcome_without_density_is_explained(alone):
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = slope * x[..., 0] * (slope.item() ** 0 if alone else 1)
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", program_cases.SampleOnly(mean))

    simulator = Simulator(program, inputs)
    values = {"slope": torch.zeros(2)}
    assert simulator.mode == ("loop" if alone else "inputs")
    torch.testing.assert_close(simulator.log_prior(values), dist.Normal(0.0, 1.0).log_prob(torch.zeros(2)))
    with pytest.raises(ValueError, match="density of site 'y' is needed; its distribution SampleOnly has no log_prob"):
        simulator.log_joint(values, torch.zeros(3, 1), torch.zeros(3))


def nuisance_in_the_prior(x):
    center = pyro.sample("center", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(center, 1.0))
    sample_line(x, slope)


def nuisance_per_trial(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        gain = pyro.sample("gain", dist.Normal(1.0, 0.5))
        pyro.sample("y", dist.Normal(slope * gain, 1.0))


@pytest.mark.parametrize("program", [nuisance_in_the_prior, nuisance_per_trial])
def test_density_of_a_program_whose_sites_are_integrated_out_is_refused(program):
    simulator = Simulator(program, latents=["slope"])
    name = simulator.integrated_out[0]
    with pytest.raises(ValueError, match=rf"needs all its sites; \['{name}'\] are integrated out by simulation"):
        simulator.log_joint({"slope": torch.zeros(2)}, torch.zeros(3, 1), torch.zeros(3))


def test_prior_that_depends_on_a_site_that_is_integrated_out_is_refused():
    with pytest.raises(ValueError, match=r"must not depend on sites that are integrated out; .* some of \['center'\]"):
        Simulator(nuisance_in_the_prior, latents=["slope"]).log_prior({"slope": torch.zeros(2)})


def test_prior_that_does_not_depend_on_what_is_integrated_out_has_its_density():
    got = Simulator(nuisance_per_trial, latents=["slope"]).log_prior({"slope": torch.tensor([0.0, 2.0])})
    torch.testing.assert_close(got, dist.Normal(0.0, 1.0).log_prob(torch.tensor([0.0, 2.0])))


WRONG_VALUES = {
    "missing": {"slope": torch.zeros(2)},
    "unknown": {"slope": torch.zeros(2), "noise": torch.ones(2), "tau": torch.ones(2)},
    "number": {"slope": torch.zeros(2), "noise": torch.ones(3)},
    "shape": {"slope": torch.zeros(2, 1), "noise": torch.ones(2, 1)},
    "scalars": {"slope": torch.zeros(()), "noise": torch.ones(())},
    "none": {},
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values_are_explained(case, simulators):
    with pytest.raises(ValueError, match=r"values must hold all latents, of shapes {'slope': \('S',\), 'noise'"):
        simulators["inputs"].log_prior(WRONG_VALUES[case])
    with pytest.raises(ValueError, match="values must hold all latents"):
        simulators["inputs"].log_joint(WRONG_VALUES[case], torch.zeros(3, 1), torch.zeros(3))


@pytest.mark.parametrize(("x", "y"), [((3, 1), (2,)), ((3, 1), (1,)), ((3, 2), (3,)), ((3,), (3,)), ((3, 1), (3, 1))])
def test_wrong_shapes_of_data_are_explained(x, y, simulators):
    values = {"slope": torch.zeros(2), "noise": torch.ones(2)}
    message = f"x and y must have shapes (n, 1) and (3); got {x} and {y}"
    with pytest.raises(ValueError, match=re.escape(message)):
        simulators["inputs"].log_joint(values, torch.zeros(x), torch.zeros(y))


def test_lines_are_the_same_program():
    values = {name: torch.tensor(1.5, dtype=torch.float64) for name in ("slope", "noise")} | {"y": Y}
    traces = [poutine.trace(pyro.condition(program, values)).get_trace(X) for program in LINES.values()]
    assert len({trace.log_prob_sum().item() for trace in traces}) == 1


def counted_program(calls, fails=lambda count: False):
    """A simulator in NumPy that counts its calls, behind a prior of two latents, the second given the first."""

    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        calls.append(float(b.numpy()))
        if fails(len(calls)):
            raise RuntimeError("did not converge")
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(float(b.numpy()), 1.0))

    return program


def test_density_of_the_prior_does_not_run_what_comes_after_the_latents():
    calls = []
    simulator = Simulator(counted_program(calls), vectorized=False)
    del calls[:]
    values = {"a": torch.randn(50), "b": torch.randn(50)}
    expected = dist.Normal(0.0, 1.0).log_prob(values["a"]) + dist.Normal(values["a"], 1.0).log_prob(values["b"])
    torch.testing.assert_close(simulator.log_prior(values), expected)
    assert calls == []
    simulator.log_joint(values, torch.zeros(3, 1), torch.zeros(3))
    assert len(calls) == 50


def test_outcomes_at_given_latents_are_drawn_anew_where_the_program_fails():
    calls = []
    simulator = Simulator(counted_program(calls, lambda count: count % 7 == 0), vectorized=False)
    before, latents = simulator.failed, torch.randn(20, 2)
    drawn = simulator.draw_given(latents, torch.zeros(3, 1))
    assert drawn.y.shape == (20, 3, 1) and drawn.y.isfinite().all() and torch.equal(drawn.latents, latents)
    assert simulator.failed - before >= 2 and (drawn.y.mean((1, 2)) - latents[:, 1]).abs().max() < 3


def test_numpy_arrays_are_refused_with_what_to_do():
    class Arrays(dist.Normal):
        def sample(self, sample_shape=()):
            return super().sample(sample_shape).numpy()

        __call__ = sample

    def computed(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        return pyro.deterministic("y", numpy.array([float(a), 1.0]))

    def sampled(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", Arrays(a, 1.0))

    for program in (computed, sampled):
        with pytest.raises(ValueError, match=r"tensors; got .*torch.as_tensor\(values, dtype=torch.float32\)"):
            Simulator(program)


def test_values_that_come_again_and_again_are_told():
    def cut(x):
        drift = pyro.sample("drift", dist.LogNormal(0.0, 0.5))
        with pyro.plate("trials", x.shape[-2]):
            time = pyro.sample("time", dist.Exponential(drift.expand(*drift.shape[:-1], x.shape[-2])))
            pyro.deterministic("y", time.clamp(max=2.5))

    def rounded(x, digits):
        mean = pyro.sample("mean", dist.Normal(0.0, 0.05))
        with pyro.plate("trials", x.shape[-2]):
            time = pyro.sample("time", dist.Normal(mean.expand(*mean.shape[:-1], x.shape[-2]), 0.1))
            pyro.deterministic("y", (10**digits * time).round() / 10**digits)

    with pytest.warns(UserWarning, match="% of the simulated values of 'y' equal 2.5"):
        found = Simulator(cut).notes
    assert any(re.match(r"\d+% of the simulated values of 'y' equal 2.5, and a density has no", note) for note in found)
    for digits in (1, 2, 3):
        simulator = Simulator(functools.partial(rounded, digits=digits))
        assert not any("simulated values" in note for note in simulator.notes)


def test_whole_numbers_that_pass_for_real_ones_are_told():
    def program(x, whole=lambda value: value):
        a = pyro.sample("a", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            noisy = pyro.sample("noise", dist.Normal(a, 1.0))
            return pyro.deterministic("y", whole((noisy > 0).float()))

    with pytest.warns(UserWarning, match="All simulated values of 'y' are whole numbers"):
        found = Simulator(program, latents=["a"])
    assert found.outcomes == ()
    assert Simulator(lambda x: program(x, torch.Tensor.bool), latents=["a"]).outcomes == ("categorical(2)",)


def test_a_program_takes_its_inputs_alone_by_its_own_signature() -> None:
    """Not by that of the function that it wraps."""

    def with_scale(x, scale):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(mean, scale))

    @functools.wraps(with_scale)
    def wrapped(*args):
        return with_scale(*args, 0.3)

    class Called:
        def __call__(self, x, scale=0.3):
            return with_scale(x, scale)

    for program in (wrapped, poutine.condition(wrapped, {}), functools.partial(with_scale, scale=0.3), Called()):
        assert [latent.name for latent in Simulator(program).latents] == ["mean"]
    for program, got in ((with_scale, "x, scale"), (lambda: None, "none"), (lambda *, x: None, "x")):
        with pytest.raises(ValueError, match=f"a program must take its inputs x alone, .*; got the parameters {got}, "):
            Simulator(program)
