"""From a row of the table of shipped models to what it trains on; from a network back to the program it is of.

The only module that tells a prior of functions from one of tables and from a program.
"""

import dataclasses
from pathlib import Path
from typing import cast

from pyro_arbuf.baselines.architectures import TRAINED_ON_CHAINS, matched_config
from pyro_arbuf.inference.series import numbers_trials
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.parts import ArchitectureName, Range
from pyro_arbuf.priors.recipes import RECIPES, PriorRecipe, ProgramRecipe, Recipe, RecordingRecipe, TableRecipe
from pyro_arbuf.programs.configuration import check_program, outcome_names, program_config
from pyro_arbuf.programs.program_batches import ProgramSource, make_bank
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.truncated_prior import TruncatedSimulator
from pyro_arbuf.training.recordings import RecordingSource
from pyro_arbuf.training.sources import PriorSource
from pyro_arbuf.training.tables import TableSource

BANK_SEED = 1


def make_source(
    name: str,
    batch_size: int = 32,
    num_targets: int = 48,
    seed: int = 0,
    data: Path | str | None = None,
    architecture: ArchitectureName = "buffer",
) -> PriorSource | TableSource | RecordingSource | ProgramSource:
    """What a shipped model is trained on.

    Args:
        name: A row of the table.
        batch_size: Data sets per step and process.
        num_targets: Fresh targets per data set.
        seed: Of the data stream.
        data: File of the recordings of a row that is trained on some; `None` for all other rows.
        architecture: Of the network; of a baseline that is trained on chains, these are as long as a network with a
            buffer has targets.

    Returns:
        The source; its `config` has the sizes of the row and `prior` = the name.

    Raises:
        ValueError: If the name is unknown, a size is not positive, a file of recordings is missing, or superfluous, or
            the architecture is not for such a row.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {list(RECIPES)}; got {name!r}")
    recipe = RECIPES[name]
    if (data is not None) != isinstance(recipe, RecordingRecipe):
        rule = "is trained on recordings, which are not shipped; give" if data is None else "needs none; leave out"
        raise ValueError(f"{name!r} {rule} their file, data= or --data; got {data}")
    if architecture != "buffer":
        recipe, num_targets = _baseline(name, recipe, architecture, num_targets)
    if isinstance(recipe, PriorRecipe):
        config = dataclasses.replace(recipe.config, prior=name)
        return PriorSource(recipe.prior, config, batch_size, num_targets, seed)
    if isinstance(recipe, TableRecipe):
        config = dataclasses.replace(recipe.config, prior=name)
        return TableSource(recipe.prior, config, batch_size, num_targets, seed)
    if isinstance(recipe, RecordingRecipe):
        config, trials = dataclasses.replace(recipe.config, prior=name), recipe.read(Path(str(data)))
        return RecordingSource(*trials, config, recipe.mirror, batch_size, num_targets, seed)
    simulations = simulator = simulator_of(name)
    config = program_config(simulator, recipe.num_context, name)
    if recipe.num_simulations is not None:
        simulations = make_bank(simulator, recipe.num_simulations, max(1, recipe.num_context[1]), BANK_SEED)
    return ProgramSource(simulations, config, batch_size, num_targets, seed, recipe.posterior_share)


def _baseline(
    name: str, recipe: Recipe, architecture: ArchitectureName, num_targets: int
) -> tuple[PriorRecipe | RecordingRecipe, int]:
    """The row of a baseline, and the number of fresh targets, of which one that is trained on chains needs none."""
    if not isinstance(recipe, PriorRecipe | RecordingRecipe):
        raise ValueError(
            f"architecture must be 'buffer' for {name!r}; got {architecture!r}; baselines are for priors of functions "
            "and for recordings"
        )
    config = recipe.config
    if architecture in TRAINED_ON_CHAINS:
        if isinstance(recipe, PriorRecipe):  # recordings may be too short for more
            config = dataclasses.replace(config, buffer_size=config.buffer_size + num_targets)
        num_targets = 1
    return recipe._replace(config=matched_config(config, architecture)), num_targets


def shipped_programs() -> dict[str, ProgramRecipe]:
    """The rows of the table that are programs."""
    return {name: recipe for name, recipe in RECIPES.items() if isinstance(recipe, ProgramRecipe)}


def simulator_of(name: str) -> Simulator:
    """The simulator of a shipped program.

    Raises:
        ValueError: If the name is unknown.
    """
    programs = shipped_programs()
    if name not in programs:
        raise ValueError(f"name must be one of {list(programs)}; got {name!r}")
    return Simulator(programs[name].program, programs[name].inputs)


def _has_no_inputs(config: ModelConfig) -> bool:
    """Whether a network's program draws no inputs: x is a constant 0 then, and the trial's number in a series."""
    if config.dim_x > 1 or not isinstance(config.x_range, tuple):
        return False
    if not config.sequential:
        return config.x_range == (0.0, 0.0)
    if config.lag_column != 0 or config.x_scale is None:
        return False
    return numbers_trials(config) and cast(Range, config.x_range)[0] <= 0


def find_simulator(
    net: ArBufferModel, program: Program | Simulator | None = None, needs_latents: bool = True
) -> Simulator:
    """The simulator of a network: a given one, of a given program, of the one it was amortised from, or a shipped one.

    Raises:
        ValueError: If none of them is known, or it does not fit the network, or a given program comes without the
            inputs it needs.
    """
    config = net.config
    if needs_latents and not config.latents:
        raise ValueError("net must have latents; got a network without; amortize a program with latents")
    if isinstance(program, Simulator):
        simulator = program
    elif program is not None:
        known = [net.simulator.inputs] if isinstance(net.simulator, Simulator) else []
        # A shipped program with other inputs has another name.
        recipe = shipped_programs().get(config.prior.replace("_", "-"))
        known += [recipe.inputs] if recipe is not None and recipe.program is program else []
        if not known and not _has_no_inputs(config):
            raise ValueError(
                f"the network was trained with inputs (dim_x = {config.dim_x}, x_range = {config.x_range}), and a "
                "program alone does not say how to draw them; pass program=pyro_arbuf.Simulator(program, inputs)"
            )
        simulator = Simulator(program, known[0] if known else None, net.latents, outcome_names(config))
    elif isinstance(net.simulator, Simulator):
        simulator = net.simulator
    elif config.prior in shipped_programs():
        simulator = simulator_of(config.prior)
    else:
        raise ValueError(
            f"the program of this network is not known (config.prior = {config.prior!r}); set net.simulator = "
            "pyro_arbuf.Simulator(program, inputs)"
        )
    check_program(simulator, config)
    return simulator


def prior_simulator(net: ArBufferModel, program: Program | Simulator | None) -> Simulator:
    """The simulator of a network, as `find_simulator`, for checks that draw data sets from its prior.

    Raises:
        ValueError: As `find_simulator`, or if the network is for one observation and the program draws from all of the
            prior.
    """
    simulator = find_simulator(net, program)
    if net.config.observation is not None and not isinstance(simulator, TruncatedSimulator):
        raise ValueError(
            "data sets of the prior need a network of the program's whole prior; this one was trained on a part of it, "
            "by amortize(observation=...), which checked it there; check one that was trained without it"
        )
    return simulator
