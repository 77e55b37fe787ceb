"""Small Pyro programs: a straight line through the origin that can be run in all three ways."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def inputs(num_trials: int) -> Tensor:
    return torch.rand(num_trials, 1)


def line(x: Tensor) -> Tensor:
    """Broadcasts over data sets, each with its inputs."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.25))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(slope * x[..., 0], noise))


def shared_line(x: Tensor) -> Tensor:
    """Broadcasts over data sets with the same inputs only."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.25))
    with pyro.plate("trials", x.shape[0]):
        return pyro.sample("y", dist.Normal(slope * x[:, 0], noise))


def lone_line(x: Tensor) -> Tensor:
    """Runs for one data set only."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.25))
    mean = slope * x[:, 0] if slope.item() > 0 else -slope.abs() * x[:, 0]
    with pyro.plate("trials", x.shape[0]):
        return pyro.sample("y", dist.Normal(mean, noise))


def one_vector(x: Tensor) -> Tensor:
    """One observation, a vector, per data set."""
    theta = pyro.sample("theta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    return pyro.sample("y", dist.Normal(theta, 0.5).to_event(1))


LINES = {"inputs": line, "datasets": shared_line, "loop": lone_line}  # by the way they are run


class SampleOnly(dist.TorchDistribution):
    """A normal law that can be drawn from, and says nothing else about itself."""

    arg_constraints = {}

    def __init__(self, loc: Tensor):
        self.loc = loc
        super().__init__(loc.shape)

    def expand(self, batch_shape, _instance=None):
        return SampleOnly(self.loc.expand(batch_shape))

    def sample(self, sample_shape=torch.Size()):
        return torch.normal(self.loc.expand((*sample_shape, *self.loc.shape)), 1.0)


def sampled_line(x: Tensor) -> Tensor:
    """Its outcome has no density."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", SampleOnly(slope * x[..., 0]))
