"""`check_observation`: whether an observation is where the simulations are, by the network's own predictive law."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, facts, shown_as_table
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.validation import check_count, check_x, check_y
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.consistency import one_data_set
from pyro_arbuf.programs.known_truth import simulating
from pyro_arbuf.programs.likelihood import likelihood
from pyro_arbuf.programs.ranks import panels


def _summary(found: "ObservationCheck") -> tuple[str, Table]:
    low, high = torch.quantile(found.predictive.double(), torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    lines = {
        "log evidence of the observation": f"{found.log_evidence:.5g} nats",
        "of 90 % of the predicted data sets": f"{low:.5g} to {high:.5g} nats",
        "p": f"{found.p_value:.3g}",
    }
    return f"ObservationCheck({len(found.predictive)} predicted data sets)", facts(lines)


@shown_as_table(_summary)
class ObservationCheck(NamedTuple):
    """What `check_observation` measures.

    Attributes:
        log_evidence: Of the observation, nats, with one order of its trials.
        predictive: `(S,)` nats, of data sets that the network predicts at the same inputs.
        draws: `(num_draws, *shape)` by latent, from the posterior of the observation; empty for a network without.
        log_prior: `(num_draws,)` nats, of these draws by the network, in their own supports.
        log_likelihood: `(num_draws,)` nats, of the observation given these draws, by the network.
    """

    log_evidence: float
    predictive: Tensor
    draws: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor

    @property
    def p_value(self) -> float:
        """Two-sided: an observation may be too unlikely, or more regular than any simulation is."""
        below = int((self.predictive <= self.log_evidence).sum())
        above = int((self.predictive >= self.log_evidence).sum())
        return min(1.0, 2 * (1 + min(below, above)) / (1 + len(self.predictive)))

    def plot(self, ax: Any = None) -> Any:
        """Draws the log evidences of predicted data sets, and that of the observation.

        Args:
            ax: Axes of matplotlib to draw into; `None` = those of a new figure of pyplot.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt  # slow, and only figures need it

        with plt.style.context("pyro_arbuf.house"):
            ax = panels(None, 1, "") if ax is None else ax
            ax.hist(self.predictive.numpy(), 20, color="C0", label="predicted")
            ax.axvline(self.log_evidence, color="C1", label="observed")
            ax.set(title=f"p = {self.p_value:.3g}", xlabel="log evidence (nats)", yticks=[])
            ax.legend()
        return ax

    def to_datatree(self) -> Any:
        """Everything as ArviZ 1.x reads it.

        Returns:
            An `xarray.DataTree`: `log_evidence` of predicted data sets in `prior_predictive` and of the observation in
            `observed_data`; of a network with latents also `posterior`, `log_prior` and `log_likelihood`, from which
            `psense_summary` and `plot_psense_dist` say whether prior and data disagree about a latent.
        """
        from pyro_arbuf.workflow.groups import draws_tree

        groups = {"prior_predictive": {"log_evidence": self.predictive}}
        if self.draws:
            groups["posterior"] = self.draws
            groups |= {"log_prior": {"latents": self.log_prior}, "log_likelihood": {"y": self.log_likelihood}}
        return draws_tree(groups, {"log_evidence": torch.tensor(self.log_evidence)})


@torch.no_grad()
def check_observation(
    net: ArBufferModel, x: Any, y: Any, num_sets: int = 200, num_draws: int = 500, seed: int = 0
) -> ObservationCheck:
    """Prior-data conflict: whether an observation is where the simulations are that the network was trained on.

    Data sets are drawn from the network's own prior predictive law at the same inputs, and the observation's log
    evidence is ranked among theirs. Far from the simulations a network extrapolates, and no calibration speaks for it.
    Where the network predicts, observations and predicted data sets are exchangeable and the p-value is exact.
    The evidence also counts how noisy data are. Where the prior leaves that open it varies by many nats, and a mean
    that is a few prior standard deviations away can hide in it: compare a statistic of your own by `predictive` draws.

    Args:
        net: The network, with or without latents; its program is not needed.
        x: `(n, D_x)` inputs.
        y: `(n,)` or `(n, D_y)` outcomes; of several sites also a dict of them.
        num_sets: Predicted data sets S; the smallest possible p-value is 2 / (S + 1).
        num_draws: Posterior draws for ArviZ's sensitivity to the prior; not used for a network without latents.
        seed: Of predicted data sets and draws.

    Returns:
        The log evidences and the p-value; its `plot()` draws them.

    Raises:
        ValueError: If an argument breaks its rule.

    Source:
        Evans and Moshonov (2006), "Checking for prior-data conflict"; Kallioinen et al. (2024), "Detecting and
        diagnosing prior and likelihood sensitivity with power-scaling", for ArviZ's part.
    """
    if net.config.observation is not None:
        raise ValueError(
            "check_observation needs a network of the program's whole prior; this one was trained on a part of it, by "
            "amortize(observation=...); check with one that was trained without it, such as that of the first round"
        )
    x, y = one_data_set(x, y, net)
    check_x("x", x, net)
    check_y("y", y, net)
    for name, value, least in (("num_sets", num_sets, 20), ("num_draws", num_draws, 1), ("seed", seed, 0)):
        check_count(name, value, least)
    unconditioned = net.condition()
    joint = ArBufferJoint(unconditioned, x)
    observed = joint.log_prob(y).item()
    with simulating(seed):  # warnings are given above
        predictive = joint.log_prob(joint.sample((num_sets,))).cpu()
        if not net.config.latents:
            return ObservationCheck(observed, predictive, {}, predictive[:0], predictive[:0])
        posterior = ArBufferPosterior(net.condition(x, y))
        unconstrained = posterior.sample((num_draws,))
        pairs = posterior.sites_and_jacobians(unconstrained)
        log_prior = ArBufferPosterior(unconditioned).log_prob(unconstrained) - sum(j for _, j in pairs.values())
        log_likelihood = likelihood(net, x, {name: value for name, (value, _) in pairs.items()}).log_prob(y)
    draws = {name: value.cpu() for name, (value, _) in pairs.items()}
    return ObservationCheck(observed, predictive, draws, log_prior.cpu(), log_likelihood.cpu())
