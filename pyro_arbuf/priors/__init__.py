"""Priors of functions and of tables, `(batch_size, num_points, generator) -> (x, y)`, and Pyro programs.

The programs with their exact densities are in modules of their own: `ddm`, `gaussian`, `gaussian_linear`,
`multisensory`, `psychometric`, `two_moons`.
"""

from pyro_arbuf.priors.gp import gp_1d, gp_1d_noisy
from pyro_arbuf.priors.sawtooth import sawtooth
from pyro_arbuf.priors.tabular import tabular

__all__ = ["gp_1d", "gp_1d_noisy", "sawtooth", "tabular"]
