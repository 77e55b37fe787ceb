"""What the paper compares the buffer with, on the same embedder and head and with as many parameters.

`make_model(config)` builds the network that `config.architecture` names, `pyro-arbuf train gp-1d --architecture tnp-a`
trains it, and `pyro_arbuf.load` gives it back. `ArBufferJoint` is the predictive of all of them but of `tnp-nd`, whose
predictive is `GaussianJoint`.
"""

from pyro_arbuf.baselines.architectures import make_model, matched_config
from pyro_arbuf.baselines.gaussian_joint import GaussianJoint

__all__ = ["GaussianJoint", "make_model", "matched_config"]
