"""Leave-one-out densities: exact for data in the context, full conditionals for data that Pyro fits.

A chain factor p(y_k | y_<k) is not a leave-one-out density and never becomes one here.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.display import Table, shown_as_table
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.chain import check_exchangeable, leave_one_out
from pyro_arbuf.inference.conditioning import check_pairs, make_context
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.tables import Maps, fit_map, warn_equal_outcomes
from pyro_arbuf.inference.validation import check_count, inference_scope
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.workflow.densities import innermost, unless_masked
from pyro_arbuf.workflow.trace_sites import check_draws, observed_sites, replayed_traces, unwrapped


def _summary(found: "LooConditionals") -> tuple[str, Table]:
    table = {
        "site": list(found.log_likelihood),
        "draws": [str(len(values)) for values in found.log_likelihood.values()],
        "targets": [str(values.shape[-1]) for values in found.log_likelihood.values()],
        "rms ratio gap (nats)": [
            f"{found.ratio_gap[name].square().nanmean().sqrt().item():.3g}" if name in found.ratio_gap else ""
            for name in found.log_likelihood
        ],
    }
    return "LooConditionals", table


@shown_as_table(_summary)
class LooConditionals(NamedTuple):
    """Full conditionals at every posterior draw, per observed ArBufferJoint site.

    Attributes:
        log_likelihood: `(S, *batch, M)` nats, `log p(y_i | y_-i, latents)`; NaN where masked.
        ratio_gap: `(num_ratio_draws, *batch, M)` nats, conditional minus `log p(y) / p(y_-i)` of the joint itself.
    """

    log_likelihood: dict[str, Tensor]
    ratio_gap: dict[str, Tensor]


def exact_loo(net: ArBufferModel, x: Any, y: Any) -> Any:
    r"""Leave-one-out of data that sits in the context: exact, by encoding the context without each pair in turn.

    .. math:: \mathrm{elpd} = \sum_i \log p(y_i \mid x_i, (x, y)_{-i})

    Nothing was fitted, so nothing is approximated: no PSIS and no k-hat. A table is standardised anew by the rows
    that are left, as `net.condition` of these rows does.

    Args:
        net: The model.
        x: `(*batch, N, D_x)`, N >= 2; or a list of `(N_b, D_x)`, one per subject.
        y: `(*batch, N)` or `(*batch, N, D_y)`; or a list.

    Returns:
        An `xarray.Dataset`: `elpd_i` (target), nats per pair, summed over the outcome's dimensions, subject after
        subject, with the coordinate `subject` where there is a batch; and the scalars `elpd`,
        `se` = sqrt(n var(elpd_i)) and `n`.

    Raises:
        ValueError: If an argument breaks its rule, as `net.condition`, a context has fewer than 2 pairs, or the network
            is one of series.

    Example:
        >>> from pyro_arbuf.model import ArBufferModel, ModelConfig
        >>> net = ArBufferModel(ModelConfig()).requires_grad_(False)
        >>> exact_loo(net, torch.linspace(-1, 1, 5)[:, None], torch.zeros(5)).elpd_i.shape
        (5,)
    """
    import xarray

    check_exchangeable(net)
    if x is None:
        raise ValueError("x must hold at least 2 pairs per context to leave one out; got None")
    subjects = x if isinstance(x, list | tuple) else [x]
    for subject in subjects:
        shape = tuple(getattr(subject, "shape", ()))
        if len(shape) > 1 and shape[-2] < 2:
            raise ValueError(f"x must hold at least 2 pairs per context to leave one out; got {shape}")
    with torch.no_grad(), inference_scope():
        context = make_context(net, x, y)
        standardised = net.config.standardised_by_context
        left_out = _left_out_rows(net, x, y) if standardised else _left_out_pairs(context)
    real = torch.ones_like(left_out, dtype=torch.bool)
    if context.context_len is not None:
        real = context_mask(context.context_len, context.num_context)
    pointwise = left_out[real].double().cpu().numpy()
    coords: dict[str, Any] = {"target": np.arange(len(pointwise))}
    if context.batch_shape:
        coords["subject"] = ("target", real.nonzero()[:, 0].cpu().numpy())
    values = {
        "elpd_i": ("target", pointwise),
        "elpd": pointwise.sum(),
        "se": np.sqrt(len(pointwise) * pointwise.var()),
        "n": len(pointwise),
    }
    return xarray.Dataset(values, coords)


def _left_out_pairs(context: Context) -> Tensor:
    """Log density of every pair given the others, `(B, N)` nats in the user's units."""
    densities = leave_one_out(context.model, context.x, context.y, context.num_context, context.context_len)
    return densities if context.maps is None else densities - context.maps.log_jacobian


def _left_out_rows(net: ArBufferModel, x: Any, y: Any) -> Tensor:
    """The same of tables and recordings, each of which is standardised anew by the rows that are left."""
    pairs = check_pairs(net, x, y)

    def fit(x_rest: Tensor, y_rest: Tensor, length: Tensor | None) -> Maps | None:
        maps = fit_map(net.config, x_rest, y_rest, length)
        if net.config.missing_x:
            warn_equal_outcomes(maps, y_rest, length)
        return maps

    return leave_one_out(net, pairs.x, pairs.y, pairs.x.shape[1], pairs.context_len, fit=fit)


def to_elpd_data(loo: Any) -> Any:
    """Turns what `exact_loo` returns into the ELPDData that `az.compare` takes.

    Args:
        loo: What `exact_loo` returns.

    Returns:
        `arviz.stats.ELPDData` where ArviZ 0.x is installed, else `arviz_stats.utils.ELPDData`, which ArviZ 1.x uses.
        Without k-hat and with 0 posterior samples: the densities are exact.

    Raises:
        ValueError: If it is something else.
        RuntimeError: If neither is installed.
    """
    if not all(hasattr(loo, name) for name in ("elpd", "se", "n", "elpd_i")):
        raise ValueError(f"loo must be what exact_loo returns; got {type(loo).__name__}")
    elpd, se, p_loo = float(loo.elpd), float(loo.se), np.nan  # a network has no effective number of parameters
    common = {"n_samples": 0, "n_data_points": int(loo.n), "warning": False, "scale": "log", "good_k": np.nan}
    line = arviz_line()
    if line == 0:
        from arviz.stats import ELPDData

        # Printed by position.
        values = {"elpd_loo": elpd, "se": se, "p_loo": p_loo, **common, "loo_i": loo.elpd_i.rename("loo_i")}
        return ELPDData(data=list(values.values()), index=list(values))
    if line is None:
        raise RuntimeError("to_elpd_data needs ArviZ; got none installed; use pip install arviz, or arviz-stats")
    from arviz_stats.utils import ELPDData  # pyright: ignore[reportMissingImports]

    return ELPDData("loo", elpd=elpd, se=se, p=p_loo, elpd_i=loo.elpd_i, **common)


def arviz_line() -> int | None:
    """Which ArviZ is installed: 0 for 0.x, 1 for later ones or arviz_stats alone, `None` for none."""
    if importlib.util.find_spec("arviz"):
        return min(1, int(metadata.version("arviz").split(".")[0]))
    return 1 if importlib.util.find_spec("arviz_stats") else None


def loo_conditionals(
    model: Callable, posterior: Mapping[str, Tensor], *args: object, num_ratio_draws: int = 32, **kwargs: object
) -> LooConditionals:
    r"""Full conditionals of every observed ArBufferJoint site at every posterior draw, for `az.loo`.

    PSIS takes `p(y_i | y_-i, latents)` for the ratio `p(y | latents) / p(y_-i | latents)`. The set model's conditionals
    are only close to that ratio; `ratio_gap` is their difference, with `p(y_-i)` the same joint's density of the rest.
    Look at `ratio_gap["y"].abs().mean()`: where it is not small against the nats that matter, so is the error of loo.

    Args:
        model: The Pyro model. It is run once per draw.
        posterior: `(S, *site)` draws of all its latents by site, as from `MCMC.get_samples()`.
        *args: Of the model, observed outcomes included.
        num_ratio_draws: At how many draws, evenly spaced, the gap is computed; 0..S, more counts as S.
        **kwargs: Of the model.

    Returns:
        `log_likelihood` is what `to_datatree(..., log_likelihood=...)` takes.

    Raises:
        ValueError: If `posterior` does not fit the model, no ArBufferJoint is observed, one is transformed by other
            than elementwise transforms, or an outcome is NaN.

    Example:
        >>> from pyro_arbuf.model import ArBufferModel, ModelConfig
        >>> import pyro, pyro.distributions as dist
        >>> net, x = ArBufferModel(ModelConfig()).requires_grad_(False), torch.linspace(-1, 1, 3)[:, None]
        >>> def model(y):
        ...     level = pyro.sample("level", dist.Normal(0.0, 1.0))
        ...     shift = dist.transforms.AffineTransform(level, 1.0)
        ...     pyro.sample("y", dist.TransformedDistribution(ArBufferJoint(net.condition(), x), [shift]), obs=y)
        >>> loo_conditionals(model, {"level": torch.randn(4)}, torch.zeros(3)).log_likelihood["y"].shape
        torch.Size([4, 3])
    """
    num_draws = check_draws("posterior", posterior)
    count = min(check_count("num_ratio_draws", num_ratio_draws, 0), num_draws)
    at = set(torch.linspace(0, num_draws - 1, count).long().tolist())
    conditionals: dict[str, list[Tensor]] = {}
    gaps: dict[str, list[Tensor]] = {}
    for draw, trace in enumerate(replayed_traces(model, posterior, args, kwargs)):
        joints = {
            name: site for name, site in observed_sites(trace).items() if isinstance(unwrapped(site), ArBufferJoint)
        }
        if not joints:
            raise ValueError(
                f"model must observe an ArBufferJoint; got the observed sites {list(observed_sites(trace))}; of other "
                "sites to_datatree computes log_likelihood itself"
            )
        for name, site in joints.items():
            joint, y, log_jacobian = innermost(site)
            num_event_dims = len(joint.batch_shape) + 1 - len(site["fn"].batch_shape)
            with torch.no_grad():
                density = joint.log_prob_conditionals(y)
                full = unless_masked(site, density - log_jacobian, num_event_dims)
                conditionals.setdefault(name, []).append(full)
                if draw in at:
                    gap = unless_masked(site, density - _ratio(joint, y), num_event_dims)
                    gaps.setdefault(name, []).append(gap)
    return LooConditionals(*({name: torch.stack(v) for name, v in part.items()} for part in (conditionals, gaps)))


def _ratio(joint: ArBufferJoint, y: Tensor) -> Tensor:
    """The ratio log p(y) - log p(y_-i) for every i, `(*batch, M)`."""
    num_targets, num_event_dims = joint.event_shape[0], len(joint.event_shape)
    y = y[(None,) * (len(joint.batch_shape) + num_event_dims - y.dim())]  # else i would be taken for a plate
    left_out = torch.eye(num_targets, dtype=torch.bool, device=y.device)
    left_out = left_out.view(num_targets, *[1] * (y.dim() - num_event_dims), num_targets, *[1] * (num_event_dims - 1))
    rest = copy.copy(joint)
    rest.nan = "drop"
    numbers = y if y.is_floating_point() else y.double()  # integers know no NaN
    return (joint.log_prob(y) - rest.log_prob(numbers.masked_fill(left_out, torch.nan))).movedim(0, -1)
