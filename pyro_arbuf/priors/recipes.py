"""What the shipped models are trained on: priors of functions with their networks' sizes, and Pyro programs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.ddm import ddm, draw_coherence
from pyro_arbuf.priors.gaussian import gaussian
from pyro_arbuf.priors.gaussian_linear import gaussian_linear
from pyro_arbuf.priors.gp import gp_1d, gp_1d_noisy
from pyro_arbuf.priors.multisensory import draw_trials, multisensory_rho1, multisensory_rho43
from pyro_arbuf.priors.sawtooth import sawtooth
from pyro_arbuf.priors.two_moons import two_moons

PRIORS = {"gp-1d": gp_1d, "gp-1d-noisy": gp_1d_noisy, "sawtooth": sawtooth}
_GP = ModelConfig(
    num_layers=6, num_heads=2, prior="gp-1d", x_range=(-2.0, 2.0), y_range=(-6.0, 6.0), num_targets=(1, 128)
)
CONFIGS = {
    "gp-1d": _GP,
    "gp-1d-noisy": replace(_GP, prior="gp-1d-noisy"),
    "sawtooth": replace(_GP, prior="sawtooth", y_range=(-0.5, 1.5), max_frequency=40.0),
}


class Recipe(NamedTuple):
    """What a shipped model of a program is trained on.

    Attributes:
        program: The program.
        inputs: Draws its inputs; `None` = it has none.
        num_context: Range of the number of trials.
        num_simulations: Size of a fixed set of simulations; `None` = new ones in every step.
        posterior_share: Of the batches; `None` = the default.
    """

    program: Callable[[Tensor], Any]
    inputs: Callable[[int], Tensor] | None
    num_context: tuple[int, int]
    num_simulations: int | None = None
    posterior_share: float | None = None


PROGRAMS = {
    "gaussian": Recipe(gaussian, None, (0, 100)),
    "ddm": Recipe(ddm, draw_coherence, (0, 400), posterior_share=0.7),
    "multisensory-rho1": Recipe(multisensory_rho1, draw_trials, (0, 400), posterior_share=0.3),
    "multisensory-rho43": Recipe(multisensory_rho43, draw_trials, (0, 400), posterior_share=0.3),
    "two-moons": Recipe(two_moons, None, (0, 1), 100_000),
    "gaussian-linear": Recipe(gaussian_linear, None, (0, 1), 100_000),
}
