"""Programs with choices, counts, pairs and several sites as outcomes: simulated, scored, trained, refined, compared."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from outcome_programs import PROGRAMS, inputs, scalar, three
from pyro import poutine
from torch import Tensor
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferPosterior
from pyro_arbuf.inference.outcome_sites import split_sites, stack_sites
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.reports import describe_training
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

EVERY = pytest.mark.parametrize("name", PROGRAMS)
LIKELIHOODS = pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("pair", "choice_rt")])
SIZES = {"width": 12, "num_layers": 1, "num_heads": 2, "mlp_width": 14, "embedding_width": 10, "num_frequencies": 3}
SIZES |= {"head_width": 13, "num_components": 3, "num_y_frequencies": 2, "buffer_size": 4}
QUIET = [f"ignore:{text}" for text in ("k-hat", "the weights have", ".*outside the trained range", ".*rests on few of")]
N = 6


@pytest.fixture(scope="module")
def simulators() -> dict[str, Simulator]:
    return {name: Simulator(program, inputs, outcome=outcome) for name, (program, outcome, _) in PROGRAMS.items()}


@pytest.fixture(scope="module")
def nets(simulators: dict[str, Simulator]) -> dict[str, ArBufferModel]:
    """Untrained networks, in float64."""
    found = {}
    for name, simulator in simulators.items():
        with seeded(0):
            found[name] = ArBufferModel(program_config(simulator, (0, 20), **SIZES)).double()
        found[name].eval().requires_grad_(False).simulator = simulator
    return found


def data(simulator: Simulator) -> tuple[Tensor, Tensor]:
    """One data set, as a user has it: x `(n, D_x)`, y `(n,)` or `(n, D_y)`."""
    with seeded(1):
        drawn = simulator.draw(1, N)
    y = drawn.y[0]
    return drawn.x[0].double(), (y.squeeze(-1) if simulator.dim_y is None else y).double()


def at(simulator: Simulator, num_draws: int) -> dict[str, Tensor]:
    """Draws of the prior, in the supports."""
    with seeded(2):
        drawn = simulator.draw(num_draws, 1).latents.double()
    numbers = drawn.split([latent.size for latent in simulator.latents], -1)
    return {s.name: s.constrain(part)[0] for s, part in zip(simulator.latents, numbers, strict=True)}


# Simulations


@EVERY
def test_kind_is_read_from_the_distribution(name: str, simulators: dict[str, Simulator]) -> None:
    simulator, (_, outcome, kinds) = simulators[name], PROGRAMS[name]
    assert (simulator.outcomes, simulator.outcome, simulator.mode) == (kinds, outcome, "inputs")
    assert simulator.notes == () and simulator.integrated_out == () and not simulator.single


KINDS = {
    "boolean": (lambda mean: dist.Delta(mean > 0), "categorical(2)"),
    "long": (lambda mean: dist.Delta((5 * mean.sigmoid()).long()), "count"),
    "ordered": (lambda mean: dist.OrderedLogistic(mean, torch.tensor([-1.0, 0.0, 1.0])), "categorical(4)"),
    "many": (lambda mean: dist.Categorical(logits=mean.unsqueeze(-1) * torch.ones(33)), "categorical(33)"),
    "varying": (lambda mean: dist.Binomial(1 + (mean > 0).float(), torch.tensor(0.5)), "count"),
    "successes": (lambda mean: dist.BetaBinomial(mean.exp(), 1.0, 10), "count"),
    "inflated": (lambda mean: dist.ZeroInflatedPoisson(mean.exp(), gate=torch.tensor(0.5)), "count"),
}


@pytest.mark.parametrize("case", KINDS)
def test_kinds_of_other_distributions(case: str) -> None:
    law, kind = KINDS[case]
    assert Simulator(scalar(law), inputs, vectorized=False).outcomes == (kind,)


@EVERY
def test_simulations_have_the_law_of_the_program(name: str, simulators: dict[str, Simulator]) -> None:
    """The mean of every dimension, and of the product of two, given the latents and inputs drawn with them."""
    simulator, (program, _, _) = simulators[name], PROGRAMS[name]
    with seeded(3):
        drawn = simulator.draw(1500, 2)
        numbers = drawn.latents.split([latent.size for latent in simulator.latents], -1)
        values = {s.name: s.constrain(part)[0][:, None] for s, part in zip(simulator.latents, numbers, strict=True)}
        again = []
        for _ in range(8):
            with pyro.plate("sets", len(drawn.x), dim=-2):
                trace = poutine.trace(poutine.condition(program, values)).get_trace(drawn.x)
            again.append(simulator.outcome_sites.numbers(trace, 2))
    summary = [torch.asinh(torch.cat([y, y[..., :1] * y[..., -1:]], -1)) for y in (drawn.y, *again)]
    gap = summary[0] - torch.stack(summary[1:]).mean(0)
    assert drawn.y.shape == (1500, 2, simulator.dim_y or 1) and drawn.y.dtype == torch.float32
    assert (gap.mean((0, 1)).abs() <= 5 * gap.std((0, 1)) / 3000**0.5).all()


@EVERY
def test_configuration_says_what_the_outcome_is(name: str, nets: dict[str, ArBufferModel]) -> None:
    config, (_, outcome, kinds) = nets[name].config, PROGRAMS[name]
    assert (config.outcomes, config.outcome, config.chained) == (kinds, outcome, True)
    assert ModelConfig.from_json(config.to_json()) == config
    ranges = config.y_range if config.dim_y else (config.y_range,)
    with seeded(4):
        y = nets[name].simulator.draw(500, 8).y
    numbers = torch.stack([kind.number(y[..., d]) for d, kind in enumerate(config.kinds)], -1)
    for d, kind in enumerate(config.kinds):
        if kind.num_categories:
            assert ranges[d] == (0.0, kind.num_categories - 1.0)
            assert (config.y_loc[d], config.y_scale[d]) == (0.0, 1.0)
            continue
        middle, spread = numbers[..., d].median().item(), numbers[..., d].std().item()
        assert abs(config.y_loc[d] - middle) < 0.15 * max(1.0, spread) and 0.3 < config.y_scale[d] / spread < 1.5
        if kind.support.is_discrete:
            assert ranges[d][0] == 0.0 and ranges[d][1] >= y[..., d].median() + 1


@EVERY
def test_log_joint_is_the_density_of_the_trace(name: str, simulators: dict[str, Simulator]) -> None:
    simulator, (program, _, _) = simulators[name], PROGRAMS[name]
    (x, y), values = data(simulator), at(simulator, 3)
    found = simulator.log_joint(values, x, y)
    sites = simulator.outcome_sites.values(y)
    for i in range(3):
        given = {name: value[i] for name, value in values.items()} | sites
        trace = poutine.trace(poutine.condition(program, given)).get_trace(x)
        assert_close(found[i], trace.log_prob_sum().to(found.dtype), rtol=1e-5, atol=1e-5)
    assert_close(simulator.log_joint(values, x, sites), found)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_integers_and_booleans_are_outcomes_too(name: str, nets: dict[str, ArBufferModel]) -> None:
    net = nets[name]
    (x, y), values = data(net.simulator), at(net.simulator, 3)
    given = y.bool() if name == "bernoulli" else y.long()
    assert_close(net.simulator.log_joint(values, x, given), net.simulator.log_joint(values, x, y))
    expected = pyro_arbuf.log_evidence(net, x, y, num_orders=8)
    assert_close(pyro_arbuf.log_evidence(net, x, given, num_orders=8).value, expected.value)
    assert torch.equal(net.condition(x, given).y, net.condition(x, y).y)


# Vectorization


def noisy(x: Tensor) -> Tensor:
    """A choice whose probability depends on noise that is no site: its density says nothing by itself."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    mean = slope + 0.1 * x[..., 0]
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Bernoulli(logits=mean + torch.randn(mean.shape)))


def noisy_of_the_first_trial(x: Tensor) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    mean = slope + 0.1 * x[:, 0] + 0 * x[..., 0]
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Bernoulli(logits=mean + torch.randn(mean.shape)))


def by_its_own_code(read):
    """A choice without a density."""

    def program(x: Tensor) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = slope + 6 * read(x) + 0 * x[..., 0] - 1.5
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Delta(torch.rand(mean.shape) < torch.sigmoid(mean)))

    return program


def counts_of_the_first_trial(x: Tensor) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Poisson((slope + 0.1 * x[:, 0] + 0 * x[..., 0]).exp()))


AT_ONCE = {
    "noise": (noisy, "inputs"),
    "noise, first trial": (noisy_of_the_first_trial, "datasets"),
    "no density": (by_its_own_code(lambda x: x[..., 0]), "inputs"),
    "no density, first trial": (by_its_own_code(lambda x: x[:, 0]), "datasets"),
    "counts, first trial": (counts_of_the_first_trial, "datasets"),
}


SEEN_BY_VALUES = [pytest.param(case, marks=pytest.mark.slow) for case in AT_ONCE if "no density" in case]


@pytest.mark.parametrize("case", [*(case for case in AT_ONCE if "no density" not in case), *SEEN_BY_VALUES])
def test_data_sets_of_discrete_outcomes_are_run_at_once_where_they_may(case: str) -> None:
    program, mode = AT_ONCE[case]
    assert Simulator(program, inputs).mode == mode


# Sites


def test_outcomes_by_site_are_those_side_by_side() -> None:
    choice, rt, place = torch.tensor([[1, 0, 1]] * 2), torch.rand(2, 3), torch.rand(2, 3, 2)
    columns = ("choice", "rt", "place", "place")
    y = stack_sites({"place": place, "choice": choice, "rt": rt}, columns)
    assert_close(y, torch.cat([choice[..., None].float(), rt[..., None], place], -1))
    config = ModelConfig(dim_y=4, outcome=columns, outcomes=("categorical(2)", "real", "real", "real"))
    found = split_sites(y, config)
    assert torch.equal(found["choice"], choice) and torch.equal(found["rt"], rt) and torch.equal(found["place"], place)
    assert torch.equal(stack_sites({"y": rt}, "y"), rt) and stack_sites(rt, columns) is rt


WRONG = {
    "missing": ({"choice": torch.zeros(3)}, r"must hold the network's outcome, \['choice', 'rt'\]; got \['choice'\]"),
    "unknown": ({"choice": torch.zeros(3), "rt": torch.zeros(3), "z": 1}, r"got \['choice', 'rt', 'z'\]"),
    "list": ({"choice": [0, 1], "rt": torch.zeros(2)}, r"y\['choice'\] must be a tensor; got list; use torch.as_"),
    "length": ({"choice": torch.zeros(3), "rt": torch.zeros(2)}, r"the same batch and n for all; got {'choice': \(3,"),
}


@pytest.mark.parametrize("case", WRONG)
def test_outcomes_by_site_that_do_not_fit_are_explained(case: str, nets: dict[str, ArBufferModel]) -> None:
    y, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        nets["choice_rt"].condition(torch.zeros(3, 1), y)


def test_configuration_holds_the_site_of_every_dimension() -> None:
    with pytest.raises(ValueError, match="outcome must be a string, or a tuple of 2, one per dimension"):
        ModelConfig(dim_y=2, outcome=("choice",))


def test_networks_take_and_give_sites_by_name(nets: dict[str, ArBufferModel]) -> None:
    net = nets["choice_rt"]
    x, y = data(net.simulator)
    by_site = {"rt": y[:, 1], "choice": y[:, 0].long()}
    context = net.condition(x, by_site)
    assert torch.equal(context.y, net.condition(x, y).y)
    assert torch.equal(net.condition([x, x[:2]], [by_site, y[:2]]).y, net.condition([x, x[:2]], [y, y[:2]]).y)
    drawn = ArBufferJoint(context, x)
    sites = drawn.sites(drawn.sample((4,)))
    assert {name: (tuple(v.shape), v.dtype) for name, v in sites.items()} == {
        "choice": ((4, N), torch.int64),
        "rt": ((4, N), torch.float64),
    }
    evidence = pyro_arbuf.log_evidence(net, x, y, 8).value
    assert_close(pyro_arbuf.log_evidence(net, x, by_site, 8).value, evidence)
    assert pyro_arbuf.subset_gap(net, x, by_site, 2) == pyro_arbuf.subset_gap(net, x, y, 2)


def one_pair(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    choice = pyro.sample("choice", dist.Categorical(logits=torch.stack([a, -a], -1)))
    pyro.sample("rt", dist.LogNormal(choice + a, 0.3))


def test_several_sites_may_be_one_observation() -> None:
    simulator = Simulator(one_pair, outcome=("choice", "rt"))
    assert simulator.single and simulator.draw(5, 1).y.shape == (5, 1, 2)
    density = simulator.log_joint({"a": torch.zeros(3)}, torch.zeros(1, 1), torch.tensor([[1.0, 2.0]]))
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) - torch.tensor(2.0).log()
    assert_close(density, (expected + dist.LogNormal(1.0, 0.3).log_prob(torch.tensor(2.0))).expand(3))


# Networks


@EVERY
@pytest.mark.filterwarnings(*QUIET)
def test_every_use_of_a_network_takes_every_outcome(name: str, nets: dict[str, ArBufferModel]) -> None:
    net, program = nets[name], PROGRAMS[name][0]
    x, y = data(net.simulator)
    context = net.condition(x, y)
    fine = pyro_arbuf.refine(program, context, 200, 50, seed=0)
    assert set(fine.draws) == set(net.latents) and torch.isfinite(fine.weights).all()
    assert all(value.shape[0] == 50 for value in fine.draws.values()) and fine.log_evidence > -1e6
    assert torch.isfinite(torch.stack(pyro_arbuf.log_evidence(net, x, y, num_orders=8))).all()
    assert torch.isfinite(pyro_arbuf.self_consistency(net, x, y, 5).values).all()
    assert pyro_arbuf.subset_gap(net, x, y, 2).dropped >= 0
    checked = pyro_arbuf.calibrate(net, 6, 9, 5)
    assert torch.isfinite(checked.gain).all() and checked.ranks.shape == (6, len(checked.names))
    guided = pyro_arbuf.AmortizedGuide(context)()
    assert set(guided) == set(net.latents)
    compared = pyro_arbuf.compare_evidence({"a": net, "b": net}, x, y, 8, programs={"a": program, "b": program})
    assert all(torch.isfinite(torch.stack(each)).all() for each in compared.evidence.values())


@pytest.mark.filterwarnings(*QUIET)
def test_evidence_by_importance_sampling_of_integers_keeps_its_fraction(nets: dict[str, ArBufferModel]) -> None:
    net, program = nets["poisson"], PROGRAMS["poisson"][0]
    x, y = data(net.simulator)
    found = pyro_arbuf.compare_evidence({"a": net, "b": net}, x, y.long(), 8, programs={"a": program, "b": program})
    assert found.evidence["a"].value.is_floating_point() and found.evidence["a"].value % 1 != 0


@pytest.mark.filterwarnings(*QUIET)
def test_evidence_error_of_choices_is_measured_against_exact_values(nets: dict[str, ArBufferModel]) -> None:
    net = nets["bernoulli"]
    nodes = torch.linspace(-8, 8, 1601, dtype=torch.float64)

    def exact(x: Tensor, y: Tensor) -> float:
        assert y.shape == (N,)
        likelihood = dist.Bernoulli(logits=nodes[:, None] + x[:, 0]).log_prob(y).sum(-1)
        return (likelihood + dist.Normal(0.0, 1.0).log_prob(nodes) + torch.tensor(0.01).log()).logsumexp(0).item()

    found = pyro_arbuf.measure_evidence_error(net, 5, N, exact=exact, num_orders=8)
    assert found.rmse == net.config.evidence_rmse > 0
    net.replace_measured(evidence_rmse=None)


@EVERY
@pytest.mark.filterwarnings("ignore:.*outside the trained range")
def test_training_runs_for_every_outcome(name: str, capsys: pytest.CaptureFixture) -> None:
    program, outcome, kinds = PROGRAMS[name]
    net = pyro_arbuf.amortize(
        program, inputs, outcome=outcome, num_context=(0, N), steps=4, batch_size=3, report=False, **SIZES
    )
    assert net.config.outcomes == kinds and all(torch.isfinite(value).all() for value in net.state_dict().values())
    x, y = data(net.simulator)
    likelihood = ArBufferMarginals(net.condition(latents=at(net.simulator, 2)), x.float())
    assert torch.isfinite(likelihood.log_prob(y.float())).all()
    text = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("  outcome: "))
    assert text.removeprefix("  outcome: ") == OUTCOMES.get(name, OUTCOMES[kinds[0] if kinds else "pair"])


OUTCOMES = {
    "categorical(2)": "y, one of 2 categories per trial",
    "categorical(3)": "y, one of 3 categories per trial",
    "count": "y, a count per trial",
    "pair": "y, a vector of 2 per trial",
    "choices": "y, a vector of 2, each one of 2 categories per trial",
    "choice_rt": "choice (one of 2 categories), then rt (a number) per trial",
}


@pytest.mark.filterwarnings(*QUIET)
def test_report_has_a_verdict_for_several_sites(capsys: pytest.CaptureFixture, tmp_path) -> None:
    program, outcome, _ = PROGRAMS["choice_rt"]
    options = {"outcome": outcome, "num_context": (0, 4), "batch_size": 3, "folder": tmp_path} | SIZES
    pyro_arbuf.amortize(program, inputs, steps=2, **options)
    text = capsys.readouterr().out
    assert "\nself-consistency on one of them: log p(y) = " in text and "\nverdict: " in text
    net = pyro_arbuf.amortize(program, inputs, steps=3, resume=True, report=False, **options)
    loaded = pyro_arbuf.load(tmp_path)
    assert loaded.config == net.config and find_simulator(loaded, net.simulator) is net.simulator
    assert loaded.config.outcome == ("choice", "rt")


def test_program_with_another_kind_of_outcome_is_refused(
    nets: dict[str, ArBufferModel], simulators: dict[str, Simulator]
) -> None:
    message = "the program's outcome must be one of 2 categories, as the network's; got one of 3 categories; use"
    with pytest.raises(ValueError, match=re.escape(message)):
        find_simulator(nets["bernoulli"], simulators["categorical"])


def test_network_of_several_sites_finds_them_in_a_given_program(nets: dict[str, ArBufferModel]) -> None:
    net = nets["choice_rt"]
    found = find_simulator(net, PROGRAMS["choice_rt"][0])
    assert found.outcome == ("choice", "rt") and found.outcomes == net.config.outcomes


def test_what_is_described_names_the_kinds_of_a_vector() -> None:
    def program(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        mean = a + x[..., 0]
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("choice", three(mean))
            pyro.sample("gaze", dist.Normal(mean.unsqueeze(-1) * torch.ones(2), 1.0).to_event(1))
            pyro.sample("fixations", dist.Poisson(mean.exp()))

    simulator = Simulator(program, inputs, outcome=("choice", "gaze", "fixations"))
    text = describe_training(simulator, program_config(simulator, (0, 5), **SIZES), None, 1, None)
    assert (
        "outcome: choice (one of 3 categories), then gaze (a vector of 2, each a number), then fixations (a c" in text
    )


@LIKELIHOODS
def test_gradient_of_the_likelihood_in_the_latent_is_that_of_finite_differences(
    name: str, nets: dict[str, ArBufferModel]
) -> None:
    net = nets[name]
    x, y = data(net.simulator)

    def density(slope: Tensor) -> Tensor:
        return ArBufferMarginals(net.condition(latents={"slope": slope}), x).log_prob(y)

    assert torch.autograd.gradcheck(density, torch.tensor([0.3, -1.1], dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", ["pair", "choice_rt"])
def test_gradient_of_the_likelihood_of_vectors_is_that_of_finite_differences(
    name: str, nets: dict[str, ArBufferModel]
) -> None:
    net = nets[name]
    x, y = data(net.simulator)
    values = {key: value.requires_grad_() for key, value in at(net.simulator, 2).items()}

    def density(*latents: Tensor) -> Tensor:
        given = dict(zip(values, latents, strict=True))
        return ArBufferMarginals(net.condition(latents=given), x).log_prob(y)

    assert torch.autograd.gradcheck(density, tuple(values.values()))


def test_posterior_of_every_kind_samples_in_the_support(nets: dict[str, ArBufferModel]) -> None:
    for net in nets.values():
        posterior = ArBufferPosterior(net.condition(*data(net.simulator)))
        sites = posterior.sites(posterior.sample((3,)))
        assert all(latent.contains(sites[latent.name]).all() for latent in net.config.latents)
