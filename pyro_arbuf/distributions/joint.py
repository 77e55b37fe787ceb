"""ArBufferJoint, the joint predictive as a Pyro distribution."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Size, Tensor

from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.moments import Moments, moments_of
from pyro_arbuf.inference.blocks import Noise, draw_noise
from pyro_arbuf.inference.chain import grow_context, leave_one_out, pit_joint, rsample_joint, sample_joint, score_joint
from pyro_arbuf.inference.context import Context, check_current
from pyro_arbuf.inference.draft_verify import DraftedDraws, draft_joint, draw_keys
from pyro_arbuf.inference.layout import fold, join_context, unfold
from pyro_arbuf.inference.orders import (
    OrderSpread,
    average_orders,
    check_index,
    chosen_orders,
    mix_orders,
    restrict_orders,
    warn_few_orders,
)
from pyro_arbuf.inference.trained_range import warn_outside, warn_outside_counts
from pyro_arbuf.inference.validation import (
    broadcast_batches,
    check_buffer_size,
    check_count,
    check_draft,
    check_sample_shape,
    check_y,
    inference_scope,
)
from pyro_arbuf.network.latents import Locations
from pyro_arbuf.network.tracing import is_traced


class ArBufferJoint(ArBufferDistribution):
    r"""The joint predictive of M targets given a context: autoregressive, through the causal buffer.

    .. math:: p(y_{1..M} \mid x, C) = \frac1R \sum_r \prod_k p(y_{r_k} \mid x_{r_k}, C, (x, y)_{r_1 .. r_{k-1}})

    What is sampled is what is scored: the equal mixture over the R orders, with the same block boundaries. Beyond
    `buffer_size` targets the buffered pairs are absorbed into the context, which is then re-encoded.

    Args:
        context: What `net.condition(x_obs, y_obs)` returns.
        x: `(*batch, M, D_x)` target inputs, M >= 1; of tables with the columns of the context.
        orders: `(R, M)` int64, `orders[r, k]` = index of the target placed k-th, shared across the batch; `None` = one
            fixed shuffled order, a function of M only (the targets as given where the model is sequential).
        buffer_size: Targets between two absorptions, 1..K; `None` = the model's K. 1 = exact autoregression.
        rsample: Whether draws are reparameterised (implicitly), so that gradients reach x and a live context.
        draft: Whether `sample` drafts all targets of a block and verifies them together: the same law, other draws.
            Faster for one or few draws at a time, slower for many; see `sample_drafted`.
        nan: What a NaN outcome does: `"raise"` a ValueError (where validation is on and the value is data, not a
            function of latents; else NaN comes out), or `"drop"` the target. The rest is then scored as if the target
            had never been asked for, which is not the same as integrating it out. In a TransformedDistribution the
            Jacobian of a dropped target would still count: leave such targets out of x and y yourself.
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
        x: Tensor | Locations,
        orders: Tensor | None = None,
        buffer_size: int | None = None,
        rsample: bool = False,
        nan: Literal["raise", "drop"] = "raise",
        validate_args: bool | None = None,
        draft: bool = False,
    ):
        with inference_scope():
            super().__init__(context, x, nan=nan, validate_args=validate_args)
            self.buffer_size = buffer_size = check_buffer_size(buffer_size, context.model)
            sequential = context.model.config.sequential
            orders = chosen_orders(orders, self._num_targets, sequential, self._at_latents)
            self.orders = orders.to(self._x.device)
            self.has_rsample = bool(rsample)
            self.draft = check_draft(draft, self.has_rsample, buffer_size)
            if absorbed := (self._num_targets - 1) // buffer_size * buffer_size:
                number, trained = context.num_context + absorbed, context.model.config.num_context
                warn_outside_counts("num_context with absorbed targets", number, trained)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws coherent joint samples with torch's global generator; memory is fixed beyond output and noise.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, units of y, without gradients.
        """
        if self.draft and not is_traced():  # how often it verifies depends on values
            return self.sample_drafted(sample_shape).draws
        with torch.no_grad(), inference_scope():
            noise, shape = self._noise(sample_shape)
            draws = sample_joint(self.context, self._fold_x(shape), self.orders, self.buffer_size, noise)
            return self._unfold_draws(draws, shape)

    def sample_drafted(self, sample_shape: Sequence[int] = Size()) -> DraftedDraws:
        """Joint samples by draft and verify, of the law of `sample`, with how many passes and drafts each took.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            The draws, `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, and the counts.
        """
        with torch.no_grad(), inference_scope():
            noise, shape = self._noise(sample_shape)
            given = (self.context, self._fold_x(shape), self.orders, self.buffer_size, noise, draw_keys(noise))
            draws, *counts = draft_joint(*given)
            counts = (unfold(count, shape, self.context.task_shape) for count in counts)
            return DraftedDraws(self._unfold_draws(draws, shape), *counts)

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """The draws of `sample`, with gradients by implicit reparameterisation, step by step along the chain.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, units of y.

        Raises:
            NotImplementedError: If the distribution was not built with `rsample=True`.
        """
        if not self.has_rsample:
            raise NotImplementedError("rsample is opt in: build the distribution with ArBufferJoint(..., rsample=True)")
        if not (self.context.model.config.all_real or self._at_latents):
            raise NotImplementedError("draws of categories and counts have no derivative; use sample")
        with inference_scope():
            noise, shape = self._noise(sample_shape)
            draws = rsample_joint(self.context, self._fold_x(shape), self.orders, self.buffer_size, noise)
            return self._unfold_draws(draws, shape)

    def _noise(self, sample_shape: Sequence[int]) -> tuple[Noise, Size]:
        """All randomness of draws, and their shape with the batch."""
        shape = check_sample_shape(sample_shape) + self.batch_shape
        event = (self._num_targets, self.context.model.config.dim_y or 1)
        return draw_noise(shape, self.context.task_shape, event, len(self.orders), self._x), shape

    def _unfold_draws(self, y: Tensor, shape: Size) -> Tensor:
        return self._as_outcome(unfold(y, shape, self.context.task_shape))

    def _given(self, y: Tensor) -> tuple[tuple[Context, Tensor, Tensor, Tensor, int, Tensor | None], Size]:
        """The arguments of `score_joint` for checked outcomes, and the batch shape that they stand for."""
        values, missing = self._split_missing(self._check_outcomes(y))
        self._warn_plate_over_targets(values.shape[:-2])
        shape, folded = self._fold_values(values)
        if missing is not None:
            missing = fold(missing.expand(*shape, -1), shape, self.context.task_shape, 1)
        return (self.context, self._fold_x(shape), folded, self.orders, self.buffer_size, missing), shape

    def _densities(self, y: Tensor) -> Tensor:
        """Log density of every target given those before it in each order, `(*batch, R, M, D_y)` nats."""
        y = self._as_tensor(y)
        given, shape = self._given(y)
        missing = None if given[-1] is None else unfold(given[-1], shape, self.context.task_shape).unsqueeze(-1)
        density = self._unfold_result(score_joint(*given), shape, y.dtype).movedim(-3, 0)  # (R, *batch, M, D_y)
        return self._user_density(density, missing).movedim(0, -3)

    def log_prob(self, value: Tensor) -> Tensor:
        """Joint log density, the equal mixture over the orders, in one pass per block of targets.

        Args:
            value: `(*batch, M)` or `(*batch, M, D_y)`, units of y; its batch and the distribution's broadcast.

        Returns:
            `(*batch,)` nats per event; 0 where every target is dropped.

        Raises:
            ValueError: If shape, dtype or device is wrong, or, with validation on, data are NaN or infinite.
            RuntimeError: If the context is not current: weights changed, gradients missing, or backward went through.
        """
        with inference_scope():
            return mix_orders(self._densities(value).sum((-1, -2)))

    def log_prob_factors(self, y: Tensor) -> Tensor:
        """Chain factors: log density of every target given those placed before it; they sum to `log_prob`.

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch, M)` nats, in the user's indexing, 0 for a dropped target. Not pointwise densities for
            cross-validation: those are `log_prob_conditionals`.

        Raises:
            ValueError: If the distribution has several orders (a mixture has no chain), or as `log_prob`.
        """
        with inference_scope():
            self._check_one_order("log_prob_factors", "log_prob")
            return self._densities(y).squeeze(-3).sum(-1)

    def pit(self, y: Tensor, seed: int = 0) -> Tensor:
        """Probability integral transform along the chain: F(y_k | those placed before it).

        Uniform and independent where the joint is calibrated, whatever the dependence between targets. That of a
        category or a count is drawn uniformly between P(Y < y) and P(Y <= y).

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, units of y.
            seed: Of the uniform numbers, which real outcomes do not need.

        Returns:
            `(*batch, M)` or `(*batch, M, D_y)` in [0, 1], in the user's indexing, NaN for a dropped target.

        Raises:
            ValueError: If the distribution has several orders, or as `log_prob`.

        Source:
            Rosenblatt (1952), "Remarks on a multivariate transformation".
        """
        with inference_scope():
            self._check_one_order("pit", "one order at a time")
            y = self._as_tensor(y)
            given, shape = self._given(y)
            below, up_to = (self._unfold_result(part, shape, y.dtype).squeeze(-3) for part in pit_joint(*given))
            if not self.context.model.config.all_real:
                generator = torch.Generator("cpu").manual_seed(seed)
                uniform = torch.rand(below.shape, generator=generator, dtype=below.dtype, device="cpu").to(below.device)
                up_to = below + uniform * (up_to - below)
            return self._squeeze(up_to)

    def _check_one_order(self, name: str, instead: str) -> None:
        count = len(self.orders)
        if count > 1:
            raise ValueError(f"{name} needs one order; got {count}; build it with orders=orders[:1], or use {instead}")

    def order_spread(self, y: Tensor) -> OrderSpread:
        """How much the joint log density depends on the order of the targets; warns where few orders dominate.

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            Density of every order, their average, its standard error, and how many orders count.

        Raises:
            ValueError: If the distribution has one order only, or as `log_prob`.
        """
        if len(self.orders) < 2:
            raise ValueError("order_spread needs at least 2 orders; got 1; use orders=random_orders(M, 16)")
        spread = average_orders(self._log_prob_orders(y))
        warn_few_orders(spread, "the joint log density")
        return spread

    def _log_prob_orders(self, y: Tensor) -> Tensor:
        """Joint log density in each order, `(*batch, R)` nats."""
        with inference_scope():
            return self._densities(y).sum((-1, -2))

    def log_prob_conditionals(self, y: Tensor) -> Tensor:
        """Full conditionals: the set model's log density of every target with all other pairs in the context.

        M re-encodings in one batch, free of orders: pointwise densities fit for cross-validation, which differ from
        the ratio of two joints of this distribution where the model is not consistent.

        Args:
            y: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch, M)` nats.

        Raises:
            ValueError: As `log_prob`; for NaN also with `nan="drop"`; for a series.
        """
        with inference_scope():
            check_current(self.context)
            values = self._check_outcomes(y := self._as_tensor(y))
            if self.nan == "drop" and bool(values.isnan().any()):
                raise ValueError(
                    "log_prob_conditionals needs every outcome; got NaN; leave these targets out of x and y"
                )
            shape, folded = self._fold_values(values)
            x_all, y_all, context_len = join_context(self.context, self._fold_x(shape), folded)
            densities = leave_one_out(self.context.model, x_all, y_all, self._num_targets, context_len)
            densities = self._unfold_result(densities.unflatten(0, folded.shape[:2]), shape, y.dtype)
            return densities if self._maps is None else (densities - self._maps.log_jacobian).to(densities.dtype)

    def condition(self, index: Tensor | Sequence[int], y: Tensor) -> "ArBufferJoint":
        """The joint of the other targets given the outcomes of some, whose pairs join the context, encoded anew.

        Not exactly this joint's own conditional distribution, in which they would stand in the buffer.

        Args:
            index: Which targets, integers in 0..M-1, none twice; at least one target must be left.
            y: Their outcomes, `(*batch, len(index))` or `(*batch, len(index), D_y)`; batches broadcast.

        Returns:
            The joint of the rest, in the user's indexing, orders and options kept.

        Raises:
            ValueError: If an index is outside 0..M-1 or given twice, no target is left, or y does not fit.
            RuntimeError: If the context is not current.
        """
        given = check_index(index, self._num_targets).to(self._x.device)
        values = self._mapped(check_y("y", y := self._as_tensor(y), self.context.model))
        if values.shape[-2] != len(given):
            raise ValueError(f"y must have shape (*batch, {len(given)}, ...) for this index; got {tuple(y.shape)}")
        if self._validate_args:
            warn_outside("y", values, self.context.model.config)
        rest = torch.ones(self._num_targets, dtype=torch.bool, device=self._x.device)
        rest[given] = False
        full = broadcast_batches({"distribution": self.batch_shape, "y": values.shape[:-2]})
        shape = torch.broadcast_shapes(self._own_shape, values.shape[:-2])
        context = grow_context(self.context, self._x[..., given, :], values, shape).expand(full)
        warn_outside_counts("num_context", context.num_context, context.model.config.num_context)
        orders = restrict_orders(self.orders, rest)
        options = (self.buffer_size, self.has_rsample, self.nan, self._validate_args, self.draft)
        return ArBufferJoint(context, self.x[..., rest, :], orders, *options)

    def marginals(self) -> ArBufferMarginals:
        """The set model's independent predictive of the same targets (not the marginals of this joint)."""
        marginals = ArBufferMarginals(self.context, self.x, nan=self.nan, validate_args=self._validate_args)
        return marginals.expand(self.batch_shape)

    def moments(self, num_samples: int) -> Moments:
        """Monte Carlo moments of this joint, from `num_samples` draws.

        Args:
            num_samples: Number of draws, at least 2.

        Returns:
            Mean, variance and covariance.

        Raises:
            ValueError: If `num_samples` is no integer of at least 2.
        """
        draws = self.sample(Size([check_count("num_samples", num_samples, 2)]))
        return moments_of(draws.to(self._x.dtype), len(self.event_shape))
