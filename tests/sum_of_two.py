"""A program of two latents whose exact posterior is Gaussian and strongly correlated, and spoiled posteriors of it."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_arbuf.inference.context import Context
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.simulator import Simulator

FIELDS = {"dim_x": 1, "latents": (Latent("a"), Latent("b")), "num_context": (0, 20), "num_targets": (1, 20)}
X, Y = torch.zeros(8, 1), torch.tensor([0.4, 1.9, 1.1, -0.2, 2.0, 0.7, 1.3, 0.3])


def sum_of_two(x: Tensor) -> Tensor:
    """a, b ~ N(0, 1), y_i ~ N(a + b, 1): the data say nothing of a - b."""
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), x.new_ones(())))
    b = pyro.sample("b", dist.Normal(x.new_zeros(()), x.new_ones(())))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(a + b, x.new_ones(())))


def with_program(net: ArBufferModel) -> ArBufferModel:
    """The network, told that it was trained on the program."""
    net.simulator = Simulator(sum_of_two, vectorized=True)
    return net


def exact(context: Context) -> MultivariateNormal:
    """The exact posterior, batch shape `(B,)`."""
    y = context.observations[1].squeeze(-1).double()
    ones = torch.ones(2, 2, dtype=torch.float64)
    covariance = (torch.eye(2, dtype=torch.float64) + y.shape[-1] * ones).inverse()
    return MultivariateNormal(y.sum(-1, keepdim=True) * ones[0] @ covariance, covariance.expand(len(y), 2, 2))


def shifted(context: Context) -> MultivariateNormal:
    """Moved by half a standard deviation."""
    law = exact(context)
    return MultivariateNormal(law.mean + 0.5 * law.stddev, law.covariance_matrix)


def narrowed(context: Context) -> MultivariateNormal:
    """Standard deviations times 0.7."""
    law = exact(context)
    return MultivariateNormal(law.mean, 0.49 * law.covariance_matrix)


def independent(context: Context) -> MultivariateNormal:
    """With the exact margins, and without their correlation."""
    law = exact(context)
    return MultivariateNormal(law.mean, torch.diag_embed(law.variance))


SPOILED = {"shifted": shifted, "narrowed": narrowed, "independent": independent}
