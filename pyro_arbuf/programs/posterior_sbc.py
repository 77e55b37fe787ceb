"""Simulation-based calibration around observed data: parameters from their posterior, new data, ranks given both."""

from typing import Any

import torch
from torch import Tensor

from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.calibration import Calibration, rank_known
from pyro_arbuf.programs.consistency import one_data_set
from pyro_arbuf.programs.known_truth import (
    Posterior,
    check_sizes,
    checked_draws,
    in_program_units,
    known_posteriors,
    simulating,
)
from pyro_arbuf.programs.same_law import Simulations
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.sources import find_simulator


@torch.no_grad()
def posterior_sbc(
    net: ArBufferModel,
    x: Any,
    y: Any,
    num_datasets: int = 500,
    num_draws: int = 99,
    num_trials: int | None = None,
    program: Program | Simulator | None = None,
    posterior: Posterior | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration around observed data, where the posterior is used instead of all over the prior.

    Latents are drawn from the posterior of the data and new trials are simulated from them. Given the old and the new
    trials together, the ranks of these latents among posterior draws are uniform where both posteriors are right.

    Args:
        net: A network with latents, of a program whose trials are independent given them.
        x: `(n, D_x)` inputs of the observed data.
        y: `(n,)` or `(n, D_y)` outcomes; of several sites also a dict of them.
        num_datasets: Sets D of new trials.
        num_draws: Posterior draws per set; one less than a multiple of 20 fills the bins evenly.
        num_trials: New trials of each set, at most n, whose inputs are those of random observed ones; `None` = n, or
            as many as the largest trained number of trials leaves.
        program: The program, or a Simulator of it; `None` = the one the network was trained on.
        posterior: What is checked in place of the network's own posterior, as for `calibrate`.
        seed: Of latents, new trials and draws.

    Returns:
        As `calibrate`, with the posterior of the observed data in the prior's place: contraction and gains say what the
        new trials have taught.

    Raises:
        ValueError: If the network's program is not known, its trials depend on each other or are only one, the trained
            numbers leave no room for new trials, or an argument breaks its rule.

    Source:
        Saeilynoja et al. (2025), "Posterior SBC: simulation-based calibration checking conditional on data".
    """
    x, y = one_data_set(x, y, net, least=1)
    num_new = _num_new_trials(net.config, len(x)) if num_trials is None else check_count("num_trials", num_trials)
    check_sizes(seed, posterior, num_datasets=num_datasets, num_draws=num_draws)
    if num_new > len(x):
        raise ValueError(
            f"num_trials must be at most {len(x)}, as new trials have inputs of observed ones; got {num_new}; use less"
        )
    simulator = find_simulator(net, program)
    simulator.check_runs()
    if simulator.trials != "independent":
        raise ValueError(
            "posterior_sbc simulates new trials given the latents alone, which must be independent of the old ones; "
            f"got a program whose trials are: {simulator.trials}; use calibrate(net) and local_c2st(net, x, y)"
        )
    before, own = in_program_units(net, x, y), posterior or ArBufferPosterior
    net, (old_x, old_y, _) = net.in_units(), before.observations
    with simulating(seed):
        law = own(before)
        truths = checked_draws(law, num_datasets, torch.Size([1, net.config.num_latents])).squeeze(1)

        def extend(rows: slice) -> Simulations:
            """The observed trials and new ones of some of the latents."""
            new = simulator.draw_given(truths[rows], old_x[0, torch.randperm(len(x))[:num_new]])
            return Simulations(truths[rows], _joined(old_x, new.x), _joined(old_y, new.y))

        known = known_posteriors(net, extend, own, num_datasets, num_draws, "posterior SBC")
        device = old_x.device
        return rank_known(known, before[0], lambda u: law.log_prob(u.to(device)[:, None])[:, 0].cpu(), "posterior_sbc")


def _num_new_trials(config: ModelConfig, num_trials: int) -> int:
    """As many new trials as observed ones, or as many as the largest trained number leaves.

    Raises:
        ValueError: If that is none.
    """
    most = config.num_context[1]
    if num_trials >= most:
        raise ValueError(
            f"posterior_sbc conditions on old and new trials together, at most {most} as trained; got {num_trials} "
            "observed ones; give fewer of them, or name num_trials to go beyond the trained number"
        )
    return min(num_trials, most - num_trials)


def _joined(old: Tensor, new: Tensor) -> Tensor:
    """Observed `(1, n, D)` and new trials `(B, m, D)` of each data set, `(B, n + m, D)`."""
    new = new.to(old)
    return torch.cat([old.expand(len(new), -1, -1), new], 1)
