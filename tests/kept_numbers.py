"""Densities of shipped networks in float64, kept so that a change of the code that changes them is seen.

python tests/kept_numbers.py writes kept_numbers.json anew; do so only where new weights have been shipped.
"""

import hashlib
import json
from pathlib import Path

import torch

import pyro_arbuf
from pyro_arbuf.checkpoint import WEIGHTS, models_folder
from pyro_arbuf.network.outcomes import Outcome

FILE = Path(__file__).with_suffix(".json")
FUNCTIONS = ("gp-1d", "gp-1d-noisy", "sawtooth")
PROGRAMS = (
    "ar1",
    "ddm",
    "gaussian",
    "gaussian-linear",
    "multisensory-rho1",
    "multisensory-rho43",
    "psychometric",
    "rescorla-wagner",
    "two-moons",
)


def weights_hash(name: str) -> str:
    """Of the shipped weights' file."""
    return hashlib.sha256((models_folder() / name / WEIGHTS).read_bytes()).hexdigest()


def numbers_of_functions(net: pyro_arbuf.ArBufferModel) -> dict[str, float]:
    """The joint of 21 targets (one absorption) in two orders, its conditionals, and the marginals."""
    x = torch.linspace(-1.9, 1.9, 33, dtype=torch.float64)[:, None]
    y = torch.sin(3 * x[:, 0])
    context, targets = torch.arange(33) % 3 == 0, torch.arange(33) % 3 != 0
    ctx = net.condition(x[context], y[context])
    joint = pyro_arbuf.ArBufferJoint(ctx, x[targets], pyro_arbuf.random_orders(22, 2))
    return {
        "joint": joint.log_prob(y[targets]).item(),
        "conditionals": joint.log_prob_conditionals(y[targets]).sum().item(),
        "marginals": joint.marginals().log_prob(y[targets]).item(),
    }


def outcomes(kind: Outcome, real: torch.Tensor) -> torch.Tensor:
    """Given real numbers, or as many categories or counts."""
    return torch.arange(len(real)).double() % (kind.num_categories or 5) if kind.support.is_discrete else real


def numbers_of_program(net: pyro_arbuf.ArBufferModel) -> dict[str, float]:
    """The posterior at its own draws, and the likelihood and evidence of some outcomes near the middle."""
    config, num_trials = net.config, min(24, net.config.num_context[1])
    grid = torch.linspace(-1, 1, num_trials, dtype=torch.float64)
    x = torch.stack([loc + scale * grid for loc, scale in zip(config.x_loc, config.x_scale, strict=True)], -1)
    middles = zip(config.kinds, config.y_loc, config.y_scale, strict=True)
    y = torch.stack([outcomes(kind, loc + 0.5 * scale * grid.flip(0)) for kind, loc, scale in middles], -1)
    y = y[:, 0] if config.dim_y is None else y
    posterior = pyro_arbuf.ArBufferPosterior(net.condition(x, y))
    middle = torch.tensor([loc for latent in config.latents for loc in latent.loc], dtype=torch.float64)
    given = net.condition(latents=posterior.sites(middle))
    return {
        "posterior": posterior.log_prob(middle).item(),
        "likelihood": pyro_arbuf.ArBufferMarginals(given, x).log_prob(y).item(),
        "evidence": pyro_arbuf.ArBufferJoint(net.condition(), x).log_prob(y).item(),
    }


def numbers() -> dict[str, dict[str, float]]:
    """All of them, by network."""
    found = {name: numbers_of_functions(pyro_arbuf.load(name).double()) for name in FUNCTIONS}
    return found | {name: numbers_of_program(pyro_arbuf.load(name).double()) for name in PROGRAMS}


if __name__ == "__main__":
    kept = {name: {"weights": weights_hash(name)} | values for name, values in numbers().items()}
    FILE.write_text(json.dumps(kept, indent=2) + "\n")
