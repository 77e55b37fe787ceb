"""`pyro-arbuf check` and `card`, and what all commands have in common."""

import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from prose import HEADINGS, too_long

from pyro_arbuf import cli, save
from pyro_arbuf.cli import check as check_module
from pyro_arbuf.cli.card import card_of
from pyro_arbuf.cli.commands import COMMANDS
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs import calibration
from pyro_arbuf.programs.ranks import LEVELS, central_coverage, rank_p_values
from pyro_arbuf.programs.reports import SMALLEST_P
from pyro_arbuf.training.loop import make_optimizers
from pyro_arbuf.training.run_state import RunState

MODULE = """
import torch


def draw(batch_size, num_points, generator):
    x = torch.rand(batch_size, num_points, 1, generator=generator)
    return x, torch.randn(batch_size, num_points, generator=generator)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `pyro-arbuf` with arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("noise_prior.py").write_text(MODULE)

    def call(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["pyro-arbuf", *arguments])
        cli.main()

    return call


def test_check_fails_where_intervals_do_not_hold_what_they_say(
    run: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    save(tiny.tiny_model(prior="gp-1d", x_range=(-2.0, 2.0)), "net")
    with pytest.raises(SystemExit, match=r"the check of net failed: with 8 observations, \d+% of the outcomes lie in"):
        run("check", "net")
    printed = capsys.readouterr().out
    assert printed.startswith("net loads\n") and "x: 1 column, -2 to 2" in printed and "buffer: 4 slots" in printed
    assert "observed: 0 to 8 in training" in printed


def test_check_passes_a_network_that_knows_its_prior(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    net = tiny.tiny_model(head="gaussian", prior="noise_prior:draw")
    with torch.no_grad():  # standard normal whatever it reads, as the prior is
        net.head.out.weight.zero_()
        net.head.out.bias.copy_(torch.tensor([0.0, 0.0, 0.5413]))
    save(net, "net")
    run("check", "net", "--prior", "noise_prior:draw")
    *_, headings, row, _, legend = capsys.readouterr().out.splitlines()
    assert headings.split("  ")[-1].strip() == "in 90%" and legend.startswith("joint, independent: log density")
    shares = [float(cell) for cell in row.split()[-2:]]
    assert shares == pytest.approx([0.5, 0.9], abs=0.05)


def test_check_of_an_unknown_prior_says_what_to_name(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    save(tiny.tiny_model(prior="mine"), "net")
    run("check", "net")
    assert "the prior 'mine' is no shipped one; name it by --prior module:function" in capsys.readouterr().out


@pytest.mark.parametrize("uniform", [True, False])
def test_check_ranks_the_latents_of_a_program(
    uniform: bool, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ranks = torch.arange(200)[:, None] % 100 if uniform else torch.zeros(200, 1, dtype=torch.int64)
    p_values, coverage = rank_p_values(ranks, 99), central_coverage(ranks, 99)
    some = torch.full((1,), 0.3)
    gain = torch.linspace(1, 2, 200)
    found = calibration.Calibration(["mu"], ranks, 99, p_values, LEVELS, coverage, some, some, gain, ranks[:, 0])
    monkeypatch.setattr(check_module, "calibrate", lambda net, datasets, **_: found)
    run_check = ("check", "gaussian", "--datasets", "200")
    if not uniform:
        assert found.p_value < SMALLEST_P
        with pytest.raises(SystemExit, match="the check of gaussian failed: ranks are not uniform"):
            run(*run_check)
        return
    run(*run_check)
    printed = capsys.readouterr().out
    assert "latents: tau, mu" in printed and "mu" in printed.splitlines()[-4]
    assert printed.splitlines()[-1] == "The posterior is calibrated and learned from the data."


def test_card_says_what_the_folder_knows(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    save(tiny.tiny_model(prior="mine", x_range=(-2.0, 2.0)), "net")
    Path("net/training.json").write_text(json.dumps({"steps": 12345, "minutes": 7.5, "validation": -0.5}))
    run("card", "net")
    text = Path("net/README.md").read_text()
    assert "# net\n" in text and "- The context has 0 to 8 observed pairs.\n" in text
    assert "- The input x has 1 column: -2 to 2.\n" in text and "12,345 steps and 7.5 minutes" in text
    assert "The score in validation was -0.5000 nats per target." in text
    assert f"{text.count('FILL IN')} places" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"net/README\.md exists, and a new card would replace it; use --overwrite"):
        run("card", "net")
    run("card", "net", "--overwrite")


def test_card_takes_the_state_of_an_amortized_run(run: Callable[..., None]) -> None:
    net = tiny.tiny_model(latents=(Latent("slope", (), None, None, False, (0.0,), (1.0,)),), num_y_frequencies=2)
    save(net, "net")
    RunState(best_score=-1.25, step=70).save(Path("net/state.safetensors"), net, make_optimizers(net))
    run("card", "net", "--output", "card.md")
    text = Path("card.md").read_text()
    assert "70 steps" in text and "-1.2500" in text and 'the latents "slope".' in text and "ArBufferPosterior" in text


def test_damaged_record_is_said(run: Callable[..., None]) -> None:
    save(tiny.tiny_model(), "net")
    Path("net/training.json").write_text("{")
    with pytest.raises(SystemExit, match=r"net/training\.json is damaged: .*; remove it"):
        run("card", "net")


def test_card_has_the_headings_of_the_shipped_ones_and_short_sentences() -> None:
    for config in (ModelConfig(), tiny.tiny_model(prior="mine", dim_y=2, outcomes=("count", "real")).config):
        text = card_of("mine", config, {"steps": 3, "minutes": 1.0, "validation": 0.5})
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
        assert too_long(text) == []


def test_card_is_refused_in_a_folder_that_is_not_there(run: Callable[..., None]) -> None:
    save(tiny.tiny_model(), "net")
    with pytest.raises(SystemExit, match=r"--output must be in a folder that exists; got cards/mine\.md"):
        run("card", "net", "--output", "cards/mine.md")
    assert not Path("cards").exists()


@pytest.mark.parametrize("folder", ["gp-1d", "file", "nowhere"])
def test_card_is_of_a_folder(run: Callable[..., None], folder: str) -> None:
    Path("file").write_text("")
    with pytest.raises(SystemExit, match=f"FOLDER must be a folder of a network of your own; got {folder}"):
        run("card", folder)


def test_card_has_places_to_fill_in_without_a_record() -> None:
    assert "FILL IN: how long, and on what machine." in card_of("mine", ModelConfig(), {})


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_has_an_example_of_every_command(
    command: str, run: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code in (0, None) and f"pyro-arbuf {command} " in capsys.readouterr().out.replace("\n", " ")


def test_warnings_and_progress_go_to_stderr(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def noisy() -> None:
        """Warns."""
        warnings.warn("this and that", stacklevel=1)
        print("result")

    monkeypatch.setitem(COMMANDS, "noisy", noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run("noisy")
    printed = capsys.readouterr()
    assert printed.out == "result\n" and printed.err == "pyro-arbuf: warning: this and that\n"
