"""ArBufferPosterior: the joint prediction at a program's latents, which is their amortised posterior."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_arbuf.display import as_html
from pyro_arbuf.distributions.base import ENTROPY, RealEvent
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.validation import check_latent, check_tensor, inference_scope
from pyro_arbuf.network.latents import Locations, constrained, latent_locations, pad_outcome


class ArBufferPosterior(TorchDistribution):
    r"""The amortised posterior of a program's latents given a context: a joint prediction at their locations.

    .. math:: q(u \mid C) = \frac1R \sum_r \prod_k q(u_{r_k} \mid C, u_{r_1}, .., u_{r_{k-1}})

    with u the unconstrained, un-standardised numbers of the latents that the context does not fix, P of them in the
    order of `net.latents`. What is sampled is what is scored.

    Args:
        context: What `net.condition(x, y)` returns, with some latents given too if wanted; of a net with latents.
        orders: `(R, P)` int64, as for `ArBufferJoint`; `None` = the order of `net.latents` where the network
            was trained mostly in it, as those of `amortize` are, else one fixed shuffled order.
        buffer_size: Latents between two absorptions, 1..K; `None` = the model's K.
        rsample: Whether draws are reparameterised (implicitly).
        validate_args: Whether values are checked; `None` = Pyro's default.

    Raises:
        ValueError: If the net has no latents, all of them are given, or an argument breaks its rule.

    Source:
        Hassan et al. (2026) for the buffer; latents as targets as in ACE (Chang et al. 2025).
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        context: Context,
        orders: Tensor | None = None,
        buffer_size: int | None = None,
        rsample: bool = False,
        validate_args: bool | None = None,
    ):
        if not isinstance(context, Context):
            raise ValueError(
                f"context must be a Context; got {type(context).__name__}; make one with net.condition(x, y)"
            )
        config = context.model.config
        self.context = context
        self.latents = tuple(latent for latent in config.latents if latent.name not in context.latents)
        if not self.latents:
            have = f"all of {list(context.latents)} are given" if config.latents else "the net has no latents"
            raise ValueError(
                f"context must leave a latent free; got one where {have}; amortize a program, or give fewer"
            )
        names = [latent.name for latent in self.latents]
        locations = Locations(latent_locations(config.latents, names, config.dim_x, context.y))
        if orders is None and config.ordered_latents:
            orders = torch.arange(len(locations.coded), device=context.y.device)[None]
        self._joint = ArBufferJoint(context, locations, orders, buffer_size, rsample, validate_args=validate_args)
        self.has_rsample = rsample
        super().__init__(context.batch_shape, locations.coded.shape[:1], validate_args=validate_args)

    def __repr__(self) -> str:
        names = [latent.name for latent in self.latents]
        return f"{type(self).__name__}({names}, batch_shape={tuple(self.batch_shape)})"

    def _repr_html_(self) -> str:
        table = {
            "latent": [latent.name for latent in self.latents],
            "shape": [str(tuple(latent.shape)) if latent.shape else "a number" for latent in self.latents],
        }
        return as_html(f"{type(self).__name__} given {self.context.num_context} pairs", table)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Real vectors."""
        return RealEvent(constraints.real, 1)

    @property
    def orders(self) -> Tensor:
        """`(R, P)` int64, the orders of the mixture."""
        return self._joint.orders

    def expand(self, batch_shape: Size, _instance: TorchDistribution | None = None) -> "ArBufferPosterior":
        """The same distribution with a larger batch shape; nothing is copied.

        Args:
            batch_shape: New batch shape, to which the present one broadcasts.

        Raises:
            ValueError: If it does not.
        """
        joint = self._joint.expand(batch_shape)
        new = cast(ArBufferPosterior, self._get_checked_instance(ArBufferPosterior, _instance))
        new.__dict__.update(self.__dict__)
        new._joint = joint
        super(ArBufferPosterior, new).__init__(joint.batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws latents jointly with torch's global generator.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, P)` unconstrained, without gradients.
        """
        return self._first(self._joint.sample(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """The draws of `sample` with gradients, by implicit reparameterisation.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, P)` unconstrained.

        Raises:
            NotImplementedError: If the distribution was not built with `rsample=True`.
        """
        if not self.has_rsample:
            raise NotImplementedError("rsample is opt in: build it with ArBufferPosterior(ctx, rsample=True)")
        return self._first(self._joint.rsample(sample_shape))

    def entropy(self) -> Tensor:
        """Raises NotImplementedError that says how to estimate it: there is no closed form."""
        raise NotImplementedError(ENTROPY)

    @property
    def mean(self) -> Tensor:
        """Not in closed form: raises NotImplementedError that says how to estimate it."""
        raise NotImplementedError(
            "the posterior's mean has no closed form; use d.sample((1000,)).mean(0) for the unconstrained numbers, or "
            "d.sites(d.sample((1000,))), whose values are in their own supports"
        )

    @property
    def variance(self) -> Tensor:
        """Not in closed form: raises NotImplementedError that says how to estimate it."""
        raise NotImplementedError(
            "the posterior's variance has no closed form; use d.sample((1000,)).var(0) for the unconstrained numbers, "
            "or d.sites(d.sample((1000,))), whose values are in their own supports"
        )

    def _first(self, draws: Tensor) -> Tensor:
        return draws if self.context.model.config.dim_y is None else draws[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in the unconstrained space.

        Args:
            value: `(*batch, P)`; its batch and the distribution's broadcast.

        Returns:
            `(*batch,)` nats.

        Raises:
            ValueError: If shape, dtype or device is wrong.
            RuntimeError: If the context is not current.
        """
        with inference_scope():
            if not isinstance(value, Tensor) or value.shape[-1:] != self.event_shape:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"value must be a tensor (*batch, {self.event_shape[0]}), unconstrained; got {got}; for sites in "
                    "their own supports use log_prob_sites"
                )
            dim_y = self.context.model.config.dim_y
            return self._joint.log_prob(value if dim_y is None else pad_outcome(value, dim_y))

    def sites(self, draws: Tensor) -> dict[str, Tensor]:
        """Draws as named sites in their own supports.

        Args:
            draws: `(*batch, P)` unconstrained.

        Returns:
            `(*batch, *shape)` each.
        """
        return {name: value for name, (value, _) in self.sites_and_jacobians(draws).items()}

    def sites_and_jacobians(self, draws: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Named sites in their own supports, `(*batch, *shape)`, with the log Jacobian of each, `(*batch,)`."""
        if draws.shape[-1:] != self.event_shape:
            raise ValueError(f"draws must have shape (*batch, {self.event_shape[0]}); got {tuple(draws.shape)}")
        return constrained(self.latents, draws)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained numbers `(*batch, P)` of named sites in their own supports; undoes `sites`.

        Args:
            values: `(*batch, *shape)` for every free latent.

        Raises:
            ValueError: If a latent is missing or unknown, its shape wrong, or a value outside its support.
        """
        names = [latent.name for latent in self.latents]
        if set(values) != set(names):
            raise ValueError(f"values must hold exactly the free latents {names}; got {sorted(values)}")
        for latent in self.latents:
            name, value = f"values[{latent.name!r}]", values[latent.name]
            check_latent(name, latent, check_tensor(name, value, self.context.model))
        parts = [latent.unconstrain(values[latent.name]) for latent in self.latents]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, -1) for part in parts], -1)

    def log_prob_sites(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of named sites in their own supports, Jacobian included.

        Args:
            values: `(*batch, *shape)` for every free latent.

        Returns:
            `(*batch,)` nats.

        Raises:
            ValueError: If a latent is missing or unknown, its shape wrong, or a value outside its support.
        """
        unconstrained = self.unconstrain(values)
        jacobian = sum(jacobian for _, jacobian in self.sites_and_jacobians(unconstrained).values())
        return self.log_prob(unconstrained) - jacobian
