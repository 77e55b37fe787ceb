"""The amortised likelihood: the law of a program's outcomes given all its latents."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.model import ArBufferModel


def likelihood(
    net: ArBufferModel,
    x: Tensor,
    latents: Mapping[str, Tensor | float],
    orders: Tensor | None = None,
    buffer_size: int | None = None,
    nan: Literal["raise", "drop"] = "raise",
    validate_args: bool | None = None,
) -> ArBufferMarginals | ArBufferJoint:
    r"""The distribution of a program's outcomes given all its latents, as its trials depend on each other.

    .. math:: p(y_{1..n} \mid \theta) = \prod_k p(y_k \mid \theta) \;\text{or}\; \prod_k p(y_k \mid \theta, y_{<k})

    The first where trials are independent given the latents, the second where they share something that is integrated
    out, or are a series, which keeps its natural order. `net.config.dependent` says which of them the program has.

    Args:
        net: A network with latents.
        x: `(*batch, n, D_x)` inputs.
        latents: Values `(*batch, *shape)` of all latents, in their own supports.
        orders: Of dependent trials that are no series, as for `ArBufferJoint`; `None` = one fixed order.
        buffer_size: Of dependent trials, as for `ArBufferJoint`; `None` = the model's K.
        nan: What a NaN outcome does, as for the distributions: `"raise"` a ValueError, or `"drop"` the trial.
        validate_args: Whether values are checked; `None` = Pyro's default.

    Returns:
        `ArBufferMarginals` for independent trials, `ArBufferJoint` for dependent ones; batches broadcast.

    Raises:
        ValueError: If the network has no latents, not all of them are given, orders are given that the trials cannot
            have, or an argument breaks its rule.

    Example:
        >>> import pyro_arbuf, torch
        >>> net = pyro_arbuf.load("gaussian")
        >>> likelihood(net, torch.zeros(5, 1), {"mu": torch.zeros(3), "tau": 1.0}).log_prob(torch.zeros(5)).shape
        torch.Size([3])
    """
    check_given(net, latents)
    config = net.config
    if orders is not None and (config.sequential or not config.dependent):
        what = "a series has its natural order" if config.sequential else "independent trials have no order"
        raise ValueError(f"orders are for exchangeable trials that depend on each other; {what}; leave orders out")
    context = net.condition(latents=latents)
    if not config.dependent:
        return ArBufferMarginals(context, x, nan=nan, validate_args=validate_args)
    return ArBufferJoint(context, x, orders, buffer_size, nan=nan, validate_args=validate_args)


def check_given(net: ArBufferModel, latents: object) -> None:
    """Raises ValueError if a network has no latents, or they are no dict that holds all of them."""
    if not net.config.latents:
        raise ValueError(
            "net must have latents to have a likelihood; got a network without; its trials are predicted by "
            "ArBufferJoint(net.condition(x, y), x_new)"
        )
    if not isinstance(latents, Mapping):
        raise ValueError(f"latents must be a dict of all latents {list(net.latents)}; got {type(latents).__name__}")
    missing = [name for name in net.latents if name not in latents]
    if missing:
        raise ValueError(
            f"latents must hold values of all latents {list(net.latents)}; {missing} are missing; where some are not "
            "known, use ArBufferJoint(net.condition(latents=...), x)"
        )
