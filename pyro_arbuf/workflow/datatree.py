"""Draws, data and densities of a Pyro model as an xarray DataTree, for either line of ArviZ.

xarray costs a quarter of the time of `import pyro`, so it is imported with `groups`, where a tree is made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from pyro.infer import MCMC, Importance
from torch import Tensor

from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.random_state import seeded
from pyro_arbuf.workflow.loo import arviz_line
from pyro_arbuf.workflow.posterior_draws import DRAWS, read_fit
from pyro_arbuf.workflow.trace_sites import check_draws

Draws = Mapping[str, Tensor]


def to_datatree(
    draws: MCMC | Importance | Draws | ArBufferDistribution | ArBufferPosterior | tuple,
    model: Callable | None = None,
    *args: object,
    observed: Tensor | None = None,
    num_samples: int | None = None,
    posterior_predictive: Draws | None = None,
    predictions: Draws | None = None,
    prior: Draws | None = None,
    constant_data: Draws | None = None,
    log_likelihood: Draws | None = None,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
) -> Any:
    """Collects a fit in ArviZ's schema; ArviZ 1.x reads it as it is, `to_inference_data` is for ArviZ 0.x.

    Groups: posterior (with deterministic sites), sample_stats, posterior_predictive, predictions, prior,
    prior_predictive, observed_data, constant_data, log_likelihood, joint_log_likelihood, log_prior (of every latent
    site, which `psense` reads), proposals (of `refine`).

    `log_likelihood`, which `az.loo` reads, gets one entry per independent event: elements of ordinary sites and of
    ArBufferMarginals, subjects of an ArBufferJoint in a plate. The density of a single joint event goes to
    `joint_log_likelihood`; for its targets pass full conditionals, from `loo_conditionals`. Labels at which nothing
    was observed (NaN, masked) are left out of it; densities that are NaN elsewhere stay, with a warning.

    Dimensions are named after plates, `target` and `output` for those of ArBuffer sites (`{site}_target` where sites
    differ in M), `{site}_dim_0` and so on otherwise. In `predictions` targets are `new_target`, and a plate of another
    size than in the fit is `new_{plate}`.

    An ArBufferPosterior gives draws of the latents in their own supports, their log density as `lp`, and the data of
    its context in the user's units, without trials that have no outcome. With its program as the `model`, the data are
    put in, in the program's units, and everything else is computed from it: replicated data in any case, densities
    where the program has them and nothing is integrated out. The trials of a series get one joint density. Into a model
    that goes with what `refine` and `change_prior` return, put the data by `pyro.condition`.

    `log_prior` is without `poutine.scale`, as `log_likelihood` is, and without functions that are drawn from a network.

    Args:
        draws: A finished MCMC (chains kept), a run Importance, `(S, *site)` draws by latent (e.g. of a guide), an
            ArBufferJoint or ArBufferPosterior, or what `refine`, `change_prior`, `calibrate`, `tarp`, `posterior_sbc`,
            `local_c2st` or `check_observation` returns.
        model: The Pyro model; `None` = the one that MCMC or Importance ran, with its arguments. Given with draws by
            latent, everything else is computed from it; bind keyword arguments with functools.partial.
        *args: Of `model`, observed outcomes included; for an ArBufferPosterior the inputs of its context unless given.
        observed: For an ArBufferJoint alone: outcomes `(*batch, M)` or `(*batch, M, D_y)`. Its draws are then the
            posterior predictive "y", else predictions.
        num_samples: For an ArBufferJoint or ArBufferPosterior: how many draws, 1000 where `None`. For Importance: how
            many equally weighted draws to resample (systematically); `None` = all, `log_weight` in sample_stats, which
            ArviZ ignores.
        posterior_predictive: Draws of observed sites, `(S, *site)`; `None` = computed by `predictive`, fast for a
            model that runs for several draws at once; {} = none.
        predictions: Draws at new inputs, as `predictive` returns them.
        prior: Draws as `pyro.infer.Predictive(model, num_samples=...)` returns them; observed sites among them make
            prior_predictive.
        constant_data: Inputs and the like, of any shape.
        log_likelihood: `(S, *batch, M)` or `(S, *batch)` pointwise densities by observed site, in place of those
            computed here.
        coords: Labels by dimension. Of an ArBufferJoint alone the dimension "input" has the names of the columns of a
            table, where nothing else is given.
        dims: Names of dimensions, in place of those found, by variable.
        seed: Makes the result reproducible and leaves the caller's random state as it was; `None` = the global state.

    Returns:
        An `xarray.DataTree`; densities are in nats, values in the units of the sites.

    Raises:
        ValueError: If `draws` is nothing of that kind or has not run, draws do not fit the model, or a name, shape or
            length does not fit.

    Example:
        >>> import torch
        >>> from pyro_arbuf import ArBufferJoint, ArBufferModel, ModelConfig
        >>> net = ArBufferModel(ModelConfig()).requires_grad_(False)
        >>> weeks = torch.linspace(0, 1, 3)[:, None]
        >>> tree = to_datatree(ArBufferJoint(net.condition(), weeks), num_samples=7, coords={"target": [50, 51, 52]})
        >>> dict(tree["predictions"].sizes)
        {'chain': 1, 'draw': 7, 'target': 3}
    """
    from pyro_arbuf.workflow.distribution_groups import joint_groups, posterior_groups
    from pyro_arbuf.workflow.groups import assemble_tree, fit_groups, label

    given = {
        "posterior_predictive": posterior_predictive,
        "predictions": predictions,
        "prior": prior,
        "log_likelihood": log_likelihood,
    }
    given = {group: values for group, values in given.items() if values}
    for group, values in given.items():
        check_draws(group, values)
    _check_options(
        draws, model, given, observed, num_samples, bool(args or constant_data or coords or dims or seed is not None)
    )
    if isinstance(draws, _HasTree):
        return draws.to_datatree()
    number, facts = DRAWS if num_samples is None else num_samples, {}
    with seeded(seed):
        if isinstance(draws, ArBufferDistribution):
            groups = joint_groups(draws, number, observed, dims or {})
        elif isinstance(draws, ArBufferPosterior) and model is None:
            groups = posterior_groups(draws, number, dims or {})
        else:
            fit = read_fit(draws, model, args, num_samples)
            groups, facts = fit_groups(fit, given, posterior_predictive is None, dims or {}), fit.facts
    constants = {name: label(name, values, (dims or {}).get(name)) for name, values in (constant_data or {}).items()}
    groups["constant_data"] = {**groups.get("constant_data", {}), **constants}
    columns = draws.context.labels.columns if isinstance(draws, ArBufferDistribution) else ()
    has_inputs = any("input" in array.dims for array in groups["constant_data"].values())
    named = {"input": columns} if has_inputs and columns and all(isinstance(each, str) for each in columns) else {}
    tree = assemble_tree(groups, named | dict(coords or {}), dims or {}, given.get("log_likelihood", ()))
    tree.attrs.update(facts)
    return tree


@runtime_checkable
class _HasTree(Protocol):
    """A diagnostic, which knows its own groups."""

    def to_datatree(self) -> Any: ...


def _check_options(
    draws: object,
    model: Callable | None,
    given: Mapping[str, Draws],
    observed: Tensor | None,
    num_samples: int | None,
    others: bool,
) -> None:
    """Raises ValueError if what is given is not for draws of this kind."""
    if num_samples is not None:
        check_count("num_samples", num_samples)
    kind, got = type(draws).__name__, sorted(given) or "a model"
    if isinstance(draws, _HasTree) and (model is not None or given or observed is not None or num_samples or others):
        raise ValueError(f"a {kind} makes its own tree, and takes no other argument; call to_datatree of it alone")
    if isinstance(draws, ArBufferDistribution) and (model is not None or given):
        raise ValueError(
            "an ArBufferJoint alone takes observed, num_samples, constant_data, coords, dims and seed; got "
            f"{got} too; for a Pyro model pass its draws"
        )
    if isinstance(draws, ArBufferPosterior) and model is None and given:
        raise ValueError(
            "an ArBufferPosterior alone takes num_samples, constant_data, coords, dims and seed; got "
            f"{got} too; give its program as the model"
        )
    takes_number = ArBufferDistribution | ArBufferPosterior | Importance
    if (observed is not None and not isinstance(draws, ArBufferDistribution)) or (
        num_samples is not None and not isinstance(draws, takes_number)
    ):
        raise ValueError(
            "observed is for an ArBufferJoint alone, num_samples for that, an ArBufferPosterior and Importance; got "
            f"draws of type {kind}; outcomes are among the model's arguments"
        )


def to_inference_data(draws: Any, model: Callable | None = None, *args: object, **options: Any) -> Any:
    """The same as an `arviz.InferenceData`, for ArviZ 0.x.

    Args:
        draws: As for `to_datatree`.
        model: Likewise.
        *args: Likewise.
        **options: Likewise.

    Raises:
        RuntimeError: If ArviZ 0.x is not installed.
        ValueError: As `to_datatree`.
    """
    if arviz_line() != 0:
        raise RuntimeError(
            "to_inference_data needs ArviZ 0.x; got a later one or none; use to_datatree, which ArviZ 1.x reads"
        )
    import arviz

    return arviz.InferenceData.from_datatree(to_datatree(draws, model, *args, **options))
