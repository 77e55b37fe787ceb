# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The learned likelihood as a NumPyro distribution. Needs NumPyro, the extra `numpyro`."""

from collections.abc import Mapping
from typing import Any, Literal

from pyro_arbuf.bridges.arrays import ArrayLikelihood
from pyro_arbuf.distributions.base import PlateOverTargetsWarning
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.outcomes import Outcome
from pyro_arbuf.user_warnings import warn

try:
    import jax
    import numpyro.distributions as dist
    from numpyro.distributions import constraints
except ImportError as error:
    raise ImportError("pyro_arbuf.bridges.numpyro needs NumPyro; pip install 'pyro-arbuf[numpyro]'") from error

from pyro_arbuf.bridges.jax import inputs_of, known, log_likelihood, ordered, shapes_of, with_rank


def likelihood(
    net: ArBufferModel, x: Any, latents: Mapping[str, Any], nan: Literal["raise", "drop"] = "raise"
) -> dist.Distribution:
    """The distribution of a program's outcomes given all its latents, as `pyro_arbuf.likelihood`, in NumPyro.

    One event is all trials of a data set, so only plates of data sets, such as subjects, stand around it. Densities
    and draws are callbacks to torch; densities have first derivatives by the latents.

    Args:
        net: A network with latents.
        x: `(*batch, n, D_x)` inputs, in the units of the network.
        latents: Values `(*batch, *shape)` of all latents, in their own supports.
        nan: What a NaN outcome does: `"raise"` a ValueError, where its value is known while JAX traces, or `"drop"` the
            trial.

    Returns:
        A distribution of events `(n,)` or `(n, D_y)`, whose numbers have the dtype of the latents.

    Raises:
        ValueError: As `pyro_arbuf.likelihood`.

    Example:
        >>> import pyro_arbuf
        >>> net = pyro_arbuf.load("gaussian")
        >>> law = likelihood(net, jax.numpy.zeros((5, 1)), {"mu": jax.numpy.zeros(3), "tau": 1.0})
        >>> law.batch_shape, law.event_shape, law.sample(jax.random.key(0)).shape
        ((3,), (5,), (3, 5))
    """
    return _Likelihood(net, x, latents, nan)


class _Likelihood(dist.Distribution):
    pytree_data_fields = ("x", "latents")
    pytree_aux_fields = ("ours",)

    def __init__(self, net: ArBufferModel, x: Any, latents: Mapping[str, Any], nan: Literal["raise", "drop"]):
        ours = ArrayLikelihood(net, ordered(net, latents)[0].dtype.name, nan)
        law = ours.rehearse(known(x), shapes_of(latents))
        self.ours, self.x, self.latents = ours, inputs_of(x, ours), dict(latents)
        super().__init__(tuple(law.batch_shape), tuple(law.event_shape), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...]) -> dist.Distribution:
        """The same with more batch dimensions, as those of plates."""
        return self if tuple(batch_shape) == self.batch_shape else _InPlates(self, tuple(batch_shape))

    @property
    def support(self) -> constraints.Constraint:
        """Of one event; of outcomes of several kinds, real numbers."""
        first, *others = self.ours.net.config.kinds
        base = _support(first) if all(kind == first for kind in others) else constraints.real
        return constraints.independent(base, self.event_dim)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log density of events, `(*batch,)` nats."""
        return log_likelihood(self.ours.net, self.x, self.latents, value, self.ours.nan)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws `(*sample_shape, *batch_shape, *event_shape)`, a function of the key; under `vmap`, of all keys."""
        batch = sample_shape + self.batch_shape
        ranks = zip(ordered(self.ours.net, self.latents), self.ours.latent_ranks, strict=True)
        values = [with_rank(value, len(batch) + rank) for value, rank in ranks]
        operands = jax.random.bits(key, batch), with_rank(self.x, len(batch) + 2), *values
        result = jax.ShapeDtypeStruct(batch + self.event_shape, self.ours.dtype)
        return jax.pure_callback(self.ours.sample, result, *operands, vmap_method="expand_dims")


class _InPlates(dist.ExpandedDistribution):
    """A likelihood that is expanded, as by plates."""

    def expand(self, batch_shape: tuple[int, ...]) -> dist.Distribution:
        """The same with other batch dimensions."""
        return _InPlates(self.base_dist, tuple(batch_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log density of events, `(*batch,)` nats; warns where a plate is one of the trials."""
        law, lead = self.base_dist, len(self.batch_shape)
        given = value.shape[: value.ndim - law.event_dim]
        own, given = (((1,) * lead + tuple(shape))[-lead:] for shape in (law.batch_shape, given))
        for dim, size in enumerate(self.batch_shape):
            if size == law.event_shape[0] and size > 1 and own[dim] == given[dim] == 1:
                warn(
                    f"a plate of {size} stands around one event of {size} trials (batch dimension {dim - lead}), so "
                    "its density counts that many times; sample it without that plate, unless its "
                    "elements are subjects, and there happen to be as many of them as trials",
                    PlateOverTargetsWarning,
                )
        return super().log_prob(value, intermediates)


def _support(kind: Outcome) -> constraints.Constraint:
    """Of one outcome dimension, in NumPyro's words."""
    if kind.num_categories:
        return constraints.integer_interval(0, kind.num_categories - 1)
    return constraints.nonnegative_integer if kind.support.is_discrete else constraints.real
