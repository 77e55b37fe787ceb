"""Program inspection: a function of its arguments; `vectorized` as the user says, or tried once."""

import dataclasses
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from program_cases import LINES, inputs, line, lone_line, one_vector, shared_line
from torch import Tensor

import pyro_arbuf
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.inspect import ProgramInspection, inspect_program
from pyro_arbuf.programs.simulator import Simulator

MODES = pytest.mark.parametrize("mode", LINES)


class Recorder:
    """A program, or inputs, that can be asked whether something was stored on it."""

    def __init__(self, function):
        self.function = function

    def __call__(self, argument):
        return self.function(argument)


def trials(x: Tensor, outcome: dist.TorchDistribution) -> Tensor:
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", outcome)


@MODES
def test_inspection_says_what_the_simulator_has(mode: str) -> None:
    found, simulator = inspect_program(LINES[mode], inputs), Simulator(LINES[mode], inputs)
    got = {field.name: getattr(simulator, field.name) for field in dataclasses.fields(ProgramInspection)}
    assert got == dataclasses.asdict(found) | {"latents": found.latents, "program": LINES[mode]}
    assert (found.mode, found.dim_x, found.dim_y, found.nesting, found.single) == (mode, 1, None, 1, False)
    assert [latent.name for latent in found.latents] == ["slope", "noise"] and found.latents[1].lower == 0.0


@MODES
def test_inspection_is_a_function_of_its_arguments(mode: str) -> None:
    program, draw = Recorder(LINES[mode]), Recorder(inputs)
    torch.manual_seed(1)
    first = inspect_program(program, draw)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    torch.rand(7)
    state = torch.get_rng_state()
    assert inspect_program(program, draw) == first
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(states[0], state)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert vars(program) == {"function": LINES[mode]} and vars(draw) == {"function": inputs}
    assert torch.is_grad_enabled() and len(pyro.get_param_store()) == 0


def test_inspection_cannot_be_changed() -> None:
    found = inspect_program(one_vector)
    assert found.single and found.dim_y == 2 and found.notes == () and isinstance(found.latents[0], Latent)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.mode = "loop"  # pyright: ignore[reportAttributeAccessIssue]


# vectorized=True


def test_program_said_to_be_vectorised_is_run_with_inputs_of_every_data_set() -> None:
    simulator = Simulator(line, inputs, vectorized=True)
    assert simulator.mode == "inputs" and simulator.mode_reason.endswith("as vectorized=True says.")
    drawn = simulator.draw(5, 3)
    assert len(drawn.x.unique()) == 15 and [t.shape for t in drawn] == [(5, 2), (5, 3, 1), (5, 3, 1)]


def test_no_single_run_is_compared_where_the_user_says_so() -> None:
    def program(x: Tensor) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sizes.append(slope.numel())
        return trials(x, dist.Normal(slope + 0.3 * slope.mean(), 1.0))  # mixes data sets, on the user's word

    sizes: list[int] = []
    assert Simulator(program, inputs).mode == "loop" and sizes.count(1) > 500
    sizes.clear()
    simulator = Simulator(program, inputs, vectorized=True)
    assert simulator.mode == "inputs" and sizes.count(1) < 30


def test_numbers_that_no_seed_fixes_do_not_keep_a_vectorised_program_slow() -> None:
    def program(x: Tensor) -> Tensor:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0)) + x[..., 0]
        return trials(x, dist.Delta(mean + torch.randn(mean.shape, generator=generator)))

    generator = torch.Generator().manual_seed(0)
    assert Simulator(program, inputs).mode == "loop"
    assert Simulator(program, inputs, vectorized=True).draw(50, 3).y.shape == (50, 3, 1)


def loses_its_trials(x: Tensor) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    return trials(x, dist.Normal(slope * x.squeeze(), 0.5))


def reads_the_first_inputs(x: Tensor) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    return trials(x, dist.Normal(slope[0] * x[..., 0], 0.5))


UNFIT = {
    "shapes of one x": (shared_line, r"it raised \w+Error|site 'y' had shape"),
    "a number": (lone_line, "it raised RuntimeError"),
    "one trial": (loses_its_trials, r"of 11 data sets it raised|site 'y' had shape \(11, 11\) in place of \(11, 1\)"),
    "latents' first dimension": (reads_the_first_inputs, "it raised|site 'y' had shape"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_shapes_that_say_otherwise_are_explained(case: str) -> None:
    program, fault = UNFIT[case]
    with pytest.raises(
        ValueError, match=r"vectorized=True needs a program .* x \(S, n, D_x\) and latents \(S, 1, "
    ) as e:
        Simulator(program, inputs, vectorized=True)
    assert e.match(fault) and e.match(r"read x\[..., 0\] for x\[:, 0\] and x.shape\[-2\] for len\(x\), or leave")


def test_program_that_needs_several_trials_is_vectorised_all_the_same() -> None:
    def program(x: Tensor) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        return trials(x, dist.Normal(slope * (x[..., 0] - x[..., 1:2, 0]), 0.5))  # the second trial is the reference

    assert inspect_program(program, inputs, vectorized=True).mode == "inputs"


@pytest.mark.parametrize("error", [ValueError("needs two"), AssertionError("needs two")])
@pytest.mark.parametrize("vectorized", [None, False])
def test_data_sets_of_one_trial_that_a_program_cannot_draw_are_explained(
    error: Exception, vectorized: bool | None
) -> None:
    def program(x: Tensor) -> Tensor:
        if x.shape[-2] < 2:
            raise error
        return line(x)

    simulator = Simulator(program, inputs, vectorized=vectorized)
    assert simulator.mode == ("loop" if vectorized is False else "inputs") and len(simulator.draw(3, 2).y) == 3
    with pytest.raises(ValueError, match="must run for one row of x, as data sets of one trial are simulated; it") as e:
        simulator.draw(3, 1)
    assert e.match(f"it raised {type(error).__name__}: needs two; make it draw") and isinstance(
        e.value.__cause__, type(error)
    )


def test_one_observation_can_be_said_to_be_vectorised() -> None:
    simulator = Simulator(one_vector, vectorized=True)
    assert simulator.single and simulator.draw(4, 1).y.shape == (4, 1, 2)


# vectorized=False, and what is tried


def test_program_said_not_to_be_vectorised_is_run_one_by_one_and_never_tried() -> None:
    def program(x: Tensor) -> Tensor:
        assert x.dim() == 2
        return line(x)

    simulator = Simulator(program, inputs, vectorized=False)
    assert simulator.mode == "loop"
    assert simulator.mode_reason == "Data sets are simulated one by one, as vectorized=False says."
    assert simulator.draw(3, 4).y.shape == (3, 4, 1)


@pytest.mark.parametrize("wrong", [1, "yes", 0.0])
def test_other_words_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"vectorized must be True, False or None \(found out\); got"):
        Simulator(line, inputs, vectorized=wrong)


def raising(error: Exception):
    """A line that raises where there are many data sets."""

    def program(x: Tensor) -> Tensor:
        if x.dim() > 2 or pyro.sample("slope", dist.Normal(0.0, 1.0)).dim():
            raise error
        return trials(x, dist.Normal(0.0 * x[..., 0], 1.0))

    return program


ONE_BY_ONE = [RuntimeError("a"), ValueError("b"), IndexError("c"), TypeError("d"), NotImplementedError("e")]


@pytest.mark.parametrize("error", ONE_BY_ONE, ids=lambda error: type(error).__name__)
def test_errors_of_shapes_mean_one_by_one_and_are_reported(error: Exception) -> None:
    simulator = Simulator(raising(error), inputs)
    assert simulator.mode == "loop"
    assert f"it raised {type(error).__name__} ({error})" in simulator.mode_reason


@pytest.mark.parametrize("error", [KeyError("a"), AttributeError("b"), AssertionError("c"), OSError("d")])
def test_other_errors_are_shown_as_they_are_with_the_remedy(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        Simulator(raising(error), inputs)
    assert raised.value is error
    notes = getattr(error, "__notes__", [])
    assert isinstance(error, OSError) or "vectorized=False runs the program one by one" in notes[0]
    assert Simulator(raising(error), inputs, vectorized=False).mode == "loop"


# What amortize makes of it


def test_amortize_passes_on_what_the_user_says() -> None:
    with pytest.raises(ValueError, match="vectorized=True needs a program"):
        pyro_arbuf.amortize(shared_line, inputs, vectorized=True)


@pytest.mark.parametrize(
    ("vectorized", "reason"), [(False, "as vectorized=False says."), (None, "it raised RuntimeErr")]
)
def test_amortize_prints_how_the_program_is_run(
    vectorized: bool | None, reason: str, capsys: pytest.CaptureFixture
) -> None:
    sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "num_y_frequencies": 2}
    amortize = partial(pyro_arbuf.amortize, lone_line, inputs, num_context=(0, 2), steps=1, batch_size=2, report=False)
    net = amortize(num_simulations=4, vectorized=vectorized, **sizes)
    (printed,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith("  simulated: "))
    assert reason in printed and printed.endswith(net.simulator.mode_reason) and net.simulator.mode == "loop"
