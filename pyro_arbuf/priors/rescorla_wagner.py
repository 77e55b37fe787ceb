r"""Rescorla-Wagner learning in a task of two arms, with its exact posterior and evidence.

A learner has a value of each arm, Q_0 = Q_1 = 1/2 at first. In every trial it chooses an arm, is rewarded with the
probability that this arm has then, and moves the value of the chosen arm towards the reward:

    P(choice = 1) = sigmoid(temperature (Q_1 - Q_0)),    Q_choice <- Q_choice + rate (reward - Q_choice).

Both probabilities are inputs, with the number of the trial, as a network cannot tell the order of trials otherwise.
There are two latents, so that posterior and evidence are sums over a grid. This module knows nothing of networks.

Source:
    Sutton & Barto (2018), Reinforcement Learning, chapter 2; Wilson & Collins (2019), Ten simple rules for the
    computational modeling of behavioral data.
"""

from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.nn.functional import logsigmoid

from pyro_arbuf.priors.grid import GridPosterior, grid_posterior

LATENTS = ("learning_rate", "inverse_temperature")
LOG_TEMPERATURE = (1.0, 0.5)  # mean and sd
FIRST_VALUE = 0.5
LOWEST, HIGHEST = 0.05, 0.95  # probabilities of reward
DRIFT = 0.05  # standard deviation of a probability's step from trial to trial, in half of the data sets


class RescorlaWagner(TorchDistribution):
    """Law of the choices and rewards of a learner in n trials: one event.

    Args:
        rate: `(*batch,)` learning rate, in [0, 1].
        temperature: The same, inverse temperature, > 0, per unit of value.
        probabilities: `(*batch, n, 2)` of reward of both arms, in (0, 1).

    Example:
        >>> law = RescorlaWagner(torch.tensor(0.5), torch.tensor(2.0), torch.full((1, 2), 0.25))
        >>> law.log_prob(torch.tensor([[1.0, 0.0]])).exp()
        tensor(0.3750)
    """

    arg_constraints = {"rate": constraints.unit_interval, "temperature": constraints.positive}  # pyright: ignore[reportAssignmentType]
    support = constraints.independent(constraints.boolean, 2)  # pyright: ignore[reportAssignmentType]

    def __init__(self, rate: Tensor, temperature: Tensor, probabilities: Tensor, validate_args: bool | None = None):
        shape = torch.broadcast_shapes(rate.shape, temperature.shape, probabilities.shape[:-2])
        self.rate, self.temperature = rate.expand(shape), temperature.expand(shape)
        self.probabilities = probabilities.expand(*shape, *probabilities.shape[-2:])
        super().__init__(shape, self.probabilities.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: "RescorlaWagner | None" = None) -> "RescorlaWagner":
        """The same law with a larger batch shape."""
        new = cast(RescorlaWagner, self._get_checked_instance(RescorlaWagner, _instance))
        new.rate, new.temperature = self.rate.expand(batch_shape), self.temperature.expand(batch_shape)
        new.probabilities = self.probabilities.expand(*batch_shape, *self.event_shape)
        super(RescorlaWagner, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws choices and rewards, `(*sample_shape, *batch, n, 2)`, with torch's global generator, trial by trial."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            rate, probabilities = self.rate.unsqueeze(-1), self.probabilities.expand(shape)
            uniform = torch.rand(shape, dtype=rate.dtype, device=rate.device)
            # Choice 1 where u < sigmoid(d), that is where logit(u) < d.
            threshold = torch.logit(uniform[..., 0])
            rewarded = (uniform[..., 1:] < probabilities).to(rate.dtype)  # (*batch, n, 2), whichever arm is chosen
            value, chosen = torch.full((*shape[:-2], 2), FIRST_VALUE, dtype=rate.dtype, device=rate.device), []
            for at, reward in zip(threshold.unbind(-1), rewarded.unbind(-2), strict=True):
                one = at < self.temperature * (value[..., 1] - value[..., 0])
                arms = torch.stack([~one, one], -1)
                value = torch.where(arms, value + rate * (reward - value), value)
                chosen.append(one)
            choice = torch.stack(chosen, -1)
            reward = torch.where(choice, rewarded[..., 1], rewarded[..., 0])
            return torch.stack([choice.to(rate.dtype), reward], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability `(*batch,)` of choices and rewards `(*batch, n, 2)`, nats."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.rate.dtype)
        choice, reward = value.unbind(-1)
        p = torch.where(choice == 1, self.probabilities[..., 1], self.probabilities[..., 0])
        rewards = torch.where(reward == 1, p.log(), torch.log1p(-p)).sum(-1)
        return rewards + log_probability_of_choices(value, self.rate, self.temperature)


def log_probability_of_choices(y: Tensor, rate: Tensor, temperature: Tensor) -> Tensor:
    """Log probability of the choices given the rewards, nats; rewards themselves do not depend on the latents.

    Args:
        y: `(*batch, n, 2)` choices and rewards.
        rate: `(*batch,)`.
        temperature: `(*batch,)`.

    Returns:
        `(*batch,)` nats.
    """
    zero = torch.zeros_like(rate)
    values, total = [zero + FIRST_VALUE, zero + FIRST_VALUE], zero
    sign = 2 * y[..., 0] - 1
    chosen = y[..., 0].unsqueeze(-1) == torch.tensor([0, 1], device=y.device)  # (*batch, n, 2)
    for t in range(y.shape[-2]):
        total = total + logsigmoid(sign[..., t] * temperature * (values[1] - values[0]))
        moved = [rate * (y[..., t, 1] - value) for value in values]
        values = [value + torch.where(chosen[..., t, a], moved[a], 0.0) for a, value in enumerate(values)]
    return total


def rescorla_wagner(x: Tensor) -> Tensor:
    """Pyro program of a learner in a task of two arms.

    Sites: learning_rate ~ Beta(1, 1), inverse_temperature ~ LogNormal(1, 0.5), and y, one event of n pairs of a choice,
    0 or 1, and a reward, 0 or 1.

    Args:
        x: `(*batch, n, 3)`: number of the trial, which the program leaves aside, and probability of reward of both
            arms; see `draw_probabilities`.

    Returns:
        Choices and rewards `(n, 2)`, or `(B, 1, n, 2)` under an outer plate of size B and dim -2.
    """
    rate = pyro.sample("learning_rate", dist.Beta(x.new_tensor(1.0), x.new_tensor(1.0)))
    temperature = pyro.sample(
        "inverse_temperature", dist.LogNormal(x.new_tensor(LOG_TEMPERATURE[0]), LOG_TEMPERATURE[1])
    )
    probabilities = x[..., 1:] if x.dim() == 2 else x[..., 1:].unsqueeze(-3)
    return pyro.sample("y", RescorlaWagner(rate, temperature, probabilities, validate_args=False))


def draw_probabilities(num_trials: int) -> Tensor:
    """Draws inputs `(num_trials, 3)` from torch's global generator: number of the trial, and the arms' probabilities.

    Probabilities start uniform between 0.05 and 0.95. In half of the data sets they stay; in the others they drift by
    steps of standard deviation 0.05, reflected at both ends.
    """
    drifts = float(torch.rand(()) < 0.5)
    walk = torch.rand(1, 2) + drifts * torch.randn(num_trials, 2).mul(DRIFT / (HIGHEST - LOWEST)).cumsum(0)
    reflected = 1 - (walk.remainder(2.0) - 1).abs()
    return torch.cat([torch.arange(float(num_trials)).unsqueeze(-1), LOWEST + (HIGHEST - LOWEST) * reflected], -1)


def log_likelihood(x: Tensor, y: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Exact log probability of choices and rewards of one data set at many values of the latents.

    Args:
        x: `(n, 3)`, n >= 0, as for the program.
        y: `(n, 2)` choices and rewards, 0 or 1.
        latents: "learning_rate" and "inverse_temperature", each `(S,)`.

    Returns:
        `(S,)` nats; differentiable in the latents.

    Raises:
        ValueError: If x or y has another shape, or a choice or reward is neither 0 nor 1.
    """
    _check_data(x, y)
    rate, temperature = (latents[name] for name in LATENTS)
    return RescorlaWagner(rate, temperature, x[:, 1:].to(rate.dtype), validate_args=False).log_prob(y)


@torch.no_grad()
def exact_posterior(x: Tensor, y: Tensor, num_points: tuple[int, int] = (257, 129)) -> GridPosterior:
    """Exact posterior and evidence of one data set on a grid around the mass, in double precision.

    Args:
        x: `(n, 3)`, n >= 0, as for the program.
        y: `(n, 2)` choices and rewards, 0 or 1.
        num_points: Nodes for the learning rate and the inverse temperature, odd.

    Returns:
        Masses of the cells, log evidence and its error; draws have the sites "learning_rate" and "inverse_temperature".

    Raises:
        ValueError: If x or y has another shape, a choice or reward is neither 0 nor 1, or a number of nodes is even or
            below 9.

    Example:
        >>> posterior = exact_posterior(torch.tensor([[0.0, 0.25, 0.25]]), torch.tensor([[1.0, 0.0]]))
        >>> f"{posterior.log_evidence.exp():.6f}, {bool(posterior.error < 1e-6)}"
        '0.375000, True'
    """
    _check_data(x, y)
    x, y = x.double(), y.double()
    return grid_posterior(lambda latents: log_likelihood(x, y, latents), _from_normal, num_points)


def _from_normal(z: Tensor) -> dict[str, Tensor]:
    """Latents at coordinates `(..., 2)` in which the prior is standard normal, by quantiles."""
    mean, sd = LOG_TEMPERATURE
    return {"learning_rate": torch.special.ndtr(z[..., 0]), "inverse_temperature": (mean + sd * z[..., 1]).exp()}


def _check_data(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] != 3:
        raise ValueError(
            f"x must have shape (n, 3), the trial's number and both arms' probabilities; got {tuple(x.shape)}; use x[i]"
        )
    if y.shape != (len(x), 2):
        raise ValueError(f"y must have shape ({len(x)}, 2), a choice and a reward per row of x; got {tuple(y.shape)}")
    wrong = y[(y != 0) & (y != 1)]
    if len(wrong):
        raise ValueError(f"y must be 0 or 1; got {wrong[0].item():g}; code choices and rewards so")
