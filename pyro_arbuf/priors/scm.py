"""Structural causal models: rows in which every number is a function of some others and of noise.

Columns and outcome are nodes of one random layered graph, so a column may be a cause or an effect of the outcome, or
share a cause with it. Everything is drawn for all tables at once, from a generator alone.
"""

import torch
from torch import Tensor

from pyro_arbuf.priors.table_columns import chance, uniform, unit_scale

NUM_ROOTS, NUM_NODES, NUM_LAYERS, NUM_PARENTS = 10, 12, 3, 3


def draw_scm(
    batch_size: int, num_points: int, num_columns: int, roots: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws rows of a graph: each node is a function of a sum of about 3 nodes before it, with noise.

    The function of a node is linear, tanh, relu, absolute value, sine, square, step or bump.

    Args:
        batch_size: Tables B.
        num_points: Rows T.
        num_columns: Nodes D that become columns, causes more often than others.
        roots: `(B, T, 10)`, the nodes without parents.
        generator: Source of randomness.

    Returns:
        Columns `(B, T, D)` and an outcome `(B, T, 1)`, all of scale 1.
    """
    B, nodes = batch_size, [roots]
    for _ in range(NUM_LAYERS):
        before = torch.cat(nodes, -1)
        num_before = before.shape[-1]
        parents = chance((B, num_before, NUM_NODES), NUM_PARENTS / num_before, generator)
        weights = parents * torch.randn(B, num_before, NUM_NODES, generator=generator)
        noise_sd = torch.exp(uniform((B, 1, NUM_NODES), -6.0, -0.5, generator))
        noise = noise_sd * torch.randn(B, num_points, NUM_NODES, generator=generator)
        drive = unit_scale(before @ weights) + 0.5 * torch.randn(B, 1, NUM_NODES, generator=generator)
        nodes.append(unit_scale(_mechanism(drive, generator)) + noise)
    last = nodes.pop()
    rest = torch.cat(nodes, -1)
    preference = torch.rand(B, rest.shape[-1], generator=generator)
    preference[:, :NUM_ROOTS] += 0.5
    which = preference.topk(num_columns, -1).indices.unsqueeze(1).expand(-1, num_points, -1)
    return unit_scale(rest.gather(-1, which)), unit_scale(_outcome(last, rest, generator))


def _mechanism(drive: Tensor, generator: torch.Generator) -> Tensor:
    """A function for every node, `(B, T, nodes)`: three in ten are linear."""
    kinds = 3 * [drive] + [(2 * drive).tanh(), drive.relu(), drive.abs(), (2 * drive).sin(), drive.square()]
    kinds += [(drive > 0).to(drive.dtype), torch.exp(-drive.square())]
    which = torch.randint(len(kinds), (1, drive.shape[0], 1, drive.shape[-1]), generator=generator)
    return torch.stack(kinds).gather(0, which.expand(-1, -1, drive.shape[1], -1)).squeeze(0)


def _outcome(last: Tensor, rest: Tensor, generator: torch.Generator) -> Tensor:
    """A node of the last layer, or, so that columns are among its effects, one of an earlier layer, with its noise."""
    of_last = last[..., :1]
    of_rest = rest[..., NUM_ROOTS : NUM_ROOTS + 1]
    return torch.where(chance((len(last), 1, 1), 0.7, generator), of_last, of_rest)
