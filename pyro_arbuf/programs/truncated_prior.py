"""A program's prior, truncated to where the posterior of one observation has mass: what a second round simulates from.

The posterior under it is the posterior under the prior, inside the region; no weights are needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.programs.same_law import Simulations
from pyro_arbuf.programs.scales import standardised
from pyro_arbuf.programs.simulator import Simulator, unconstrained_log_prior
from pyro_arbuf.random_state import seeded

NUM_DRAWS = 10_000  # of the posterior, the least likely of which bounds the region
NUM_WALKERS, NUM_SWEEPS, FEWEST_WALKERS = 2_000, 60, 4
NUM_CHECKED, NUM_COUNTED = 4, 2_000  # draws of the prior: whether it has a density; how much of it a region holds
FIRST_KEPT, KEPT_EVERY = 30, 3  # sweeps
JUMP_EVERY = 10  # sweeps, by a whole difference of two walkers: from mode to mode


class Region(NamedTuple):
    """Where the posterior of one observation has mass, by its density over the prior's.

    Attributes:
        simulator: Of the program.
        posterior: Of the observation, by the network of a round.
        least: Smallest log ratio of the two densities inside.
        before: The region of the round before, of which it is a part; `None` = there is none.
    """

    simulator: Simulator
    posterior: ArBufferPosterior
    least: float
    before: "Region | None" = None

    def log_prior(self, latents: Tensor) -> Tensor:
        """Log density `(S,)` of the prior at unconstrained latents `(S, P)`."""
        return unconstrained_log_prior(self.simulator, self.simulator.latents, latents)

    def log_ratio(self, latents: Tensor) -> Tensor:
        """Log density of the posterior less that of the prior, `(S,)`, at unconstrained latents `(S, P)`."""
        return self.posterior.log_prob(latents) - self.log_prior(latents)

    def holds(self, latents: Tensor) -> Tensor:
        """Whether unconstrained latents `(S, P)` lie inside, `(S,)` bool."""
        ratio = self.log_ratio(latents)
        inside = ratio.isfinite() & (ratio >= self.least)
        return inside if self.before is None else inside & self.before.holds(latents)


def check_rounds(observation: object, rounds: object) -> None:
    """Raises ValueError unless `observation` is `None` or a pair, and `rounds` an integer of at least 2."""
    if observation is not None and not (isinstance(observation, tuple | list) and len(observation) == 2):
        raise ValueError(
            f"observation must be a pair (x, y), inputs and outcomes of one data set; got {type(observation).__name__}"
        )
    check_count("rounds", rounds, 2)


@torch.no_grad()
def check_prior(simulator: Simulator) -> None:
    """Raises ValueError unless a program has latents, and its prior a density, by which it can be truncated."""
    if not simulator.latents:
        raise ValueError(
            "observation needs a program with latents, whose prior is truncated; got one with latents=[]; name them, "
            "or leave observation out"
        )
    with seeded(0):
        unconstrained_log_prior(simulator, simulator.latents, simulator.draw_prior(NUM_CHECKED))


@torch.no_grad()
def describe_share(region: Region) -> str:
    """The share of the prior's draws that lie in a region, in words."""
    share = region.holds(region.simulator.draw_prior(NUM_COUNTED)).double().mean().item()
    return f"{share:.1%}" if share else f"less than {1 / NUM_COUNTED:.1%}"


@torch.no_grad()
def find_region(simulator: Simulator, context: Context, before: Region | None = None) -> Region:
    """The region that holds all but the least likely ten-thousandth of a network's posterior.

    Args:
        simulator: Of the program.
        context: The observation, given to the network of the last round.
        before: The region of the round before that one.
    """
    region = Region(simulator, ArBufferPosterior(context), -torch.inf)
    ratio = region.log_ratio(region.posterior.sample((NUM_DRAWS,)))
    return region._replace(least=ratio[ratio.isfinite()].min().item(), before=before)


@torch.no_grad()
def draw_latents(region: Region) -> Tensor:
    """Unconstrained latents `(S, P)` of the prior, truncated to a region.

    Walkers start at draws of the posterior and move by differences of others, which leaves the truncated prior as it
    is.

    Raises:
        ValueError: If hardly any draw of the posterior lies in the region.

    Source:
        ter Braak (2006), "A Markov chain Monte Carlo version of the genetic algorithm differential evolution".
    """
    walkers = region.posterior.sample((2 * NUM_WALKERS,))
    walkers = walkers[region.holds(walkers)][:NUM_WALKERS]
    if len(walkers) < FEWEST_WALKERS:
        raise ValueError(
            "the posterior of a round must lie in the region of the rounds before it; got "
            f"{len(walkers)} of {2 * NUM_WALKERS} draws in it; train longer, or on more simulations"
        )
    size = len(walkers) // 2
    halves = [walkers[:size], walkers[size : 2 * size]]
    densities = [region.log_prior(half) for half in halves]
    kept, usual = [], 2.38 / (2 * walkers.shape[-1]) ** 0.5
    for sweep in range(NUM_SWEEPS):
        for i in range(2):
            others = halves[1 - i]
            one, other = (others[torch.randint(size, (size,))] for _ in range(2))
            scale = 1.0 if sweep % JUMP_EVERY == 0 else usual * (0.5 + torch.rand(size, 1))
            proposed = halves[i] + scale * (one - other)
            density = region.log_prior(proposed)
            likely = density - densities[i] > torch.rand(size).log()
            moves = likely.clone()
            moves[likely] = region.holds(proposed[likely])
            halves[i] = torch.where(moves[:, None], proposed, halves[i])
            densities[i] = torch.where(moves, density, densities[i])
        if sweep >= FIRST_KEPT and sweep % KEPT_EVERY == 0:
            kept += halves
    return torch.cat(kept)


class TruncatedSimulator(Simulator):
    """A program whose latents are drawn from a fixed set of them, which stands for its truncated prior.

    Args:
        simulator: Of the program.
        region: Where the prior is truncated to.
        pool: `(S, P)` unconstrained latents, draws of the truncated prior.
    """

    def __init__(self, simulator: Simulator, region: Region, pool: Tensor):
        self.__dict__.update(simulator.__dict__)
        self.region, self.pool = region, pool
        self.latents = standardised(simulator.latents, pool)

    def log_prior(self, values: object) -> Tensor:
        """Not known: how much of the prior lies in the region.

        Raises:
            ValueError: Always.
        """
        raise ValueError("the density of a truncated prior is known up to a factor only; use the program's own prior")

    def _simulate(self, x: Tensor) -> Simulations:
        """Data sets with inputs `(B, n, D_x)`, and latents of the pool; those that fail are drawn anew."""
        latents, y = self._attempt(x)

        def again(bad: Tensor) -> Tensor:
            latents[bad], found = self._attempt(x[bad])
            return found

        self._runs.redraw_failed(y, again)
        return Simulations(latents, x.float(), y)

    def _attempt(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.pool[torch.randint(len(self.pool), (len(x),))]
        return latents.float(), self._outcomes(latents, x)
