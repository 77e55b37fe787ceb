"""Tiny models with latents: P = 6 numbers in four supports, more than the K = 4 buffer slots; D_x = 2."""

import torch
from samples import draw
from torch import Tensor

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent

P = 6
LATENTS = (
    Latent("rate", lower=0.0, loc=(0.3,), scale=(0.6,)),
    Latent("shift", (2,), loc=(-0.2, 0.4), scale=(1.3, 0.8)),
    Latent("share", lower=-1.0, upper=2.0, loc=(0.1,), scale=(1.6,)),
    Latent("mix", (3,), simplex=True, loc=(0.2, -0.1), scale=(1.1, 0.9)),
)
ONE, TWO = (Latent("a", loc=(0.4,), scale=(0.7,)),), (Latent("a", loc=(0.4,), scale=(0.7,)), Latent("b"))
STANDARD = {"x_loc": (0.3, -0.4), "x_scale": (1.2, 0.7), "num_y_frequencies": 3}
SCALAR = STANDARD | {"latents": LATENTS, "y_loc": (0.5,), "y_scale": (1.7,)}
VECTOR = STANDARD | {"latents": LATENTS, "dim_y": 3, "y_loc": (0.5, -1.0, 0.2), "y_scale": (1.7, 0.6, 1.1)}
NETS = {
    "scalar": SCALAR,
    "vector": VECTOR,
    "scalar-gaussian": SCALAR | {"head": "gaussian"},
    "vector-gaussian": VECTOR | {"head": "gaussian"},
}


def values(*batch: int, seed: int = 0) -> dict[str, Tensor]:
    """A value of every latent, in its own support, `(*batch, *shape)`."""
    parts = draw(*batch, P, seed=seed).split([latent.size for latent in LATENTS], -1)
    return {latent.name: latent.constrain(part)[0] for latent, part in zip(LATENTS, parts, strict=True)}


def numbers(latents: dict[str, Tensor]) -> Tensor:
    """The unconstrained numbers of some latents, by formulas written out, in the order of `LATENTS`: `(*batch, P')`."""
    found = []
    for name in ("rate", "shift", "share", "mix"):
        if name in latents:
            v = latents[name]
            if name == "rate":
                found.append(v.log()[..., None])
            elif name == "shift":
                found.append(v)
            elif name == "share":
                found.append(((v + 1) / (2 - v)).log()[..., None])
            else:  # stick breaking, centred at equal shares
                left = torch.stack([torch.ones_like(v[..., 0]), 1 - v[..., 0]], -1)
                share = v[..., :2] / left
                found.append(torch.logit(share) + torch.tensor([2.0, 1.0], dtype=v.dtype).log())
    return torch.cat(found, -1)


def locations(names: list[str], dim_x: int = 2) -> Tensor:
    """Coded inputs of latents, `(P', D_x + 1)`."""
    column = {"rate": [1], "shift": [2, 3], "share": [4], "mix": [5, 6]}
    rows = [p for name in ("rate", "shift", "share", "mix") if name in names for p in column[name]]
    return torch.tensor([[0.0] * dim_x + [p] for p in rows], dtype=torch.float64).view(-1, dim_x + 1)


def coded(x: Tensor) -> Tensor:
    """Coded inputs of observations."""
    return torch.cat([x, torch.zeros_like(x[..., :1])], -1)


def as_outcomes(unconstrained: Tensor, net: ArBufferModel) -> Tensor:
    """Outcomes `(*batch, P', D_y)` at latents."""
    dim_y = net.config.dim_y or 1
    zeros = torch.zeros(*unconstrained.shape, dim_y - 1, dtype=unconstrained.dtype)
    return torch.cat([unconstrained[..., None], zeros], -1)


def weights(net: ArBufferModel) -> dict[str, Tensor]:
    """Weights and standardising constants, as the reference takes them; the constants are those of single precision."""
    config = net.config
    size = 1 + sum(latent.size for latent in config.latents)
    y_loc, y_scale = torch.zeros(size, config.dim_y or 1), torch.ones(size, config.dim_y or 1)
    y_loc[0], y_scale[0] = torch.tensor(config.y_loc), torch.tensor(config.y_scale)
    y_loc[1:, 0] = torch.tensor([v for latent in config.latents for v in latent.loc])
    y_scale[1:, 0] = torch.tensor([v for latent in config.latents for v in latent.scale])
    x_loc, x_scale = torch.tensor(config.x_loc), torch.tensor(config.x_scale)
    constants = {"x_loc": x_loc, "x_scale": x_scale, "y_loc": y_loc, "y_scale": y_scale}
    return dict(net.named_parameters()) | {name: value.double() for name, value in constants.items()}
