"""`change_prior`: the posterior under another prior, or of a program without a density, without training again."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_arbuf.display import Table, shown_as_table
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent, constrained, standardisation, unconstrained
from pyro_arbuf.programs.likelihood import likelihood
from pyro_arbuf.programs.refine import (
    MAX_K_HAT,
    MIN_DRAWS,
    context_simulator,
    effective_sample_size,
    importance_sample,
    moments_table,
    resample,
)
from pyro_arbuf.programs.runs import trace_until
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.random_state import seeded
from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.posterior_draws import data_set
from pyro_arbuf.workflow.trace_sites import nodes

MAX_TRIALS = 2**15  # whose likelihood is computed at a time
BATCH = 25  # data sets whose gradients are computed at a time
FAR, MAX_FAR = 4.0, 0.01  # standard deviations of the trained prior; share of draws that may lie farther out
MAX_SHIFT = 0.5  # posterior standard deviations, beyond which a correction of first order is not enough


def _summary(found: "ChangedPrior") -> tuple[str, Table]:
    title = (
        f"ChangedPrior({len(next(iter(found.draws.values())))} draws by {found.method} with the {found.density}'s "
        f"density, k_hat={found.k_hat:.2f}, effective_sample_size={found.effective_sample_size:.0f})"
    )
    return title, moments_table(found.draws)


@shown_as_table(_summary)
class ChangedPrior(NamedTuple):
    """A posterior under the prior of a program, and how it was found.

    Attributes:
        draws: `(num_draws, *shape)` per site.
        method: "weights": draws of the amortised posterior, kept by their importance weights; "NUTS": a chain of its
            own, as the weights were not to be trusted.
        density: Whose density of the data was used, the "program"'s own or the one that the "network" has learned.
        k_hat: Of the weights; above 0.7 they were not used.
        effective_sample_size: How many independent draws the weights or the chain are worth, for the chain that of its
            worst parameter.
        shift: By latent, `(size,)` of its unconstrained numbers: by how many posterior standard deviations the error of
            the learned likelihood would have moved their means; it is corrected. Empty where the density is exact.
        shift_error: Standard error of `shift`, likewise.
    """

    draws: dict[str, Tensor]
    method: Literal["weights", "NUTS"]
    density: Literal["program", "network"]
    k_hat: float
    effective_sample_size: float
    shift: dict[str, Tensor]
    shift_error: dict[str, Tensor]


def change_prior(
    program: Program,
    context: Context,
    num_draws: int = 1_000,
    num_proposals: int = 10_000,
    num_simulations: int = 400,
    seed: int | None = None,
) -> ChangedPrior:
    r"""The posterior of a network's data under the prior of another program, without training again.

    The program has the network's latents under a prior of your choice, and the outcome as before. The support of a
    latent may be a part of what it was in training, as of a parameter that is now positive. Draws of the
    amortised posterior are weighted by the program's density; where the Pareto k-hat of the weights is above 0.7, as
    the two priors are far apart, a chain of NUTS is run instead. `method` says which.

    The density of the data is the program's own where it has one. Of a simulator, or where sites are integrated out, it
    is the network's likelihood, whose error is then measured near the posterior: of data sets that the program
    simulates at the posterior mean, the gradient of a right likelihood has mean zero. What is left is taken out of the
    likelihood, and `shift` says by how much it would have moved the posterior.

    Args:
        program: The Pyro program with the prior that is wanted.
        context: What `net.condition(x, y)` returns, without a batch and given latents.
        num_draws: Draws to return, and of the chain where there is one, after half as many for its adaptation.
        num_proposals: Draws of the amortised posterior that are weighted, at least 100 and `num_draws`.
        num_simulations: Data sets by which the error of the learned likelihood is measured.
        seed: Of all that is drawn; `None` = torch's global generator.

    Returns:
        The draws, and how they were found.

    Raises:
        ValueError: If the context has a batch, given latents or no observation, a number is out of range, the program
            is not one of the network's latents and outcome, or no draw lies in the support of its prior.

    Source:
        Vehtari et al. (2024), "Pareto smoothed importance sampling", for k-hat.
    """
    for name, value, least in (
        ("num_draws", num_draws, MIN_DRAWS),
        ("num_proposals", num_proposals, max(MIN_DRAWS, num_draws if isinstance(num_draws, int) else 0)),
        ("num_simulations", num_simulations, MIN_DRAWS),
    ):
        check_count(name, value, least)
    simulator = context_simulator(program, context, narrower=True)
    if context.latents:
        raise ValueError(
            f"context must leave all latents free; got one with {list(context.latents)} given; condition on x and y "
            "alone, and let the program's prior be narrow around what is known"
        )
    target = _Target(simulator, context)
    with seeded(seed):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outside the trained range.*")  # said by condition
            sample = importance_sample(simulator, context, num_proposals, density=target.log_joint)
            numbers, log_weights, size = unconstrained(target.latents, sample.proposals), sample.log_weights, None
            method: Literal["weights", "NUTS"] = "weights"
            if sample.k_hat > MAX_K_HAT:
                start = {name: value[log_weights.argmax()] for name, value in sample.proposals.items()}
                numbers, size = target.run_nuts(start, num_draws)
                method, log_weights = "NUTS", numbers.new_zeros(num_draws).double()
            shift = shift_error = {}
            if target.learned:
                log_weights, shift, shift_error = target.corrected(numbers, log_weights, num_simulations)
        worth = effective_sample_size(log_weights)
        size = worth if size is None else size * worth / num_draws  # a corrected chain has weights too
        kept = resample(log_weights, num_draws) if method == "weights" or shift else slice(None)
    target.warn(numbers, log_weights, shift)
    draws = {name: value for name, (value, _) in constrained(target.latents, numbers[kept]).items()}
    return ChangedPrior(
        draws, method, "network" if target.learned else "program", sample.k_hat, size, shift, shift_error
    )


class _Target:
    """The density of latents and data under a program's prior: of the data the program's own, or a learned one.

    Everything is in the program's units.
    """

    def __init__(self, simulator: Simulator, context: Context):
        self.simulator, self.learned = simulator, not simulator.has_density
        self.net = cast(ArBufferModel, context.model).in_units()
        self.latents: tuple[Latent, ...] = self.net.config.latents
        self.x, self.y = data_set(context)

    def log_joint(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Log density `(S,)` of latents `(S, *shape)` and the data, -inf outside the support of the prior."""
        inside = torch.stack([latent.contains(values[latent.name]) for latent in self.simulator.latents]).all(0)
        density = torch.full(inside.shape, -torch.inf, device=inside.device)
        if inside.any():
            found = self._log_joint_inside({name: value[inside] for name, value in values.items()}, x, y)
            density = density.to(found.dtype).masked_scatter(inside, found)
        return density

    def _log_joint_inside(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        if not self.learned:
            return self.simulator.log_joint(values, x, y)
        at_a_time = max(1, MAX_TRIALS // len(x))
        parts = zip(*(value.split(at_a_time) for value in values.values()), strict=True)
        data = [likelihood(self.net, x, dict(zip(values, part, strict=True))).log_prob(y) for part in parts]
        return self.simulator.log_prior(values) + torch.cat(data)

    def model(self) -> None:
        """The target as a Pyro model."""
        if not self.learned:
            poutine.condition(self.simulator.program, self.simulator.outcome_sites.values(self.y))(self.x)
            return
        # The program says where its prior is; what it simulates on the way is hidden, and what comes after is not run.
        names = [latent.name for latent in self.latents]
        trace = trace_until(poutine.block(self.simulator.program, expose=names), names, self.x)
        values = {name: nodes(trace)[name]["value"] for name in names}
        pyro.sample("_outcome", likelihood(self.net, self.x, values), obs=self.y)

    def run_nuts(self, start: dict[str, Tensor], num_draws: int) -> tuple[Tensor, float]:
        """Unconstrained draws `(num_draws, P)` of a chain, and the effective sample size of its worst parameter."""
        with torch.enable_grad(), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*There are not enough samples.*")
            kernel = NUTS(self.model, init_strategy=init_to_value(values=start), full_mass=True)
            mcmc = MCMC(kernel, num_draws, num_draws // 2, disable_progbar=True)
            mcmc.run()
        found: dict[str, Any] = mcmc.diagnostics()
        size = min(float(found[latent.name]["n_eff"].min()) for latent in self.latents)
        draws = {name: value.detach() for name, value in mcmc.get_samples().items()}
        return unconstrained(self.latents, draws), size

    def corrected(
        self, numbers: Tensor, log_weights: Tensor, num_simulations: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Weights of draws `(S, P)` under a likelihood whose gradient at their mean has mean zero; shift and its error.

        The log likelihood loses what is linear in its error, g (u - m): g is the mean gradient at the mean m.
        """
        weights = torch.softmax(log_weights, 0).to(numbers.dtype)
        mean = weights @ numbers
        centred = numbers - mean
        covariance = (weights[:, None] * centred).mT @ centred
        gradients = self._gradients(mean, num_simulations)
        shifts = gradients @ covariance / covariance.diagonal().sqrt()
        error = shifts.std(0) / num_simulations**0.5
        sizes = [latent.size for latent in self.latents]
        shift, shift_error = (
            {latent.name: part for latent, part in zip(self.latents, each.split(sizes), strict=True)}
            for each in (shifts.mean(0), error)
        )
        return log_weights - (centred @ gradients.mean(0)).double(), shift, shift_error

    def _gradients(self, mean: Tensor, num_simulations: int) -> Tensor:
        """Gradients `(K, P)` of the log likelihood of data sets simulated at unconstrained latents `(P,)`, there."""
        values = {name: value for name, (value, _) in constrained(self.latents, mean).items()}
        numbers = unconstrained(self.simulator.latents, values)
        y = self.simulator.draw_given(numbers.expand(num_simulations, -1), self.x).y.to(self.y)
        found = []
        for part in self.net.config.squeeze_outcome(y).split(BATCH):
            with torch.enable_grad():
                at = mean.expand(len(part), -1).clone().requires_grad_()
                values = {name: value for name, (value, _) in constrained(self.latents, at).items()}
                density = likelihood(self.net, self.x, values).log_prob(part).sum()
                found += torch.autograd.grad(density, at)
        return torch.cat(found)

    def warn(self, numbers: Tensor, log_weights: Tensor, shift: Mapping[str, Tensor]) -> None:
        """Warns where a learned likelihood is far from right, or not known: outside the prior it was trained on."""
        if not self.learned:
            return
        largest = max(float(each.abs().max()) for each in shift.values())
        if largest > MAX_SHIFT:
            warn(
                f"the error of the learned likelihood would have moved the posterior by {largest:.2f} of its standard "
                "deviations; it is corrected to first order, which may not be enough: train the network longer, or "
                "write the program with a density",
            )
        loc, scale = (part[1:, 0].to(numbers) for part in standardisation(self.latents, 1, None, None))
        far = ((numbers - loc) / scale).abs().amax(-1) > FAR
        share = float((torch.softmax(log_weights, 0) * far).sum())
        if share > MAX_FAR:
            warn(
                f"{share:.0%} of the posterior lies more than {FAR:g} standard deviations from the prior that the "
                "network was trained on, where its likelihood is not known; train it on a wider prior",
            )
