"""What a user is told of a program: sites integrated out, dependent trials, outcomes of several numbers."""

import re
import warnings

import program_cases
import pyro
import pyro.distributions as dist
import pytest
import series_programs
import torch
from program_cases import inputs

from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sources import shipped_programs, simulator_of


def notes(*arguments, **options):
    """Notes of a program, each of which must have been a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Simulator(*arguments, **options).notes
    assert [str(one.message) for one in caught] == list(found) and all(one.category is UserWarning for one in caught)
    assert all(re.match(r"(The|Sites?) .*[;:] .*\.$", note) for note in found)
    return found


def random_intercept(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0] + intercept, 1.0))


def latent_function(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    kernel = torch.exp(-((x - x.transpose(-1, -2)) ** 2)) + 1e-3 * torch.eye(x.shape[-2])
    f = pyro.sample("f", dist.MultivariateNormal(x.new_zeros(x.shape[-2]), kernel))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(f, scale))


def through_the_trials(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        mean = pyro.sample("mean", dist.Normal(intercept, 1.0))
        pyro.sample("y", dist.Normal(slope * x[..., 0] + mean, 1.0))


def mixture_of_data_sets(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0] + 4 * kind, 1.0))


def without_density(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", program_cases.SampleOnly(slope * x[..., 0] + intercept))


def rare_fault(x):
    """In 97 of 100 data sets, two values of the shared site are equal."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    bad = pyro.sample("bad", dist.Bernoulli(0.03), infer={"enumerate": "parallel"})
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(m + bad, 1.0))


SHARED = {
    "intercept": (random_intercept, ["slope"]),
    "f": (latent_function, ["scale"]),
    "kind": (mixture_of_data_sets, None),
    "bad": (rare_fault, None),
}


@pytest.mark.parametrize("site", SHARED)
def test_site_that_all_trials_share_is_named_if_it_is_integrated_out(site):
    program, latents = SHARED[site]
    (note,) = notes(program, inputs, latents)
    assert note.startswith(f"Site {site!r} is integrated out but shared by all trials of a data set")
    assert "their likelihood is a joint density, by ArBufferJoint" in note and note.endswith(
        "among latents=[...]."
    ) == (site != "f")
    assert ("make it continuous" in note) == (site in ("kind", "bad"))  # a discrete site cannot be named as it is


def test_latent_function_is_integrated_out_where_no_latents_are_named():
    with pytest.warns(UserWarning, match="Site 'f' is integrated out but shared by all trials"):
        simulator = Simulator(latent_function, inputs)
    assert [latent.name for latent in simulator.latents] == ["scale"] and simulator.integrated_out == ("f",)
    assert simulator.trials == "exchangeable" and "among latents" not in simulator.notes[0]


@pytest.mark.parametrize("program", [through_the_trials, without_density])
def test_site_that_reaches_the_outcome_through_others_or_without_a_density_is_named(program):
    (note,) = notes(program, inputs, ["slope"])
    assert "Site 'intercept' is integrated out but shared" in note


def hyperprior(x):
    center = pyro.sample("center", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(center, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        gain = pyro.sample("gain", dist.Normal(1.0, 0.5))
        pyro.sample("y", dist.Normal(slope * gain * x[..., 0], 1.0))


def test_site_of_the_prior_or_of_single_trials_leaves_trials_independent():
    assert notes(hyperprior, inputs, ["slope"]) == ()


@pytest.mark.parametrize("name", ["gaussian", "ddm", "multisensory-rho1", "multisensory-rho43", "psychometric"])
def test_shipped_programs_have_independent_trials(name):
    assert simulator_of(name).notes == ()


@pytest.mark.parametrize("program", program_cases.LINES.values())
def test_lines_have_nothing_to_note_in_whatever_way_they_are_run(program):
    assert notes(program, inputs) == ()


def hidden_offset(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    offset = torch.randn(torch.broadcast_shapes(slope.shape, (*x.shape[:-2], 1)))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0] + offset, 1.0))


def hidden_scale(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = torch.randn(torch.broadcast_shapes(slope.shape, (*x.shape[:-2], 1))).exp()
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0], scale))


def autoregression(x):
    """Stationary: all trials have the same law."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    noise = torch.randn(torch.broadcast_shapes(scale.shape, x.shape[:-1]))
    y = [noise[..., 0]]
    for i in range(1, x.shape[-2]):
        y.append(0.8 * y[-1] + 0.6 * noise[..., i])
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Delta(scale * torch.stack(y, -1)))


@pytest.mark.parametrize("program", [hidden_offset, hidden_scale, autoregression])
def test_dependence_that_no_site_tells_of_is_measured(program):
    (note,) = notes(program, inputs)
    assert note.startswith("The trials of a data set depend on each other given the latents (rank correlation 0.")


def random_walk(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("trials", x.shape[-2]):
        steps = pyro.sample("steps", dist.Normal(0.0, 1.0).expand(x.shape[:-1]))
        pyro.sample("y", dist.Normal(steps.cumsum(-1), scale))


def trend(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(m * torch.arange(x.shape[-2]), 1.0))


def trend_of_the_scale(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(m, 1.0 + torch.arange(x.shape[-2])))


def trial_before(x):
    """Each trial reads the inputs of the one before."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        before = torch.cat([x[..., :1, 0], x[..., :-1, 0]], -1)
        pyro.sample("y", dist.Normal((1 + m.abs()) * (x[..., 0] - before), 0.1))


@pytest.mark.parametrize("program", [trend, trend_of_the_scale, trial_before])
def test_order_of_trials_that_matters_is_noted(program):
    (note,) = notes(program, inputs)
    assert note.startswith("The trials are not exchangeable") and "as a column of x" in note


def test_random_walk_depends_on_order_and_on_other_trials():
    found = notes(random_walk, inputs)
    assert [note[:30] for note in found] == ["The trials of a data set depen", "The trials are not exchangeabl"]


def share_of_the_trials(x):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(b * torch.arange(x.shape[-2]) / x.shape[-2], 1.0))


def share_of_the_loop(x):
    b = pyro.sample("b", dist.Normal(x.new_tensor(0.0), 1.0))
    for i in range(x.shape[-2]):
        pyro.sample(f"y_{i}", dist.Normal(b * i / x.shape[-2], 1.0))


def share_one_by_one(x):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    for i in range(len(x)):
        pyro.sample(f"y_{i}", dist.Normal(b.item() * i / len(x), 1.0))


def centred(x):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(b * (x[..., 0] - x[..., 0].mean(-1, keepdim=True)), 1.0))


@pytest.mark.parametrize("program", [share_of_the_trials, share_of_the_loop, share_one_by_one, centred])
def test_law_that_depends_on_later_trials_or_their_number_is_noted(program):
    note = notes(program, None if "loop" in program.__name__ or "one" in program.__name__ else inputs)[-1]
    assert note.startswith("The law of a trial depends on the trials after it, on their inputs or on their number")
    assert "one network learns a mixture of them; center or scale the inputs outside the program" in note


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        (series_programs.markov_loop, "y"),
        (series_programs.two_before, "y"),
        (series_programs.gaussian_event, "y"),
        (series_programs.hidden_states, "y"),
        (series_programs.learner, ("choice", "reward")),
    ],
)
def test_series_whose_trials_depend_on_those_before_alone_have_nothing_to_note(program, outcome):
    assert notes(program, None, None, outcome) == ()


@pytest.mark.parametrize("inputs_of", [lambda n: torch.linspace(0, 1, n), lambda n: torch.rand(n).sort().values])
def test_series_that_lies_closer_the_longer_it_is_is_noted(inputs_of):
    (note,) = notes(series_programs.one_event, lambda n: inputs_of(n)[:, None])
    assert note.startswith("The series lies closer together in x the more trials it has") and "0 to n - 1" in note


@pytest.mark.parametrize("inputs_of", [lambda n: 0.1 * torch.arange(n), lambda n: torch.rand(n).add(0.01).cumsum(0)])
def test_series_in_steps_of_one_law_has_nothing_to_note(inputs_of):
    assert notes(series_programs.one_event, lambda n: inputs_of(n)[:, None]) == ()


def groups(x):
    """Intercepts of three groups, in which the trials lie in turn."""
    center = pyro.sample("center", dist.Normal(0.0, 1.0))
    offsets = pyro.sample("offsets", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("trials", x.shape[-2]):
        group = x[..., 1].long() if x.dim() == 2 else x[0, :, 1].long()
        pyro.sample("y", dist.Normal(center + offsets[..., group], 1.0))


def test_groups_of_trials_are_no_matter_of_later_ones():
    def in_turn(num_trials):
        return torch.stack([torch.rand(num_trials), torch.arange(num_trials) % 3.0], -1)

    (note,) = notes(groups, in_turn, ["center"])
    assert note.startswith("Site 'offsets' is integrated out but shared")


def test_trend_over_a_column_of_x_is_no_matter_of_order():
    def program(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(m * x[..., 0], 1.0))

    assert notes(program, lambda num_trials: torch.arange(float(num_trials))[:, None]) == ()


def features(x):
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("features", 3):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    total = w.sum(-1, keepdim=True) if w.dim() > 1 else w.sum()
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(bias + total * x[..., 0], 1.0))


def test_latents_in_a_plate_are_said_to_be_integrated_out():
    in_plate, shared = notes(features, inputs)
    assert in_plate.startswith(
        "Site 'w' is inside the plate 'features' of fixed size 3, so it is integrated out and has n"
    )
    assert "outside the plate with .expand([3]).to_event(1)." in in_plate
    assert shared.startswith("Site 'w' is integrated out but shared by all trials")


def test_latents_in_a_plate_that_were_left_out_on_purpose_are_no_news():
    (shared,) = notes(features, inputs, ["bias"])
    assert shared.startswith("Site 'w' is integrated out but shared by all trials")
    assert ", make it continuous, with .expand([d]).to_event(1) in place of a plate, and name it among" in shared


def test_latents_in_a_plate_of_one_observation_are_said_to_be_integrated_out():
    def program(x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 3):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        total = w.sum(-1, keepdim=True) if w.dim() > 1 else w.sum()
        pyro.sample("y", dist.Normal(theta + total, 1.0))

    (note,) = notes(program)
    assert "'w' is inside the plate 'features' of fixed size 3" in note


@pytest.mark.parametrize("name", [name for name, recipe in shipped_programs().items() if recipe.num_context == (0, 1)])
def test_vectors_whose_dimensions_are_predicted_one_after_the_other_have_nothing_to_note(name):
    assert simulator_of(name).notes == ()


def rare_event(x):
    """At most rates, two coincidences in a data set are chance."""
    rate = pyro.sample("rate", dist.Beta(1.0, 60.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Bernoulli(rate + 0 * x[..., 0]))


def few_counts(x):
    rate = pyro.sample("rate", dist.Exponential(5.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Poisson(rate * x[..., 0]))


def three_choices(x):
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    logits = torch.stack([bias + x[..., 0], 0 * bias * x[..., 0], bias * x[..., 0]], -1)
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Categorical(logits=logits))


@pytest.mark.parametrize("program", [rare_event, few_counts, three_choices])
def test_independent_choices_and_counts_have_nothing_to_note(program):
    assert notes(program, inputs) == ()


def choices_of_one_mood(x):
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    mood = torch.randn(torch.broadcast_shapes(bias.shape, (*x.shape[:-2], 1)))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Bernoulli(logits=bias + 2 * mood + 0 * x[..., 0]))


def test_choices_that_depend_on_each_other_are_noted():
    (note,) = notes(choices_of_one_mood, inputs)
    assert note.startswith("The trials of a data set depend on each other given the latents (rank correlation 0.")


def choices_of_one_subject(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        choice = pyro.sample("choice", dist.Bernoulli(logits=slope * x[..., 0] + intercept))
        pyro.sample("rt", dist.LogNormal(0.2 * choice, 0.3))


def test_site_that_reaches_one_of_several_outcomes_is_named():
    (note,) = notes(choices_of_one_subject, inputs, ["slope"], ("choice", "rt"))
    assert note.startswith("Site 'intercept' is integrated out but shared by all trials of a data set")
