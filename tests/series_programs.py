"""Programs of dependent trials: one series as an event and as a loop, learners, shared sites in and out of plates."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_arbuf.priors.ar1 import AR1


def latents_of_series(x: Tensor) -> tuple[Tensor, Tensor]:
    phi = pyro.sample("phi", dist.Uniform(x.new_tensor(-0.9), x.new_tensor(0.9)))
    return phi, pyro.sample("sigma", dist.LogNormal(x.new_tensor(0.0), 0.3))


def one_event(x: Tensor) -> Tensor:
    """A stationary AR(1) series, by its own distribution."""
    return pyro.sample("y", AR1(*latents_of_series(x), x.shape[-2], validate_args=False))


def markov_loop(x: Tensor) -> Tensor:
    """The same series, trial by trial."""
    phi, sigma = latents_of_series(x)
    y = [pyro.sample("y_0", dist.Normal(0 * phi, sigma / (1 - phi**2).sqrt()))]
    for i in pyro.markov(range(1, x.shape[-2])):
        y.append(pyro.sample(f"y_{i}", dist.Normal(phi * y[-1], sigma)))
    return torch.stack(y, -1)


def gaussian_event(x: Tensor) -> Tensor:
    """The same series, by its covariance; it runs for one data set at a time."""
    phi, sigma = latents_of_series(x)
    steps = torch.arange(x.shape[-2])
    covariance = sigma**2 / (1 - phi**2) * phi ** (steps[:, None] - steps).abs()
    return pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(steps)), covariance))


SERIES = {"event": one_event, "loop": markov_loop, "gaussian": gaussian_event}


def learner(x: Tensor) -> None:
    """Choices and rewards of one arm against a sure thing, trial by trial."""
    rate = pyro.sample("rate", dist.Beta(x.new_tensor(2.0), 2.0))
    value = 0 * rate
    for i in range(x.shape[-2]):
        choice = pyro.sample(f"choice_{i}", dist.Bernoulli(logits=3 * value))
        reward = pyro.sample(f"reward_{i}", dist.Normal(choice, 0.5))
        value = value + choice * rate * (reward - value)


def two_before(x: Tensor) -> None:
    """An AR(2) series; its first two trials are drawn however few there are."""
    phi, sigma = latents_of_series(x)
    y = [pyro.sample(f"y_{i}", dist.Normal(0 * phi, sigma)) for i in range(2)]
    for i in range(2, x.shape[-2]):
        y.append(pyro.sample(f"y_{i}", dist.Normal(0.5 * phi * (y[-1] + y[-2]), sigma)))


def two_columns(x: Tensor) -> None:
    """A series of two numbers per trial."""
    level = pyro.sample("level", dist.Normal(x.new_tensor(0.0), 1.0))
    mean = level.unsqueeze(-1).unsqueeze(-1) * torch.tensor([1.0, 2.0]).expand(x.shape[-2], 2)
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(2))


def hidden_states(x: Tensor) -> None:
    """A local level: its states are drawn in a loop too."""
    noise = pyro.sample("noise", dist.LogNormal(x.new_tensor(0.0), 0.3))
    state = 0 * noise
    for i in range(x.shape[-2]):
        state = pyro.sample(f"state_{i}", dist.Normal(state, 1.0))
        pyro.sample(f"y_{i}", dist.Normal(state, noise))


def random_intercept(x: Tensor) -> None:
    """The intercept is outside the plate of trials."""
    slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(slope * x[..., 0] + intercept, 0.5))


def intercept_of_each_trial(x: Tensor) -> None:
    """The intercept is inside the plate of trials."""
    slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("trials", x.shape[-2]):
        intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(slope * x[..., 0] + intercept, 0.5))


def inputs(num_trials: int) -> Tensor:
    return torch.rand(num_trials, 1)
