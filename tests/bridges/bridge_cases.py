"""What both bridges are held to: a tiny network in float64, and NUTS of Pyro on the shipped psychometric network."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from conftest import CONFIG, random_model
from latent_nets import SCALAR, VECTOR, values
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from samples import draw
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferModel, likelihood

B, M = 3, 7  # data sets, trials
NUM_WARMUP, NUM_DRAWS, MAX_TREE_DEPTH = 80, 160, 3
KINDS = {"scalar": SCALAR, "vector": VECTOR, "dependent": SCALAR | {"dependent": True}}
INTENSITIES = torch.linspace(-2.5, 2.5, 16)[:, None]
CHOICES = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1.0])


def net_of(kind: str) -> ArBufferModel:
    return random_model(dataclasses.replace(CONFIG, **KINDS[kind]))


def data_of(kind: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs `(M, D_x)`, outcomes `(B, M)` or `(B, M, D_y)`, and latents of which one is shared by all data sets."""
    latents = values(B) | {"share": values()["share"]}
    return draw(M, 2, seed=1), draw(B, M, *((3,) if kind == "vector" else ()), seed=2), latents


def page_code(index: int) -> str:
    """A block of the page for users, with fewer draws."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "numpyro_and_pymc.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[index]
    block = re.sub(r"num_samples=\d+, num_warmup=\d+", "num_samples=4, num_warmup=2", block)
    block = block.replace("max_tree_depth=5", "max_tree_depth=2")
    return re.sub(r"draws=\d+, tune=\d+", "draws=4, tune=2, compute_convergence_checks=False", block)


def weighted(density: Tensor) -> Tensor:
    return (density * torch.arange(1.0, B + 1, dtype=torch.float64)).sum()


def own_gradients(kind: str) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Log densities of torch, and gradients of a sum in which each data set has a weight of its own."""
    x, y, latents = data_of(kind)
    leaves = {name: value.clone().requires_grad_() for name, value in latents.items()}
    density = likelihood(net_of(kind), x, leaves).log_prob(y)
    weighted(density).backward()
    return density.detach(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}


def pyro_draws() -> dict[str, np.ndarray]:
    """Posterior of the latents of `psychometric` by Pyro's NUTS."""
    net = pyro_arbuf.load("psychometric")

    def observer() -> None:
        latents = {
            "threshold": pyro.sample("threshold", dist.Normal(0.0, 1.0)),
            "slope": pyro.sample("slope", dist.LogNormal(1.0, 0.5)),
            "lapse": pyro.sample("lapse", dist.Beta(1.0, 19.0)),
        }
        pyro.sample("y", likelihood(net, INTENSITIES, latents), obs=CHOICES)

    pyro.set_rng_seed(1)
    kernel = NUTS(observer, max_tree_depth=MAX_TREE_DEPTH)
    mcmc = MCMC(kernel, NUM_DRAWS, NUM_WARMUP, disable_progbar=True)
    mcmc.run()
    return {name: value.numpy() for name, value in mcmc.get_samples().items()}


def assert_same_posterior(ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> None:
    """Means within 4.5 of their standard errors, and scales by their own, of numbers that are nearly normal."""
    to_normal = {"threshold": lambda v: v, "slope": np.log, "lapse": np.sqrt}
    for name, transform in to_normal.items():
        both = [torch.as_tensor(transform(np.array(each[name], dtype=np.float64))) for each in (ours, reference)]
        sizes = [effective_sample_size(each[None]).clamp(max=len(each)) for each in both]
        error = sum(each.var() / size for each, size in zip(both, sizes, strict=True)) ** 0.5
        assert abs(both[0].mean() - both[1].mean()) < 4.5 * error, name
        assert abs((both[0].std() / both[1].std()).log()) < 4.5 * sum(0.5 / size for size in sizes) ** 0.5, name
