"""The Pyro programs behind shipped models: name, program, inputs, number of trials."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from pyro_arbuf.config import ModelConfig
from pyro_arbuf.latents import rounded
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors.ddm import ddm, draw_coherence
from pyro_arbuf.priors.gaussian import gaussian
from pyro_arbuf.priors.gaussian_linear import gaussian_linear
from pyro_arbuf.priors.multisensory import draw_trials, multisensory_rho1, multisensory_rho43
from pyro_arbuf.priors.two_moons import two_moons
from pyro_arbuf.random_state import seeded
from pyro_arbuf.simulation import Program, Simulator


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
PROGRAM_FIELDS = {"dim_x", "dim_y", "prior", "x_range", "y_range", "num_context", "num_targets", "latents", "outcome"}
PROGRAM_FIELDS |= {"x_loc", "x_scale", "y_loc", "y_scale", "evidence_rmse"}  # not for the user to choose
SIZES = {"width": 64, "num_layers": 4, "num_heads": 4, "num_y_frequencies": 16, "max_frequency": 8.0}


def simulator_of(name: str) -> Simulator:
    """The simulator of a shipped program.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in PROGRAMS:
        raise ValueError(f"name must be one of {list(PROGRAMS)}; got {name!r}")
    return Simulator(PROGRAMS[name].program, PROGRAMS[name].inputs)


def find_simulator(net: ArBufferModel, program: Program | None = None) -> Simulator:
    """The simulator of a network: of a given program, of the one it was amortised from, or of a shipped one.

    Raises:
        ValueError: If none of them is known, or it does not fit the network.
    """
    config = net.config
    if not config.latents:
        raise ValueError("net must have latents; got a network without; amortize a program")
    if program is not None:
        known = [net.simulator.inputs] if net.simulator is not None else []
        known = [recipe.inputs for recipe in PROGRAMS.values() if recipe.program is program] + known
        simulator = Simulator(program, known[0] if known else None, net.latents, config.outcome)
    elif net.simulator is not None:
        simulator = net.simulator
    elif config.prior in PROGRAMS:
        simulator = simulator_of(config.prior)
    else:
        raise ValueError(
            f"the program of this network is not known (config.prior = {config.prior!r}); set net.simulator = "
            "pyro_arbuf.Simulator(program, inputs)"
        )
    check_program(simulator, config)
    return simulator


def check_program(simulator: Simulator, config: ModelConfig) -> None:
    """Raises ValueError if a program's latents, inputs or outcome are not those of a network."""
    got, want = ([replace(latent, loc=None, scale=None) for latent in each.latents] for each in (simulator, config))
    if got != want or (simulator.dim_x, simulator.dim_y) != (config.dim_x, config.dim_y):
        raise ValueError(
            f"the program must have the network's latents {want}, dim_x = {config.dim_x} and dim_y = {config.dim_y}; "
            f"got {got}, {simulator.dim_x} and {simulator.dim_y}; for its inputs set net.simulator = "
            "pyro_arbuf.Simulator(program, inputs)"
        )


def program_config(simulator: Simulator, num_context: tuple[int, int], prior: str = "", **sizes: Any) -> ModelConfig:
    """The configuration of a model of a program: its latents, standardisation and ranges, from prior simulations.

    Args:
        simulator: The program.
        num_context: Trained range of the number of trials N.
        prior: Name of the program.
        **sizes: Fields of `ModelConfig`.

    Raises:
        ValueError: If `num_context` is no range from 0, or exceeds 1 for a program of one observation, or the latents
            do not fit into the buffer.
    """
    integers = isinstance(num_context, tuple) and [type(number) for number in num_context] == [int, int]
    if not integers or num_context[0] != 0 or num_context[1] < 1 or (simulator.single and num_context[1] > 1):
        rule = "(0, 1) for a program of one observation" if simulator.single else "(0, n) with n >= 1"
        raise ValueError(f"num_context must be {rule}; got {num_context}")
    with seeded(0):
        drawn = simulator.draw(256, 1 if simulator.single else 8)
    num_latents = drawn.latents.shape[1]
    spread = (drawn.y - drawn.y.median()).abs().max().item()
    middle = drawn.y.median().item()
    low, high = drawn.x.min().item(), drawn.x.max().item()
    margin = 0.01 * (high - low)  # so that the ends of the inputs' range do not lie outside by chance
    x_range = tuple(rounded(end, high - low, 4) for end in (low - margin, high + margin))
    y_range = tuple(rounded(end, spread) for end in (middle - 2 * spread, middle + 2 * spread))
    fields = SIZES | {"buffer_size": max(16, num_latents)} | sizes
    if fields["buffer_size"] < num_latents:
        raise ValueError(f"buffer_size must hold all {num_latents} latent numbers; got {fields['buffer_size']}")
    return ModelConfig(
        dim_x=simulator.dim_x,
        dim_y=simulator.dim_y,
        prior=prior,
        x_range=x_range,
        y_range=y_range,
        num_context=num_context,
        num_targets=(1, num_context[1]),
        latents=simulator.latents,
        outcome=simulator.outcome,
        x_loc=simulator.x_loc,
        x_scale=simulator.x_scale,
        y_loc=simulator.y_loc,
        y_scale=simulator.y_scale,
        **fields,
    )
