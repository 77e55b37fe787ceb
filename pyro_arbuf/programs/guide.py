"""The amortised posterior as a Pyro guide."""

from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.workflow.posterior_draws import given_latents


class AmortizedGuide:
    """A Pyro guide that draws a program's latents from their amortised posterior, whatever arguments it is called with.

    For `Importance`, `Predictive` and `SVI`. With `tunable=True` the unconstrained draws are shifted and scaled by the
    parameters `name.shift` and `name.scale`, which SVI optimises from 0 and 1: a warm start at the amortised posterior.

    Args:
        context: What `net.condition(x, y)` returns, without a batch.
        orders: As for `ArBufferPosterior`.
        tunable: Whether SVI may tune it.
        name: Of the auxiliary site and the parameters.

    Raises:
        ValueError: If the context has a batch or fixes all latents.
    """

    def __init__(
        self, context: Context, orders: Tensor | None = None, tunable: bool = False, name: str = "AmortizedGuide"
    ):
        self.posterior = ArBufferPosterior(context, orders)
        if context.batch_shape:
            raise ValueError(
                f"context must be of one data set; got the batch shape {tuple(context.batch_shape)}; make a guide of "
                "each, context[i]"
            )
        self.tunable, self.name = tunable, name
        self.given = given_latents(context)

    def __call__(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Samples the latents, each as a site of its own name; arguments are ignored.

        Latents that the context was given are sites too, at their values, so that the program takes them. They are
        marked as auxiliary, as the program may observe them itself; where it draws them, SVI warns of that once.

        Returns:
            Values by site, of the latents that were not given.
        """
        draws = pyro.sample(f"_{self.name}_unconstrained", self.posterior, infer={"is_auxiliary": True})
        log_scale = torch.zeros(self.posterior.event_shape, dtype=draws.dtype, device=draws.device)
        if self.tunable:
            shift = pyro.param(f"{self.name}.shift", torch.zeros_like(log_scale))
            scale = pyro.param(f"{self.name}.scale", torch.ones_like(log_scale), constraint=constraints.positive)
            draws, log_scale = shift + scale * draws, scale.log()
        values = {}
        log_scales = log_scale.split([latent.size for latent in self.posterior.latents])
        sites = self.posterior.sites_and_jacobians(draws).items()
        for (name, (value, jacobian)), stretched in zip(sites, log_scales, strict=True):
            event_dim = value.dim() - jacobian.dim()
            density = -jacobian - stretched.sum()
            delta = dist.Delta(value, log_density=cast(Any, density), event_dim=event_dim)
            values[name] = pyro.sample(name, delta)
        for name, value in self.given.items():  # auxiliary: the program may observe them itself
            event = value.expand(draws.shape[:-1] + value.shape)
            pyro.sample(name, dist.Delta(event, event_dim=value.dim()), infer={"is_auxiliary": True})
        return values
