"""Simulated data sets, and whether two ways to simulate them have the same law."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Simulations(NamedTuple):
    """Data sets drawn from a program.

    Attributes:
        latents: `(B, P)`, unconstrained.
        x: `(B, n, D_x)` inputs.
        y: `(B, n, D_y)` outcomes, D_y = 1 for a scalar outcome.
    """

    latents: Tensor
    x: Tensor
    y: Tensor


class Bank(NamedTuple):
    """A fixed set of simulations, where simulating is slow or not to be repeated.

    Attributes:
        drawn: Simulations to train on.
        held_out: Simulations to validate on.
    """

    drawn: Simulations
    held_out: Simulations


def hold_out(drawn: Simulations, number: int) -> Bank:
    """Divides data sets: the first ones are held out."""
    return Bank(*(Simulations(*(part[rows] for part in drawn)) for rows in (slice(number, None), slice(number))))


def some_trials(drawn: Simulations, num_trials: int, series: bool) -> Simulations:
    """Some trials of each data set: the first ones of a series, else random ones in random order."""
    latents, x, y = drawn
    if series:
        return Simulations(latents, x[:, :num_trials], y[:, :num_trials])
    if x.shape[1] > 1:
        trials = torch.rand(x.shape[:2]).argsort(1)[:, :num_trials, None]  # exchangeable: any order
        x, y = (t.gather(1, trials.expand(-1, -1, t.shape[-1])) for t in (x, y))
    return Simulations(latents, x, y)


def joined(parts: Sequence[Simulations]) -> Simulations:
    """The data sets of all parts."""
    return Simulations(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _summaries(drawn: Simulations, like: Simulations) -> tuple[Tensor, Tensor]:
    """Numbers `(B, .)` that tell a data set's latents and outcomes, without heavy tails."""
    pooled = like.y.flatten(0, 1)
    y_loc, theta_loc = pooled.median(0).values, like.latents.median(0).values
    y_scale = (pooled - y_loc).abs().median(0).values
    theta_scale = like.latents.std(0) if like.latents.shape[1] else like.latents.new_ones(0)  # torch warns of none
    y_scale = torch.where(y_scale > 0, y_scale, pooled.std(0))  # where most are equal, as choices and small counts are
    y = torch.asinh((drawn.y - y_loc) / y_scale.clamp(min=1e-12))  # (B, n, D_y)
    theta = torch.asinh((drawn.latents - theta_loc) / theta_scale.clamp(min=1e-12))
    products = torch.einsum("bnx,bny->bxy", drawn.x, y).flatten(1) / y.shape[1]
    return theta, torch.cat([y.mean(1), (y * y).mean(1), products], -1)


def same_law(a: Simulations, b: Simulations) -> bool:
    """Whether moments of b are those of a, single runs, within 5 standard errors.

    Of latents and outcomes of a data set, and of what is left of the outcomes after a's regression on latents and
    inputs.
    """

    def regressors(drawn: Simulations) -> Tensor:
        theta = _summaries(drawn, a)[0]
        return torch.cat([torch.ones_like(theta[:, :1]), theta, drawn.x.mean(1)], -1)

    slopes = torch.linalg.lstsq(regressors(a), _summaries(a, a)[1], driver="gelsd").solution

    def features(drawn: Simulations) -> Tensor:
        theta, outcome = _summaries(drawn, a)
        given = regressors(drawn)
        rest = outcome - given @ slopes
        mixed = (given.unsqueeze(-1) * rest.unsqueeze(-2)).flatten(1)
        return torch.cat([theta, theta**2, outcome, outcome**2, rest**2, mixed], -1)

    one, other = features(a), features(b)
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    return bool(((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-6).all())


def independent(runs: list[Simulations], like: Simulations) -> bool:
    """Whether data sets of one run are uncorrelated: the mean product of two of them, within 5 standard errors."""
    z = torch.stack([torch.cat(_summaries(run, like), -1) for run in runs])  # (runs, B, .)
    z = (z - z.mean((0, 1))) / z.std((0, 1)).clamp(min=1e-6)
    pairs = z.shape[1] * (z.shape[1] - 1)
    products = (z.sum(1) ** 2 - (z**2).sum(1)) / pairs
    return bool((products.mean(0).abs() <= 5 * (2 / pairs / len(runs)) ** 0.5).all())
