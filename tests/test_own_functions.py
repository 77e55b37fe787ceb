"""The command line on functions of the user's own: module:function."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState

from pyro_arbuf import cli, load
from pyro_arbuf.cli import train as train_module
from pyro_arbuf.programs import reports
from pyro_arbuf.programs.named_functions import find_function
from pyro_arbuf.training.run_state import RunState

MODULE = """
import pyro
import pyro.distributions as dist
import torch

LEVEL = 3.0


def draw(batch_size, num_points, generator):
    x = torch.rand(batch_size, num_points, generator=generator)
    level = torch.randn(batch_size, 1, generator=generator)
    return x, level + 0.1 * torch.randn(batch_size, num_points, generator=generator)


def draw_x(n):
    return torch.rand(n, 2)


def program(x):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.Exponential(x.new_tensor(1.0)))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("z", dist.Normal((x * slope[..., None, :]).sum(-1), 1 + noise[..., None]))
"""
SIZES = ["--batch-size", "2", "--width", "12", "--num-layers", "1", "--num-heads", "2", "--steps", "3"]


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs `pyro-arbuf` in a folder with own_functions.py."""
    (tmp_path / "own_functions.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(reports, "REPORT_DATASETS", 20)

    def call(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["pyro-arbuf", *arguments])
        cli.main()

    yield call
    for name in ("own_functions", "needs_more"):
        sys.modules.pop(name, None)


def train(run: Callable[..., None], *arguments: str, prior: str = "own_functions:draw") -> None:
    run("train", prior, "--output", "trained", "--num-context", "7", *SIZES, *arguments)


def score(capsys: pytest.CaptureFixture) -> float:
    *_, line = capsys.readouterr().out.splitlines()
    return json.loads(line)["validation"]


def test_plain_function_is_trained_resumed_and_evaluated(
    run: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    train(run)
    config = load("trained").config
    assert config.prior == "draw" and config.num_context == (0, 7) and config.width == 12 and config.latents == ()
    assert "trained: pyro_arbuf.load('trained') loads it" in capsys.readouterr().out
    train(run, "--steps", "5", "--auto-resume")
    state = RunState.read(Path("trained/state.safetensors"))
    assert state.step == 5
    capsys.readouterr()
    run("evaluate", "trained", "--prior", "own_functions:draw")
    assert score(capsys) == pytest.approx(state.best_score, abs=1e-3)
    run("evaluate", "trained")
    recorded = capsys.readouterr().out
    assert "a network of your own prior 'draw'. Recorded by its training" in recorded
    assert "pyro-arbuf evaluate trained --prior module:function measures it" in recorded


def test_program_is_trained_and_evaluated(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    options = ["--inputs", "own_functions:draw_x", "--latents", "noise", "slope", "--outcome", "z"]
    train(run, *options, prior="own_functions:program")
    net = load("trained")
    assert net.config.prior == "program" and net.config.dim_x == 2 and net.config.outcome == "z"
    assert set(net.latents) == {"noise", "slope"}
    capsys.readouterr()
    given = ["--prior", "own_functions:program", "--inputs", "own_functions:draw_x"]
    run("evaluate", "trained", *given)
    assert score(capsys) == pytest.approx(RunState.read(Path("trained/state.safetensors")).best_score, abs=0.05)


def test_new_run_does_not_replace_a_network(run: Callable[..., None]) -> None:
    train(run)
    with pytest.raises(SystemExit, match="folder must hold no network yet"):
        train(run)


MISTAKES = {
    "no module": (
        ["own_function:draw"],
        r"no module 'own_function', .*modules in that folder are: needs_more, own_func",
    ),
    "no function": (
        ["own_functions:drew"],
        r"no function 'drew' in .*own_functions.py\); its functions are: draw, draw_x",
    ),
    "no callable": (["own_functions:LEVEL"], r"there is a float, not a function, 'LEVEL'"),
    "a file": (["own_functions.py:draw"], r"as module:function, .*; write own_functions:draw"),
    "empty": (["own_functions:"], r"as module:function, my_module:draw; got 'own_functions:'"),
    "inputs of a prior": (["own_functions:draw", "--inputs", "own_functions:draw_x"], "inputs must not be given for a"),
    "no inputs": (["own_functions:program", "--inputs", "own_functions:x"], "no function 'x'"),
    "warm start": (
        ["own_functions:draw", "--from", "gp-1d"],
        r"--from are not for a function of your own.*leave it out",
    ),
    "targets": (["own_functions:draw", "--num-targets", "9"], "--num-targets"),
    "of a shipped one": (["gp-1d", "--inputs", "own_functions:draw_x"], "--inputs .*'gp-1d' is a shipped prior"),
    "range": (["own_functions:draw", "--num-context", "0"], r"num_context must be \(0, n\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_ends_with_its_message(name: str, run: Callable[..., None]) -> None:
    arguments, words = MISTAKES[name]
    with pytest.raises(SystemExit) as caught:
        run("train", *arguments, "--output", "trained", "--steps", "1")
    assert re.search(words, str(caught.value.code)) and not Path("trained/config.json").exists()


def test_evaluate_refuses_a_function_of_another_shape(run: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"a model of the prior 'draw' must have .* latents \[\]; gaussian has .*tau"):
        run("evaluate", "gaussian", "--prior", "own_functions:draw")
    with pytest.raises(SystemExit, match="outcome must be a sample site of every run of the program"):
        run("evaluate", "gaussian", "--prior", "own_functions:program", "--inputs", "own_functions:draw_x")


def test_what_a_module_lacks_is_not_taken_for_the_module(run: Callable[..., None]) -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        run("train", "needs_more:draw", "--output", "trained")


def test_functions_of_packages_are_found() -> None:
    assert find_function("pyro_arbuf.priors.sawtooth:sawtooth").__name__ == "sawtooth"


def test_help_shows_how_to_name_a_function(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "pyro-arbuf train my_module:draw --output my_prior --minutes 8" in shown
    assert "pyro-arbuf train my_module:program --inputs my_module:draw_x" in shown


def test_options_reach_amortize_as_it_takes_them(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def note(function: Callable, **options: object) -> None:
        given.append((function.__name__, options))

    monkeypatch.setattr(train_module, "amortize", note)
    run("train", "own_functions:program", "--output", "o", "--outcome", "choice", "rt", "--latents", "--minutes", "2")
    run("train", "own_functions:draw", "--output", "o", "--width", "8", "--seed", "3", "--batch-size", "5")
    run("train", "own_functions:draw", "--output", "o", "--architecture", "lbanp-buffer")
    run("train", "own_functions:draw", "--output", "o", "--outcomes", "count", "real")
    assert given[3][1]["outcomes"] == ("count", "real") and "outcomes" not in given[2][1]
    with pytest.raises(SystemExit, match="--outcomes is for a plain function, and own_functions:program is"):
        run("train", "own_functions:program", "--output", "o", "--outcomes", "count")
    assert given[2][1]["architecture"] == "lbanp-buffer"
    limits = {"minutes": None, "steps": None, "batch_size": 5}
    assert given[1] == ("draw", {"folder": Path("o"), "resume": False, "seed": 3, "width": 8} | limits)
    assert given[0][1]["latents"] == [] and given[0][1]["outcome"] == ("choice", "rt") and given[0][1]["minutes"] == 2
