"""Joint predictions from transformer probabilistic models as Pyro distributions.

net = pyro_arbuf.load("gp-1d-noisy")
ctx = net.condition(x_obs, y_obs)
y = pyro.sample("y", ArBufferJoint(ctx, x_new))
"""

from pyro_arbuf.checkpoint import load, shipped_models
from pyro_arbuf.config import ModelConfig
from pyro_arbuf.context import Context
from pyro_arbuf.distributions import ArBufferJoint, Moments, OrderSpread
from pyro_arbuf.marginals import ArBufferMarginals, PlateOverTargetsWarning
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.orders import random_orders

__all__ = [
    "ArBufferJoint",
    "ArBufferMarginals",
    "ArBufferModel",
    "Context",
    "ModelConfig",
    "Moments",
    "OrderSpread",
    "PlateOverTargetsWarning",
    "load",
    "random_orders",
    "shipped_models",
]
