"""What the Pyro distributions share: shapes, virtual expand, support, checks of values."""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import IndependentTransform, identity_transform

from pyro_arbuf.display import as_html, facts
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.data import y_tensor
from pyro_arbuf.inference.description import describe_outcome
from pyro_arbuf.inference.labels import check_columns, check_dimensions
from pyro_arbuf.inference.layout import fold, unfold
from pyro_arbuf.inference.outcome_sites import split_sites
from pyro_arbuf.inference.same_rows import check_same_rows, row_labels
from pyro_arbuf.inference.series import check_dropped, check_follows, check_series
from pyro_arbuf.inference.trained_range import warn_outside, warn_outside_counts, warn_spacing
from pyro_arbuf.inference.validation import (
    broadcast_batches,
    check_kinds,
    check_targets,
    check_y,
    expanded_shape,
    may_look_at,
)
from pyro_arbuf.network.latents import Locations, code
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.user_warnings import warn

ENTROPY = "the entropy has no closed form; use -d.log_prob(d.sample((1000,))).mean(0)"


class PlateOverTargetsWarning(UserWarning):
    """A plate as long as the event has targets stands around the whole event, whose density then counts that often."""


class SameEvent(constraints.independent):
    """`independent(base, n)` that checks empty tensors (0 draws) too: events whose values are all of one kind."""

    def __repr__(self) -> str:  # torch's leaves out the first letter of a class, "_" of its own ones
        return f"{type(self).__name__}({self.base_constraint!r}, {self.reinterpreted_batch_ndims})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each event lies in the support, `(*batch,)` bool."""
        if value.numel():
            return super().check(value)
        return torch.ones(value.shape[: value.dim() - self.event_dim], dtype=torch.bool, device=value.device)


class RealEvent(SameEvent):
    """Events of real numbers: real_vector for n = 1."""


class MixedEvent(constraints.Constraint):
    """Events `(M, D_y)` whose dimensions are of different kinds; not discrete, as one of them may be real.

    Attributes:
        supports: Of the dimensions.
    """

    event_dim, is_discrete = 2, False

    def __init__(self, supports: Sequence[constraints.Constraint]):
        self.supports = tuple(supports)

    def __repr__(self) -> str:
        return f"MixedEvent({', '.join(map(str, self.supports))})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each event lies in the support, `(*batch,)` bool."""
        columns = zip(self.supports, value.unbind(-1), strict=True)
        return torch.stack([support.check(column).all(-1) for support, column in columns]).all(0)


@biject_to.register(RealEvent)
@transform_to.register(RealEvent)
def _unconstrained(constraint: RealEvent) -> IndependentTransform:
    return IndependentTransform(identity_transform, constraint.event_dim)


@biject_to.register(SameEvent)
@transform_to.register(SameEvent)
@biject_to.register(MixedEvent)
@transform_to.register(MixedEvent)
def _refuse_to_unconstrain(constraint: SameEvent | MixedEvent) -> NoReturn:
    raise NotImplementedError(
        "outcomes that hold categories or counts cannot be latents of NUTS, HMC or an autoguide, which need real "
        "numbers; give their site obs=y, or leave them out by poutine.block and draw them with predictive(...)"
    )


class ArBufferDistribution(TorchDistribution):
    """What joint and marginals share: shapes, virtual expand, support, checks of values."""

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]
    has_rsample = False
    jointly = True  # whether targets share anything
    _rows: Any = None  # the index of a table of inputs

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
        self._at_latents = isinstance(x, Locations)
        self._maps = None if self._at_latents else context.maps
        self._rows = row_labels(x)
        self.x, self._x = self._inputs(x)
        dim_y = context.model.config.dim_y
        event_shape = self._x.shape[-2:-1] + (() if dim_y is None else (dim_y,))
        batch_shape = broadcast_batches({"context": context.batch_shape, "x": self._x.shape[:-2]})
        # What differs; the rest repeats.
        self._own_shape = torch.broadcast_shapes(context.task_shape, self._x.shape[:-2])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def _inputs(self, x: object) -> tuple[Tensor, Tensor]:
        """Checked inputs of targets in the user's units, and as the model takes them; warns outside the trained range.

        Copies: the user's own may change under what is computed from it.
        """
        if isinstance(x, Locations):
            return x.coded, x.coded
        model, maps = self.context.model, self._maps
        own = check_targets(x, model, self._validate_args)
        check_columns(own, x, self.context.labels, self.context.num_columns, model.config)
        own = inner = own.clone()
        if maps is not None:
            broadcast_batches({"context": self.context.batch_shape, "x": own.shape[:-2]})  # before maps broadcast
            inner = maps.network_x(own, next(model.parameters()).dtype)
        if self._validate_args:
            warn_outside("x", inner, model.config)
            warn_spacing(inner, model.config, context=self.context)
            if self.jointly and not check_series(inner, model.config):
                check_follows(inner, self.context)
        warn_outside_counts("num_targets", own.shape[-2], model.config.num_targets)
        return own, code(inner, model.config.latents)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({shapes}, num_context={self.context.num_context})"

    def _repr_html_(self) -> str:
        config = self.context.model.config
        lines = {
            "targets": f"{self._num_targets}, {'jointly' if self.jointly else 'each alone'}",
            "outcome": describe_outcome(config.dim_y, config.outcomes),
            "batch": str(tuple(self.batch_shape)) if self.batch_shape else "none: one event",
            "observed": f"{self.context.num_context} pairs",
            "network": f"prior {config.prior or 'not declared'}, {config.buffer_size} buffer slots",
        }
        return as_html(type(self).__name__, facts(lines))

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Events `(M,)` or `(M, D_y)` of real numbers, categories or counts, as the network's outcome is."""
        config, event_dim = self.context.model.config, len(self.event_shape)
        if config.all_real or self._at_latents:
            return RealEvent(constraints.real, event_dim)
        first = config.kinds[0]
        if all(kind == first for kind in config.kinds):
            return SameEvent(first.support, event_dim)
        return MixedEvent([kind.support for kind in config.kinds])

    def sites(self, y: Tensor) -> dict[str, Tensor]:
        """Outcomes by the sites of the program that the network was trained on; categories are integers.

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, as `sample` returns.

        Returns:
            By site, `(*batch, M)` of a number and `(*batch, M, d)` of a vector per trial.
        """
        return split_sites(y, self.context.model.config)

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
    def mean(self) -> Tensor:
        """Raises NotImplementedError that names `moments`, where there is no closed form."""
        raise NotImplementedError("the joint's mean has no closed form; use d.moments(num_samples).mean")

    @property
    def variance(self) -> Tensor:
        """Raises NotImplementedError that names `moments`, where there is no closed form."""
        raise NotImplementedError("the joint's variance has no closed form; use d.moments(num_samples).variance")

    def cdf(self, value: Tensor) -> Tensor:
        """Raises NotImplementedError that says how to estimate it, where there is no closed form."""
        raise NotImplementedError(
            "the joint's cdf has no closed form; use ArBufferMarginals(ctx, x).cdf(y) for every target by itself, or "
            "(d.sample((1000,)) <= y).all(-1).float().mean(0) for all of them together"
        )

    def icdf(self, value: Tensor | float) -> Tensor:
        """Raises NotImplementedError that names other ways to have quantiles, where there is no closed form."""
        raise NotImplementedError(
            "several targets have no joint quantiles; use ArBufferMarginals(ctx, x).icdf(p), or "
            "d.sample((1000,)).quantile(p, 0), for every target by itself"
        )

    def entropy(self) -> Tensor:
        """Raises NotImplementedError that says how to estimate it: there is no closed form."""
        raise NotImplementedError(ENTROPY)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Raises NotImplementedError that says what to enumerate: a joint has too many outcomes."""
        raise NotImplementedError(
            "the outcomes of several targets are too many to be enumerated, or real numbers; let a guide draw them, or "
            "enumerate a latent that the joint depends on"
        )

    @property
    def _num_targets(self) -> int:
        return self.event_shape[0]

    def _as_tensor(self, y: Any) -> Any:
        """Outcomes out of an array or a table as a tensor; what is neither is checked later."""
        if isinstance(y, Tensor) or self._at_latents:
            return y
        check_same_rows(self._rows, y)
        check_dimensions(y, self.context.labels, self.context.model.config)
        return y_tensor("y", y, self.context.model)

    def _check_value(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)` in the model's units and dtype, NaN where it may be dropped."""
        event = tuple(self.event_shape)
        if isinstance(y, Tensor) and y.shape[max(y.dim() - len(event), 0) :] != event:
            hint = "; use y.squeeze(-1)" if y.shape[-len(event) - 1 :] == (*event, 1) else ""
            if not hint and len(event) == 1 and y.dim() > 1 and y.shape[-2:-1] == event:
                hint = f"; the network has one outcome, so that one of the {y.shape[-1]} columns can be scored"
            raise ValueError(f"y must have shape (*batch, {', '.join(map(str, event))}); got {tuple(y.shape)}{hint}")
        values = check_y("y", y, self.context.model, finite=False, at_latents=self._at_latents)
        values = self._mapped(values)
        if self._validate_args and may_look_at(y):
            wrong = torch.isinf(values) if self.nan == "drop" else ~torch.isfinite(values)
            if bool(wrong.any()):
                raise ValueError(
                    f"y must be finite; got {int(wrong.sum())} NaN or infinite of {values.numel()} values; leave these "
                    "targets out of x and y, or build the distribution with nan='drop', which removes NaN targets"
                )
            if not self._at_latents:
                check_kinds("y", values, self.context.model.config)
        return values

    def _mapped(self, y: Tensor) -> Tensor:
        """Checked outcomes `(*batch, T, D_y)` of a user in the model's units and dtype; their batches must fit."""
        broadcast_batches({"distribution": self.batch_shape, "y": y.shape[:-2]})
        return y if self._maps is None else self._maps.network_y(y, self._x.dtype)

    def _check_outcomes(self, y: Tensor) -> Tensor:
        """What `_check_value` returns, of outcomes that are scored: warns where data leave the trained range."""
        values = self._check_value(y)
        if self._validate_args and not self._at_latents:
            warn_outside("y", values, self.context.model.config)
        return values

    def _split_missing(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values with zeros for missing targets, and which are missing, `(*batch, M)`; `None` = none can be."""
        if self.nan == "raise":
            return values, None
        missing = values.isnan().any(-1)  # a target is missing where any of its outcome dimensions is
        if self._validate_args and self.jointly:
            check_dropped(missing, self.context.model.config)
        return values.masked_fill(missing.unsqueeze(-1), 0.0), missing

    def _warn_plate_over_targets(self, value_batch: Size) -> None:
        num_targets = self._num_targets
        if num_targets == 1 or is_traced():
            return
        lead = len(self.batch_shape)
        own, given = ((1,) * (lead - len(shape)) + tuple(shape) for shape in (self._own_shape, value_batch[-lead:]))
        for dim, size in enumerate(self.batch_shape):
            if size == num_targets and own[dim] == given[dim] == 1:
                warn(
                    f"a plate of {size} stands around one event of {num_targets} targets (batch dimension "
                    f'{dim - lead}), so its density counts {size} times; use pyro.sample("y", ArBufferJoint(ctx, x), '
                    "obs=y) without that plate, unless it is of subjects or particles, as many by chance",
                    PlateOverTargetsWarning,
                )

    def _fold_x(self, shape: Size) -> Tensor:
        return fold(self._x, shape, self.context.task_shape, 2)

    def _fold_values(self, values: Tensor) -> tuple[Size, Tensor]:
        """Values `(B, S, M, D_y)`, and the batch shape they stand for: without dimensions in which nothing differs."""
        shape = torch.broadcast_shapes(self._own_shape, values.shape[:-2])
        return shape, fold(values.expand(*shape, *values.shape[-2:]), shape, self.context.task_shape, 2)

    def _unfold_result(self, result: Tensor, shape: Size, dtype: torch.dtype) -> Tensor:
        """A result `(B, S, ...)` in the full batch shape, in the dtype of floating values but at least float32."""
        dtype = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else result.dtype
        result = unfold(result, shape, self.context.task_shape).to(dtype)
        return result.expand(*torch.broadcast_shapes(self.batch_shape, shape), *result.shape[len(shape) :])

    def _in_user_units(self, y: Tensor) -> Tensor:
        """Numbers `(*batch, M, D_y)` of the network in the user's units: `(*batch, M)` for a scalar outcome."""
        return self._squeeze(y if self._maps is None else self._maps.user_y(y))

    def _user_density(self, density: Tensor, missing: Tensor | None) -> Tensor:
        """Log densities `(*batch, M, D_y)` in the user's units, 0 where a target is missing: `missing` broadcasts."""
        if self._maps is None:
            return density
        density = self._maps.user_density(density)
        return density if missing is None else density.masked_fill(missing, 0.0)

    def _squeeze(self, y: Tensor) -> Tensor:
        return self.context.model.config.squeeze_outcome(y)

    def _as_outcome(self, y: Tensor) -> Tensor:
        """Draws `(*batch, M, D_y)` as users have them: categories of a scalar outcome are integers, as Pyro's are."""
        config = self.context.model.config
        y = self._in_user_units(y)
        return y.long() if config.dim_y is None and config.kinds[0].num_categories and not self._at_latents else y
