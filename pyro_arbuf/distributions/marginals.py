"""ArBufferMarginals, the set model's independent predictive as a Pyro distribution."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Size, Tensor

from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.inference.chain import predict_marginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.layout import chunks, unfold
from pyro_arbuf.inference.validation import (
    check_sample_shape,
    inference_scope,
    may_look_at,
)
from pyro_arbuf.network.latents import Locations

MAX_COMPONENTS = 2**22  # mixture components in flight when marginals are sampled


class ArBufferMarginals(ArBufferDistribution):
    """The set model's independent predictive: one distribution per target, nothing shared between targets.

    The dimensions of a vector outcome are predicted one after the other, each given those before it. (Networks trained
    before that was so say `chained = False` in their configuration; they predict the dimensions independently.)

    Its `log_prob` sums over the targets; `mean`, `variance`, `cdf` and `icdf` are elementwise. Of a vector outcome,
    `cdf` and `icdf` are Rosenblatt's map and its inverse, and mean and variance are those of `ArBufferJoint.moments`.

    Args:
        context: What `net.condition(x_obs, y_obs)` returns.
        x: `(*batch, M, D_x)` target inputs, M >= 1; of tables with the columns of the context.
        nan: What a NaN outcome does: `"raise"` a ValueError (where validation is on and the value is data, not a
            function of latents; else NaN comes out), or `"drop"` the target, which here integrates it out.
        validate_args: Whether values are checked; `None` = Pyro's default.

    Raises:
        ValueError: If an argument breaks its rule.
        RuntimeError: If the context is not current.
    """

    jointly = False

    def __init__(
        self,
        context: Context,
        x: Tensor | Locations,
        nan: Literal["raise", "drop"] = "raise",
        validate_args: bool | None = None,
    ):
        with inference_scope():
            super().__init__(context, x, nan=nan, validate_args=validate_args)
            shape = self._own_shape
            predictive = predict_marginals(context, self._fold_x(shape))
            self._mixture = predictive.map(lambda parameter: unfold(parameter, shape, context.task_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, summed over the targets.

        Args:
            value: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch,)` nats per event.

        Raises:
            ValueError: If shape, dtype or device is wrong, or, with validation on, data are NaN or infinite.
        """
        return self._densities(value).sum(-1)

    def log_prob_factors(self, y: Tensor) -> Tensor:
        """Log density of every target; the targets are independent, so these are pointwise densities.

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch, M)` nats, 0 for a dropped target.

        Raises:
            ValueError: As `log_prob`.
        """
        return self._densities(y)

    def _densities(self, y: Tensor) -> Tensor:
        with inference_scope():
            y = self._as_tensor(y)
            values, missing = self._split_missing(self._check_outcomes(y))
            self._warn_plate_over_targets(values.shape[:-2])
            density = self._user_density(self._mixture.log_prob(values), None).sum(-1)  # (*batch, M)
            if missing is not None:
                density = density.masked_fill(missing, 0.0)
            shape = torch.broadcast_shapes(self.batch_shape, density.shape[:-1])
            density = density.expand(*shape, -1)
            return density.to(torch.promote_types(y.dtype, torch.float32)) if y.is_floating_point() else density

    @inference_scope()
    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws every target independently of the others.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, units of y.
        """
        sample_shape = check_sample_shape(sample_shape)
        shape = sample_shape + self.batch_shape
        mixture = self._mixture.expand(self.batch_shape + self._mixture.batch_shape[-2:])
        with torch.no_grad():
            uniform = torch.rand(shape + mixture.batch_shape[-2:], dtype=self._x.dtype, device=self._x.device)
            normal = torch.randn_like(uniform)
            draws = torch.empty_like(uniform)
            chunk = max(
                1, MAX_COMPONENTS // max(1, mixture.batch_shape.numel() * mixture.num_components)
            )  # draws at a time: fixed memory
            flat = (t.view(sample_shape.numel(), *mixture.batch_shape) for t in (draws, uniform, normal))
            draws_flat, *noise = flat
            for part in chunks(sample_shape.numel(), chunk):
                u, n = (t[part] for t in noise)
                draws_flat[part] = mixture.expand(u.shape).draw(u, n)
        return self._as_outcome(draws).detach()  # a trace forgets no_grad

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Raises NotImplementedError that says how to draw with gradients."""
        if not (self.context.model.config.all_real or self._at_latents):
            raise NotImplementedError("draws of categories and counts have no derivative; use sample")
        raise NotImplementedError(
            "marginals draw without gradients; of one context ArBufferJoint(ctx, x[:, None], rsample=True) draws every "
            "target with them, as an event of its own"
        )

    @property
    def probs(self) -> Tensor:
        """Probabilities of the categories, `(*batch, M, n)`, of a vector outcome those of its first dimension.

        Raises:
            AttributeError: If that is no category.
        """
        kind = self.context.model.config.kinds[0]
        if not kind.num_categories:
            raise AttributeError(f"probs is for categories; this network's outcome holds {kind.values}")
        probs = cast(Any, self._mixture).first.probs
        return probs.expand(*self.batch_shape, self._num_targets, -1)

    @property
    def mean(self) -> Tensor:
        """Mean of every target, `(*batch, M)` or `(*batch, M, D_y)`, units of y."""
        return self._in_user_units(self._mixture.mean).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of every target, units of y squared."""
        variance = self._mixture.variance
        variance = variance if self._maps is None else self._maps.user_variance(variance)
        return self._squeeze(variance).expand(self.batch_shape + self.event_shape)

    @inference_scope()
    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function of every target, elementwise.

        Args:
            value: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            Probabilities, `(*batch, M)` or `(*batch, M, D_y)`.

        Raises:
            ValueError: If shape, dtype or device is wrong, or, with validation on, a value is NaN or infinite.
        """
        return self._full(self._squeeze(self._mixture.cdf(self._check_value(self._as_tensor(value)))))

    @inference_scope()
    def icdf(self, value: Tensor | float) -> Tensor:
        """Quantiles of every target, elementwise.

        Args:
            value: Probabilities in (0, 1): one number, or `(*batch, M)` or `(*batch, M, D_y)`.

        Returns:
            `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Raises:
            ValueError: If a probability lies outside (0, 1), or the shape is wrong.
        """
        value = torch.as_tensor(value, dtype=self._x.dtype, device=self._x.device)
        event = tuple(self.event_shape)
        if value.dim() and tuple(value.shape[-len(event) :]) != event:
            raise ValueError(f"value must be one number or have shape (*batch, *{event}); got {tuple(value.shape)}")
        if self._validate_args and may_look_at(value) and not bool(((value > 0) & (value < 1)).all()):
            raise ValueError("value must hold probabilities strictly between 0 and 1; got others")
        if value.dim() and self.context.model.config.dim_y is None:
            value = value.unsqueeze(-1)
        return self._full(self._in_user_units(self._mixture.icdf(value)))

    def _full(self, result: Tensor) -> Tensor:
        """An elementwise result in the full, perhaps expanded, batch shape."""
        return result.expand(torch.broadcast_shapes(self.batch_shape + self.event_shape, result.shape))
