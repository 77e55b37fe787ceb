r"""Psychometric function: choices that follow the intensity of a stimulus, with their exact posterior and evidence.

An observer guesses right with probability 1/2, and lapses at any intensity with probability lambda:

    p(x) = P(y = 1) = 1/2 + (1 - 1/2 - lambda) sigmoid(slope (x - threshold)).

There are three latents, so that posterior and evidence are sums over a grid. The grid stands in coordinates in which
the prior is standard normal: the integrand is smooth there and decays like a Gaussian, and the sum converges faster
than any power of the spacing. This module knows nothing of networks.

Source:
    Wichmann & Hill (2001), The psychometric function: I. Fitting, sampling, and goodness of fit.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LATENTS = ("threshold", "slope", "lapse")
GUESS = 0.5
LOG_SLOPE = (1.0, 0.5)  # mean and sd
LAPSE_TAIL = 19.0  # P(lapse > v) = (1 - v)^19: Beta(1, 19)
INTENSITY_BOUND = 3.0
START, NUM_COARSE, NUM_PASSES = 16.0, 25, 4  # the search for the mass: half-width, nodes, how often
DROP = 25.0  # nats below the peak at which the box of the grid ends

Axes = Sequence[Tensor]  # nodes along each of the three coordinates
Box = Sequence[tuple[float, float]]  # ends of its three sides


def log_odds(x: Tensor, threshold: Tensor, slope: Tensor, lapse: Tensor) -> Tensor:
    r"""Log odds log p - log(1 - p) of choice 1 at each intensity.

    Both p = g s(-z) + (1 - lapse) s(z) and 1 - p = (1 - g) s(-z) + lapse s(z) are sums of positive terms, with s the
    sigmoid and z = slope (x - threshold). In log space nothing cancels, however large z is and however small the lapse.

    Args:
        x: `(*batch, n, 1)` intensities.
        threshold: `(*batch, 1)` or scalar, in units of x.
        slope: The same, > 0, per unit of x.
        lapse: The same, in (0, 1).

    Returns:
        `(*batch, n)`; gradients are finite.

    Example:
        >>> log_odds(torch.tensor([[-900.0], [900.0]]), *torch.tensor([0.0, 3.0, 0.01])).sigmoid()
        tensor([0.5000, 0.9900])
    """
    z = slope * (x[..., 0] - threshold)
    log_p = torch.logaddexp(math.log(GUESS) + logsigmoid(-z), torch.log1p(-lapse) + logsigmoid(z))
    log_q = torch.logaddexp(math.log1p(-GUESS) + logsigmoid(-z), lapse.log() + logsigmoid(z))
    return log_p - log_q


def psychometric(x: Tensor) -> Tensor:
    """Pyro program of choices about a stimulus of graded intensity.

    Sites: threshold ~ N(0, 1), slope ~ LogNormal(1, 0.5), lapse ~ Beta(1, 19), and in the plate "trials"
    y ~ Bernoulli(p(x)), 1 where the choice is correct.

    Args:
        x: `(*batch, n, 1)` intensity of each trial, n >= 1, in [-3, 3]; see `draw_intensities`.

    Returns:
        Choices 0 or 1, `(n,)`, or `(B, n)` under an outer plate of size B and dim -2.
    """
    threshold = pyro.sample("threshold", dist.Normal(x.new_tensor(0.0), 1.0))
    slope = pyro.sample("slope", dist.LogNormal(x.new_tensor(LOG_SLOPE[0]), LOG_SLOPE[1]))
    lapse = pyro.sample("lapse", dist.Beta(x.new_tensor(1.0), LAPSE_TAIL))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Bernoulli(logits=log_odds(x, threshold, slope, lapse)))


def draw_intensities(num_trials: int) -> Tensor:
    """Draws inputs `(num_trials, 1)`, uniform on [-3, 3], from torch's global generator."""
    return INTENSITY_BOUND * (2.0 * torch.rand(num_trials, 1) - 1.0)


def log_likelihood(x: Tensor, y: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Exact log probability of the choices of one data set at many values of the latents.

    Args:
        x: `(n, 1)` intensities, n >= 0.
        y: `(n,)` choices, 0 or 1.
        latents: "threshold", "slope" and "lapse", each `(S,)`.

    Returns:
        `(S,)` nats; differentiable in the latents.

    Raises:
        ValueError: If x or y has another shape, or a choice is neither 0 nor 1.
    """
    _check_choices(x, y)
    logits = log_odds(x, *(latents[name].unsqueeze(-1) for name in LATENTS))  # (S, n)
    return dist.Bernoulli(logits=logits, validate_args=False).log_prob(y.to(logits.dtype)).sum(-1)


class GridPosterior(NamedTuple):
    """The posterior as masses of cells, in coordinates in which the prior is standard normal.

    Attributes:
        axes: Three tensors `(G_1,)`, `(G_2,)`, `(G_3,)` float64, the centres of the cells along each coordinate.
        log_mass: `(G_1, G_2, G_3)` float64, log posterior mass of every cell; the masses sum to 1.
        log_evidence: Scalar float64, log probability of the choices, latents integrated out, nats.
        error: Scalar float64, by how much `log_evidence` changes where every second node is left out, nats. It is above
            the error of `log_evidence`: with twice the nodes an error is about squared.
    """

    axes: Axes
    log_mass: Tensor
    log_evidence: Tensor
    error: Tensor

    @torch.no_grad()
    def sample(self, num_draws: int) -> dict[str, Tensor]:
        """Independent draws from torch's global generator, uniform inside a cell.

        Cells add a twelfth of their squared width to the variance along each coordinate.

        Args:
            num_draws: S.

        Returns:
            "threshold", "slope" and "lapse", each `(S,)` float64.
        """
        cumulative = self.log_mass.exp().flatten().cumsum(0)
        uniform = torch.rand(num_draws, dtype=torch.float64) * cumulative[-1]
        cells = torch.unravel_index(torch.searchsorted(cumulative, uniform, right=True), self.log_mass.shape)
        jitter = torch.rand(3, num_draws, dtype=torch.float64) - 0.5
        return _from_normal(
            axis[cell] + _spacing(axis) * shift for axis, cell, shift in zip(self.axes, cells, jitter, strict=True)
        )


@torch.no_grad()
def exact_posterior(x: Tensor, y: Tensor, num_points: tuple[int, int, int] = (193, 65, 65)) -> GridPosterior:
    """Exact posterior and evidence of one data set on a grid around the mass, in double precision.

    The box is found on a coarse grid, several times: it ends at 25 nats below the peak, and one cell beyond. Most nodes
    go to the threshold, along which steep slopes make steps.

    Args:
        x: `(n, 1)` intensities, n >= 0.
        y: `(n,)` choices, 0 or 1.
        num_points: Nodes for threshold, slope and lapse, odd.

    Returns:
        Masses of the cells, log evidence and its error.

    Raises:
        ValueError: If x or y has another shape, a choice is neither 0 nor 1, or a number of nodes is even or below 9.

    Example:
        >>> posterior = exact_posterior(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.0, 1.0]))
        >>> f"{posterior.log_evidence:.6f}, {bool(posterior.error < 1e-4)}"
        '-0.987703, True'
    """
    _check_choices(x, y)
    if any(number < 9 or number % 2 == 0 for number in num_points):
        raise ValueError(
            f"num_points must be three odd numbers of at least 9, so that the grid can be halved; got {num_points}; "
            "(193, 65, 65) is the default"
        )
    box: Box = [(-START, START)] * 3
    for _ in range(NUM_PASSES):
        axes = _axes(box, [NUM_COARSE] * 3)
        box = _box(axes, _log_joint(x, y, axes))
    axes = _axes(box, num_points)
    log_joint = _log_joint(x, y, axes)
    log_sum = log_joint.logsumexp((0, 1, 2))
    half = log_joint[::2, ::2, ::2].logsumexp((0, 1, 2)) + 3 * math.log(2)
    log_volume = math.fsum(math.log(_spacing(axis)) for axis in axes)
    return GridPosterior(axes, log_joint - log_sum, log_sum + log_volume, (log_sum - half).abs())


def _log_joint(x: Tensor, y: Tensor, axes: Axes) -> Tensor:
    """Log prior density plus log likelihood at all nodes, `(G_1, G_2, G_3)`.

    As `log_likelihood`, with the logarithm taken last: float64 allows it, and one sigmoid then serves all lapses.
    """
    threshold, slope, lapse = _from_normal(axes).values()
    z = slope[:, None] * (x[:, 0].double() - threshold[:, None, None])  # (G_1, G_2, n)
    one = y == 1
    guessed, seen = torch.where(one, GUESS, 1 - GUESS) * torch.sigmoid(-z), torch.sigmoid(z)
    slices = [(guessed + torch.where(one, 1 - value, value) * seen).log().sum(-1) for value in lapse]
    first, second, third = (-0.5 * axis.square() - 0.5 * math.log(2 * math.pi) for axis in axes)
    return torch.stack(slices, -1) + first[:, None, None] + second[:, None] + third


def _from_normal(coordinates: Iterable[Tensor]) -> dict[str, Tensor]:
    """Latents at three coordinates in which the prior is standard normal, by quantiles."""
    threshold, log_slope, lapse = coordinates
    log_rest = torch.special.log_ndtr(-lapse) / LAPSE_TAIL  # of 1 - lapse
    values = threshold, (LOG_SLOPE[0] + LOG_SLOPE[1] * log_slope).exp(), -torch.expm1(log_rest)
    return dict(zip(LATENTS, values, strict=True))


def _axes(box: Box, num_points: Sequence[int]) -> Axes:
    """Evenly spaced nodes along the three sides of a box."""
    sides = zip(box, num_points, strict=True)
    return [torch.linspace(low, high, number, dtype=torch.float64) for (low, high), number in sides]


def _spacing(axis: Tensor) -> float:
    return (axis[1] - axis[0]).item()


def _box(axes: Axes, log_joint: Tensor) -> Box:
    """Bounds of the nodes within `DROP` of the peak, and one cell more."""
    inside = log_joint > log_joint.max() - DROP
    kept = [axis[inside.any(others)] for axis, others in zip(axes, ((1, 2), (0, 2), (0, 1)), strict=True)]
    steps = [_spacing(axis) for axis in axes]
    return [(nodes[0].item() - step, nodes[-1].item() + step) for nodes, step in zip(kept, steps, strict=True)]


def _check_choices(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] != 1:
        raise ValueError(f"x must have shape (n, 1), one data set; got {tuple(x.shape)}; use x[i] or x[:, None]")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), one choice per row of x; got {tuple(y.shape)}")
    wrong = y[(y != 0) & (y != 1)]
    if len(wrong):
        raise ValueError(f"y must be 0 or 1; got {wrong[0].item():g}; code the two choices so and drop missing ones")
