"""Latents that a Pyro model broadcasts against another dimension than their own: of draws, or of members of a plate."""

import warnings
from collections.abc import Callable, Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform, Transform
from torch import Tensor

from pyro_arbuf.workflow.at_once import draws_dim
from pyro_arbuf.workflow.trace_sites import Site, sample_sites


def draws_elsewhere(model: Callable, one: poutine.Trace, size: int, args: tuple, kwargs: Mapping) -> str | None:
    """What has draws of latents in another dimension than theirs where a model, with its own data, runs for several.

    Pyro broadcasts it against all draws, as an ELBO with vectorised particles would.

    Args:
        model: The Pyro model.
        one: Its trace for one draw.
        size: Draws, no dimension of a site.
        args: Of the model.
        kwargs: Of the model.
    """
    dim = draws_dim(one)
    with warnings.catch_warnings(), pyro.plate("check_model_draws", size, dim=dim):
        warnings.simplefilter("ignore")
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    for name, site in sample_sites(trace).items():
        batch = site["fn"].batch_shape
        elsewhere = [i - len(batch) for i, length in enumerate(batch) if length == size and i - len(batch) != dim]
        if elsewhere:
            return (
                f"site {name!r} has draws of latents in batch dimension {elsewhere[0]}, and those of vectorised "
                f"particles belong in {dim}, so losses with these are wrong; write s[..., None] for a latent s of "
                "all targets, and draw a vector of them by .to_event(1), not in a plate"
            )
    return None


def members_over_targets(site: Site, transforms: list[Transform], latents: Mapping[str, Site]) -> str | None:
    """What gives a latent of one member of a plate to one target of all members, where there are as many of both.

    Of a vector outcome it may be a dimension instead of a target.

    Args:
        site: A site of which an event is one member's.
        transforms: All its transforms, elementwise.
        latents: Sites whose values require gradients where they are continuous.
    """
    plates = {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    inside = {
        name: latent["value"]
        for name, latent in latents.items()
        if latent["value"].requires_grad and plates & {frame.name for frame in latent["cond_indep_stack"]}
    }
    for transform in transforms if inside else ():
        for part in (transform.loc, transform.scale) if isinstance(transform, AffineTransform) else ():
            if not isinstance(part, Tensor) or not part.requires_grad or part.dim() > len(site["fn"].event_shape):
                continue
            for name, value in inside.items():
                if _one_each(part.flatten(), value):
                    index = ", ".join(["...", *["None"] * len(site["fn"].event_shape)])
                    return (
                        f"latent {name!r} of {part.numel()} members shifts or scales {part.numel()} targets, that "
                        f"of the first member the first target of all; write {name}[{index}] for all of its targets"
                    )
    return None


def _one_each(numbers: Tensor, latent: Tensor) -> bool:
    """Whether each of several numbers depends on a latent of its own, and on the others all alike."""
    if not 1 < len(numbers) == latent.numel():
        return False
    rows = [torch.autograd.grad(n, latent, allow_unused=True, retain_graph=True)[0] for n in numbers]
    if any(row is None for row in rows):
        return False
    jacobian = torch.stack([row.flatten() for row in rows if row is not None])
    others = ~torch.eye(len(numbers), dtype=torch.bool, device=jacobian.device)
    rest = jacobian[others].view(len(numbers), -1)
    alike = torch.allclose(rest, rest[:, :1].expand_as(rest))
    return alike and not bool(torch.isclose(jacobian.diag(), rest[:, 0]).any())
