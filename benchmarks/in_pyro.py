"""What a context outside the Pyro model saves a sampler, and the memory of a posterior predictive.

    python benchmarks/in_pyro.py

Leapfrog step: potential energy and its gradient as NUTS evaluates them, for y = shift + g(x) with N = 512
observations in the context and M = K = 16 targets; with a graph-free context made once, with the same context encoded
in every step, and with a live one (the latent shifts the observations too, so its graph goes through the encoder).
Learned likelihood: its gradient for 5 subjects of 60 trials of the drift-diffusion program, against that of the exact
density, with six levels of coherence and with trials that all differ. Posterior predictive: 2,000 draws of M = 64
targets by `predictive`, peak memory in a fresh process. Prints a table, then one JSON line.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from speed import added_memory, median_seconds
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel, Context, likelihood, predictive
from pyro_arbuf.priors import gp_1d
from pyro_arbuf.priors.ddm import COHERENCES, DDM

NUM_CONTEXT, NUM_TARGETS = 512, 16
NUM_DRAWS, NUM_PREDICTED = 2000, 64
NUM_SUBJECTS, NUM_TRIALS = 5, 60


def regression(context: Callable[[Tensor], Context], x: Tensor, y: Tensor | None) -> Tensor:
    """y = shift + g(x), with a context made from the shift."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    joint = ArBufferJoint(context(shift), x)
    shifted = dist.TransformedDistribution(joint, dist.transforms.AffineTransform(shift[..., None], 1.0))
    return pyro.sample("y", shifted, obs=y)


def leapfrog(net: ArBufferModel, repeats: int) -> dict[str, float]:
    """Seconds of one evaluation of potential energy and gradient, for each way to have a context."""
    points, values = gp_1d(1, NUM_CONTEXT + NUM_TARGETS, torch.Generator().manual_seed(0))
    (x_obs, x), (y_obs, y) = (part.split((NUM_CONTEXT, NUM_TARGETS)) for part in (points[0], values[0, :, 0]))
    outside = net.condition(x_obs, y_obs)
    ways: dict[str, Callable[[Tensor], Context]] = {
        "made once": lambda shift: outside,
        "encoded every step": lambda shift: net.condition(x_obs, y_obs),
        "live": lambda shift: net.condition(x_obs, y_obs - shift),
    }
    steps = []
    for way in ways.values():
        _, potential, _, _ = initialize_model(regression, (way, x, y))
        steps.append(partial(potential_grad, potential, {"shift": torch.tensor(0.1)}))
    with pyro.validation_enabled(False):  # as MCMC has it
        return dict(zip(ways, median_seconds(steps, repeats, torch.device("cpu")), strict=True))


def likelihoods(repeats: int) -> dict[str, float]:
    """Seconds of a gradient of the learned and of the exact likelihood of `ddm`, by what the trials' inputs are."""
    net, generator = pyro_arbuf.load("ddm"), torch.Generator().manual_seed(0)
    levels = torch.randint(6, (NUM_SUBJECTS, NUM_TRIALS, 1), generator=generator)
    latents = {"drift": 10.0, "boundary": 1.6, "ndt": 0.3}
    laws: dict[str, Callable[..., dist.TorchDistribution]] = {
        "learned": lambda x, given: likelihood(net, x, given),
        "exact": lambda x, given: DDM(
            given["drift"][:, None] * x[..., 0], given["boundary"][:, None], given["ndt"][:, None]
        ).to_event(1),
    }

    def gradient(law: Callable[..., dist.TorchDistribution], x: Tensor, y: Tensor) -> None:
        given = {name: torch.full((NUM_SUBJECTS,), value, requires_grad=True) for name, value in latents.items()}
        torch.autograd.grad(law(x, given).log_prob(y).sum(), list(given.values()))

    steps = {}
    for kind, x in {
        "six levels": torch.tensor(COHERENCES)[levels],
        "all different": 0.5 * torch.rand(NUM_SUBJECTS, NUM_TRIALS, 1, generator=generator),
    }.items():
        y = DDM(latents["drift"] * x[..., 0], latents["boundary"], latents["ndt"]).sample()
        steps |= {f"{name}, {kind}": partial(gradient, law, x, y) for name, law in laws.items()}
    with pyro.validation_enabled(False):
        return dict(zip(steps, median_seconds(list(steps.values()), repeats, torch.device("cpu")), strict=True))


def probe_memory(model: str) -> float:
    """Peak resident memory that `predictive` adds to this (fresh) process, MiB."""
    net = pyro_arbuf.load(model)
    x = torch.linspace(-2, 2, NUM_PREDICTED)[:, None]
    context = net.condition(x[::4], x[::4, 0].sin())
    posterior = {"shift": 0.1 * torch.randn(NUM_DRAWS)}

    def run(draws: dict[str, Tensor]) -> Tensor:
        y = predictive(regression, draws, lambda shift: context, x, None)["y"]
        assert y.shape == (len(draws["shift"]), NUM_PREDICTED)
        return y

    run({"shift": posterior["shift"][:1]})  # loads the kernels' libraries
    return added_memory(lambda: run(posterior))


def main(model: str = "sawtooth", repeats: int = 3, memory_probe: bool = False) -> None:
    """Measures leapfrog steps and the memory of a posterior predictive.

    Args:
        model: Shipped model or folder; costs depend on its sizes, not on its weights.
        repeats: Turns of each function; the median of all its runs is reported.
        memory_probe: Only print the peak memory of a posterior predictive in this process.
    """
    if memory_probe:
        print(json.dumps(probe_memory(model)))
        return
    shipped = pyro_arbuf.load(model)
    config = replace(shipped.config, num_context=(0, NUM_CONTEXT))  # beyond the trained range on purpose
    published = replace(config, width=128, num_heads=4, mlp_width=256, embedding_width=256, head_width=256)
    result: dict[str, object] = {}
    print(f"leapfrog step, N = {NUM_CONTEXT}, M = K = {NUM_TARGETS}, {torch.get_num_threads()} threads; ms")
    print("sizes                 made once   encoded every step      live   ratios to made once")
    for name, sizes in {f"{model}, width {config.width}": config, "published, width 128": published}.items():
        net = ArBufferModel(sizes).eval().requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y lies outside the trained range")
            times = leapfrog(net, repeats)
        once, encoded, live = (1e3 * t for t in times.values())
        print(f"{name:22s}{once:9.1f}{encoded:21.1f}{live:10.1f}   {encoded / once:.1f} and {live / once:.1f}")
        result[name] = {"encoded / made once": round(encoded / once, 2), "live / made once": round(live / once, 2)}
    gradients = {name: round(1e3 * seconds, 1) for name, seconds in likelihoods(repeats).items()}
    print(f"gradient of a likelihood, {NUM_SUBJECTS} subjects of {NUM_TRIALS} trials; ms")
    for name, milliseconds in gradients.items():
        print(f"{name:22s}{milliseconds:9.1f}")
    result["gradient of a likelihood, ms"] = gradients
    command = [sys.executable, __file__, "--model", model, "--memory-probe"]
    added = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"predictive, {NUM_DRAWS} draws of M = {NUM_PREDICTED}: {added:.0f} MiB above what was there")
    print(json.dumps(result | {"predictive MiB": round(added, 1)}))


if __name__ == "__main__":
    tyro.cli(main)
