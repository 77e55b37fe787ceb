"""`pyro-arbuf check`: whether a saved network loads, what it knows, and whether its predictions are calibrated."""

import warnings
from pathlib import Path

import torch

from pyro_arbuf.checkpoint import load
from pyro_arbuf.cli.evaluate import source_for
from pyro_arbuf.cli.options import NetworkName, PriorName, check_fits
from pyro_arbuf.display import align
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.description import describe_network
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.programs.calibration import Calibration, calibrate
from pyro_arbuf.programs.reports import SMALLEST_P, verdict
from pyro_arbuf.programs.simulator import Simulator

LEVELS = (0.5, 0.9)
TOLERATED = 0.05  # of a coverage: more, where it is resolved, fails the check


def check(
    name: NetworkName,
    prior: PriorName | None = None,
    inputs: str | None = None,
    data: Path | None = None,
    datasets: int = 200,
    seed: int = 0,
) -> None:
    """Checks a saved network: that it loads, what it was trained on, and whether it is calibrated on its own prior.

    Of a network of functions or tables, the shares of new outcomes within its 50 % and 90 % intervals are measured; of
    a network of a program, the ranks of the true latents among posterior draws, and what was learned from the data.
    The check fails, with exit code 1, where a share is off by more than 0.05 or ranks are not uniform.

    pyro-arbuf check gp-1d-noisy

    A network of your own:  pyro-arbuf check my_program --prior my_module:program --inputs my_module:draw_x

    Args:
        name: Shipped model, folder, or hf:owner/name.
        prior: What new data sets are drawn from, a name or module:function; the network's own prior, where it is a
            shipped one, if not given.
        inputs: Of a program of your own: module:function that draws its inputs, called with their number.
        data: Of a prior of recordings: their file.
        datasets: Data sets of a program whose latents are ranked.
        seed: Of draws.
    """
    net = load(name)
    print(f"{name} loads\n" + "\n".join(f"{what}: {text}" for what, text in describe_network(net).items()))
    source = source_for(net.config, prior, inputs, data)
    if source is None:
        print(
            f"calibration: not checked, as the prior {net.config.prior!r} is no shipped one; name it by --prior "
            "module:function"
        )
        return
    check_fits(net.config, source.config, name)
    if net.config.latents:
        simulator = getattr(source, "simulations", None)
        checked = calibrate(net, datasets, program=simulator if isinstance(simulator, Simulator) else None, seed=seed)
        failed = _report_latents(checked)
    else:
        failed = _report_predictions(net.in_units(), source.validation(), seed)
    if failed:
        raise ValueError(f"the check of {name} failed: {failed}")


def _report_latents(checked: Calibration) -> str:
    """Prints what was measured of every latent; returns what failed."""
    print(f"\n{checked!r}\n")
    print(verdict(checked, None, "pyro-arbuf train --resume with more --minutes"))
    uniform = checked.p_value >= SMALLEST_P
    return "" if uniform else f"ranks are not uniform, p = {checked.p_value:.2g}; train it longer"


@torch.no_grad()
def _report_predictions(net: ArBufferModel, batches: list[Batch], seed: int) -> str:
    """Prints density and coverage at every number of observations; returns what failed."""
    table: dict[str, list[str]] = {}
    failed = ""
    for batch in batches:
        row, worst = _row(net, batch, seed)
        for heading, cell in row.items():
            table.setdefault(heading, []).append(cell)
        if worst and not failed:
            failed = f"with {row['observed']} observations, {worst}; train it longer"
    print(f"\n{align(table)}\n")
    print("joint, independent: log density in nats per target; the shares should be those of the intervals")
    return failed


def _row(net: ArBufferModel, batch: Batch, seed: int) -> tuple[dict[str, str], str]:
    """The cells of one batch of new data sets, and what is wrong with its coverage."""
    y_context, y = (net.config.squeeze_outcome(part) for part in (batch.y_context, batch.y_target))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outside the trained range.*")  # data are drawn from the prior
        joint = ArBufferJoint(net.condition(batch.x_context, y_context), batch.x_target)
        pit = joint.pit(y, seed=seed)
        densities = [d.log_prob(y).mean().item() / y.shape[1] for d in (joint, joint.marginals())]
    row = {
        "observed": str(batch.x_context.shape[1]),
        "joint": f"{densities[0]:.3f}",
        "independent": f"{densities[1]:.3f}",
    }
    worst = ""
    for level in LEVELS:
        share = ((pit - 0.5).abs() < level / 2).double().mean().item()
        row[f"in {level:.0%}"] = f"{share:.3f}"
        error = (level * (1 - level) / pit.numel()) ** 0.5
        if abs(share - level) > TOLERATED + 2 * error:
            worst = f"{share:.0%} of the outcomes lie in the {level:.0%} interval"
    return row, worst
