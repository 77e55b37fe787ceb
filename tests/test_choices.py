"""What networks of choices and counts are measured against is right, and the tables are printed."""

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyro
import pytest
import torch
from torch import Tensor

from pyro_arbuf.priors.ddm import ddm_choice_rt, draw_coherence
from pyro_arbuf.priors.psychometric import LATENTS, exact_posterior, psychometric
from pyro_arbuf.random_state import seeded

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("choices")


@pytest.fixture
def poisson(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("poisson_regression")


def exact_draws(x: Tensor, y: Tensor, num_draws: int, width: float = 1.0) -> Tensor:
    draws = torch.stack([exact_posterior(x, y, (97, 33, 33)).sample(num_draws)[name] for name in LATENTS], -1)
    return draws.mean(0) + width * (draws - draws.mean(0))


def test_monkeys_choose_better_at_higher_intensities(choices: ModuleType) -> None:
    for monkey in choices.MONKEYS:
        x, y = choices.monkey_choices(monkey)
        assert x.shape == (400, 1) and y.shape == (400,) and x.dtype == y.dtype == torch.float32
        levels, counts = x.unique(return_counts=True)
        assert levels.tolist() == [-2, -1, 0, 1, 2] and counts.tolist() == [80] * 5
        share = [y[x[:, 0] == level].mean().item() for level in levels]
        assert share == sorted(share) and 0.5 < share[0] < 0.7 and share[-1] > 0.95
        assert all(torch.equal(a, b) for a, b in zip(choices.monkey_choices(monkey), (x, y), strict=True))


def test_choices_of_monkeys_are_within_the_prior(choices: ModuleType) -> None:
    for monkey in choices.MONKEYS:
        x, y = choices.monkey_choices(monkey, 200)
        posterior = exact_posterior(x, y, (65, 33, 33))
        draws = posterior.sample(4000)
        assert posterior.error < 1e-2
        assert -2 < draws["threshold"].mean() < 0 and 1 < draws["slope"].mean() < 4 and draws["lapse"].mean() < 0.03


def test_data_sets_are_the_same_every_time(choices: ModuleType) -> None:
    first, again = (choices.simulate(psychometric, choices.draw_intensities, 3, 5) for _ in range(2))
    assert [part.shape for part in first] == [(3, 5, 1), (3, 5)] and len(first[0].unique()) == 15
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    both = choices.simulate(ddm_choice_rt, draw_coherence, 3, 5)
    assert [part.shape for part in both] == [(3, 5, 1), (3, 5), (3, 5)]


def wider(draws: Tensor, reference: Tensor) -> float:
    """In place of the C2ST, which takes a second per data set: 1/2 if no latent's spread differs, more if it does."""
    return 0.5 + (draws.std(0) / reference.std(0)).log().abs().max().item()


def test_exact_draws_score_half_and_narrow_ones_more(choices: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "c2st", wider)
    x, y = (part[0] for part in choices.simulate(psychometric, choices.draw_intensities, 1, 30))
    off = exact_posterior(x, y).log_evidence + 0.5
    score = choices.score_psychometric(exact_draws, lambda a, b: off, x, y, 2000, 0)
    narrow = choices.score_psychometric(lambda *rest: exact_draws(*rest, width=0.7), lambda a, b: off, x, y, 2000, 0)
    assert score.c2st < 0.65 and 0.75 < narrow.c2st < 1.0
    assert score.evidence_error == pytest.approx(0.5, abs=1e-5) and score.grid_error < 1e-4


def run(choices: ModuleType, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    choices.main(num_sets=2)
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert table[2].startswith("| | measured") and len(table) >= 5
    return json.loads(line)


def stand_in(choices: ModuleType, monkeypatch: pytest.MonkeyPatch, latents: tuple[str, ...], draw: object) -> None:
    """Puts exact draws in the place of a network."""
    net = SimpleNamespace(latents=latents, config=None)
    coarse = functools.partial(exact_posterior, num_points=(65, 33, 33))
    few = functools.partial(choices.monkey_choices, num_trials=50)
    monkeypatch.setattr(choices, "monkey_choices", few)
    monkeypatch.setattr(choices, "MANY_DRAWS", 2000)
    monkeypatch.setattr(choices, "exact_posterior", coarse)
    monkeypatch.setattr(choices, "c2st", wider)
    monkeypatch.setattr(choices.pyro_arbuf, "load", lambda name: net)
    monkeypatch.setattr(choices, "posterior_draws", draw)
    monkeypatch.setattr(choices, "consistency_rows", lambda *args: [])


def test_psychometric_prints_a_table(
    choices: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(choices, monkeypatch, LATENTS, lambda net, x, y, number: choices.exact_posterior(x, y).sample(number))
    monkeypatch.setattr(
        choices,
        "log_evidence",
        lambda net, x, y: SimpleNamespace(value=choices.exact_posterior(x, y).log_evidence + 0.3),
    )
    result = run(choices, capsys)
    assert result["c2st"][0] < 0.65 and result["evidence_rmse"]["psychometric"] == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("num_trials", [1, 20, 100])
def test_poisson_reference_is_trustworthy(poisson: ModuleType, num_trials: int) -> None:
    for seed in range(4):
        with seeded(seed):
            x = poisson.draw_predictors(num_trials)
            y = poisson.poisson_regression(x)
        reference = poisson.reference_posterior(x, y, 1000, 20_000)
        assert reference.k_hat < 0.5 and reference.standard_error < 0.01
        assert len(reference.draws.unique(dim=0)) == 1000


def test_poisson_reference_agrees_with_importance_sampling_from_the_prior(poisson: ModuleType) -> None:
    with seeded(3):
        x = poisson.draw_predictors(3)
        y = poisson.poisson_regression(x)
        theirs = poisson.prior().sample((400_000,))
    likelihood = (poisson.log_joint_of(x, y)(theirs) - poisson.prior().log_prob(theirs).sum(-1)).exp()
    reference = poisson.reference_posterior(x, y, 10_000)
    error = likelihood.std() / likelihood.mean() / len(likelihood) ** 0.5
    assert (likelihood.mean().log() - reference.log_evidence).abs() < 5 * (error + reference.standard_error)
    weight = (likelihood / likelihood.sum())[:, None]
    for power in (1, 2):
        mean = (weight * theirs**power).sum(0)
        variance = (weight.square() * (theirs**power - mean).square()).sum(0) + (reference.draws**power).var(0) / 10_000
        assert (((reference.draws**power).mean(0) - mean).abs() < 5 * variance.sqrt()).all()


def test_poisson_reference_has_the_density_of_the_program(poisson: ModuleType) -> None:
    with seeded(4):
        x = poisson.draw_predictors(7).double()
        with pyro.plate("datasets", 5, dim=-2):
            trace = pyro.poutine.trace(poisson.poisson_regression).get_trace(x)
            trace.compute_log_prob()
    values = {name: trace.nodes[name]["value"].squeeze(1) for name in ("intercept", "weights", "y")}
    together = sum(trace.nodes[name]["log_prob"].sum(-1) for name in values)
    latents = torch.cat([values["intercept"][:, None], values["weights"]], 1)
    assert values["y"].shape == (5, 7)
    for i in range(5):
        ours = poisson.log_joint_of(x, values["y"][i])(latents[i : i + 1])[0]
        torch.testing.assert_close(ours, together[i])
