"""Programs of one latent or two, one for each kind of outcome, that are run for many data sets at once."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_arbuf.priors.ddm import ddm_choice_rt


def scalar(law):
    """y ~ law(slope + x), slope ~ N(0, 1)."""

    def program(x: Tensor) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", law(slope + x[..., 0]))

    return program


def three(mean: Tensor) -> dist.Categorical:
    return dist.Categorical(logits=torch.stack([mean, -mean, 0.5 * mean], -1))


def pair(x: Tensor) -> Tensor:
    """Two standard normal numbers of correlation rho."""
    rho = pyro.sample("rho", dist.Uniform(x.new_tensor(-1.0), 1.0)).unsqueeze(-1)
    rest = (1 - rho * rho).clamp(min=1e-12).sqrt()
    zero = torch.zeros_like(rho)
    scale = torch.stack([torch.cat([1 + zero, zero], -1), torch.cat([rho, rest], -1)], -2)
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.MultivariateNormal(zero.expand(*zero.shape[:-1], 2), scale_tril=scale))


def pair_of_choices(x: Tensor) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
    mean = (slope + x[..., 0]).unsqueeze(-1) * torch.tensor([1.0, -0.5])
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Bernoulli(logits=mean).to_event(1))


PROGRAMS = {
    "bernoulli": (scalar(lambda mean: dist.Bernoulli(logits=mean)), "y", ("categorical(2)",)),
    "binomial(1)": (scalar(lambda mean: dist.Binomial(1, logits=mean)), "y", ("categorical(2)",)),
    "categorical": (scalar(three), "y", ("categorical(3)",)),
    "poisson": (scalar(lambda mean: dist.Poisson(mean.clamp(max=3.0).exp())), "y", ("count",)),
    "negative_binomial": (scalar(lambda mean: dist.NegativeBinomial(3.0, logits=mean)), "y", ("count",)),
    "binomial(10)": (scalar(lambda mean: dist.Binomial(10, logits=mean)), "y", ("count",)),
    "geometric": (scalar(lambda mean: dist.Geometric(logits=mean)), "y", ("count",)),
    "pair": (pair, "y", ()),
    "choices": (pair_of_choices, "y", ("categorical(2)",) * 2),
    "choice_rt": (ddm_choice_rt, ("choice", "rt"), ("categorical(2)", "real")),
}


def inputs(num_trials: int) -> Tensor:
    return 0.5 * torch.rand(num_trials, 1)
