"""Posteriors of untrained networks of any program, given a data set of it."""

import warnings

import pyro
import pyro.distributions as dist

from pyro_arbuf import ArBufferModel, ArBufferPosterior, Simulator
from pyro_arbuf.programs.configuration import program_config

TINY = {"width": 8, "num_heads": 2, "num_layers": 1, "mlp_width": 8, "embedding_width": 8, "head_width": 8}


def posterior_of(program, inputs=None, n=4, latents=None, outcome="y"):
    """The posterior of an untrained network of a program, given a data set of it, and that: inputs and outcomes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator = Simulator(program, inputs, latents, outcome)
    net = (
        ArBufferModel(program_config(simulator, (0, 1 if simulator.single else 8), **TINY)).eval().requires_grad_(False)
    )
    drawn = simulator.draw(1, 1 if simulator.single else n)
    y = net.config.squeeze_outcome(drawn.y[0])
    return ArBufferPosterior(net.condition(drawn.x[0], y)), y


def one_vector(x):
    a = pyro.sample("a", dist.Normal(x.new_tensor(0.0), 1.0))
    return pyro.sample("y", dist.Normal(a.unsqueeze(-1).expand(*a.shape, 3), 1.0).to_event(1))
