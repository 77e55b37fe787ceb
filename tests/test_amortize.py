"""amortize on tiny networks: weights, state, folder and report."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from program_cases import inputs, line, lone_line, one_vector, sampled_line

import pyro_arbuf
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.programs import amortize as amortization
from pyro_arbuf.programs import banks, reports, training_rounds
from pyro_arbuf.programs.amortize import amortize
from pyro_arbuf.programs.reports import training_report
from pyro_arbuf.programs.scales import range_of_outcomes
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.run_state import RunState

SIZES = {"width": 12, "num_layers": 1, "num_heads": 2, "mlp_width": 14, "embedding_width": 10, "num_frequencies": 3}
SIZES |= {"head_width": 13, "num_components": 3, "num_y_frequencies": 2, "buffer_size": 4, "batch_size": 2}


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture(autouse=True)
def _small_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "REPORT_DATASETS", 20)


def tiny(program: Callable = line, steps: int | None = 3, **options: object) -> ArBufferModel:
    return amortize(program, inputs, **{"num_context": (0, 5), "steps": steps, "report": False} | SIZES | options)


def weights(net: ArBufferModel) -> torch.Tensor:
    return torch.cat([value.flatten() for value in net.state_dict().values()])


def test_network_is_frozen_in_eval_mode_and_knows_its_program() -> None:
    net = tiny()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert net.simulator.program is line and net.simulator.inputs is inputs
    assert net.latents == ("slope", "noise") and net.config.outcome == "y" and net.config.prior == "line"
    assert net.config.num_context == (0, 5) and net.config.width == 12 and net.config.buffer_size == 4
    assert net.config.latents == net.simulator.latents


def test_network_conditions_samples_and_scores() -> None:
    net = tiny()
    drawn = net.simulator.draw(1, 5)
    posterior = pyro_arbuf.ArBufferPosterior(net.condition(drawn.x[0], drawn.y[0, :, 0]))
    sites = posterior.sites(posterior.sample((3,)))
    assert sites["noise"].shape == (3,) and (sites["noise"] > 0).all()
    likelihood = pyro_arbuf.ArBufferMarginals(net.condition(latents=sites), drawn.x[0])
    assert torch.isfinite(likelihood.log_prob(drawn.y[0, :, 0])).all()


@pytest.mark.filterwarnings("ignore:Site 'slope' is integrated out but shared")
def test_chosen_latents_are_all_that_is_learned() -> None:
    assert tiny(steps=1, latents=["noise"]).latents == ("noise",)


@pytest.mark.parametrize("program", [lone_line, sampled_line], ids=["one by one", "without density"])
def test_any_program_that_can_be_run_can_be_amortised(program: Callable) -> None:
    assert torch.isfinite(weights(tiny(program, steps=2, num_context=(0, 2)))).all()


def test_seed_makes_the_weights() -> None:
    first, again, other = (weights(tiny(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.isclose(first, other).all()


def test_best_weights_are_returned_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: ArBufferModel, *arguments: object, **options: object) -> RunState:
        state = fit(model, *arguments, **options)
        model.requires_grad_(False).embedder.role.zero_()
        return state

    expected = weights(tiny())
    monkeypatch.setattr(training_rounds, "fit", spoil)
    assert torch.equal(weights(tiny()), expected)


def test_no_global_randomness_is_used(capsys: pytest.CaptureFixture) -> None:
    state = torch.get_rng_state()
    tiny(report=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_in_the_folder_is_not_replaced(tmp_path: Path) -> None:
    first = weights(tiny(folder=tmp_path))
    with pytest.raises(ValueError, match="folder must hold no network yet"):
        tiny(folder=tmp_path)
    assert torch.equal(weights(pyro_arbuf.load(tmp_path)), first)


def test_folder_holds_a_loadable_network_and_the_state_of_the_run(tmp_path: Path) -> None:
    net = tiny(folder=tmp_path / "line")
    found = sorted(path.name for path in (tmp_path / "line").iterdir())
    assert found == ["config.json", "model.safetensors", "state.lock", "state.safetensors"]
    loaded = pyro_arbuf.load(tmp_path / "line")
    assert loaded.config == net.config and torch.equal(weights(loaded), weights(net))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_resumed_run_goes_on_with_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = weights(tiny(folder=tmp_path))
    assert ", from random weights\n" in capsys.readouterr().out
    assert torch.equal(weights(tiny(folder=tmp_path, resume=True)), first)  # no step is left
    assert f", from where the run in {tmp_path} stands\n" in capsys.readouterr().out
    tiny(folder=tmp_path, steps=6, resume=True)
    state = RunState.read(tmp_path / "state.safetensors")
    assert state.step == 6 and [entry["step"] for entry in state.history] == [3, 6]


def with_own_generator() -> Callable:
    """A program that calls a simulator with a generator of its own: no seed of ours makes it repeat."""
    own = torch.Generator().manual_seed(3)

    def program(x: torch.Tensor) -> torch.Tensor:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        noise = torch.randn(x.shape[:-1], generator=own)
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Delta(slope * x[..., 0] + noise))

    return program


def test_run_of_a_simulator_with_its_own_generator_resumes(tmp_path: Path) -> None:
    program = with_own_generator()
    first = tiny(program, folder=tmp_path)
    again = tiny(program, folder=tmp_path, steps=6, resume=True)
    assert again.config == first.config and RunState.read(tmp_path / "state.safetensors").step == 6


def test_resume_with_other_sizes_names_them(tmp_path: Path) -> None:
    tiny(folder=tmp_path)
    message = r"belongs to another run: seed was 0 and is 1, config\.width was 12 and is 14; call it as it was begun"
    with pytest.raises(ValueError, match=message):
        tiny(folder=tmp_path, resume=True, seed=1, width=14)


def test_resume_of_another_program_is_refused(tmp_path: Path) -> None:
    tiny(folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        tiny(sampled_line, folder=tmp_path, resume=True)


def heights(middle: float, width: float, noise: float = 8.0) -> Callable:
    def program(x: torch.Tensor) -> torch.Tensor:
        mean = pyro.sample("mean", dist.Normal(middle, width))
        with pyro.plate("people", x.shape[-2]):
            return pyro.sample("y", dist.Normal(mean, noise))

    return program


@pytest.mark.parametrize("options", [{}, {"num_simulations": 60}])
@pytest.mark.parametrize(
    ("edited", "named"),
    [
        (heights(120.0, 10.0), "latent 'mean' had location 170 and scale"),
        (heights(170.0, 25.0), "latent 'mean' had location"),
        (heights(170.0, 10.0, 40.0), "outcome had location"),
    ],
)
def test_resume_of_an_edited_program_is_refused(tmp_path: Path, edited: Callable, named: str, options: dict) -> None:
    tiny(heights(170.0, 10.0), folder=tmp_path, **options)
    with pytest.raises(ValueError, match="holds a run of a program whose") as caught:
        tiny(edited, folder=tmp_path, steps=6, resume=True, **options)
    assert named in str(caught.value)
    tiny(heights(170.0, 10.0), folder=tmp_path, steps=6, resume=True, **options)


def test_fixed_simulations_are_simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    draw = pyro_arbuf.Simulator.draw

    def counted(self: pyro_arbuf.Simulator, num_datasets: int, num_trials: int):
        sizes.append((num_datasets, num_trials))
        return draw(self, num_datasets, num_trials)

    monkeypatch.setattr(pyro_arbuf.Simulator, "draw", counted)
    tiny(num_simulations=60)
    standardised = {(2048, 8), (128, 5)}
    assert [size for size in sizes if size not in standardised] == [(60, 5 + 4 + training_rounds.TARGETS)]


def test_fixed_simulations_are_learned_by_an_average_of_the_weights(tmp_path: Path) -> None:
    options = {"num_context": (0, 1), "num_simulations": 100, "steps": 100}
    tiny(one_vector, folder=tmp_path, **options)
    state = RunState.read(tmp_path / training_rounds.STATE)
    assert state.setup["average"] == 0.99 and [entry["step"] for entry in state.history] == [50, 100]


def test_second_network_is_regularised_where_the_first_knows_the_simulations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dropouts = []

    def spoiled(*arguments: object, dropout: float = 0.0, **options: object) -> RunState:
        """The first network only gets worse, at any rate."""
        dropouts.append(dropout)
        return fit(*arguments, dropout=dropout, **options | {"learning_rate": 6e-3 if dropout else 1.0})

    monkeypatch.setattr(training_rounds, "fit", spoiled)
    monkeypatch.setattr(training_rounds, "LOOKS", (2, 3))
    net = tiny(num_simulations=60, steps=60, folder=tmp_path)
    assert "by the network; a second network is regularised" in capsys.readouterr().out
    names = [training_rounds.STATE, *map(training_rounds.COOLED_STATE.format, (1, 2)), training_rounds.SECOND_STATE]
    first, *cooled, second = (RunState.read(tmp_path / name) for name in names)
    assert dropouts == [0.0, 0.0, 0.0, 0.1] and second.best_score > first.best_score
    assert sum(state.step for state in (first, *cooled, second)) == 60
    assert torch.equal(weights(pyro_arbuf.load(tmp_path)), weights(net))
    again = tiny(num_simulations=60, steps=64, folder=tmp_path, resume=True)
    assert RunState.read(tmp_path / training_rounds.SECOND_STATE).step == second.step + 4
    assert torch.isfinite(weights(again)).all()


def test_network_that_stops_gaining_goes_on_from_its_best_weights_at_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rates = []

    def recorded(*arguments: object, learning_rate: float = 1.0, **options: object) -> RunState:
        """The first rate is far too high."""
        rates.append(learning_rate)
        return fit(*arguments, learning_rate=learning_rate, **options)

    monkeypatch.setattr(training_rounds, "fit", recorded)
    monkeypatch.setattr(training_rounds, "LOOKS", (2, 3))
    net = tiny(num_simulations=60, steps=200, folder=tmp_path)
    assert "by the network; it goes on at 0.25 of the learning rate" in capsys.readouterr().out
    first, cooled = (RunState.read(tmp_path / name) for name in (training_rounds.STATE, "state_cooled_1.safetensors"))
    assert rates[:2] == [1.0, 1.5e-3] and cooled.best_score > first.best_score
    assert cooled.step <= (200 - first.step) / 5
    assert torch.equal(weights(pyro_arbuf.load(tmp_path)), weights(net))


def test_first_network_is_kept_where_it_is_the_better_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*arguments: object, dropout: float = 0.0, **options: object) -> RunState:
        """The first network ends after 12 steps, and the second one only gets worse."""
        if dropout:
            return fit(*arguments, learning_rate=1.0, dropout=dropout, **options)
        return fit(*arguments, **options | {"steps": 12, "learning_rate": 0.02})

    monkeypatch.setattr(training_rounds, "fit", spoiled)
    monkeypatch.setattr(training_rounds, "LOOKS", (4, 2))
    monkeypatch.setattr(training_rounds, "COOLER", ())
    net = tiny(num_simulations=60, steps=30, folder=tmp_path)
    first, second = (RunState.read(tmp_path / name) for name in (training_rounds.STATE, training_rounds.SECOND_STATE))
    assert first.best_score > second.best_score
    assert torch.equal(weights(pyro_arbuf.load(tmp_path)), weights(net))


def test_fixed_simulations_are_read_again_and_not_simulated_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(num_simulations=60, folder=tmp_path)
    before = (tmp_path / banks.BANK).read_bytes()
    monkeypatch.setattr(banks, "make_bank", lambda *_: pytest.fail("simulated anew"))
    net = tiny(num_simulations=60, folder=tmp_path, steps=5, resume=True)
    assert torch.isfinite(weights(net)).all() and (tmp_path / banks.BANK).read_bytes() == before
    with pytest.raises(ValueError, match=r"simulations that are asked for, .*70.*; got those of .*60"):
        tiny(num_simulations=70, folder=tmp_path, steps=6, resume=True)
    (tmp_path / banks.BANK).write_bytes(before[:100])
    with pytest.raises(ValueError, match="holds no simulations of a run, or is damaged"):
        tiny(num_simulations=60, folder=tmp_path, steps=6, resume=True)


def test_fixed_simulations_of_a_run_without_an_average_are_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training_rounds, "BANK_AVERAGE", 0.0)
        tiny(num_simulations=60, folder=tmp_path)
    tiny(num_simulations=60, folder=tmp_path, steps=5, resume=True)
    assert RunState.read(tmp_path / training_rounds.STATE).step == 5


def test_program_of_one_observation() -> None:
    net = amortize(one_vector, num_context=(0, 1), steps=3, num_simulations=60, report=False, **SIZES)
    assert net.config.num_context == (0, 1) and net.config.dim_y == 2
    posterior = pyro_arbuf.ArBufferPosterior(net.condition(torch.zeros(1, 1), torch.zeros(1, 2)))
    assert posterior.sample((3,)).shape == (3, 2)


@pytest.mark.parametrize(("program", "num_context"), [(line, (0, 5)), (line, (0, 2)), (one_vector, (0, 1))])
def test_report_holds_validation_calibration_and_self_consistency(
    program: Callable, num_context: tuple[int, int], capsys: pytest.CaptureFixture
) -> None:
    amortize(program, inputs, num_context=num_context, steps=2, **SIZES)
    printed = capsys.readouterr().out
    head, calibrated, contraction, gain, consistent, *gap, last = printed[
        printed.index("validation density") :
    ].splitlines()
    head = next(text for text in printed.splitlines() if text.endswith(head))
    assert re.fullmatch(rf"{program.__name__}: 2 steps, validation density -?\d+\.\d{{3}} nats per target", head)
    assert re.fullmatch(rf"calibration, 20 data sets of {num_context[1]}: p = \d\.\d+ \(Bonferroni\), .*", calibrated)
    assert re.fullmatch(r"self-consistency on one of them: log p\(y\) = -?[\d.]+, sd [\d.]+ nats .*", consistent)
    assert re.fullmatch(r"posterior sd / prior sd: [\w\[\]]+ [\d.]+, [\w\[\]]+ [\d.]+", contraction)
    assert re.fullmatch(r"log density of the true latents above the prior's: -[\d.]+ \+- [\d.]+ nats", gain)
    assert last.startswith("verdict: The posterior is no better than the prior: the true latents are not more likely")
    assert "folder=..., and then resume=True" in last
    assert len(gap) == (num_context[1] >= 4) and all(line.startswith("subset gap: ") for line in gap)


def hierarchy(x: torch.Tensor) -> torch.Tensor:
    """The latent's prior depends on a site that is integrated out, so it has no density."""
    middle = pyro.sample("middle", dist.Normal(0.0, 1.0))
    theta = pyro.sample("theta", dist.Normal(middle, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(theta, x.new_ones(x.shape[:-1])))


def test_network_survives_a_report_that_is_not_available(capsys: pytest.CaptureFixture) -> None:
    net = amortize(hierarchy, inputs, ["theta"], num_context=(0, 5), steps=2, **SIZES)
    *_, calibrated, _, _, consistent, _, _ = capsys.readouterr().out.splitlines()
    assert net.latents == ("theta",) and calibrated.startswith("calibration, 20 data sets")
    assert consistent.startswith("self-consistency not available: the prior of the latents must not depend on sites")


def gaussian(x: torch.Tensor) -> torch.Tensor:
    """Has the name of a shipped program, and its sites, but another prior."""
    tau = pyro.sample("tau", dist.Gamma(200.0, 20.0))
    mu = pyro.sample("mu", dist.Normal(50.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(mu, tau**-0.5 * x.new_ones(x.shape[:-1])))


def test_program_named_like_a_shipped_one_is_not_taken_for_it(tmp_path: Path) -> None:
    net = amortize(gaussian, num_context=(0, 5), steps=2, report=False, folder=tmp_path / "mine", **SIZES)
    assert net.config.prior == "test_amortize.gaussian"
    with pytest.raises(ValueError, match="the program of this network is not known"):
        pyro_arbuf.calibrate(pyro_arbuf.load(tmp_path / "mine"), 5)


def test_resuming_what_was_never_begun_is_explained_before_any_simulation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=True needs the state of a run; there is none in"):
        tiny(no_outcome, folder=tmp_path, resume=True)


def test_report_can_be_made_again_and_is_the_same() -> None:
    net = tiny()
    assert training_report(net, -1.0, 3) == training_report(net, -1.0, 3)


def test_without_a_limit_training_takes_the_default_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amortization, "DEFAULT_MINUTES", 1e-4)
    assert torch.isfinite(weights(tiny(steps=None))).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_works_where_gradients_are_switched_off(mode: Callable) -> None:
    expected = weights(tiny())
    with mode():
        net = tiny(num_simulations=60), tiny()
    assert torch.equal(weights(net[1]), expected)
    assert not net[0].training and torch.isfinite(weights(net[0])).all()


def rows(x: torch.Tensor) -> torch.Tensor:
    """Latents of several supports, and sites that are integrated out."""
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    pair = pyro.sample("pair", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("features", 3):
        pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(share + pair.sum(-1, keepdim=True), x.new_ones(x.shape[:-1])))


def test_what_will_be_trained_is_printed_before_training(capsys: pytest.CaptureFixture) -> None:
    with pytest.warns(UserWarning, match=r"Site 'w' is inside the plate"):
        tiny(rows, minutes=7.0, num_simulations=60)
    found = dict(text.strip().split(": ", 1) for text in capsys.readouterr().out.splitlines()[1:])
    assert found["latents"] == "share, one number between 0 and 1; pair, 2 numbers (2,)"
    assert found["integrated out"] == "w" and found["outcome"] == "y, one number per trial"
    assert re.fullmatch(r"1 column in -0.0\d* to 1.0\d*", found["inputs"])
    assert re.fullmatch(r"0 to 5 trials, outcomes in -[\d.]+ to [\d.]+", found["trained range"])
    limits = "7 minutes, or 3 steps, whichever is reached first"
    assert found["training"] == f"{limits}, on 60 fixed data sets, from random weights"
    assert found["simulated"].startswith("Data sets are simulated one by one, which is slow, because")


def test_mode_reason_notes_and_constant_inputs_are_printed(capsys: pytest.CaptureFixture) -> None:
    net = amortize(one_vector, num_context=(0, 1), steps=1, report=False, **SIZES)
    text = capsys.readouterr().out
    assert "outcome: y, a vector of 2 per data set (one observation)" in text and "integrated out: no site" in text
    assert "note:" not in text
    net.simulator.mode_reason, net.simulator.notes = "It uses x[:, 0].", ("the first", "the second")
    text = reports.describe_training(net.simulator, net.config, None, 5, None)
    assert "  simulated: It uses x[:, 0].\n" in text
    assert text.endswith("on new data sets in every step, from random weights\n  note: the first\n  note: the second")


def test_dimensions_that_are_asked_to_be_independent_are_noted(capsys: pytest.CaptureFixture) -> None:
    amortize(one_vector, num_context=(0, 1), steps=1, report=False, chained=False, **SIZES)
    assert "note: With chained=False the dimensions of the outcome are predicted as independent" in (
        capsys.readouterr().out
    )


def no_outcome(x: torch.Tensor) -> None:
    pass


MISTAKES = {
    "no_outcome": ({"program": no_outcome}, "outcome must be a sample site of every run of the program; got 'y'"),
    "latents": ({"latents": ["tau"]}, "latents must be latent sites of every run of the program; got 'tau'"),
    "from_one": ({"num_context": (1, 5)}, "num_context must be (0, n) with n >= 1; got (1, 5)"),
    "no_trial": ({"num_context": (0, 0)}, "num_context must be (0, n) with n >= 1; got (0, 0)"),
    "a_number": ({"num_context": 100}, "num_context must be (0, n) with n >= 1; got 100"),
    "a_fraction": ({"num_context": (0, 2.5)}, "num_context must be (0, n) with n >= 1; got (0, 2.5)"),
    "one": ({"program": one_vector}, "num_context must be (0, 1) for a program of one observation; got (0, 5)"),
    "resume": ({"resume": True}, "resume=True needs the folder of the run; got folder=None"),
    "text": ({"steps": "200"}, "steps must be an integer of at least 1; got '200'"),
    "float": ({"num_simulations": 1e5}, "num_simulations must be an integer of at least 2; got 100000.0"),
    "seed": ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
    "misspelt": ({"widht": 3}, "sizes must be among ["),
    "not_free": ({"dim_x": 3}, "got ['dim_x']"),
    "a_string": ({"latents": "slope"}, "latents must be a list of different sites; got 'slope'"),
    "steps": ({"steps": 0}, "steps must be an integer of at least 1; got 0"),
    "minutes": ({"minutes": -1.0}, "minutes must be a positive number; got -1.0"),
    "batch": ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
    "bank": ({"num_simulations": 1}, "num_simulations must be an integer of at least 2; got 1"),
    "buffer": ({"buffer_size": 1}, "buffer_size must hold all 2 latent numbers; got 1"),
    "width": ({"width": 13}, "width must be a multiple of num_heads = 2; got 13"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_explained_before_any_training(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, message = MISTAKES[case]
    monkeypatch.setattr(ArBufferModel, "forward", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(**options)


def test_outcomes_that_are_positive_have_a_range_of_positive_numbers() -> None:
    drawn = torch.tensor([0.1, 1.0, 2.0, 8.0])
    assert range_of_outcomes(drawn, outcome_of("real")) == (0.0, pytest.approx(15.0, rel=0.1))
    assert range_of_outcomes(drawn - 0.2, outcome_of("real"))[0] < -10
    assert range_of_outcomes(drawn + 100, outcome_of("real"))[0] > 80
