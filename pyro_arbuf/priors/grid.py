"""Exact posterior of two latents on a grid, in coordinates in which their prior is standard normal.

The integrand is smooth there and decays like a Gaussian, so the sum over evenly spaced nodes converges faster than any
power of the spacing. This module knows nothing of networks, nor of any likelihood.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

START, NUM_COARSE, NUM_PASSES = 8.0, 65, 4  # the search for the mass: half-width, nodes, how often
MOST_PASSES = 20  # of them, where the mass lies beyond the first box
DROP = 25.0  # nats below the peak at which the box of the grid ends

Latents = dict[str, Tensor]
FromNormal = Callable[[Tensor], Latents]


class GridPosterior(NamedTuple):
    """A posterior of two latents as masses of cells.

    Attributes:
        from_normal: Latents at coordinates `(..., 2)`.
        axes: Two tensors `(G_1,)`, `(G_2,)` float64, the centres of the cells along each coordinate.
        log_mass: `(G_1, G_2)` float64, log posterior mass of every cell; the masses sum to 1.
        log_evidence: Scalar float64, log density of the data, latents integrated out, nats.
        error: Scalar float64, by how much `log_evidence` changes where every second node is left out, nats. It is above
            the error of `log_evidence`: with twice the nodes an error is about squared.
    """

    from_normal: FromNormal
    axes: Sequence[Tensor]
    log_mass: Tensor
    log_evidence: Tensor
    error: Tensor

    @torch.no_grad()
    def sample(self, num_draws: int) -> Latents:
        """Independent draws from torch's global generator, uniform inside a cell.

        Cells add a twelfth of their squared width to the variance along each coordinate.

        Args:
            num_draws: S.

        Returns:
            Every latent `(S,)` float64.
        """
        cumulative = self.log_mass.exp().flatten().cumsum(0)
        uniform = torch.rand(num_draws, dtype=torch.float64) * cumulative[-1]
        cells = torch.unravel_index(torch.searchsorted(cumulative, uniform, right=True), self.log_mass.shape)
        jitter = torch.rand(2, num_draws, dtype=torch.float64) - 0.5
        parts = zip(self.axes, cells, jitter, strict=True)
        return self.from_normal(torch.stack([axis[cell] + _spacing(axis) * shift for axis, cell, shift in parts], -1))


@torch.no_grad()
def grid_posterior(
    log_likelihood: Callable[[Latents], Tensor], from_normal: FromNormal, num_points: tuple[int, int]
) -> GridPosterior:
    """Exact posterior and evidence on a grid around the mass, in double precision.

    The box is found on a coarse grid, several times: it ends at 25 nats below the peak, and one cell beyond. Where the
    mass reaches its end it is widened.

    Args:
        log_likelihood: Of latents `(S,)` each, returns `(S,)` nats.
        from_normal: Latents at coordinates `(..., 2)` in which the prior is standard normal.
        num_points: Nodes along the two coordinates, odd.

    Raises:
        ValueError: If a number of nodes is even or below 9, or the mass is not found.
    """
    if any(number < 9 or number % 2 == 0 for number in num_points):
        raise ValueError(
            f"num_points must be two odd numbers of at least 9, so that the grid can be halved; got {num_points}; "
            "(257, 129) is the default"
        )

    def log_joint(axes: Sequence[Tensor]) -> Tensor:
        z = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        latents = {name: value.flatten() for name, value in from_normal(z).items()}
        density = log_likelihood(latents).view(z.shape[:2]) - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        return density.masked_fill(density.isnan(), -math.inf)  # at ends of a support, as they are rounded

    axes = _axes(_find_box(log_joint), num_points)
    density = log_joint(axes)
    total = density.logsumexp((0, 1))
    half = density[::2, ::2].logsumexp((0, 1)) + 2 * math.log(2)
    log_volume = math.fsum(math.log(_spacing(axis)) for axis in axes)
    return GridPosterior(from_normal, axes, density - total, total + log_volume, (total - half).abs())


def _find_box(log_joint: Callable[[Sequence[Tensor]], Tensor]) -> list[tuple[float, float]]:
    box, inside = [(-START, START)] * 2, 0
    for _ in range(MOST_PASSES):
        axes = _axes(box, (NUM_COARSE, NUM_COARSE))
        box, at_end = _box(axes, log_joint(axes))
        inside = 0 if at_end else inside + 1
        if inside == NUM_PASSES:
            return box
    raise ValueError(
        "the posterior must lie within some hundred standard deviations of the prior; the search for it ended at "
        f"{box} of them; check the units of the data"
    )


def _axes(box: Sequence[tuple[float, float]], num_points: Sequence[int]) -> list[Tensor]:
    """Evenly spaced nodes along the two sides of a box."""
    sides = zip(box, num_points, strict=True)
    return [torch.linspace(low, high, number, dtype=torch.float64) for (low, high), number in sides]


def _spacing(axis: Tensor) -> float:
    return (axis[1] - axis[0]).item()


def _box(axes: Sequence[Tensor], log_joint: Tensor) -> tuple[list[tuple[float, float]], bool]:
    """Bounds of the nodes within `DROP` of the peak, and one cell more; many cells where they end with an axis.

    And whether they end with one.
    """
    inside, box, at_end = log_joint > log_joint.max() - DROP, [], False
    for axis, other in zip(axes, (1, 0), strict=True):
        kept, cell = inside.any(other), _spacing(axis)
        at_ends = [bool(kept[0]), bool(kept[-1])]
        low, high = (NUM_COARSE * cell if end else cell for end in at_ends)
        box.append((axis[kept][0].item() - low, axis[kept][-1].item() + high))
        at_end = at_end or any(at_ends)
    return box, at_end
