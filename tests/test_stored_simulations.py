"""Networks of simulations that are stored already: what is trained on, what is checked, and what is refused."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from outcome_programs import PROGRAMS
from outcome_programs import inputs as some_inputs
from program_cases import inputs, line, one_vector
from series_programs import markov_loop, one_event
from torch import Tensor

from pyro_arbuf import ArBufferPosterior, Simulator, amortize
from pyro_arbuf.programs.calibration import calibrate
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.posterior_sbc import posterior_sbc
from pyro_arbuf.programs.program_batches import ProgramSource
from pyro_arbuf.programs.tarp import tarp
from pyro_arbuf.random_state import seeded

SIZES = {"width": 12, "num_layers": 1, "num_heads": 2, "mlp_width": 14, "embedding_width": 10, "num_frequencies": 3}
SIZES |= {"head_width": 13, "num_components": 3, "num_y_frequencies": 2, "batch_size": 2, "steps": 3, "report": False}
SIZE, TRIALS = 300, 8
HELD_OUT = 60


def stored(simulator: Simulator, size: int = SIZE) -> dict[str, Tensor]:
    """Data sets of a program, by site, without the inputs of one that reads none."""
    drawn = simulator.draw(size, 1 if simulator.single else TRIALS)
    parts = drawn.latents.split([latent.size for latent in simulator.latents], -1)
    found = {each.name: each.constrain(part)[0] for each, part in zip(simulator.latents, parts, strict=True)}
    y = drawn.y[:, 0] if simulator.single else drawn.y
    if isinstance(simulator.outcome, str):
        return found | {simulator.outcome: y if simulator.dim_y is not None else y.squeeze(-1)}
    return found | {name: y[..., d] for d, name in enumerate(simulator.outcome)}


def stored_vectors(size: int = SIZE) -> dict[str, Tensor]:
    return stored(Simulator(one_vector), size)


def stored_lines() -> dict[str, Tensor]:
    """Inputs are drawn before the outcomes, which are those at them."""
    simulator = Simulator(line, inputs)
    with seeded(1):
        x = simulator.draw(SIZE, TRIALS).x
    with seeded(1):
        return stored(simulator) | {"inputs": x}


def vectors_net(simulations: object, **options: object):
    return amortize(one_vector, num_context=(0, 1), simulations=simulations, **SIZES | options)


class Counted:
    """`one_vector` whose simulator, behind the prior, counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        self.runs += 1
        pyro.deterministic("y", theta + torch.randn(2), event_dim=1)


# What is trained on


def test_simulator_behind_the_prior_runs_a_few_times() -> None:
    program = Counted()
    net = amortize(program, num_context=(0, 1), simulations=stored_vectors(), **SIZES | {"report": True})
    assert program.runs <= 20
    assert ArBufferPosterior(net.condition(torch.zeros(1, 1), torch.zeros(1, 2))).sample((3,)).shape == (3, 2)


def test_network_learns_the_stored_simulations_and_not_the_program() -> None:
    """Stored outcomes are the latents with their signs turned, which no run of the program gives."""
    simulations = stored_vectors(4000)
    simulations["y"] = -simulations["theta"] + 0.1 * torch.randn(4000, 2)
    net = vectors_net(simulations, steps=400, width=32, batch_size=64, head_width=32, num_layers=2)
    posterior = ArBufferPosterior(net.condition(torch.zeros(1, 1), torch.tensor([[1.0, -1.0]])))
    mean = posterior.sample((400,)).mean(0)
    assert mean[0] < -0.5 and mean[1] > 0.5


def test_scales_and_ranges_are_those_of_what_is_stored() -> None:
    simulations = stored_vectors()
    simulations["y"] = 1000 + 50 * simulations["y"]
    config = vectors_net(simulations).config
    assert all(abs(loc - 1000) < 20 for loc in config.y_loc) and all(40 < scale < 80 for scale in config.y_scale)


def test_data_sets_for_training_and_checks_are_told_apart_and_none_comes_twice() -> None:
    simulator = Simulator(one_vector, simulations=stored_vectors())
    assert len(simulator.stored) == SIZE and simulator.stored.num_held_out == HELD_OUT
    unseen = simulator.unseen(HELD_OUT, 1)
    checked = torch.cat([unseen(slice(0, 40)).y, unseen(slice(40, HELD_OUT)).y]).flatten()
    assert len(checked.unique()) == 2 * HELD_OUT
    assert not torch.isin(checked, simulator.draw(2000, 1).y).any()


def test_latents_and_outcomes_stay_together() -> None:
    simulations = stored_lines()
    simulations["y"] = simulations["slope"][:, None] * simulations["inputs"][..., 0]
    drawn = Simulator(line, simulations=simulations).draw(50, 5)
    assert torch.allclose(drawn.y[..., 0], drawn.latents[:, :1] * drawn.x[..., 0])


@pytest.mark.parametrize("kind", [np.asarray, lambda value: value.double(), lambda value: value.tolist()])
def test_arrays_and_lists_are_taken_as_tensors_are(kind: Callable) -> None:
    simulations = stored_lines()
    own = Simulator(line, simulations=simulations)
    other = Simulator(line, simulations={name: kind(value) for name, value in simulations.items()})
    for one, two in zip(own.stored.bank.drawn, other.stored.bank.drawn, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_table_of_pandas_is_taken_by_its_columns() -> None:
    table = pd.DataFrame(stored_vectors()["theta"].numpy(), columns=["a", "b"])
    assert len(Simulator(one_vector, simulations={"theta": table, "y": table}).stored) == SIZE


@pytest.mark.parametrize("num_context", [(0, TRIALS), (0, 3)])
def test_few_trials_of_a_data_set_are_context_buffer_and_targets(num_context: tuple[int, int]) -> None:
    net = amortize(line, simulations=stored_lines(), num_context=num_context, **SIZES)
    assert net.config.num_context == num_context
    drawn = net.simulator.draw(1, 3)
    assert torch.isfinite(ArBufferPosterior(net.condition(drawn.x[0], drawn.y[0, :, 0])).sample((4,))).all()


def test_two_trials_of_a_data_set_are_enough() -> None:
    simulations = stored_lines()
    simulations |= {name: simulations[name][:, :2] for name in ("inputs", "y")}
    amortize(line, simulations=simulations, num_context=(0, 2), **SIZES | {"steps": 30})


def test_series_are_taken() -> None:
    simulations = stored(Simulator(one_event))
    assert amortize(one_event, simulations=simulations, num_context=(0, 6), **SIZES).config.sequential


@pytest.mark.parametrize("name", ["poisson", "categorical", "choices", "choice_rt"])
def test_outcomes_of_every_kind_are_taken(name: str) -> None:
    program, outcome, kinds = PROGRAMS[name]
    simulator = Simulator(program, some_inputs, outcome=outcome)
    with seeded(1):
        x = simulator.draw(SIZE, TRIALS).x
    with seeded(1):
        simulations = stored(simulator) | {"inputs": x}
    sites = (outcome,) if isinstance(outcome, str) else outcome
    options = {"outcome": outcome, "num_context": (0, 6)} | SIZES
    assert amortize(program, simulations=simulations, **options).config.outcomes == kinds
    simulations[sites[0]] = simulations[sites[0]] + 0.5
    with pytest.raises(ValueError, match=rf"simulations\['{sites[0]}'\] must hold .*, as the program's distribution"):
        amortize(program, simulations=simulations, **options)


def test_sites_that_are_integrated_out_and_shared_make_trials_dependent() -> None:
    simulations = stored_lines()
    del simulations["slope"]
    with pytest.warns(UserWarning, match="Site 'slope' is integrated out but shared"):
        simulator = Simulator(line, latents=["noise"], simulations=simulations)
    assert simulator.trials == "exchangeable"


def test_loop_is_a_series_and_one_observation_with_a_nuisance_is_one() -> None:
    drawn = Simulator(markov_loop)
    simulator = Simulator(markov_loop, simulations=stored(drawn))
    assert simulator.trials == "series" and simulator.notes == ()

    def seen_through_noise(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 0.1)).unsqueeze(-1)
        pyro.sample("y", dist.Normal(theta, scale).to_event(1))

    simulator = Simulator(seen_through_noise, latents=["theta"], simulations=stored_vectors())
    assert simulator.trials == "vector" and simulator.single


def test_series_with_its_stored_index_has_the_sizes_of_one_without() -> None:
    simulations = stored(Simulator(one_event))
    index = torch.arange(float(TRIALS))[:, None].expand(SIZE, -1, 1)
    options = SIZES | {"num_frequencies": 64}
    own = amortize(one_event, simulations=simulations, num_context=(0, TRIALS), **options).config
    other = amortize(one_event, simulations=simulations | {"inputs": index}, num_context=(0, TRIALS), **options).config
    assert (own.lag_column, own.max_frequency, own.x_range) == (other.lag_column, other.max_frequency, other.x_range)
    assert own.lag_column == 0


def test_contexts_of_data_are_as_large_as_the_data_sets_allow() -> None:
    simulator = Simulator(line, simulations=stored_lines())
    config = program_config(simulator, (0, TRIALS), buffer_size=4)
    source = ProgramSource(simulator.stored.bank, config, batch_size=2)
    found = set()
    for step in range(300):
        batch = source.batch(step)
        if batch.x_buffer.shape[1] and (batch.x_buffer[..., -1] == 0).all():  # slots are trials
            found.add(int((batch.x_context[0, :, -1] == 0).sum()))
    assert found == set(range(TRIALS - 1))


@pytest.mark.filterwarnings("ignore:12% of the simulated values")  # those at x = 0
def test_trials_of_a_grid_are_taken_from_all_of_it() -> None:
    x = torch.linspace(0, 10, TRIALS)[:, None].expand(SIZE, -1, 1)
    simulations = stored_lines() | {"inputs": x}
    simulations["y"] = simulations["slope"][:, None] * x[..., 0]
    simulator = Simulator(line, simulations=simulations)
    config = program_config(simulator, (0, 3))
    assert config.x_range[0] < 0.1 and config.x_range[1] > 9.9
    for drawn in (simulator.draw(200, 2), simulator.unseen(50, 2)(slice(0, 50))):
        assert drawn.x.min() < 0.1 and drawn.x.max() > 9.9
        assert torch.allclose(drawn.y[..., 0], drawn.latents[:, :1] * drawn.x[..., 0], atol=1e-5)


def test_what_is_held_out_does_not_depend_on_the_order_or_on_a_further_data_set() -> None:
    simulations = stored_vectors()
    turned = {name: value.flip(0) for name, value in simulations.items()}
    more = {name: torch.cat([value, value[:1] + 0.5]) for name, value in simulations.items()}
    own, again, longer = (
        Simulator(one_vector, simulations=each).stored.bank.held_out.y for each in (simulations, turned, more)
    )
    assert torch.equal(own, again) and torch.isin(longer, own).double().mean() > 0.95
    assert own.mean().abs() < 0.5 and 0.7 < own.std() < 1.7


# Resuming


def test_run_goes_on_with_the_same_simulations_alone(tmp_path: Path) -> None:
    simulations = stored_vectors()
    vectors_net(simulations, folder=tmp_path)
    vectors_net(simulations, folder=tmp_path, steps=5, resume=True)
    for name in simulations:
        with pytest.raises(ValueError, match=r"simulations must be those that the run in .* was begun with"):
            vectors_net(simulations | {name: -simulations[name]}, folder=tmp_path, steps=6, resume=True)
    with pytest.raises(ValueError, match=r"must hold the simulations that are asked for"):
        vectors_net(stored_vectors(SIZE + 50), folder=tmp_path, steps=6, resume=True)


# Checks


def test_report_is_of_data_sets_that_are_held_out(capsys: pytest.CaptureFixture) -> None:
    vectors_net(stored_vectors(), report=True)
    said = capsys.readouterr().out
    assert f"{SIZE} fixed data sets that are given" in said and "Data sets are those that were given" in said
    assert f"calibration, {HELD_OUT} data sets of 1" in said


def test_checks_of_more_than_are_held_out_are_refused() -> None:
    net = vectors_net(stored_vectors())
    with pytest.raises(ValueError, match=r"num_datasets must be at most 60, .* held out; got 61; use num_datas"):
        calibrate(net, 61)
    with pytest.raises(ValueError, match=r"num_trials must be 1|num_trials must be at most 1, .*got 2"):
        calibrate(net, num_trials=2)
    assert len(calibrate(net).ranks) == len(tarp(net, num_references=3).ranks) == HELD_OUT
    assert len(calibrate(net, 7).ranks) == 7


def test_checks_that_simulate_anew_need_the_program() -> None:
    simulations = stored_lines()
    net = amortize(line, simulations=simulations, num_context=(0, TRIALS), **SIZES)
    data = (simulations["inputs"][0, :4], simulations["y"][0, :4])
    rule = "program must be run here, for its density or for new simulations; got stored simulations alone"
    with pytest.raises(ValueError, match=rule):
        posterior_sbc(net, *data, num_datasets=5, num_draws=19)
    posterior_sbc(net, *data, num_datasets=5, num_draws=19, program=Simulator(line, inputs))
    simulator = net.simulator
    values = {name: simulations[name][:2] for name in ("slope", "noise")}
    assert not simulator.has_density and torch.isfinite(simulator.log_prior(values)).all()
    for call in (
        lambda: simulator.log_joint(values, *data),
        lambda: simulator.draw_at(data[0], 2),
        lambda: simulator.draw_given(torch.zeros(2, 2), data[0]),
    ):
        with pytest.raises(ValueError, match=rule):
            call()


# What is said and refused


def test_latents_of_another_prior_are_told() -> None:
    simulations = stored_vectors(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Simulator(one_vector, simulations=simulations)
    simulations["theta"] = 3 * simulations["theta"]
    with pytest.warns(UserWarning, match=r"stored values of latent 'theta' have another distribution than the program"):
        Simulator(one_vector, simulations=simulations)


def test_simulations_that_failed_are_left_out_and_told() -> None:
    simulations = stored_vectors()
    simulations["y"][:20, 1] = torch.nan
    simulations["theta"][-1, 0] = torch.inf
    with pytest.warns(UserWarning, match=r"21 of 300 stored simulations hold a number that is not finite"):
        simulator = Simulator(one_vector, simulations=simulations)
    assert len(simulator.stored) == SIZE - 21 and simulator.stored.bank.drawn.y.isfinite().all()

    lines = stored_lines()
    lines["inputs"][:10], lines["y"][:10] = torch.nan, torch.nan
    lines["noise"][-5:] = 0.0  # rounded to the bound
    with pytest.warns(UserWarning, match=r"15 of 300 stored simulations hold .* or a latent at a bound"):
        net = amortize(line, simulations=lines, num_context=(0, 5), **SIZES)
    assert len(net.simulator.stored) == SIZE - 15


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "missing": (lambda s: s.pop("noise"), r"missing \['noise'\], unknown \[\]"),
        "unknown": (lambda s: s.update(sigma=s["noise"]), r"missing \[\], unknown \['sigma'\]"),
        "shape of latent": (
            lambda s: s.update(slope=s["slope"][:, None]),
            r"simulations\['slope'\] must have shape \(300,\), .*; got \(300, 1\)",
        ),
        "other number": (
            lambda s: s.update(slope=s["slope"][1:]),
            r"the same number of data sets S at every site; got .*'slope': 299",
        ),
        "support": (
            lambda s: s["noise"].neg_(),
            r"simulations\['noise'\] must lie in the support of its prior, .*in 300 of 300 data sets",
        ),
        "outcome": (
            lambda s: s.update(y=s["y"][:, 0]),
            r"simulations\['y'\] must have shape \(S, n\), n at least 2 .*; got \(300,\)",
        ),
        "one trial": (lambda s: s.update(y=s["y"][:, :1]), r"must have shape \(S, n\), n at least 2"),
        "inputs": (
            lambda s: s.update(inputs=s["inputs"][..., 0]),
            r"simulations\['inputs'\] must have shape \(S, n, D_x\), .*; got \(300, 8\)",
        ),
        "other trials": (
            lambda s: s.update(inputs=s["inputs"][:, :4]),
            r"simulations\['inputs'\] must have shape \(300, 8\)",
        ),
        "words": (
            lambda s: s.update(y=[["a"] * 8] * 300),
            r"simulations\['y'\] must be numbers, one row of one length .*; got list",
        ),
        "ragged": (
            lambda s: s.update(y=[[1.0], [1.0, 2.0]]),
            r"simulations\['y'\] must be numbers, one row of one length .*; got list",
        ),
        "none finite": (lambda s: s["y"].fill_(torch.nan), r"at least 100 data sets of finite numbers; got 0 of 300"),
    }.values(),
)
def test_wrong_simulations_are_errors(change: Callable, message: str) -> None:
    simulations = {name: value.clone() for name, value in stored_lines().items()}
    change(simulations)
    with pytest.raises(ValueError, match=message):
        Simulator(line, inputs, simulations=simulations)


def test_random_inputs_must_be_stored() -> None:
    simulations = stored_lines()
    del simulations["inputs"]
    with pytest.raises(ValueError, match="simulations must hold 'inputs', as the inputs of this program are random"):
        Simulator(line, inputs, simulations=simulations)


def test_what_asks_for_other_simulations_is_refused() -> None:
    simulations = stored_vectors()
    for options in ({"num_simulations": 100}, {"observation": (torch.zeros(1, 1), torch.zeros(1, 2))}):
        with pytest.raises(ValueError, match=f"trained on; got {next(iter(options))} too"):
            vectors_net(simulations, **options)
    with pytest.raises(ValueError, match=re.escape("simulations must be a dict of stored values by site; got Tensor")):
        vectors_net(torch.zeros(3))


def test_larger_contexts_than_are_stored_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_context must end at the 8 trials .*got 9; use num_context=\(0, 8\)"):
        amortize(line, simulations=stored_lines(), num_context=(0, 9), **SIZES)


def test_prior_as_a_plain_function_has_no_simulations() -> None:
    def prior(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch_size, num_points), torch.zeros(batch_size, num_points)

    with pytest.raises(ValueError, match="simulations must not be given for a prior as a plain function"):
        amortize(prior, simulations={"y": torch.zeros(3, 3)}, **SIZES)
