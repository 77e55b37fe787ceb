"""Programs that broadcast over data sets, but not as they run alone, are found, and said to be."""

import numpy as np
import program_cases
import pyro
import pyro.distributions as dist
import pytest
import torch
from program_cases import LINES, SampleOnly, inputs

from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.random_state import NoiseByLine, seeded


def trials(x, outcome):
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", outcome)


def with_density(mean):
    return dist.Normal(mean, 0.5)


def without_density(mean):
    return SampleOnly(mean)


def with_noise_of_its_own(mean):
    return dist.Normal(mean + torch.randn(mean.shape), 0.5)


def without_site(mean):
    return dist.Delta(mean + torch.randn(mean.shape))


KINDS = pytest.mark.parametrize("law", [with_density, without_density, with_noise_of_its_own, without_site])


def first_column_of_one_data_set(law, size=1.0):
    """Reads x[:, 0], which is the first trial of every data set where there are many."""

    def program(x):
        slope = size * pyro.sample("slope", dist.Normal(0.0, 1.0))
        trials(x, law(slope * x[:, 0] + 0 * x[..., 0]))

    return program


@KINDS
def test_x_of_the_first_trial_is_not_given_to_all_trials(law):
    simulator = Simulator(first_column_of_one_data_set(law), inputs)
    assert simulator.mode == "datasets"
    reason = "the density of site 'y' differed" if law is with_density else "the inputs of one trial reached others"
    assert f"all with the same inputs, because with inputs of their own {reason}" in simulator.mode_reason


@pytest.mark.parametrize("law", [with_density, without_density])
def test_effects_too_small_for_moments_are_found(law):
    assert Simulator(first_column_of_one_data_set(law, 0.02), inputs).mode == "datasets"


def test_slopes_are_told_by_the_simulations():
    torch.manual_seed(0)
    simulator = Simulator(first_column_of_one_data_set(with_density), inputs)
    for _ in range(5):
        latents, x, y = simulator.draw(2, 4000)
        centred = (x - x.mean(1, keepdim=True)).squeeze(-1)
        slope = (centred * y.squeeze(-1)).sum(1) / centred.square().sum(1)
        assert (slope - latents[:, 0]).abs().max() < 5 * 0.5 / 0.289 / 4000**0.5


@KINDS
def test_programs_that_broadcast_rightly_are_run_at_once(law):
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        trials(x, law(slope * (1 + x[..., 0])))

    simulator = Simulator(program, inputs)
    assert simulator.mode == Simulator(program).mode == "inputs"  # with inputs, and without
    assert simulator.mode_reason.startswith("Many data sets are simulated at once, each with inputs of its own, as sin")


def weak(change):
    """A line whose latents, or inputs, reach the wrong data set by a small part."""

    def make(law):
        def program(x):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            slope, read = change(slope, x[..., 0])
            trials(x, law(slope * read))

        return program

    return make


WRONG = {
    "mean_of_latents": weak(lambda slope, x: (slope + 0.01 * slope.mean(), x)),
    "next_latent": weak(lambda slope, x: (slope + (0.01 * slope.roll(1, 0) if slope.dim() else 0.0), x)),
    "mean_of_inputs": weak(lambda slope, x: (slope, x + 0.01 * x.mean(0))),
    "next_trial": weak(lambda slope, x: (slope, x + (0.01 * x.roll(1, 1) if x.dim() > 1 else 0.01 * x))),
}


@pytest.mark.parametrize("law", [with_density, with_noise_of_its_own])
@pytest.mark.parametrize("case", WRONG)
def test_data_sets_depend_on_their_own_latents_and_inputs_only(law, case):
    simulator = Simulator(WRONG[case](law), inputs)
    assert simulator.mode != "inputs"


def test_random_numbers_that_depend_on_the_inputs_cannot_be_compared_and_are_run_one_by_one():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = (slope * x[..., 0]).flatten()
        drawn = torch.stack([m + np.random.randn(1 + int(10 * abs(m))).sum() for m in mean])
        trials(x, dist.Delta(drawn.float().reshape(torch.broadcast_shapes(slope.shape, x.shape[:-1]))))

    simulator = Simulator(program, inputs)
    assert simulator.mode == "loop" and "one by one, which is slow, because with inputs" in simulator.mode_reason


def test_trial_dimension_that_is_lost_for_one_trial_is_found():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        trials(x, dist.Normal(slope * x.squeeze(), 0.5))

    simulator = Simulator(program, inputs)
    assert simulator.mode == "datasets" and "with inputs of their own for one trial" in simulator.mode_reason
    assert simulator.draw(3, 1).y.shape == (3, 1, 1)


@pytest.mark.filterwarnings("ignore:Site 'kind' is integrated out but shared")
def test_sites_that_are_integrated_out_are_put_into_single_runs_too():
    def program(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("trials", x.shape[-2]):
            gain = pyro.sample("gain", dist.Normal(kind, 1.0))
            pyro.sample("y", dist.Normal(slope * x[..., 0] + gain, 0.5))

    assert Simulator(program, inputs).mode == "inputs"


def test_reason_names_what_failed_in_both_ways():
    reason = Simulator(LINES["loop"], inputs).mode_reason
    assert reason.startswith("Data sets are simulated one by one, which is slow, because with inputs of their own it r")
    assert "; with the same inputs for all of them it raised" in reason and reason.endswith(".")


def test_vectors_of_latents_and_outcomes_are_compared():
    assert Simulator(program_cases.one_vector).mode == "inputs"

    def mixes(x):
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(theta + 0.01 * theta.flip(0), 0.5).to_event(1))

    assert Simulator(mixes).mode == "loop"


def first_passage(read):
    """A simulator without a density, which walks until its last trial has reached a bound, and then adds a delay."""

    def program(x):
        drift = pyro.sample("drift", dist.LogNormal(0.0, 0.5))
        speed = drift + read(x)
        position, steps = torch.zeros(speed.shape), torch.zeros(speed.shape)
        while bool((position < 3).any()):
            walks = position < 3
            steps = steps + walks
            position = position + walks * (0.5 * speed + 0.3 * torch.randn(speed.shape))
        trials(x, dist.Delta(steps + 0.1 * speed + 0.1 * torch.rand(speed.shape)))

    return program


def test_loops_that_end_earlier_for_other_inputs_are_run_at_once():
    assert Simulator(first_passage(lambda x: x[..., 0]), inputs).mode == "inputs"
    assert Simulator(first_passage(lambda x: x[:, 0] + 0 * x[..., 0]), inputs).mode == "datasets"


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_numbers_that_no_seed_fixes_are_said_to_be_why_nothing_can_be_compared(kind):
    torch_generator, numpy_generator = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def program(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0)) + x[..., 0]
        draws = {
            "torch": lambda: torch.randn(mean.shape, generator=torch_generator),
            "numpy": lambda: torch.as_tensor(numpy_generator.standard_normal(mean.shape)).float(),
        }
        trials(x, dist.Delta(mean + draws[kind]()))

    simulator = Simulator(program, inputs)
    assert simulator.mode == "loop"
    assert "with inputs of their own it gave other outcomes under the same seed" in simulator.mode_reason


@pytest.mark.parametrize("stream", [2, 4])
def test_program_that_fails_in_a_few_data_sets_is_still_run_at_once(stream):
    def draw(num_trials):
        torch.rand(stream + 1)  # another stream of random numbers
        return inputs(num_trials)

    def program(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        mean = torch.where(mean > 2.366, torch.nan, mean)  # 0.9 %
        trials(x, dist.Normal(mean + x[..., 0], 0.5))

    assert Simulator(program, draw).mode == "inputs"


RARE_CONTAMINATION = """
def program(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        hit = (torch.rand(theta.shape[:-1] + x.shape[-2:-1]) < 0.02).float()
        pyro.sample("y", dist.Delta(hit * (3 + theta)))
"""


def program_in_file(file, text=RARE_CONTAMINATION):
    namespace = {"pyro": pyro, "dist": dist, "torch": torch}
    exec(compile(text, file, "exec"), namespace)
    return namespace["program"]


@pytest.mark.parametrize("name", range(6))
def test_latents_that_seldom_reach_an_outcome_are_compared_often(name: int) -> None:
    """One comparison in four found none of the changes by chance, so that programs were run one by one."""
    with pytest.warns(UserWarning, match="98% of the simulated values of 'y' equal 0"):
        assert Simulator(program_in_file(f"model_{name}.py")).mode == "inputs"


@pytest.mark.parametrize("name", range(6))
def test_latents_that_seldom_reach_an_outcome_and_are_mixed_are_found(name: int) -> None:
    """The latents of the first data set reach all others."""
    mixed = RARE_CONTAMINATION.replace("(3 + theta)", "(3 + theta.flatten()[0])").replace("< 0.02", "< 0.1")
    with pytest.warns(UserWarning, match="of the simulated values of 'y' equal 0|are simulated one by one"):
        simulator = Simulator(program_in_file(f"mixed_{name}.py", mixed))
    assert simulator.mode == "loop"


@pytest.mark.parametrize("reads", ["assert n == 1 or n >= 3", "n == 1 or x[..., 2, 0]", "1 / (n - 2)"])
def test_programs_that_fail_for_two_trials_are_simulated(reads: str) -> None:
    program = f"""
def program(x):
    n = x.shape[-2]
    {reads}
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", n):
        pyro.sample("y", dist.Normal(slope, 1.0))
"""
    assert Simulator(program_in_file("three.py", program), inputs).mode == "inputs"


def test_the_folder_of_a_program_does_not_change_what_is_compared() -> None:
    def numbers(file):
        values = []
        with seeded(0), NoiseByLine():
            exec(compile("values.append(torch.rand(3))", file, "exec"), {"torch": torch, "values": values})
        return values[0]

    assert torch.equal(numbers("/home/ann/model.py"), numbers("/srv/model.py"))
    assert not torch.equal(numbers("/srv/model.py"), numbers("/srv/other.py"))
