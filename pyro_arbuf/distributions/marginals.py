"""What joint and marginals share as Pyro distributions, and ArBufferMarginals."""

import warnings
from collections.abc import Sequence
from typing import Literal, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import IndependentTransform, identity_transform

from pyro_arbuf.inference.chain import predict_marginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.layout import chunks, fold, unfold
from pyro_arbuf.inference.validation import (
    broadcast_batches,
    check_sample_shape,
    check_targets,
    check_y,
    expanded_shape,
    inference_scope,
    may_look_at,
    warn_outside,
)
from pyro_arbuf.network.latents import Locations, code
from pyro_arbuf.network.tracing import is_traced

MAX_COMPONENTS = 2**22  # mixture components in flight when marginals are sampled


class PlateOverTargetsWarning(UserWarning):
    """A plate as long as the event has targets stands around the whole event, whose density then counts that often."""


class RealEvent(constraints.independent):
    """`independent(real, n)`, real_vector for n = 1, that checks empty tensors (0 draws) too."""

    def check(self, value: Tensor) -> Tensor:
        """Whether each event is real, `(*batch,)` bool."""
        if value.numel():
            return super().check(value)
        return torch.ones(value.shape[: value.dim() - self.event_dim], dtype=torch.bool, device=value.device)


@biject_to.register(RealEvent)
@transform_to.register(RealEvent)
def _unconstrained(constraint: RealEvent) -> IndependentTransform:
    return IndependentTransform(identity_transform, constraint.event_dim)


class ArBufferDistribution(TorchDistribution):
    """What joint and marginals share: shapes, virtual expand, support, checks of values."""

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]
    has_rsample = False

    def __init__(
        self,
        context: Context,
        x: Tensor | Locations,
        nan: Literal["raise", "drop"] = "raise",
        validate_args: bool | None = None,
    ):
        if not isinstance(context, Context):
            raise ValueError(
                f"context must be a Context; got {type(context).__name__}; make one with net.condition(x_obs, y_obs)"
            )
        if nan not in ("raise", "drop"):
            raise ValueError(f"nan must be 'raise' or 'drop'; got {nan!r}")
        self.context = context
        self.nan: Literal["raise", "drop"] = nan
        self._validate_args = self._validate_args if validate_args is None else validate_args
        checked = check_targets(x, context.model, self._validate_args)
        self._x = code(checked, context.model.config.latents)  # as the model takes it
        self._at_latents = isinstance(checked, Locations)
        self.x = self._x if isinstance(checked, Locations) else checked
        dim_y = context.model.config.dim_y
        event_shape = self._x.shape[-2:-1] + (() if dim_y is None else (dim_y,))
        batch_shape = broadcast_batches({"context": context.batch_shape, "x": self._x.shape[:-2]})
        # What differs; the rest repeats.
        self._own_shape = torch.broadcast_shapes(context.task_shape, self._x.shape[:-2])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({shapes}, num_context={self.context.num_context})"

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Real vectors for a scalar outcome, real matrices for a vector outcome."""
        return RealEvent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        """The same distribution with a larger batch shape; nothing is copied.

        Args:
            batch_shape: New batch shape, to which the present one broadcasts.

        Raises:
            ValueError: If it does not.
        """
        batch_shape = expanded_shape("batch_shape", self.batch_shape, batch_shape)
        new = cast(ArBufferDistribution, self._get_checked_instance(type(self), _instance))
        new.__dict__.update(self.__dict__)
        super(ArBufferDistribution, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def _num_targets(self) -> int:
        return self.event_shape[0]

    def _check_value(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)` in the model's dtype, NaN where it may be dropped."""
        event = tuple(self.event_shape)
        if isinstance(y, Tensor) and y.shape[max(y.dim() - len(event), 0) :] != event:
            hint = "; use y.squeeze(-1)" if y.shape[-len(event) - 1 :] == (*event, 1) else ""
            if not hint and len(event) == 1 and y.dim() > 1 and y.shape[-2:-1] == event:
                hint = f"; the network has one outcome, so that one of the {y.shape[-1]} columns can be scored"
            raise ValueError(f"y must have shape (*batch, {', '.join(map(str, event))}); got {tuple(y.shape)}{hint}")
        values = check_y("y", y, self.context.model, finite=False)
        if self._validate_args and may_look_at(y):
            wrong = torch.isinf(values) if self.nan == "drop" else ~torch.isfinite(values)
            if bool(wrong.any()):
                raise ValueError(
                    f"y must be finite; got {int(wrong.sum())} NaN or infinite of {y.numel()} values; leave these "
                    "targets out of x and y, or build the distribution with nan='drop', which removes NaN targets"
                )
        broadcast_batches({"distribution": self.batch_shape, "y": values.shape[:-2]})
        return values

    def _check_outcomes(self, y: Tensor, stacklevel: int) -> Tensor:
        """What `_check_value` returns, of outcomes that are scored: warns where data leave the trained range."""
        values = self._check_value(y)
        if self._validate_args and not self._at_latents:
            warn_outside("y", values, self.context.model.config.y_range, stacklevel + 1)
        return values

    def _split_missing(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values with zeros for missing targets, and which are missing, `(*batch, M)`; `None` = none can be."""
        if self.nan == "raise":
            return values, None
        missing = values.isnan().any(-1)  # a target is missing where any of its outcome dimensions is
        return values.masked_fill(missing.unsqueeze(-1), 0.0), missing

    def _warn_plate_over_targets(self, value_batch: Size) -> None:
        num_targets = self._num_targets
        if num_targets == 1 or is_traced():
            return
        lead = len(self.batch_shape)
        own, given = ((1,) * (lead - len(shape)) + tuple(shape) for shape in (self._own_shape, value_batch[-lead:]))
        for dim, size in enumerate(self.batch_shape):
            if size == num_targets and own[dim] == given[dim] == 1:
                warnings.warn(
                    f"a plate of {size} stands around one event of {num_targets} targets (batch dimension "
                    f"{dim - lead}), so its density counts {size} times; targets are dependent, inside the event: use "
                    'pyro.sample("y", ArBufferJoint(ctx, x), obs=y) without that plate; a plate of subjects, or '
                    "vectorised particles, of the same size by chance is right",
                    PlateOverTargetsWarning,
                    stacklevel=4,  # log_prob's caller
                )

    def _fold_x(self, shape: Size) -> Tensor:
        return fold(self._x, shape, self.context.task_shape, 2)

    def _fold_values(self, values: Tensor) -> tuple[Size, Tensor]:
        """Values `(B, S, M, D_y)`, and the batch shape they stand for: without dimensions in which nothing differs."""
        shape = torch.broadcast_shapes(self._own_shape, values.shape[:-2])
        return shape, fold(values.expand(*shape, *values.shape[-2:]), shape, self.context.task_shape, 2)

    def _unfold_result(self, result: Tensor, shape: Size, dtype: torch.dtype) -> Tensor:
        """A result `(B, S, ...)` in the full batch shape, in the dtype of the values but at least float32."""
        result = unfold(result, shape, self.context.task_shape).to(torch.promote_types(dtype, torch.float32))
        return result.expand(*torch.broadcast_shapes(self.batch_shape, shape), *result.shape[len(shape) :])

    def _squeeze(self, y: Tensor) -> Tensor:
        return self.context.model.config.squeeze_outcome(y)


class ArBufferMarginals(ArBufferDistribution):
    """The set model's independent predictive: one mixture per target (and outcome dimension), nothing shared.

    The dimensions of a vector outcome are predicted independently given the context, and in `ArBufferJoint` given the
    buffer too. Where they are correlated given these, likelihood, predictions and evidence are wrong, by tens of nats
    for many trials: predict one dimension, or a combination of them.

    Its `log_prob` sums over the targets; `mean`, `variance`, `cdf` and `icdf` are elementwise.

    Args:
        context: What `net.condition(x_obs, y_obs)` returns.
        x: `(*batch, M, D_x)` target inputs, M >= 1.
        nan: What a NaN outcome does: `"raise"` a ValueError (where validation is on and the value is data, not a
            function of latents; else NaN comes out), or `"drop"` the target, which here integrates it out.
        validate_args: Whether values are checked; `None` = Pyro's default.

    Raises:
        ValueError: If an argument breaks its rule.
        RuntimeError: If the context is not current.
    """

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
            values, missing = self._split_missing(self._check_outcomes(y, stacklevel=4))
            self._warn_plate_over_targets(values.shape[:-2])
            density = self._mixture.log_prob(values).sum(-1)  # (*batch, M)
            if missing is not None:
                density = density.masked_fill(missing, 0.0)
            shape = torch.broadcast_shapes(self.batch_shape, density.shape[:-1])
            return density.expand(*shape, -1).to(torch.promote_types(y.dtype, torch.float32))

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
        return self._squeeze(draws).detach()  # a trace forgets no_grad

    @property
    def mean(self) -> Tensor:
        """Mean of every target, `(*batch, M)` or `(*batch, M, D_y)`, units of y."""
        return self._squeeze(self._mixture.mean).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of every target, units of y squared."""
        return self._squeeze(self._mixture.variance).expand(self.batch_shape + self.event_shape)

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
        return self._full(self._squeeze(self._mixture.cdf(self._check_value(value))))

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
        return self._full(self._squeeze(self._mixture.icdf(value)))

    def _full(self, result: Tensor) -> Tensor:
        """An elementwise result in the full, perhaps expanded, batch shape."""
        return result.expand(torch.broadcast_shapes(self.batch_shape + self.event_shape, result.shape))
