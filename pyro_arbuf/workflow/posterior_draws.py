"""Posterior draws and what they came from, out of whatever inference made them. Knows nothing of xarray and ArviZ."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer import MCMC, Importance
from torch import Tensor

from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.network.latents import constrained
from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.trace_sites import check_draws, nodes, sample_sites, without_auxiliaries
from pyro_arbuf.workflow.with_data import ProgramWithData, names_of_sites

DRAWS = 1000  # of a distribution, where no number is given


class Fit(NamedTuple):
    """Posterior draws, one chain after another.

    Attributes:
        draws: `(S, *site)` by latent site; of a guide, with what it adds to those of the model's latents.
        num_chains: Number of chains C, all of the same length.
        per_draw: `(S,)` statistics of the sampler, in ArviZ's names.
        per_chain: `(C,)` statistics of the sampler.
        model: The Pyro model; `None` = unknown.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        proposals: `(P, *site)` by latent, before they were resampled, with their "log_weight" `(P,)`; may be empty.
        facts: What else is known of the draws as a whole, by name.
        constants: Values that were given, by name.
        outcomes: Of the program of an amortised posterior, names of the outcome's sites, which may be those of a loop
            over trials; such a program may have further latents, which are integrated out.
    """

    draws: Mapping[str, Tensor]
    num_chains: int
    per_draw: dict[str, Tensor]
    per_chain: dict[str, Tensor]
    model: Callable | None
    args: tuple
    kwargs: Mapping
    proposals: Mapping[str, Tensor] = {}
    facts: Mapping[str, float | str] = {}
    constants: Mapping[str, Tensor] = {}
    outcomes: tuple[str, ...] = ()


def read_fit(draws: object, model: Callable | None, args: tuple, num_samples: int | None) -> Fit:
    """Reads a finished MCMC, an Importance that has run, an amortised posterior, or draws by site.

    Args:
        draws: One of these, or what `refine` and `change_prior` return.
        model: Instead of the model that was run. With an ArBufferPosterior: its program, which gets its data.
        args: Of `model`.
        num_samples: For Importance: number of equally weighted draws to resample; `None` = all, with `log_weight`. For
            an ArBufferPosterior: of draws, 1000 where `None`.

    Raises:
        ValueError: If it is none of these, has not run, weights are NaN, or a posterior has a batch.
    """
    rule = (
        "draws must be a finished MCMC, a run Importance, a posterior, a dict of tensors (S, ...) or an ArBufferJoint"
    )
    if isinstance(draws, MCMC):
        if draws._samples is None:
            raise ValueError(f"{rule}; got an MCMC that has not run; call its run(...) first")
        ran = (getattr(draws.kernel, "model", None), draws._args or (), draws._kwargs or {})
        return Fit(
            draws.get_samples(),
            draws.num_chains,
            *_mcmc_statistics(draws),
            *(ran if model is None else (model, args, {})),
        )
    if isinstance(draws, Importance):
        if not draws.exec_traces:
            raise ValueError(f"{rule}; got an Importance that has not run; call its run(...) first")
        first = draws.exec_traces[0]
        ran = (draws.model, nodes(first)["_INPUT"]["args"], nodes(first)["_INPUT"]["kwargs"])
        names = [name for name, site in sample_sites(first).items() if not site["is_observed"]]
        latents = {name: torch.stack([nodes(t)[name]["value"] for t in draws.exec_traces]) for name in names}
        per_draw = {"log_weight": torch.stack([torch.as_tensor(weight) for weight in draws.log_weights])}
        if num_samples is not None:
            chosen = systematic_resample(per_draw.pop("log_weight"), num_samples)
            latents = {name: values[chosen] for name, values in latents.items()}
        return Fit(latents, 1, per_draw, {}, *(ran if model is None else (model, args, {})))
    if isinstance(draws, ArBufferPosterior) and model is not None:
        return _fit_of_posterior(draws, model, args, DRAWS if num_samples is None else num_samples)
    if isinstance(getattr(draws, "draws", None), Mapping) and hasattr(draws, "_asdict"):
        return _fit_of_weighted(draws, model, args)
    if not isinstance(draws, Mapping):
        raise ValueError(f"{rule}; got {type(draws).__name__}; of SVI take Predictive(guide, num_samples=1000)(...)")
    check_draws("draws", draws)
    return Fit(without_auxiliaries(draws) if model is None else draws, 1, {}, {}, model, args, {})


def _fit_of_posterior(posterior: ArBufferPosterior, model: Callable, args: tuple, num_draws: int) -> Fit:
    """Draws of an amortised posterior with their log density "lp", and its program with its data put in."""
    context = posterior.context
    if posterior.batch_shape or context.num_context == 0:
        got = f"batch shape {tuple(posterior.batch_shape)} and {context.num_context} observations"
        raise ValueError(
            f"a posterior with its program must be of the observations of one data set; got {got}; take them one by "
            "one, ArBufferPosterior(context[i])"
        )
    if context.model.config.unit_map is not None:
        warn(
            "observed_data, posterior_predictive and log_likelihood of a program are in the program's units, not in "
            "those of net.in_units; compare them with other models of the data in these units alone",
            UserWarning,
        )
    x, y = data_set(context)
    given = given_latents(context)
    home = torch.get_default_device()  # where the program makes its tensors
    sites, density = draw_latents(posterior, num_draws)
    sites = {name: value.to(home) for name, value in sites.items()}
    args = args or (x.to(home),)
    names = names_of_sites(model, {name: value[0] for name, value in sites.items()} | given, args)
    program = ProgramWithData(model, y, given, context.model.config, names)
    return Fit(sites, 1, {"lp": density}, {}, program, args, {}, constants=given, outcomes=program.outcomes)


@torch.no_grad()
def draw_latents(posterior: ArBufferPosterior, num_draws: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draws `(S, *batch, *shape)` by latent and their log density `(S, *batch)`, in nats, in their own supports."""
    unconstrained = posterior.sample((num_draws,))
    pairs = posterior.sites_and_jacobians(unconstrained)
    density = posterior.log_prob(unconstrained) - sum(jacobian for _, jacobian in pairs.values())
    return {name: value for name, (value, _) in pairs.items()}, density


def _fit_of_weighted(found: Any, model: Callable | None, args: tuple) -> Fit:
    """What `refine` and `change_prior` return: draws, with their proposals and weights where there are."""
    fields = found._asdict()
    proposals = dict(fields.get("proposals", {}))
    if proposals:
        proposals["log_weight"] = fields["weights"].log()
    facts = {name: value for name, value in fields.items() if isinstance(value, float | str)}
    home = torch.get_default_device()  # where a program makes its tensors
    sites = {name: value.to(home) for name, value in found.draws.items()}
    return Fit(sites, 1, {}, {}, model, args, {}, proposals, facts)


def data_set(context: Context) -> tuple[Tensor, Tensor]:
    """Inputs `(n, D_x)` and outcomes `(n,)` or `(n, D_y)` of a context's one data set, as the program has them."""
    x, y, length = context.observations
    number = x.shape[1] if length is None else int(length[0])
    return x[0, :number], context.model.config.squeeze_outcome(y[0, :number])


def given_latents(context: Context) -> dict[str, Tensor]:
    """Values of the latents that a context fixes, in their own supports."""
    latents = [latent for latent in context.model.config.latents if latent.name in context.latents]
    return {name: value for name, (value, _) in constrained(latents, context.given[0]).items()}


def _mcmc_statistics(mcmc: MCMC) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Statistics per draw and per chain: Pyro keeps no more than the mean acceptance rate of a chain."""
    num_chains = mcmc.num_chains
    chains = [chain or {} for chain in mcmc._diagnostics]  # diagnostics() would estimate sample sizes as well
    per_draw, per_chain = {}, {}
    if "divergences" in chains[0]:
        num_draws = check_draws("draws", mcmc.get_samples()) // num_chains
        per_draw["diverging"] = torch.zeros(num_chains * num_draws, dtype=torch.bool)
        for chain, diagnostics in enumerate(chains):
            per_draw["diverging"][[chain * num_draws + draw for draw in diagnostics["divergences"]]] = True
    if "acceptance rate" in chains[0]:
        per_chain["acceptance_rate"] = torch.tensor([float(chain["acceptance rate"]) for chain in chains])
    return per_draw, per_chain


def systematic_resample(log_weight: Tensor, num_samples: int) -> Tensor:
    """Systematic resampling: indices `(num_samples,)` int64, in random order."""
    weights = torch.softmax(log_weight.detach().double().cpu(), 0)
    if bool(weights.isnan().any()):
        raise ValueError(f"the log weights must hold a finite one and no NaN to resample; got {log_weight}")
    points = torch.arange(num_samples, device="cpu") + torch.rand((), dtype=torch.float64, device="cpu")
    chosen = torch.searchsorted(weights.cumsum(0), points / num_samples).clamp(max=len(weights) - 1)
    return chosen[torch.randperm(num_samples, device="cpu")].to(log_weight.device)
