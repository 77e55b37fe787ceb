"""Densities of the sites of a trace: of every independent event of data, under masks and transforms, and of latents.

Knows nothing of xarray and ArviZ.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributions as td
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import biject_to

from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.random_state import restored_random_state
from pyro_arbuf.workflow.trace_sites import Site, layers, unwrapped


def innermost(site: Site) -> tuple[ArBufferDistribution, Tensor, Tensor]:
    """Takes off what wraps an ArBufferJoint or ArBufferMarginals.

    Args:
        site: Node of a trace, with such a distribution inside.

    Returns:
        The distribution; the site's value in its coordinates, z where y = f(z); log |dy/dz| `(*batch, M)`.

    Raises:
        ValueError: If a transform is not elementwise.
    """
    fn, value = site["fn"], site["value"]
    log_jacobian = torch.zeros_like(value)
    while not isinstance(fn, ArBufferDistribution):
        if isinstance(fn, td.TransformedDistribution):
            for transform in reversed([part for t in fn.transforms for part in elementwise(site["name"], t)]):
                inner = cast(Tensor, transform.inv(value))
                log_jacobian = log_jacobian + transform.log_abs_det_jacobian(inner, value)
                value = inner
        fn = cast(Any, fn).base_dist
    return fn, value, log_jacobian.sum(-1) if len(fn.event_shape) == 2 else log_jacobian


def elementwise(name: str, transform: td.Transform) -> list[td.Transform]:
    """A transform of site `name` as transforms whose log-Jacobian has an entry per element.

    Raises:
        ValueError: If it is not elementwise.
    """
    if isinstance(transform, td.ComposeTransform):
        return [part for whole in transform.parts for part in elementwise(name, whole)]
    if isinstance(transform, td.IndependentTransform):
        return elementwise(name, transform.base_transform)
    if isinstance(transform, td.AffineTransform):
        return [td.AffineTransform(transform.loc, transform.scale)]
    if transform.domain.event_dim or transform.codomain.event_dim:
        raise ValueError(
            f"site {name!r} must be transformed elementwise to have a density per target; got {transform}; use "
            "AffineTransform(loc, scale), which is"
        )
    return [transform]


def unless_masked(site: Site, density: Tensor, num_event_dims: int) -> Tensor:
    """Densities of a site, NaN where a mask says that there is no observation.

    Args:
        site: Node of a trace, masked by `poutine.mask` or by any layer of its distribution.
        density: `(*batch, *event)`, with some of the dimensions that `to_event` hides.
        num_event_dims: How many these are.

    Returns:
        The same shape; an entry that holds several members of a mask is NaN where all of them are hidden.
    """
    num_dims = len(site["fn"].batch_shape) + num_event_dims
    masks = [(site["mask"], num_event_dims)]  # each with how many dimensions of the densities are right of its own
    for layer in layers(site):
        if isinstance(layer, MaskedDistribution):
            masks.append((layer._mask, num_dims - len(layer.batch_shape)))
    for mask, right in masks:
        if mask is None or mask is True:
            continue
        mask = torch.as_tensor(mask, device=density.device)
        if mask.dim() and right < 0:
            mask = mask.flatten(right).any(-1)
        density = density.masked_fill(~mask.reshape(mask.shape + (1,) * max(right, 0)), torch.nan)
    return density


def hidden_by_masks(site: Site) -> Tensor:
    """Which numbers of a site's value a mask hides, `(*batch, *event)` bool."""
    shape = torch.broadcast_shapes(site["fn"].shape(), site["value"].shape)
    numbers = torch.zeros(shape, device=site["value"].device)
    return unless_masked(site, numbers, len(site["fn"].event_shape)).isnan()


def without_masks_and_events(site: Site) -> Any:
    """The distribution inside all masks and reinterpreted dimensions of a site, transforms left on."""
    fn = site["fn"]
    while isinstance(fn, td.Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn


def pointwise_log_prob(site: Site) -> Tensor | None:
    """Log density of every independent event of an observed site: what may stand in `log_likelihood`.

    Args:
        site: Node of a trace at given latents.

    Returns:
        `(*batch, M)` of ArBufferMarginals and `(*batch,)` of others, in nats, with the dimensions that `to_event`
        hides; NaN where nothing was observed. `None` for a single event whose parts depend on each other.

    Raises:
        ValueError: If an ArBufferMarginals is transformed by other than elementwise transforms.
    """
    fn, num_batch_dims = without_masks_and_events(site), len(site["fn"].batch_shape)
    if isinstance(unwrapped(site), ArBufferMarginals):
        marginals, y, log_jacobian = innermost(site)
        density = marginals.log_prob_factors(y) - log_jacobian
        density = density.masked_fill(_missing_targets(site), torch.nan)
        return unless_masked(site, density, len(marginals.batch_shape) + 1 - num_batch_dims)
    if fn.event_shape and not fn.batch_shape:
        return None
    density = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    if isinstance(unwrapped(site), ArBufferDistribution):
        density = density.masked_fill(_missing_targets(site).all(-1), torch.nan)
    return unless_masked(site, density, len(fn.batch_shape) - num_batch_dims)


def _missing_targets(site: Site) -> Tensor:
    """`(*batch, M)`, true where an outcome dimension is NaN."""
    missing = site["value"].isnan()
    return missing if len(unwrapped(site).event_shape) == 1 else missing.any(-1)


def prior_log_prob(name: str, site: Site, observed: Mapping[str, Site]) -> Tensor | None:
    """Log density `(*batch,)` of a latent given those before it, 0 where it is masked; `None` where there is none.

    It is -inf for a member of a plate that is outside the support.

    Left out are outcomes that `obs_mask` hides, and functions drawn from a network, which take a pass for every draw
    and are no prior that anyone would scale.
    """
    unobserved = name.removesuffix("_unobserved")
    if isinstance(unwrapped(site), ArBufferDistribution) or (
        name != unobserved and f"{unobserved}_observed" in observed
    ):
        return None
    try:
        density = site["fn"].log_prob(site["value"])
    except NotImplementedError:
        return None
    except ValueError:
        if bool(site["fn"].support.check(site["value"]).all()):
            raise
        density = _log_prob_of_members(site)
    density = scale_and_mask(density, mask=site["mask"])
    extra = density.dim() - len(site["fn"].batch_shape)  # of a mask that is broader than the site
    return density.sum(tuple(range(extra))) if extra > 0 else density


def _log_prob_of_members(site: Site) -> Tensor:
    """Log density `(*batch,)` of a latent, -inf where one that no mask hides is outside its support."""
    fn, value = without_masks_and_events(site), site["value"]
    outside = ~fn.support.check(value)
    outside = outside.reshape(*value.shape[: value.dim() - len(fn.event_shape)], -1).any(-1)
    inside = _value_inside(fn, value)
    safe = torch.where(outside.reshape(outside.shape + (1,) * len(fn.event_shape)), inside, value)
    num_event_dims = len(fn.batch_shape) - len(site["fn"].batch_shape)  # those that to_event hides
    wrong = outside & ~unless_masked(site, torch.zeros(outside.shape, device=value.device), num_event_dims).isnan()
    if num_event_dims:
        wrong = wrong.flatten(-num_event_dims).any(-1)
    return site["fn"].log_prob(safe).masked_fill(wrong, -torch.inf)


def _value_inside(fn: Any, value: Tensor) -> Tensor:
    """A value of a distribution's support, of the shape of another: the middle of what is continuous, or a draw."""
    try:
        bijection = biject_to(fn.support)
        return bijection(value.new_zeros(bijection.inverse_shape(value.shape)))
    except NotImplementedError:
        with restored_random_state():
            return fn.sample().expand(value.shape)
