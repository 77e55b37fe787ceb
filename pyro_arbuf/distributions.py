"""The Pyro distributions: ArBufferJoint and ArBufferMarginals (PYRO.md, "The distribution")."""

import math
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_arbuf.context import Context, broadcast_batches, check_targets, check_y
from pyro_arbuf.inference import Noise, fold, log_prob_joint, predict_marginals, sample_joint, unfold
from pyro_arbuf.orders import check_orders, random_orders


class Moments(NamedTuple):
    """Monte Carlo moments of a joint; E = M for a scalar outcome, M * D_y for a vector one (outcome fastest).

    Attributes:
        mean: `(*batch, M)` or `(*batch, M, D_y)`, units of y.
        variance: The same shape, units of y squared.
        covariance: `(*batch, E, E)`, units of y squared.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor


class _ArBufferDistribution(TorchDistribution):
    """What joint and marginals share: shapes, virtual expand, support, checks of values."""

    arg_constraints = {}
    has_rsample = False

    def __init__(self, context: Context, x: Tensor, validate_args: bool | None = None):
        if not isinstance(context, Context):
            raise ValueError(
                f"context must be a Context; got {type(context).__name__}; make one with net.condition(x_obs, y_obs)"
            )
        self.context = context
        self.x = check_targets(x, context.model)
        dim_y = context.model.config.dim_y
        event_shape = self.x.shape[-2:-1] + (() if dim_y is None else (dim_y,))
        batch_shape = broadcast_batches({"context": context.batch_shape, "x": self.x.shape[:-2]})
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({shapes}, num_context={self.context.num_context})"

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """`real_vector` for a scalar outcome, `independent(real, 2)` for a vector outcome."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        """The same distribution with a larger batch shape; nothing is copied.

        Args:
            batch_shape: New batch shape, to which the present one broadcasts.

        Raises:
            ValueError: If it does not.
        """
        batch_shape = Size(batch_shape)
        try:
            reachable = torch.broadcast_shapes(self.batch_shape, batch_shape) == batch_shape
        except RuntimeError:
            reachable = False
        if not reachable:
            raise ValueError(
                f"expand: batch_shape must be one that {tuple(self.batch_shape)} broadcasts to; got "
                f"{tuple(batch_shape)}"
            )
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        super(_ArBufferDistribution, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def _num_targets(self) -> int:
        return self.event_shape[0]

    def _check_value(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)` in the model's dtype."""
        event = tuple(self.event_shape)
        if isinstance(y, Tensor) and y.shape[max(y.dim() - len(event), 0) :] != event:
            hint = "; use y.squeeze(-1)" if y.shape[-len(event) - 1 :] == (*event, 1) else ""
            raise ValueError(f"y must have shape (*batch, {', '.join(map(str, event))}); got {tuple(y.shape)}{hint}")
        y = check_y("y", y, self.context.model, finite=bool(self._validate_args))
        broadcast_batches({"distribution": self.batch_shape, "y": y.shape[:-2]})
        return y

    def _fold_x(self, shape: Size) -> Tensor:
        return fold(self.x, shape, self.context.batch_shape, 2)

    def _squeeze(self, y: Tensor) -> Tensor:
        return y.squeeze(-1) if self.context.model.config.dim_y is None else y


class ArBufferJoint(_ArBufferDistribution):
    r"""The joint predictive of M targets given a context: autoregressive, through the causal buffer.

    .. math:: p(y_{1..M} \mid x, C) = \frac1R \sum_r \prod_k p(y_{r_k} \mid x_{r_k}, C, (x, y)_{r_1 .. r_{k-1}})

    What is sampled is what is scored: the equal mixture over the R orders, with the same block boundaries. Beyond
    `buffer_size` targets the buffered pairs are absorbed into the context, which is then re-encoded.

    Args:
        context: What `net.condition(x_obs, y_obs)` returns.
        x: `(*batch, M, D_x)` target inputs, M >= 1.
        orders: `(R, M)` int64, `orders[r, k]` = index of the target placed k-th, shared across the batch; `None` = one
            fixed shuffled order, a function of M only (the targets as given where the model is sequential).
        buffer_size: Targets between two absorptions, 1..K; `None` = the model's K. 1 = exact autoregression.
        validate_args: Whether values are checked; `None` = Pyro's default.

    Raises:
        ValueError: If an argument breaks its rule; checked before any compute.

    Source:
        Hassan et al. (2026), sections 3 and 4.

    Example:
        >>> from pyro_arbuf.model import ArBufferModel, ModelConfig
        >>> net = ArBufferModel(ModelConfig()).requires_grad_(False)
        >>> d = ArBufferJoint(net.condition(), torch.linspace(-1, 1, 3)[:, None])
        >>> d.sample((5,)).shape, d.log_prob(torch.zeros(3)).shape
        (torch.Size([5, 3]), torch.Size([]))
    """

    def __init__(
        self,
        context: Context,
        x: Tensor,
        orders: Tensor | None = None,
        buffer_size: int | None = None,
        validate_args: bool | None = None,
    ):
        super().__init__(context, x, validate_args=validate_args)
        slots = context.model.config.buffer_size
        if buffer_size is None:
            buffer_size = slots
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int) or not 1 <= buffer_size <= slots:
            raise ValueError(f"buffer_size must be an integer in 1..{slots} (the model's slots); got {buffer_size!r}")
        if orders is not None:
            orders = check_orders(orders, self._num_targets)
        elif context.model.config.sequential:
            orders = torch.arange(self._num_targets)[None]
        else:
            orders = random_orders(self._num_targets, 1)
        self.orders = orders.to(self.x.device)
        self.buffer_size = buffer_size

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws coherent joint samples with torch's global generator; memory is fixed beyond output and noise.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, units of y.
        """
        shape = Size(sample_shape) + self.batch_shape
        dim_y = self.context.model.config.dim_y or 1
        with torch.no_grad():
            uniform = torch.rand(*shape, self._num_targets, dim_y, dtype=self.x.dtype, device=self.x.device)
            order = torch.zeros(shape, dtype=torch.int64, device=self.x.device)
            if len(self.orders) > 1:
                order = torch.randint(len(self.orders), shape, device=self.x.device)
            batch = self.context.batch_shape
            noise = Noise(
                fold(uniform, shape, batch, 2),
                fold(torch.randn_like(uniform), shape, batch, 2),
                fold(order, shape, batch, 0),
            )
            y = sample_joint(self.context, self._fold_x(shape), self.orders, self.buffer_size, noise)
            return self._squeeze(unfold(y, shape, batch))

    def _factors(self, y: Tensor) -> Tensor:
        """`(*batch, R, M, D_y)`, in at least float32, targets in the user's indexing."""
        value = self._check_value(y)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-2])
        batch = self.context.batch_shape
        folded = fold(value.expand(*shape, *value.shape[-2:]), shape, batch, 2)
        factors = log_prob_joint(self.context, self._fold_x(shape), folded, self.orders, self.buffer_size)
        dtype = torch.promote_types(y.dtype, torch.float32)
        return unfold(factors.to(torch.promote_types(factors.dtype, torch.float32)), shape, batch).to(dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Joint log density, the equal mixture over the orders, in one pass per block of targets.

        Args:
            value: `(*batch, M)` or `(*batch, M, D_y)`, units of y; its batch and the distribution's broadcast.

        Returns:
            `(*batch,)` nats per event.

        Raises:
            ValueError: If shape, dtype or device is wrong, or, with validation on, a value is NaN or infinite.
            RuntimeError: If the model's weights have changed since the context was made.
        """
        per_order = self._factors(value).sum((-1, -2))  # (*batch, R)
        return torch.logsumexp(per_order, -1) - math.log(len(self.orders))

    def log_prob_factors(self, y: Tensor) -> Tensor:
        """Chain factors: log density of every target given those placed before it; they sum to `log_prob`.

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch, M)` nats, in the user's indexing. Not pointwise densities for cross-validation.

        Raises:
            ValueError: If the distribution has several orders (a mixture has no chain), or as `log_prob`.
        """
        if len(self.orders) > 1:
            raise ValueError(
                f"log_prob_factors needs one order; this distribution mixes {len(self.orders)}; build it with "
                "orders=orders[:1], or use log_prob"
            )
        return self._factors(y).squeeze(-3).sum(-1)

    def marginals(self) -> "ArBufferMarginals":
        """The set model's independent predictive of the same targets (not the marginals of this joint)."""
        marginals = ArBufferMarginals(self.context, self.x, validate_args=self._validate_args)
        return marginals.expand(self.batch_shape)

    def moments(self, num_samples: int) -> Moments:
        """Monte Carlo moments of this joint, from `num_samples` draws.

        Args:
            num_samples: Number of draws, at least 2.

        Returns:
            Mean, variance and covariance.

        Raises:
            ValueError: If `num_samples` is below 2.
        """
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2; got {num_samples}")
        draws = self.sample(Size([num_samples]))
        mean = draws.mean(0)
        centred = (draws - mean).flatten(start_dim=draws.dim() - len(self.event_shape))  # (n, *batch, E)
        covariance = torch.einsum("n...i,n...j->...ij", centred, centred) / (num_samples - 1)
        return Moments(mean, draws.var(0), covariance)

    @property
    def mean(self) -> Tensor:
        """Not in closed form: raises NotImplementedError that names `moments`."""
        raise NotImplementedError("the joint's mean has no closed form; use d.moments(num_samples).mean")

    @property
    def variance(self) -> Tensor:
        """Not in closed form: raises NotImplementedError that names `moments`."""
        raise NotImplementedError("the joint's variance has no closed form; use d.moments(num_samples).variance")


class ArBufferMarginals(_ArBufferDistribution):
    """The set model's independent predictive: one mixture per target (and outcome dimension), nothing shared.

    Its `log_prob` sums over the targets; `mean`, `variance`, `cdf` and `icdf` are elementwise.

    Args:
        context: What `net.condition(x_obs, y_obs)` returns.
        x: `(*batch, M, D_x)` target inputs, M >= 1.
        validate_args: Whether values are checked; `None` = Pyro's default.

    Raises:
        ValueError: If an argument breaks its rule.
        RuntimeError: If the model's weights have changed since the context was made.
    """

    def __init__(self, context: Context, x: Tensor, validate_args: bool | None = None):
        super().__init__(context, x, validate_args=validate_args)
        shape = self.batch_shape
        predictive = predict_marginals(context, self._fold_x(shape))
        parts = (predictive.log_weights, predictive.means, predictive.sds)
        self._mixture = type(predictive)(*(unfold(p, shape, context.batch_shape) for p in parts))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, summed over the targets.

        Args:
            value: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch,)` nats per event.
        """
        density = self._mixture.log_prob(self._check_value(value)).sum((-1, -2))
        shape = torch.broadcast_shapes(self.batch_shape, density.shape)
        return density.expand(shape).to(torch.promote_types(value.dtype, torch.float32))

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws every target independently of the others.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, units of y.
        """
        shape = Size(sample_shape) + self.batch_shape
        event = self._mixture.batch_shape[-2:]
        return self._squeeze(self._mixture.expand(shape + event).sample())

    @property
    def mean(self) -> Tensor:
        """Mean of every target, `(*batch, M)` or `(*batch, M, D_y)`, units of y."""
        return self._squeeze(self._mixture.mean).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of every target, units of y squared."""
        return self._squeeze(self._mixture.variance).expand(self.batch_shape + self.event_shape)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function of every target, elementwise."""
        return self._squeeze(self._mixture.cdf(self._check_value(value)))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles of every target, elementwise.

        Args:
            value: Probabilities in (0, 1): a scalar tensor, or `(*batch, M)` or `(*batch, M, D_y)`.

        Returns:
            Units of y.
        """
        value = torch.as_tensor(value)
        if value.dim() and self.context.model.config.dim_y is None:
            value = value.unsqueeze(-1)
        return self._squeeze(self._mixture.icdf(value))
