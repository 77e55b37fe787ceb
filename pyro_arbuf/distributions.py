"""ArBufferJoint, the joint predictive as a Pyro distribution (PYRO.md, "The distribution")."""

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_arbuf.context import Context, warn_outside
from pyro_arbuf.inference import Noise, fold, log_prob_joint, sample_joint, unfold
from pyro_arbuf.marginals import ArBufferDistribution, ArBufferMarginals
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


class ArBufferJoint(ArBufferDistribution):
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
        absorbed = (self._num_targets - 1) // buffer_size * buffer_size
        if absorbed:
            trained = context.model.config.num_context
            warn_outside("num_context with absorbed targets", context.num_context + absorbed, trained, stacklevel=4)

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

    def marginals(self) -> ArBufferMarginals:
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
