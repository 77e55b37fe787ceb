"""Priors: functions `(batch_size, num_context, num_buffer, num_targets, generator) -> Task`."""

from pyro_arbuf.priors.gp import gp_1d, gp_1d_noisy
from pyro_arbuf.priors.sawtooth import sawtooth

__all__ = ["gp_1d", "gp_1d_noisy", "sawtooth"]
