"""Trials that depend on each other: how a program says so, what is drawn, its density, its batches."""

import dataclasses
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import series_programs as programs
import torch
from series_programs import SERIES

from pyro_arbuf import amortize, refine
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.inspect import inspect_program
from pyro_arbuf.programs.program_batches import Bank, ProgramSource, draw_simulations, make_bank
from pyro_arbuf.programs.reports import describe_training
from pyro_arbuf.programs.same_law import Simulations
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sources import find_simulator, simulator_of
from pyro_arbuf.random_state import seeded


def found(program, inputs=None, latents=None, outcome="y", **options):
    """What a program is, without its notes as warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Simulator(program, inputs, latents, outcome, **options)


@pytest.fixture(scope="module")
def series():
    return {name: found(program) for name, program in SERIES.items()}


# Inputs that stand in an order


def on_a_grid(x):
    slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0], 1.0))


def test_contexts_of_inputs_on_a_grid_reach_all_of_it() -> None:
    grid = found(on_a_grid, lambda n: torch.linspace(0, 1, n)[:, None])
    config = program_config(grid, (0, 20), width=8, num_heads=2, buffer_size=4)
    batches = [ProgramSource(grid, config, 4, 4).batch(step) for step in range(60)]
    assert max(b.x_context[..., 0].max() for b in batches if b.x_context.shape[1] > 1) > 0.9
    assert min(b.x_buffer[..., 0].min() for b in batches if b.x_buffer.shape[1] == 4) < 0.1
    drawn, again = draw_simulations(grid, 3, 9), grid.draw(3, 9)
    assert not torch.equal(drawn.x, again.x) and torch.equal(drawn.x.sort(1).values, again.x)


def test_random_inputs_keep_the_order_in_which_they_were_drawn() -> None:
    free = found(on_a_grid, lambda n: torch.rand(n, 1))
    torch.manual_seed(0)
    drawn = draw_simulations(free, 3, 9)
    torch.manual_seed(0)
    assert torch.equal(drawn.x, free.draw(3, 9).x)


def test_data_sets_of_a_bank_have_inputs_of_their_own_where_a_run_shares_them() -> None:
    def event(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        n = x.shape[-2]
        distance = x - x.transpose(-1, -2)
        covariance = torch.exp(-0.5 * (distance / scale[..., None, None]) ** 2) + 0.1 * torch.eye(n)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(n), covariance))

    shared = found(event, lambda n: torch.rand(n, 1))
    bank = make_bank(shared, 40, 6, 0)
    designs = {tuple(row.flatten().tolist()) for row in torch.cat([bank.drawn.x, bank.held_out.x])}
    assert shared.mode == "datasets" and len(designs) == 5


def test_frequencies_of_a_series_are_those_of_its_longest_data_set() -> None:
    walk = found(programs.SERIES["event"], lambda n: torch.linspace(0, 1, n)[:, None])
    config = program_config(walk, (0, 50), width=8, num_heads=2, buffer_size=4)
    assert config.x_scale is not None and config.lag_column == 0
    assert math.pi / config.max_frequency * config.x_scale[0] == pytest.approx(1 / 53, rel=1e-3)


# What a program says


def test_site_outside_the_plate_makes_trials_exchangeable_and_inside_leaves_them_independent():
    outside = found(programs.random_intercept, programs.inputs, ["slope"])
    inside = found(programs.intercept_of_each_trial, programs.inputs, ["slope"])
    assert (outside.trials, inside.trials) == ("exchangeable", "independent")
    assert outside.integrated_out == inside.integrated_out == ("intercept",)
    assert found(programs.random_intercept, programs.inputs).trials == "independent"  # a latent is given


@pytest.mark.parametrize("name", ["gaussian", "two-moons", "ar1", "rescorla-wagner"])
def test_shipped_programs_are_what_they_say(name):
    expected = {"two-moons": "vector", "ar1": "series", "rescorla-wagner": "series"}
    simulator = simulator_of(name)
    assert simulator.trials == expected.get(name, "independent") and simulator.notes == ()
    assert simulator.mode == "inputs" and simulator.single == (name == "two-moons")


def test_event_of_all_trials_and_loop_over_them_are_series(series):
    for simulator in series.values():
        assert simulator.trials == "series" and simulator.dim_y is None and not simulator.single
        assert [latent.name for latent in simulator.latents] == ["phi", "sigma"]
        assert simulator.integrated_out == () and simulator.notes == ()
    assert [simulator.mode for simulator in series.values()] == ["inputs", "inputs", "loop"]


def test_series_of_several_numbers_per_trial():
    pair = found(programs.learner, outcome=("choice", "reward"))
    assert pair.trials == "series" and pair.dim_y == 2 and pair.outcomes == ("categorical(2)", "real")
    assert pair.outcome == ("choice", "reward") and pair.draw(3, 5).y.shape == (3, 5, 2)
    columns = found(programs.two_columns)
    assert columns.trials == "series" and columns.dim_y == 2 and columns.draw(3, 5).y.shape == (3, 5, 2)


def test_hidden_states_of_a_loop_are_integrated_out():
    simulator = found(programs.hidden_states)
    assert [latent.name for latent in simulator.latents] == ["noise"]
    assert {"state_0", "state_4"} <= set(simulator.integrated_out) and "y_0" not in simulator.integrated_out
    text = r"\['state_0, ...'\] are integrated out .* write the program without them$"
    with pytest.raises(ValueError, match=text):
        simulator.log_joint({"noise": torch.ones(2)}, torch.arange(3.0)[:, None], torch.zeros(3))


def level_and_states(x):
    pyro.sample("noise", dist.LogNormal(0.0, 0.3))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2]):
        pyro.sample(f"y_{i}", dist.Normal(pyro.sample(f"state_{i}", dist.Normal(level, 1.0)), 1.0))


def test_sites_that_can_be_latents_are_named_where_a_density_lacks_them():
    simulator = found(level_and_states, latents=["noise"])
    text = r"\['level', 'state_0, ...'\] are integrated out .*; name \['level'\] among latents=\[...\], and write the p"
    with pytest.raises(ValueError, match=text):
        simulator.log_joint({"noise": torch.ones(2)}, torch.arange(3.0)[:, None], torch.zeros(3))


@pytest.mark.parametrize("first", ["bernoulli", "categorical"])
def test_loop_may_begin_with_another_law_of_two_categories(first):
    def program(x):
        bias = pyro.sample("bias", dist.Normal(x.new_tensor(0.0), 1.0))
        both = dist.Bernoulli(logits=bias), dist.Categorical(logits=torch.stack([0 * bias, bias], -1))
        for i in range(x.shape[-2]):
            pyro.sample(f"y_{i}", both[(i == 0) != (first == "bernoulli")])

    simulator = found(program)
    assert simulator.outcomes == ("categorical(2)",) and simulator.draw(3, 4).y.shape == (3, 4, 1)
    bias, y = torch.tensor([0.3, -1.0]), torch.tensor([1, 0, 1])
    expected = dist.Normal(0.0, 1.0).log_prob(bias) + 2 * bias - 3 * torch.nn.functional.softplus(bias)
    torch.testing.assert_close(simulator.log_joint({"bias": bias}, torch.arange(3.0)[:, None], y), expected)


def test_inputs_of_a_series_without_any_are_the_numbers_of_its_trials(series):
    drawn = series["event"].draw(2, 4)
    assert drawn.x.tolist() == [[[0.0], [1.0], [2.0], [3.0]]] * 2
    assert found(programs.random_intercept).draw(2, 4).x.unique().tolist() == [0.0]


def test_series_whose_inputs_do_not_tell_the_order_is_noted():
    with pytest.warns(UserWarning, match="no column of the inputs grows from trial to trial"):
        Simulator(programs.one_event, programs.inputs)
    assert found(programs.one_event, lambda n: torch.arange(float(n))[:, None]).notes == ()


# Simulations and densities


def test_event_and_loop_have_the_law_of_the_gaussian_series(series):
    for simulator in series.values():
        with seeded(3):
            drawn = simulator.draw(3000 if simulator.mode != "loop" else 600, 5)
        phi = simulator.latents[0].constrain(drawn.latents[:, :1])[0]
        sigma = simulator.latents[1].constrain(drawn.latents[:, 1:])[0]
        y = drawn.y[..., 0] / (sigma / (1 - phi**2).sqrt())[:, None]  # of variance 1
        products = torch.stack([y[:, 0] ** 2, y[:, 4] ** 2, y[:, 0] * y[:, 1] - phi, y[:, 1] * y[:, 4] - phi**3], -1)
        error = products.std(0) / math.sqrt(len(y))
        assert ((products.mean(0) - torch.tensor([1.0, 1.0, 0.0, 0.0])).abs() < 5 * error).all()


def test_event_and_loop_have_one_log_joint(series):
    with seeded(4):
        values = {"phi": 1.6 * torch.rand(6) - 0.8, "sigma": torch.rand(6) + 0.5}
        x, y = torch.arange(5.0)[:, None], torch.randn(5)
    densities = {name: simulator.log_joint(values, x, y) for name, simulator in series.items()}
    expected = torch.stack([_log_joint(float(p), float(s), y) for p, s in zip(*values.values(), strict=True)])
    for density in densities.values():
        torch.testing.assert_close(density, expected, rtol=1e-5, atol=1e-5)


def _log_joint(phi, sigma, y):
    steps = torch.arange(len(y))
    covariance = torch.tensor(phi) ** (steps[:, None] - steps).abs() * sigma**2 / (1 - phi**2)
    prior = -math.log(1.8) + dist.LogNormal(0.0, 0.3).log_prob(torch.tensor(sigma))
    return prior + dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)


def test_log_joint_of_several_sites_puts_them_back_into_the_loop():
    simulator = found(programs.learner, outcome=("choice", "reward"))
    choice, reward = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.7, 0.1, 1.2])
    rate, value, total = (
        torch.tensor([0.2, 0.9]),
        torch.zeros(2),
        dist.Beta(2.0, 2.0).log_prob(torch.tensor([0.2, 0.9])),
    )
    for c, r in zip(choice, reward, strict=True):
        total = total + dist.Bernoulli(logits=3 * value).log_prob(c) + dist.Normal(c, 0.5).log_prob(r)
        value = value + c * rate * (r - value)
    x, y = torch.arange(3.0)[:, None], {"choice": choice, "reward": reward}
    torch.testing.assert_close(simulator.log_joint({"rate": rate}, x, y), total)
    torch.testing.assert_close(simulator.log_joint({"rate": rate}, x, torch.stack([choice, reward], -1)), total)


def test_loop_that_counts_data_sets_for_trials_is_not_run_for_many_at_once():
    def program(x):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        for i in range(len(x)):
            pyro.sample(f"y_{i}", dist.Normal(level, 1.0))

    simulator = found(program)
    assert simulator.mode == "datasets" and "it drew 11 sites y_0, ... in place of 7" in simulator.mode_reason
    assert simulator.draw(2, 9).y.shape == (2, 9, 1)


@pytest.mark.parametrize("vectorized", [None, True])
def test_loop_with_first_sites_of_its_own_is_run_for_many_at_once(vectorized):
    simulator = found(programs.two_before, vectorized=vectorized)
    assert simulator.mode == "inputs" and simulator.trials == "series"
    assert simulator.draw(3, 1).y.shape == (3, 1, 1) and simulator.draw(3, 6).y.shape == (3, 6, 1)


# Refusals


def no_size(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.zeros(2 * x.shape[-2]), 1.0).to_event(1))


def short_loop(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2] - 1):
        pyro.sample(f"y_{i}", dist.Normal(0.0, 1.0))


def uneven_loop(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2]):
        pyro.sample(f"y_{i}", dist.Normal(torch.zeros(1 + i % 2), 1.0).to_event(1))


def repeated(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 2):
        pyro.sample("y", dist.Normal(torch.zeros(x.shape[-2]), 1.0).to_event(1))


def loop_and_plate(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2]):
        pyro.sample(f"a_{i}", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("b", dist.Normal(0.0, 1.0))


def more_classes(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2]):
        pyro.sample(f"y_{i}", dist.Categorical(logits=z * torch.ones(2 + i)))


def loop_from_one(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in range(1, x.shape[-2] + 1):
        pyro.sample(f"y_{i}", dist.Normal(0.0, 1.0))


def choices_then_counts(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in range(x.shape[-2]):
        pyro.sample(f"y_{i}", dist.Poisson(1.0) if i else dist.Bernoulli(0.5))


REFUSED = {
    "ragged": (no_size, "y", "got events of shape (6,) for n = 3, (8,) for n = 4; draw one number or vector per row"),
    "short_loop": (short_loop, "y", "got ['y_0', 'y_1'] for n = 3; draw them by pyro.sample(f'y_{i}', ...) for i in"),
    "from_one": (loop_from_one, "y", "must draw y_0 to y_(n-1), one site for each of n rows of x; got ['y_1', 'y_2', "),
    "two_kinds": (choices_then_counts, "y", "got sites of different kinds, categorical(2) and count, by Bernoulli and"),
    "uneven_loop": (uneven_loop, "y", "must each be a number, or a vector of one size, outside plates; got values of"),
    "repeated": (
        repeated,
        "y",
        "got values of shape (2, 3) for events of shape (3,); draw it outside plates, or several",
    ),
    "mixed": (
        loop_and_plate,
        ("a", "b"),
        "got sites that differ: 'a' is a series, 'b' is a value per trial in a plate",
    ),
    "classes": (more_classes, "y", "got Categorical with 2, 3, 4, 5, 6 categories; give it the same categories in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_series_that_cannot_be_amortised_is_explained(case):
    program, outcome, text = REFUSED[case]
    with pytest.raises(ValueError) as error:
        inspect_program(program, None, None, outcome)
    assert text in str(error.value)


# Configuration and batches

B, K, M, LARGEST = 3, 4, 6, 9
SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}


def test_configuration_says_which_trials_depend(series):
    config = program_config(series["event"], (0, LARGEST), buffer_size=K, **SIZES)
    assert config.sequential and config.dependent
    assert config.x_range[0] < 0 and LARGEST + K - 1 < config.x_range[1] < LARGEST + K  # forecasts lie inside it
    larger = program_config(series["event"], (0, 200), **SIZES)
    assert larger.max_frequency == pytest.approx(math.pi * larger.x_scale[0], rel=0.01)
    unordered = program_config(found(programs.one_event, programs.inputs), (0, 200), **SIZES)
    assert unordered.sequential and unordered.max_frequency == 8.0
    shared = program_config(found(programs.random_intercept, programs.inputs, ["slope"]), (0, LARGEST), **SIZES)
    assert shared.dependent and not shared.sequential
    own = program_config(found(programs.random_intercept, programs.inputs), (0, LARGEST), **SIZES)
    assert not own.dependent and not own.sequential


def counted(num_datasets, num_trials):
    """Trial i of every data set has x = y = i; there are two latents."""
    trials = torch.arange(float(num_trials)).expand(num_datasets, -1).unsqueeze(-1)
    return Simulations(torch.full((num_datasets, 2), -1.0), trials, trials)


LATENTS = (Latent("a"), Latent("b"))
BANK = Bank(counted(20, LARGEST + K + M), counted(9, LARGEST + K + M))


def source(simulator, **fields):
    config = program_config(simulator, (0, LARGEST), buffer_size=K, **SIZES)
    return ProgramSource(BANK, dataclasses.replace(config, latents=LATENTS, dim_x=1, **fields), B, M, seed=1)


def roles(batch):
    """Trials of context, buffer and targets, of the first data set; -1 = a latent."""
    at = (batch.x_context, batch.x_buffer, batch.x_target)
    return [torch.where(x[0, :, -1] > 0, -1.0, x[0, :, 0]) for x in at]


def test_contexts_of_series_are_prefixes_and_no_target_reads_a_later_trial(series):
    kinds = set()
    for batch in [*map(source(series["event"]).batch, range(60)), *source(series["event"]).validation()]:
        context, buffer, target = roles(batch)
        seen = context[context >= 0]
        assert seen.tolist() == list(range(len(seen)))
        trials = buffer[buffer >= 0]
        assert trials.tolist() == list(range(len(seen), len(seen) + len(trials)))
        for position, length in zip(target.tolist(), batch.prefix_len.tolist(), strict=True):
            assert position < 0 or position >= len(seen) + (length if len(trials) else 0)
        kinds.add(("posterior" if not len(trials) else "data", int((context < 0).sum())))
    assert {("posterior", 0), ("data", 2), ("data", 0)} <= kinds


def test_forecasts_of_a_series_are_trained_at_every_distance_within_the_buffer(series):
    distances = set()
    for batch in map(source(series["event"]).batch, range(60)):
        context, buffer, target = roles(batch)
        if (buffer >= 0).any():
            seen = int((context >= 0).sum())
            distances |= set((target - seen - batch.prefix_len)[target >= 0].tolist())
    assert distances >= set(range(K + M))


def test_likelihood_of_dependent_trials_is_trained_with_trials_in_context_and_buffer():
    simulator = found(programs.random_intercept, programs.inputs, ["slope"])
    given = []
    for batch in map(source(simulator).batch, range(80)):
        context, buffer, _ = roles(batch)
        if (context < 0).sum() == 2:
            given.append(int((context >= 0).sum()))
            assert (buffer >= 0).all() and len(buffer) == K and len(batch.x_context) == B
            assert batch.prefix_len[-K:].tolist() == list(range(K))
    assert len(given) > 5 and 0 in given and max(given) > 3


def test_trials_of_a_bank_keep_their_order_in_a_series_alone():
    drawn = draw_simulations(BANK, 5, 7, series=True)
    assert torch.equal(drawn.x, counted(5, 7).x)
    mixed = draw_simulations(BANK, 5, 7)
    assert not torch.equal(mixed.x, counted(5, 7).x) and mixed.x.max() >= 7


def test_without_latents_only_data_are_drawn():
    simulator = found(programs.random_intercept, programs.inputs, [])
    assert simulator.latents == () and simulator.trials == "exchangeable" and "slope" in simulator.integrated_out
    config = program_config(simulator, (0, LARGEST), buffer_size=K, **SIZES)
    drawing = ProgramSource(simulator, config, B, M, seed=1)
    for batch in [*map(drawing.batch, range(20)), *drawing.validation()]:
        assert batch.x_context.shape[-1] == config.dim_x == 1 and batch.x_buffer.shape[1] == K
    with pytest.raises(ValueError, match="the prior of latents needs a program with latents"):
        simulator.log_prior({})


def test_frequencies_of_a_series_lie_along_single_columns_and_reach_neighbouring_trials():
    config = program_config(simulator_of("rescorla-wagner"), (0, 200), **SIZES)
    frequencies = ArBufferModel(config).embedder.frequencies
    assert ((frequencies > 0).sum(-1) == 1).all() and (frequencies.abs().sum(0) > 0).all()
    assert frequencies[:, 0].max() * (1 / config.x_scale[0]) > 0.85 * math.pi


def test_description_names_hidden_states_in_short():
    simulator = found(programs.hidden_states)
    text = describe_training(simulator, program_config(simulator, (0, LARGEST), **SIZES), 1.0, None, None)
    assert "integrated out: state_0, ...\n" in text


def test_nothing_is_noted_of_dependent_trials_where_there_are_no_latents():
    simulator = found(programs.random_intercept, programs.inputs, [])
    assert simulator.notes == ()
    text = describe_training(simulator, program_config(simulator, (0, LARGEST), **SIZES), 1.0, None, None)
    assert "trials: predicted together, in any order\n" in text


# A few trials, and a network that was read from its folder

TINY = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}
TINY |= {"buffer_size": 4, "num_components": 2, "steps": 1, "report": False}


def walk_in_time(x):
    scale, time = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.0), 0.3)), x[..., 0]
    y = pyro.sample("y_0", dist.Normal(0 * scale, 1.0))
    for i in range(1, x.shape[-2]):
        step = time[..., i] - time[..., i - 1]
        step = step if x.dim() == 2 else step.unsqueeze(-1)
        y = pyro.sample(f"y_{i}", dist.Normal(y, scale * step.sqrt()))


def test_a_short_series_is_refined_though_its_program_needs_times_that_grow() -> None:
    with pytest.warns(UserWarning, match="lies closer together in x"):  # its law is one of distances in x
        net = amortize(
            walk_in_time, inputs=lambda n: 10 * torch.rand(n).sort().values[:, None], num_context=(0, 6), **TINY
        )
    for n in (1, 3, 9):  # fewer and more than the runs that look at a program
        x, y = torch.linspace(1, 4, n).square()[:, None], torch.linspace(-0.2, 0.4, n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a network of one step
            refined = refine(walk_in_time, net.condition(x, y), 200, 10, seed=0)
        assert math.isfinite(refined.log_evidence)


def test_the_program_of_a_series_without_inputs_is_enough() -> None:
    net = amortize(programs.markov_loop, num_context=(0, 6), **TINY)
    net.simulator = None
    assert find_simulator(net, programs.markov_loop).trials == "series"
    irregular = dataclasses.replace(net.config, max_frequency=2 * net.config.max_frequency)
    with pytest.raises(ValueError, match="does not say how to draw them"):
        find_simulator(ArBufferModel(irregular), programs.markov_loop)
