"""The systems of the paper's comparison: trained for equal CPU seconds, kept in a folder, read alike. See paper.py."""

import dataclasses
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from quality import Functions
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferModel, Context, load, random_orders, save
from pyro_arbuf.baselines import GaussianJoint, make_model
from pyro_arbuf.baselines.tnp_nd import TNPND
from pyro_arbuf.network.parts import ArchitectureName
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.run_state import RunState
from pyro_arbuf.training.sources import TaskSource

SEED = 0
CHUNK = 16  # functions that are scored together
SUBSET, NODES = 8, 256  # targets of a subset; values of one target more, over which is integrated
SMALL = {"width": 16, "num_layers": 3, "num_heads": 2, "mlp_width": 16, "embedding_width": 16, "head_width": 16}

Joint = ArBufferJoint | ArBufferMarginals | GaussianJoint


class System(NamedTuple):
    """A network and how it is read.

    Attributes:
        architecture: Of the network.
        buffer_size: Targets between two absorptions; `None` = as many as the architecture takes.
        independent: Whether every target is predicted alone.
    """

    architecture: ArchitectureName
    buffer_size: int | None = None
    independent: bool = False

    def joint(self, context: Context, x: Tensor, orders: Tensor) -> Joint:
        """The predictive of targets; a Gaussian has one order, in which they are given."""
        if self.architecture == "tnp-nd":
            return GaussianJoint(context, x)
        joint = ArBufferJoint(context, x, orders, self.buffer_size)
        return joint.marginals() if self.independent else joint


SYSTEMS = {
    "buffer K=16": System("buffer", 16),
    "buffer K=4": System("buffer", 4),
    "buffer K=1": System("buffer", 1),
    "TNP-D-AR": System("tnp-d"),
    "TNP-D-Ind": System("tnp-d", independent=True),
    "TNP-ND": System("tnp-nd"),
    "TNP-A": System("tnp-a"),
    "decoder": System("decoder"),
    "LBANP-AR": System("lbanp"),
    "LBANP buffer K=16": System("lbanp-buffer", 16),
}
EEG_SYSTEMS = {
    name: each for name, each in SYSTEMS.items() if each.architecture in ("buffer", "tnp-d", "tnp-nd", "tnp-a")
}


def train(
    recipe: str, architecture: ArchitectureName, minutes: float, folder: Path, data: Path | None, small: bool
) -> tuple[ArBufferModel, RunState]:
    """A network of an architecture, trained on the tasks of a recipe, see `train_on`.

    Args:
        recipe: Row of the table of shipped models.
        architecture: What is trained on it.
        minutes: CPU minutes.
        folder: Of network and state.
        data: File of recordings, of recipes that need one.
        small: Whether the network is a tiny one.
    """
    source = make_source(recipe, data=data, architecture=architecture)
    if small:
        source = dataclasses.replace(source, config=dataclasses.replace(source.config, **SMALL))
    return train_on(source, minutes, folder)


def train_on(
    source: TaskSource, minutes: float, folder: Path, begun: ArBufferModel | None = None, learning_rate: float = 6e-3
) -> tuple[ArBufferModel, RunState]:
    """A network with the best of its weights, trained for some CPU minutes in all, however often it was stopped.

    Args:
        source: Of its tasks, and of its configuration.
        minutes: CPU minutes, validations included.
        folder: Of network and state.
        begun: The network before training; `None` = of the source's configuration, with random weights.
        learning_rate: The peak.

    Returns:
        The network, frozen, and where its run ended.
    """
    path = folder / "state.safetensors"
    if not path.exists() or RunState.read(path).minutes < minutes:
        with seeded(SEED):
            net = make_model(source.config) if begun is None else begun
        settings = {"minutes": minutes, "resume": path.exists(), "clock": time.process_time}
        settings |= {"learning_rate": learning_rate}
        fit(net, source, path, on_checkpoint=lambda state: save(net, folder, state.best_weights), **settings)
    return load(folder), RunState.read(path)


@torch.no_grad()
def log_prob(net: ArBufferModel, system: System, functions: Functions, orders: Tensor) -> Tensor:
    """Joint log density `(B,)` of functions, nats per target."""
    parts, num_targets = [], functions[2].shape[1]
    for i in range(0, len(functions[0]), CHUNK):
        x_context, y_context, x, y = (part[i : i + CHUNK] for part in functions)
        y_context, y = (net.config.squeeze_outcome(part) for part in (y_context, y))
        parts.append(system.joint(net.condition(x_context, y_context), x, orders).log_prob(y))
    return torch.cat(parts).double() / num_targets


def order_gap(net: ArBufferModel, system: System, functions: Functions) -> float:
    """Mean absolute difference of the joint log density between two orders of the targets, nats per target."""
    x_context, y_context, x, y = functions
    as_given = torch.arange(x.shape[1])[None]
    first, second = (
        log_prob(net, system, (x_context, y_context, x[:, order], y[:, order]), as_given)
        for order in random_orders(x.shape[1], 2)
    )
    return (first - second).abs().mean().item()


@torch.no_grad()
def rest_gap(net: ArBufferModel, system: System, functions: Functions) -> float:
    """Mean absolute difference of the log density of a subset by itself and with one target more, nats per target.

    With one more, it is the marginal of the joint in which that one is in front: an integral over its outcome, by the
    midpoints of equally probable intervals. Of TNP-ND it is the marginal of the Gaussian in which that one is last.

    Args:
        net: The network.
        system: How it is read.
        functions: Of scalar outcomes, with more targets than `SUBSET`.
    """
    if system.independent:
        return 0.0
    x_context, y_context, x, y = functions
    context, subset = net.condition(x_context, y_context.squeeze(-1)), y[:, :SUBSET, 0]
    as_given = torch.arange(SUBSET + 1)[None]
    alone = system.joint(context, x[:, :SUBSET], as_given[:, :-1]).log_prob(subset)
    if isinstance(net, TNPND):
        targets = net.embed_targets(context.cache, x[:, None, : SUBSET + 1])
        gaussian = net.predict_jointly(context.cache, targets)
        loc, covariance = gaussian.loc[:, 0, :SUBSET], gaussian.covariance_matrix[:, 0, :SUBSET, :SUBSET]
        implied = MultivariateNormal(loc, covariance).log_prob(subset)
    else:
        front, behind = x[:, SUBSET : SUBSET + 1], x[:, :SUBSET]
        one = ArBufferMarginals(context, front)
        probabilities = (torch.arange(NODES) + 0.5) / NODES
        values = one.icdf(probabilities.view(-1, 1, 1).expand(-1, len(x), 1))  # (NODES, B, 1)
        joint = system.joint(context, torch.cat([front, behind], 1), as_given)
        both = joint.log_prob(torch.cat([values, subset.expand(NODES, -1, -1)], -1))
        implied = torch.logsumexp(both - one.log_prob(values), 0) - math.log(NODES)
    return ((alone - implied).abs().mean() / SUBSET).item()
