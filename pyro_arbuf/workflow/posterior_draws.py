"""Posterior draws and what they came from, out of whatever inference made them. Knows nothing of xarray and ArviZ."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from pyro.infer import MCMC, Importance
from torch import Tensor

from pyro_arbuf.workflow.trace_sites import check_draws, nodes, sample_sites, without_auxiliaries


class Fit(NamedTuple):
    """Posterior draws, one chain after another.

    Attributes:
        draws: `(S, *site)` by latent site.
        num_chains: Number of chains C, all of the same length.
        per_draw: `(S,)` statistics of the sampler, in ArviZ's names.
        per_chain: `(C,)` statistics of the sampler.
        model: The Pyro model; `None` = unknown.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    draws: Mapping[str, Tensor]
    num_chains: int
    per_draw: dict[str, Tensor]
    per_chain: dict[str, Tensor]
    model: Callable | None
    args: tuple
    kwargs: Mapping


def read_fit(draws: object, model: Callable | None, args: tuple, num_samples: int | None) -> Fit:
    """Reads a finished MCMC, an Importance that has run, or draws by site.

    Args:
        draws: One of these.
        model: Instead of the model that was run.
        args: Of `model`.
        num_samples: For Importance: number of equally weighted draws to resample; `None` = all, with `log_weight`.

    Raises:
        ValueError: If it is none of these, has not run, or weights are NaN.
    """
    rule = "draws must be a finished MCMC, an Importance that has run, a dict of tensors (S, ...) or an ArBufferJoint"
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
    if not isinstance(draws, Mapping):
        raise ValueError(f"{rule}; got {type(draws).__name__}; of SVI take Predictive(guide, num_samples=1000)(...)")
    check_draws("draws", draws)
    return Fit(without_auxiliaries(draws), 1, {}, {}, model, args, {})


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
