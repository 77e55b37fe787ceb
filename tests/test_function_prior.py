"""Priors of functions as plain functions: told from programs, probed, configured, trained."""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Generator, Tensor

from pyro_arbuf import ArBufferJoint, add_buffer, amortize, load
from pyro_arbuf.baselines.latent_bottleneck import LBANPBuffer
from pyro_arbuf.programs import training_rounds
from pyro_arbuf.programs.function_prior import FunctionPrior, is_function_prior, probe
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.sources import PriorSource

SIZES = {"width": 12, "num_layers": 1, "num_heads": 2, "mlp_width": 14, "embedding_width": 10, "num_frequencies": 3}
SIZES |= {"head_width": 13, "num_components": 3, "buffer_size": 4, "batch_size": 2}
N = 6


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def waves(batch_size: int, num_points: int, generator: Generator, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Years and degrees: x `(B, T)`, y `(B, T)`."""
    x = 1990 + 20 * torch.rand(batch_size, num_points, generator=generator)
    phase = 6 * torch.rand(batch_size, 1, generator=generator)
    noise = 0.1 * torch.randn(batch_size, num_points, generator=generator)
    return x, 14 + scale * torch.sin(x / 2 + phase) + noise


def pairs(batch_size: int, num_points: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """x `(B, T, 3)` and y `(B, T, 2)`."""
    x = torch.rand(batch_size, num_points, 3, generator=generator)
    return x, x[..., :2] + torch.randn(batch_size, 1, 2, generator=generator)


def integers(batch_size: int, num_points: int, generator: Generator, dtype: torch.dtype = torch.int64) -> tuple:
    """Counts at x `(B, T)`."""
    x = torch.rand(batch_size, num_points, generator=generator)
    rate = 1 + 20 * torch.rand(batch_size, num_points, generator=generator)
    return x, torch.poisson(rate, generator).to(dtype)


def changed(change: Callable[..., tuple]) -> Callable[..., tuple]:
    """`waves` with something done to what it returns."""

    def draw(batch_size: int, num_points: int, generator: Generator) -> tuple:
        return change(*waves(batch_size, num_points, generator))

    return draw


def tiny(draw: Callable = waves, **options: object) -> object:
    return amortize(draw, **{"num_context": (0, N), "steps": 3, "report": False} | SIZES | options)


def refuses(words: str, draw: Callable = waves, **options: object) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(draw, **options)


# Which callable is what -----------------------------------------------------------


def test_three_parameters_make_a_function_prior_and_everything_else_a_program() -> None:
    def any_order(generator, *, num_points, batch_size, depth=2): ...

    def program(x): ...

    def named_like_one(generator): ...

    assert is_function_prior(waves) and is_function_prior(any_order)
    assert is_function_prior(functools.partial(waves, scale=2.0))
    assert not is_function_prior(program) and not is_function_prior(named_like_one)
    assert not is_function_prior(dict)  # no signature


@pytest.mark.parametrize("missing", ["generator", "num_points", "batch_size"])
def test_two_of_three_parameters_are_an_error_that_names_the_third(missing: str) -> None:
    names = [name for name in ("batch_size", "num_points", "generator") if name != missing]
    draw = eval(f"lambda {', '.join(names)}: None")
    with pytest.raises(ValueError, match=rf"must have the parameters .*{missing}.*; got {', '.join(names)};"):
        amortize(draw, steps=1)


def test_a_further_parameter_needs_a_default() -> None:
    refuses("further ones only with defaults; got .*depth;", lambda batch_size, num_points, generator, depth: None)


def test_parameters_are_given_by_name() -> None:
    def other_order(generator, *, num_points, batch_size):
        return waves(batch_size, num_points, generator)

    drawn = [FunctionPrior(draw)(2, 3, Generator().manual_seed(1)) for draw in (waves, other_order)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        {"inputs": torch.rand},
        {"latents": ["slope"]},
        {"outcome": "choice"},
        {"num_simulations": 9},
        {"vectorized": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_arguments_of_programs_are_refused(given: dict) -> None:
    refuses(f"{next(iter(given))} must not be given for a prior as a plain function", **given)


# What is probed before training -----------------------------------------------------------


def by_global_generator(batch_size, num_points, generator):
    return torch.rand(batch_size, num_points), torch.rand(batch_size, num_points, generator=generator)


def by_own_seed(batch_size, num_points, generator):
    return waves(batch_size, num_points, Generator().manual_seed(1))


ORDERED_GRID = torch.linspace(0, 1, 200)[torch.randperm(200, generator=Generator().manual_seed(0))]
UNFIT = {
    "one tensor": (changed(lambda x, y: x), r"must return two tensors, .*; got Tensor; end it with `return x, y`"),
    "three": (changed(lambda x, y: (x, y, y)), "must return two tensors"),
    "NumPy": (changed(lambda x, y: (x, y.numpy())), r"got y of type ndarray; use torch.as_tensor\(y\)"),
    "points first": (changed(lambda x, y: (x.mT, y)), r"got x of shape \(5, 3\) for batch_size = 3 and num_points"),
    "no points": (changed(lambda x, y: (x, y[:, :1])), r"got y of shape \(3, 1\)"),
    "four dimensions": (changed(lambda x, y: (x[..., None, None], y)), r"got x of shape \(3, 5, 1, 1\)"),
    "integer x": (changed(lambda x, y: (x.long(), y)), r"x of draw must have a floating dtype; got torch.int64"),
    "integer y": (integers, r"y of integers .* got torch.int64; return y.float\(\) if .* pass outcomes='count' or"),
    "NaN": (changed(lambda x, y: (x, y.where(y > 14, torch.nan))), "y of draw must be finite"),
    "infinite x": (changed(lambda x, y: (x / 0, y)), "x of draw must be finite"),
    "global generator": (by_global_generator, "must draw all that is random from its generator; .* pass generator="),
    "own seed": (by_own_seed, "must draw from its generator; .* different seeds returned the same points"),
    "sorted": (changed(lambda x, y: (x.sort(-1).values, y)), r"in random order, .* got x\[..., 0\], which says"),
    "descending": (changed(lambda x, y: (-x.sort(-1).values, y)), "must come in random order"),
    "a grid in one order": (changed(lambda x, y: (ORDERED_GRID[: x.shape[1]].expand_as(x), y)), "in random order"),
    "later ones elsewhere": (changed(lambda x, y: (x + torch.linspace(0, 4, x.shape[1]), y)), "in random order"),
    "from the middle": (changed(lambda x, y: (x.gather(1, (x - 2000).abs().argsort(1)), y)), "in random order"),
    "arms in turns": (
        changed(lambda x, y: (torch.stack([x, torch.arange(x.shape[1]) % 2 + 0 * x], -1), y)),
        r"in random order, .* x\[..., 1\]",
    ),
    "days from anywhere": (changed(lambda x, y: (3650 * x[:, :1] + torch.arange(x.shape[1]), y)), "in random order"),
    "up or down": (changed(lambda x, y: (x.sort(-1).values * (y[:, :1] - 14).sign(), y)), "in random order"),
    "along a path": (changed(lambda x, y: ((x[:, :1] + torch.arange(x.shape[1]) / 9) % 1, y)), "in random order"),
    "blocks of arms": (
        changed(lambda x, y: (torch.stack([x, torch.arange(x.shape[1]) // 20 + 0 * x], -1), y)),
        r"in random order, .* x\[..., 1\]",
    ),
    "a rare NaN in x": (changed(lambda x, y: (x.where(x < 2009.98, torch.nan), y)), "x must be finite; got nan among"),
    "constant y": (changed(lambda x, y: (x, 0 * y + 2)), "y must vary; got 2 at all points"),
    "fine beside its distance": (changed(lambda x, y: (x + 1e9, y)), "each column of x must vary by more than"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_functions_are_refused_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rounds, "fit", lambda *_, **__: pytest.fail("trained"))
    draw, words = UNFIT[name]
    refuses(words, draw)


@pytest.mark.parametrize(
    "place",
    [
        lambda x: torch.linspace(0, 1, x.shape[1])[x[0].argsort()].expand_as(x),  # one order for all of a draw
        lambda x: (x > 2000).to(x),
        lambda x: (x > 2018).to(x),
        lambda x: 0 * x + 1,
        lambda x: ((x - 2000) / 3).exp(),
        lambda x: x + 1000 * torch.arange(len(x))[:, None],
        lambda x: torch.stack([x, x.round(), 0 * x], -1),
        lambda x: (x > 2009.98).to(x),
        lambda x: torch.nn.functional.one_hot(x[0].long() - 1990, 20).to(x).expand(len(x), -1, -1),
        lambda x: (x[:1] > 2009).to(x).expand_as(x),
    ],
)
def test_inputs_of_many_laws_are_in_random_order(place: Callable[[Tensor], Tensor]) -> None:
    assert probe(changed(lambda x, y: (place(x), y)), (0, N)).config.dim_y is None


def test_rare_values_of_another_kind_are_named_when_they_come() -> None:
    def draw(batch_size: int, num_points: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x, y = integers(batch_size, num_points, generator, torch.float32)
        return x, y - (100 * (batch_size == 2))  # as training draws them, not those before it

    refuses(r"the prior 'draw' must draw outcomes that are counts .*; got -\d+, in a batch of", draw, outcomes="count")


def test_functions_of_few_points_are_told_how_many_are_asked_for() -> None:
    few = changed(lambda x, y: (x[:, :20], y[:, :20]))
    refuses(
        r"got \(\d+, 20, 1\) .*; draw as many points as are asked for: a step needs up to 30 observed",
        few,
        num_context=(0, 30),
    )


def test_other_names_of_the_parameters_are_named() -> None:
    def draw(b, n, g):
        pytest.fail("drawn")

    refuses("a program must take its inputs x alone, .*; got the parameters b, n, g, .* plain function has the", draw)
    refuses("got the parameters none,", lambda: pytest.fail("drawn"))


def test_probing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="its generator"):
        probe(by_global_generator, (0, N))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_context", [(1, 5), (0, 0), 5, (0, 5.0), [0, 5]], ids=str)
def test_num_context_is_a_range_from_zero(num_context: object) -> None:
    refuses(re.escape("num_context must be (0, n) with n >= 1"), num_context=num_context)


def test_a_series_is_no_function_prior() -> None:
    refuses(r"sizes must be among .*got \[.sequential.\]", sequential=True)


def test_fields_that_are_measured_are_not_for_the_user() -> None:
    refuses(r"sizes must be among .*'outcomes'.*; got \['x_loc'\]", x_loc=(1.0,))


# The configuration -----------------------------------------------------------


def test_configuration_standardises_what_the_function_draws() -> None:
    config = probe(waves, (0, N), width=12, num_heads=2).config
    assert config.dim_x == 1 and config.dim_y is None and config.latents == () and config.prior == "waves"
    assert config.num_context == (0, N) and config.num_targets == (1, N) and config.width == 12
    assert config.x_loc[0] == pytest.approx(2000, abs=0.5)
    assert config.x_scale[0] == pytest.approx(20 / 12**0.5, rel=0.02)
    assert config.y_loc[0] == pytest.approx(14, abs=0.5) and 1.5 < config.y_scale[0] < 4
    assert config.x_range == pytest.approx((1989.8, 2010.2), abs=0.02)
    assert config.y_range[0] < 14 - 5 and config.y_range[1] > 14 + 5


def test_shapes_without_a_last_dimension_are_those_with_one_of_size_one() -> None:
    flat, full = probe(waves, (0, N)).config, probe(changed(lambda x, y: (x[..., None], y[..., None])), (0, N)).config
    assert flat.dim_y is None and full.dim_y == 1 and flat.x_loc == full.x_loc and flat.y_scale == full.y_scale


def test_vectors_have_a_range_for_each_dimension() -> None:
    config = probe(pairs, (0, N)).config
    assert (config.dim_x, config.dim_y) == (3, 2) and len(config.x_loc) == 3 and len(config.y_range) == 2


def test_double_precision_is_taken_as_it_is() -> None:
    assert (
        probe(changed(lambda x, y: (x.double(), y.double())), (0, N)).config
        == probe(changed(lambda x, y: (x, y)), (0, N)).config
    )


def test_a_shipped_name_is_told_apart() -> None:
    def sawtooth(batch_size, num_points, generator):
        return waves(batch_size, num_points, generator)

    assert probe(sawtooth, (0, N)).config.prior == f"{__name__}.sawtooth"


def test_notes_tell_of_constant_inputs_and_of_integers() -> None:
    notes = probe(functools.partial(integers, dtype=torch.float32), (0, N)).notes
    assert len(notes) == 1 and "for counts pass outcomes='count'" in notes[0]
    assert probe(changed(lambda x, y: (torch.stack([x, 0 * x], -1), y)), (0, N)).notes == ("x[..., 1] is constant",)


# Training -----------------------------------------------------------


def test_network_is_a_set_model_of_the_function(capsys: pytest.CaptureFixture) -> None:
    net = tiny(report=True)
    assert not net.training and not any(p.requires_grad for p in net.parameters()) and net.latents == ()
    x, y = waves(1, N + 2, Generator().manual_seed(5))
    joint = ArBufferJoint(net.condition(x[0, :N, None], y[0, :N]), x[0, N:, None])
    assert joint.log_prob(joint.sample((3,))).shape == (3,)
    printed = capsys.readouterr().out
    assert printed.startswith("amortize waves:\n  prior: a plain function of batch_size, num_points, generator;")
    assert "  inputs: 1 column in 1989.8 to 2010.2\n" in printed
    assert f"  trained range: 0 to {N} observed points" in printed
    assert "  training: 3 steps, on new functions in every step, from random weights\n" in printed
    assert re.search(
        r"waves: 3 steps, validation density .* nats per target\nsubset gap: .*\nverdict: .* too short", printed
    )


def test_a_latent_bottleneck_is_a_choice(tmp_path: Path) -> None:
    net = tiny(architecture="lbanp-buffer", num_context=(0, 60), folder=tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert type(net) is type(loaded) is LBANPBuffer and loaded.config == net.config
    context = loaded.condition(1990 + torch.rand(50, 1), 14 + torch.rand(50))
    assert ArBufferJoint(context, 1990 + torch.rand(9, 1)).sample((3,)).isfinite().all()


def test_architectures_that_are_trained_on_chains_are_refused() -> None:
    refuses("architecture must not be 'tnp-a' here, which is trained on chains", architecture="tnp-a")


def test_a_buffer_is_added_to_trained_weights_alone() -> None:
    refuses("'tnp-d-buffer' here, which adds a buffer to trained weights", architecture="tnp-d-buffer")


def test_a_buffer_is_added_to_a_set_model_of_a_function(tmp_path: Path) -> None:
    with_buffer = add_buffer(tiny(architecture="tnp-d"))
    state = fit(with_buffer, PriorSource(waves, with_buffer.config), str(tmp_path / "state.safetensors"), steps=1)
    assert state.step == 1


def test_training_draws_from_a_prior_source(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, fit = [], training_rounds.fit
    monkeypatch.setattr(
        training_rounds, "fit", lambda model, source, *a, **k: sources.append(source) or fit(model, source, *a, **k)
    )
    tiny(seed=4)
    (source,) = sources
    assert isinstance(source, PriorSource) and source.seed == 4 and source.batch_size == 2


@pytest.mark.parametrize("outcomes", ["count", ("count",), ["count"]], ids=str)
def test_counts_are_counts_where_the_user_says_so(outcomes: object) -> None:
    net = tiny(integers, outcomes=outcomes)
    assert net.config.outcomes == ("count",) and net.config.dim_y is None and net.config.y_range[0] == 0
    drawn = ArBufferJoint(net.condition(), torch.rand(4, 1)).sample((3,))
    assert torch.equal(drawn, drawn.round()) and drawn.min() >= 0


def test_values_of_another_kind_are_refused() -> None:
    refuses(r"y must hold the categories 0 to 2; got \[", integers, outcomes="categorical(3)")
    refuses(r"outcomes must be among \['real'", integers, outcomes="spikes")
    refuses("outcomes must name the kinds of all 2 dimensions", pairs, outcomes="count")
    refuses("outcomes must name the kinds of all 1 dimensions; got None", waves, outcomes=None)
    refuses(
        "outcome must not be given .* leave it out, or give the kinds of its outcomes by outcomes=", outcome="count"
    )


def test_a_file_is_no_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    refuses("folder must be a folder, or not exist yet; got the file", folder=tmp_path / "file")
    refuses("there is none in", folder=tmp_path / "new", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_run_is_kept_in_its_folder_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = tiny(folder=tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == first.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in first.state_dict().items())
    refuses("folder must hold no network yet", folder=tmp_path)
    capsys.readouterr()
    again = tiny(folder=tmp_path, resume=True)  # no step is left
    assert f", from where the run in {tmp_path} stands\n" in capsys.readouterr().out
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    refuses("num_context", folder=tmp_path, resume=True, steps=6, num_context=(0, N + 1))


def test_code_of_the_page_of_own_priors_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "own_priors.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    quick = f"steps=2, report=False, folder={str(tmp_path / 'own')!r}, **sizes)"
    code, count = re.subn(r"minutes=8, folder=.*\)", lambda _: quick, block)
    assert count == 1 and len(page.splitlines()) <= 60
    names: dict[str, object] = {"sizes": SIZES}
    exec(compile(code, "docs/own_priors.md", "exec"), names)
    assert names["net"].config.num_context == (0, 128) and names["net"].config.dim_y is None
