"""The table of shipped models: what each is trained on, and the sizes of its network.

Rows hold plain functions and sizes; `programs.sources.make_source` makes of a row what training draws from.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.ar1 import ar1
from pyro_arbuf.priors.ddm import ddm, draw_coherence
from pyro_arbuf.priors.eeg import AMPLITUDE, CHANNELS, MIRROR, RATE, eeg
from pyro_arbuf.priors.gaussian import gaussian
from pyro_arbuf.priors.gaussian_linear import gaussian_linear
from pyro_arbuf.priors.gp import gp_1d, gp_1d_noisy
from pyro_arbuf.priors.multisensory import draw_trials, multisensory_rho1, multisensory_rho43
from pyro_arbuf.priors.psychometric import draw_intensities, psychometric
from pyro_arbuf.priors.rescorla_wagner import draw_probabilities, rescorla_wagner
from pyro_arbuf.priors.sawtooth import sawtooth
from pyro_arbuf.priors.tabular import MAX_COLUMNS, tabular
from pyro_arbuf.priors.two_moons import two_moons
from pyro_arbuf.training.sources import Prior
from pyro_arbuf.training.tables import FARTHEST, TablePrior


class PriorRecipe(NamedTuple):
    """A model of a prior of functions.

    Attributes:
        prior: Draws exchangeable points of functions.
        config: Sizes and ranges of its network; the name of the prior is that of the row.
    """

    prior: Prior
    config: ModelConfig


class TableRecipe(NamedTuple):
    """A model of a prior of tables, each of which is standardised by its context.

    Attributes:
        prior: Draws exchangeable rows of tables of a number of columns.
        config: Sizes and ranges of its network, whose inputs are "rows"; the name of the prior is that of the row.
    """

    prior: TablePrior
    config: ModelConfig


class RecordingRecipe(NamedTuple):
    """A model of recordings in a file of the user's, each of which is standardised by its context.

    Attributes:
        read: Of a file, the trials to train on and those to validate on.
        config: Sizes and ranges of its network; the name of the prior is that of the row.
        mirror: Which channel every channel becomes where left and right are exchanged.
    """

    read: Callable[[Path], tuple[Tensor, Tensor]]
    config: ModelConfig
    mirror: tuple[int, ...] = ()


class ProgramRecipe(NamedTuple):
    """A model of a Pyro program, whose latents, ranges and standardisation are found by running it.

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


Recipe = PriorRecipe | TableRecipe | RecordingRecipe | ProgramRecipe

_GP = ModelConfig(
    num_layers=6,
    num_heads=2,
    slot_positions="none",
    x_range=(-2.0, 2.0),
    y_range=(-6.0, 6.0),
    num_targets=(1, 128),
)

_TABLES = ModelConfig(
    inputs="rows",
    dim_x=MAX_COLUMNS,
    buffer_size=32,
    num_layers=5,
    scaled_queries=True,
    num_frequencies=8,
    max_frequency=12.0,
    num_y_frequencies=16,
    num_context=(8, 512),
    num_targets=(1, 128),
    y_range=(-FARTHEST, FARTHEST),
)

_EEG = ModelConfig(
    dim_y=len(CHANNELS),
    outcome=CHANNELS,
    buffer_size=32,
    num_components=8,
    num_frequencies=48,
    max_frequency=math.pi * RATE,  # half a turn from one sample to the next
    num_y_frequencies=16,
    lag_column=0,
    y_loc=(0.0,) * len(CHANNELS),
    y_scale=(AMPLITUDE,) * len(CHANNELS),
    y_scale_weight=8.0,
    x_range=(0.0, 1.0),
    x_spacing=1 / RATE,
    y_range=(-60.0, 60.0),
    num_context=(0, 192),
    num_targets=(1, 128),
)

RECIPES: dict[str, Recipe] = {
    "gp-1d": PriorRecipe(gp_1d, _GP),
    "gp-1d-noisy": PriorRecipe(gp_1d_noisy, _GP),
    "sawtooth": PriorRecipe(sawtooth, replace(_GP, y_range=(-0.5, 1.5), max_frequency=40.0)),
    "tabular": TableRecipe(tabular, _TABLES),
    "eeg": RecordingRecipe(eeg, _EEG, MIRROR),
    "eeg-independent": RecordingRecipe(eeg, replace(_EEG, chained=False), MIRROR),
    "gaussian": ProgramRecipe(gaussian, None, (0, 100)),
    "ddm": ProgramRecipe(ddm, draw_coherence, (0, 400), posterior_share=0.7),
    "multisensory-rho1": ProgramRecipe(multisensory_rho1, draw_trials, (0, 400), posterior_share=0.3),
    "multisensory-rho43": ProgramRecipe(multisensory_rho43, draw_trials, (0, 400), posterior_share=0.3),
    "psychometric": ProgramRecipe(psychometric, draw_intensities, (0, 400), posterior_share=0.6),
    "ar1": ProgramRecipe(ar1, None, (0, 200), posterior_share=0.6),
    "rescorla-wagner": ProgramRecipe(rescorla_wagner, draw_probabilities, (0, 200), posterior_share=0.6),
    "two-moons": ProgramRecipe(two_moons, None, (0, 1), 100_000, posterior_share=0.35),
    "gaussian-linear": ProgramRecipe(gaussian_linear, None, (0, 1), 100_000),
}
