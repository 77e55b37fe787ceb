"""GaussianJoint, the joint predictive of TNP-ND as a Pyro distribution."""

from collections.abc import Sequence

import torch
from pyro.distributions import MultivariateNormal
from torch import Size, Tensor

from pyro_arbuf.baselines.tnp_nd import TNPND
from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.inference.context import Context, check_current
from pyro_arbuf.inference.layout import unfold
from pyro_arbuf.inference.validation import check_sample_shape, inference_scope


class GaussianJoint(ArBufferDistribution):
    """The joint predictive of a `tnp-nd` network: one multivariate Gaussian over the M targets.

    It has one order, in which the targets are given, and no buffer.

    Args:
        context: What `net.condition(x_obs, y_obs)` returns for a network of architecture "tnp-nd".
        x: `(*batch, M, D_x)` target inputs, M >= 1.
        validate_args: Whether values are checked; `None` = Pyro's default.

    Raises:
        ValueError: If an argument breaks its rule, or the network is another one.
        RuntimeError: If the context is not current.

    Example:
        >>> from pyro_arbuf import ModelConfig
        >>> from pyro_arbuf.baselines import make_model
        >>> net = make_model(ModelConfig(architecture="tnp-nd")).requires_grad_(False)
        >>> d = GaussianJoint(net.condition(), torch.linspace(-1, 1, 3)[:, None])
        >>> d.sample((5,)).shape, d.log_prob(torch.zeros(3)).shape
        (torch.Size([5, 3]), torch.Size([]))
    """

    def __init__(self, context: Context, x: Tensor, validate_args: bool | None = None):
        with inference_scope():
            super().__init__(context, x, validate_args=validate_args)
            model = context.model
            if not isinstance(model, TNPND):
                raise ValueError(
                    "context must come from a network of architecture 'tnp-nd'; got one of "
                    f"{model.config.architecture!r}; use ArBufferJoint(context, x)"
                )
            check_current(context)
            shape = self._own_shape
            targets = model.embed_targets(context.cache, self._fold_x(shape))
            gaussian = model.predict_jointly(context.cache, targets)
            loc, factor = (unfold(part, shape, context.task_shape) for part in (gaussian.loc, gaussian.scale_tril))
            self._gaussian = MultivariateNormal(loc, scale_tril=factor, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Joint log density.

        Args:
            value: `(*batch, M)` or `(*batch, M, D_y)`, units of y.

        Returns:
            `(*batch,)` nats per event.

        Raises:
            ValueError: If shape, dtype or device is wrong, or, with validation on, data are NaN or infinite.
        """
        with inference_scope():
            y = self._as_tensor(value)
            values = self._check_outcomes(y)
            self._warn_plate_over_targets(values.shape[:-2])
            density = self._gaussian.log_prob(values.flatten(-2))
            density = density + self._user_density(values.new_zeros(values.shape), None).sum((-1, -2))
            density = density.expand(torch.broadcast_shapes(self.batch_shape, density.shape))
            return density.to(torch.promote_types(y.dtype, torch.float32))

    @inference_scope()
    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws all targets together, with torch's global generator.

        Args:
            sample_shape: Shape of the draws.

        Returns:
            `(*sample_shape, *batch, M)` or `(*sample_shape, *batch, M, D_y)`, units of y, without gradients.
        """
        with torch.no_grad():
            draws = self._gaussian.expand(self.batch_shape).sample(check_sample_shape(sample_shape))
            return self._as_outcome(self._by_target(draws)).detach()

    @property
    def mean(self) -> Tensor:
        """Mean of every target, `(*batch, M)` or `(*batch, M, D_y)`, units of y."""
        return self._in_user_units(self._by_target(self._gaussian.loc)).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of every target, units of y squared."""
        variance = self._by_target(self._gaussian.variance)
        variance = variance if self._maps is None else self._maps.user_variance(variance)
        return self._squeeze(variance).expand(self.batch_shape + self.event_shape)

    def _by_target(self, numbers: Tensor) -> Tensor:
        """Numbers of the Gaussian's event, `(*batch, M D_y)`, as `(*batch, M, D_y)`."""
        return numbers.unflatten(-1, (self._num_targets, -1))
