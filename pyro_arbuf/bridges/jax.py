# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The learned likelihood as a JAX function: under `jit`, `grad` and `vmap`. Needs JAX, as the extra `numpyro` has."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

from pyro_arbuf.bridges.arrays import ArrayLikelihood, StandIn
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.likelihood import check_given

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError("pyro_arbuf.bridges.jax needs JAX; pip install 'pyro-arbuf[numpyro]'") from error


def log_likelihood(
    net: ArBufferModel,
    x: Any,
    latents: Mapping[str, Any],
    y: Any,
    nan: Literal["raise", "drop"] = "raise",
) -> jax.Array:
    """Log density of a program's outcomes given all its latents, as `pyro_arbuf.likelihood` has it, in JAX.

    A callback to torch, which gives value and gradient together. Under `vmap` all elements go in one call. It has
    first derivatives by the latents, in reverse mode, and no others.

    Args:
        net: A network with latents.
        x: `(*batch, n, D_x)` inputs, in the units of the network.
        latents: Values `(*batch, *shape)` of all latents, in their own supports.
        y: `(*batch, n)` or `(*batch, n, D_y)` outcomes, in the units of the network.
        nan: What a NaN outcome does: `"raise"` a ValueError, where its value is known while JAX traces, or `"drop"` the
            trial.

    Returns:
        `(*batch,)` nats per event, in the dtype of the latents; the network computes in that of its weights.

    Raises:
        ValueError: As `likelihood`, or if derivatives by x or y are asked for.

    Example:
        >>> import pyro_arbuf
        >>> net = pyro_arbuf.load("gaussian")
        >>> density = lambda mu: log_likelihood(net, jnp.zeros((5, 1)), {"mu": mu, "tau": 1.0}, jnp.zeros(5)).sum()
        >>> jax.grad(density)(jnp.zeros(3)).shape
        (3,)
    """
    values = ordered(net, latents)
    ours = ArrayLikelihood(net, values[0].dtype.name, nan)
    law = ours.rehearse(known(x), shapes_of(latents), known(y))
    x, y = inputs_of(x, ours), as_operand(y, ours.y_array)
    batch = jnp.broadcast_shapes(law.batch_shape, y.shape[: y.ndim - ours.event_rank])
    x, y = with_rank(x, len(batch) + 2), with_rank(y, len(batch) + ours.event_rank)
    ranks = zip(values, ours.latent_ranks, strict=True)
    values = [jnp.broadcast_to(value, batch + value.shape[value.ndim - rank :]) for value, rank in ranks]
    return _with_gradients()(ours, x, y, *values)


def shapes_of(latents: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of values, by name."""
    return {name: jnp.shape(value) for name, value in latents.items()}


def ordered(net: ArBufferModel, latents: Mapping[str, Any]) -> list[jax.Array]:
    """Values of all latents in the network's order and in one dtype.

    Raises:
        ValueError: If some are missing.
    """
    check_given(net, latents)
    values = [jnp.asarray(latents[name]) for name in net.latents]
    dtype = jnp.result_type(float, *values)
    return [value.astype(dtype) for value in values]


def known(value: Any) -> Any:
    """What is known of a value while JAX traces: of data the numbers, else the shape."""
    return StandIn(value.shape) if isinstance(value, jax.core.Tracer) else value


def as_operand(value: Any, convert: Any) -> jax.Array:
    """A user's data, which may be a table, as an array of JAX."""
    return value if isinstance(value, jax.core.Tracer) else jnp.asarray(convert(value), dtype=float)


def inputs_of(x: Any, ours: ArrayLikelihood) -> jax.Array:
    """A user's inputs as an array of JAX; warns where its dtype is too coarse for the units of the network."""
    if isinstance(x, jax.core.Tracer):
        return x
    numbers, dtype = ours.x_array(x), jax.dtypes.canonicalize_dtype(float)
    ours.warn_rounded(numbers, numbers.astype(dtype))
    return jnp.asarray(numbers, dtype=dtype)


def with_rank(value: jax.Array, rank: int) -> jax.Array:
    """The same with as many dimensions: `vmap` adds others in front, which must not meet those of a batch."""
    return value.reshape((1,) * (rank - value.ndim) + value.shape)


@functools.cache
def _with_gradients() -> Any:
    """`_log_prob`, of which JAX knows the derivatives by latents."""
    function = jax.custom_vjp(_log_prob, nondiff_argnums=(0,))
    function.defvjp(_forward, _backward, symbolic_zeros=True)
    return function


def _log_prob(ours: ArrayLikelihood, x: jax.Array, y: jax.Array, *values: jax.Array) -> jax.Array:
    result = _value_like(ours, values)
    return jax.pure_callback(ours.log_prob, result, x, y, *values, vmap_method="expand_dims")


def _forward(ours: ArrayLikelihood, x: Any, y: Any, *values: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    for name, operand in (("x", x), ("y", y)):
        if operand.perturbed:
            raise ValueError(f"{name} must be data: the bridge has derivatives by latents only; got one by {name}")
    operands = [operand.value for operand in (x, y, *values)]
    results = [_value_like(ours, operands[2:]), *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in operands[2:])]
    value, *gradients = jax.pure_callback(
        ours.log_prob_and_gradients, tuple(results), *operands, vmap_method="expand_dims"
    )
    return value, tuple(gradients)


def _backward(ours: ArrayLikelihood, gradients: tuple[jax.Array, ...], weight: jax.Array) -> tuple[Any, ...]:
    ranks = zip(gradients, ours.latent_ranks, strict=True)
    return None, None, *(weight.reshape(weight.shape + (1,) * rank) * gradient for gradient, rank in ranks)


def _value_like(ours: ArrayLikelihood, values: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of log densities at latents of the full batch."""
    rank = ours.latent_ranks[0]
    return jax.ShapeDtypeStruct(values[0].shape[: values[0].ndim - rank], values[0].dtype)
