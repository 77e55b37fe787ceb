"""What `amortize` says: before training what will be trained, afterwards what was learned, with one verdict."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch

from pyro_arbuf.inference.description import describe_outcome, short_ranges
from pyro_arbuf.inference.trained_range import pairs_of
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.calibration import Calibration, calibrate
from pyro_arbuf.programs.consistency import self_consistency, subset_gap
from pyro_arbuf.programs.known_truth import trained_trials
from pyro_arbuf.programs.runs import FAILURES
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sites import in_short
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

REPORT_DATASETS = 200
HARDLY_NARROWER, HARDLY_ANY_GAIN = 0.9, 0.05  # of the prior's standard deviation; nats
SMALLEST_P = 0.01
INDEPENDENT = (
    "  note: With chained=False the dimensions of the outcome are predicted as independent of each other given the "
    "context: likelihoods, predictions and evidence are wrong where they are correlated; leave it out."
)
TRIALS = {
    "independent": "independent given the latents: the likelihood is a product over trials",
    "exchangeable": "depend on each other given the latents, in any order: the likelihood is their joint density",
    "series": "a series, each depends on those before it: the likelihood is their joint density, in their order",
    "vector": "none, a data set is one observation",
}
NO_LATENTS = {False: "predicted together, in any order", True: "a series, each is predicted from those before it"}
RANDOM_WEIGHTS = "random weights"
STILL_RISING = 0.01  # nats per target over the last third of a run


def describe_training(
    simulator: Simulator,
    config: ModelConfig,
    minutes: float | None,
    steps: int | None,
    num_simulations: int | None,
    begins_at: str = RANDOM_WEIGHTS,
) -> str:
    """What will be trained, as a few lines of text.

    Args:
        simulator: The program.
        config: Of the network.
        minutes: Limit of the training; `None` = none.
        steps: Likewise.
        num_simulations: Size of a fixed set of simulations; `None` = new ones in every step.
        begins_at: What `starting_weights` returns.
    """
    outcome = f"{_describe_outcome(config)} per {'data set (one observation)' if simulator.single else 'trial'}"
    columns = f"{config.dim_x} column{'s' if config.dim_x > 1 else ''}"
    constant = config.x_range is not None and all(low == high for low, high in pairs_of(config.x_range, 1))
    simulated = "new data sets in every step" if num_simulations is None else f"{num_simulations} fixed data sets"
    simulated += " that are given" if simulator.stored is not None else ""
    lines = {
        "latents": "; ".join(_describe_latent(latent) for latent in config.latents) or "none: data alone are predicted",
        "integrated out": ", ".join(in_short(simulator.integrated_out)) or "no site",
        "outcome": outcome,
        "trials": TRIALS[simulator.trials] if config.latents else NO_LATENTS[config.sequential],
        "inputs": f"{columns}, constant" if constant else f"{columns} in {short_ranges(config.x_range)}",
        "simulated": simulator.mode_reason,
        "trained range": f"{config.num_context[0]} to {config.num_context[1]} trials, outcomes in "
        f"{short_ranges(config.y_range)}",
        "training": f"{training_limits(minutes, steps)}, on {simulated}, from {begins_at}",
    }
    notes = [f"  note: {note}" for note in simulator.notes]
    if config.dim_y is not None and config.dim_y > 1 and not config.chained:
        notes.append(INDEPENDENT)
    return "\n".join([f"amortize {config.prior}:", *(f"  {name}: {text}" for name, text in lines.items()), *notes])


def _describe_outcome(config: ModelConfig) -> str:
    """Its sites, and what each is."""
    if isinstance(config.outcome, str):
        words = describe_outcome(config.dim_y, config.outcomes)
        return f"{config.outcome}, {'one number' if words == 'a number' else words}"
    kinds: dict[str, list[str]] = {}
    for name, kind in zip(config.outcome, config.outcomes or ("real",) * len(config.outcome), strict=True):
        kinds.setdefault(name, []).append(kind)
    words = {name: describe_outcome(len(of) if len(of) > 1 else None, of) for name, of in kinds.items()}
    return ", then ".join(f"{name} ({what})" for name, what in words.items())


def _describe_latent(latent: Latent) -> str:
    size = math.prod(latent.shape)
    if latent.simplex:
        support = ", a probability vector"
    elif latent.lower is not None and latent.upper is not None:
        support = f" between {latent.lower:g} and {latent.upper:g}"
    elif latent.lower is not None:
        support = f" above {latent.lower:g}"
    else:
        support = "" if latent.upper is None else f" below {latent.upper:g}"
    return f"{latent.name}, {'one number' if not latent.shape else f'{size} numbers {latent.shape}'}{support}"


def training_limits(minutes: float | None, steps: int | None) -> str:
    """When a run ends, in words."""
    limits = [f"{limit:g} {unit}" for limit, unit in ((minutes, "minutes"), (steps, "steps")) if limit is not None]
    return f"{', or '.join(limits)}{', whichever is reached first' * (len(limits) > 1)}"


def starting_weights(start: str | Path | None, resumed: str | Path | None = None) -> str:
    """Where a run begins, in words: at a network, at random weights, or where it stands in the folder of a run."""
    if resumed is not None:
        return f"where the run in {resumed} stands"
    return RANDOM_WEIGHTS if start is None else f"the weights of the network '{start}' where they fit"


def what_was_reached(prior: str, steps: int, validation: float, rise: float | None) -> str:
    """Steps of a run, its validation density, and what `rise_at_the_end` returns, in one line."""
    last_third = "" if rise is None else f", {rise:+.3f} in the last third of the run"
    return f"{prior}: {steps} steps, validation density {validation:.3f} nats per target{last_third}"


def to_go_on(folder: str | Path | None) -> str:
    """The arguments of `amortize` by which a run goes on."""
    return f"folder={str(folder)!r}, resume=True" if folder is not None else "folder=..., and then resume=True"


def rise_at_the_end(history: Sequence[Mapping[str, float]]) -> float | None:
    """How far the best validation density of the last third of a run lies above the best before, nats per target.

    Args:
        history: What `fit` returns as history; of fewer than three validations nothing can be said, and the result is
            `None`.
    """
    scores = [entry["validation"] for entry in history]
    before = len(scores) - math.ceil(len(scores) / 3)
    return None if len(scores) < 3 else max(scores[before:]) - max(scores[:before])


def verdict(checked: Calibration, rise: float | None, train_longer: str) -> str:
    """One line in plain words: whether the posterior learned from the data, is calibrated, and was still improving.

    Args:
        checked: What `calibrate` returns.
        rise: What `rise_at_the_end` returns.
        train_longer: How.
    """
    gain, error = _mean_and_error(checked.gain)
    pairs = zip(checked.names, checked.contraction.tolist(), checked.marginal_gain.tolist(), strict=True)
    wide = {n: c for n, c, g in pairs if not c <= HARDLY_NARROWER and g < HARDLY_ANY_GAIN}  # NaN of few data sets
    why = "the data say little about it, or the network has not learned it"
    found = []
    if not gain > max(HARDLY_ANY_GAIN, 2 * error):
        found.append(
            "The posterior is no better than the prior: the true latents are not more likely under it; the data say "
            "little about them, or the network has not learned it."
        )
    elif wide:
        shares = {name: "?" if math.isnan(share) else f"{share:.0%}" for name, share in wide.items()}
        names = ", ".join(f"{name!r} ({share} of the prior's sd)" for name, share in shares.items())
        found.append(f"The posterior of {names} is hardly narrower than the prior: {why}.")
    if checked.p_value < SMALLEST_P:
        found.append(f"The posterior is not calibrated: its ranks are not uniform (p = {checked.p_value:.2g}).")
    if rise is not None and rise > STILL_RISING:
        found.append("The validation density was still improving.")
    if not found:
        return "The posterior is calibrated and learned from the data."
    return " ".join([*found, f"To train longer: {train_longer}."])


def _mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def training_report(
    net: ArBufferModel,
    validation: float,
    steps: int,
    history: Sequence[Mapping[str, float]] = (),
    folder: str | Path | None = None,
) -> str:
    """What was learned, as a few lines of text; the last is the verdict.

    Args:
        net: The network, with its simulator.
        validation: Its validation density, nats per target.
        steps: Of its training.
        history: What `fit` returns as history.
        folder: Where the state of the run is kept; `None` = nowhere.
    """
    simulator = find_simulator(net) if net.config.latents else cast(Simulator, net.simulator)
    rise, more = rise_at_the_end(history), f"amortize(..., {to_go_on(folder)}) with more minutes or steps"
    lines = [what_was_reached(net.config.prior, steps, validation, rise)]
    if simulator.failure_share > 0:
        lines.append(f"the program failed in {simulator.failure_share:.3%} of its data sets, which were drawn anew")
    last = "The posterior could not be checked." if net.config.latents else _verdict_without_latents(rise, more)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outside the trained range.*")
        for name, measure in _measures(net, simulator, rise, more).items():
            try:
                text, found = measure()
                lines.append(f"{name}{text}")
                last = found or last
            except FAILURES as error:  # the trained network must not be lost with its report
                lines.append(f"{name} not available: {error}")
    return "\n".join([*lines, f"verdict: {last}"])


def _measures(
    net: ArBufferModel, simulator: Simulator, rise: float | None, train_longer: str
) -> dict[str, Callable[[], tuple[str, str]]]:
    """What can be measured on a network, by name: each returns a text, and a verdict or nothing."""
    found: dict[str, Callable[[], tuple[str, str]]] = {}
    if net.config.latents:
        number = simulator.most_unseen(REPORT_DATASETS)
        found["calibration"] = partial(_report_calibration, net, number, rise, train_longer)
        found["self-consistency"] = partial(_report_consistency, net, simulator)
    if not net.config.sequential and net.config.num_context[1] >= 4:
        found["subset gap"] = partial(_report_gap, net, simulator)
    return found


def _report_calibration(
    net: ArBufferModel, num_datasets: int, rise: float | None, train_longer: str
) -> tuple[str, str]:
    """Ranks, coverage and what was learned, as text, and the verdict."""
    checked = calibrate(net, num_datasets)
    worst = (checked.coverage - torch.tensor(checked.levels)[:, None]).abs().max().item()
    gain, error = _mean_and_error(checked.gain)
    pairs = zip(checked.names, checked.contraction.tolist(), strict=True)
    num_trials = trained_trials(net.config)
    text = (
        f", {num_datasets} data sets of {num_trials}: p = {checked.p_value:.3f} (Bonferroni), coverage off by "
        f"at most {worst:.3f}\n"
        f"posterior sd / prior sd: {', '.join(f'{name} {part:.2f}' for name, part in pairs)}\n"
        f"log density of the true latents above the prior's: {gain:.3f} +- {error:.3f} nats"
    )
    return text, verdict(checked, rise, train_longer)


def _verdict_without_latents(rise: float | None, train_longer: str) -> str:
    """One line on a network that predicts data alone, whose joint density is all that was checked."""
    found = "Without latents only the joint density of data was trained."
    if rise is not None and rise > STILL_RISING:
        found += f" The validation density was still improving. To train longer: {train_longer}."
    return found


def _report_consistency(net: ArBufferModel, simulator: Simulator) -> tuple[str, str]:
    """Self-consistency of one simulated data set, as text, and no verdict."""
    found = self_consistency(net, *_one_data_set(net, simulator))
    text = (
        f" on one of them: log p(y) = {found.mean:.2f}, sd {found.standard_deviation:.2f} nats over posterior "
        "draws (0 if exact)"
    )
    return text, ""


def _report_gap(net: ArBufferModel, simulator: Simulator) -> tuple[str, str]:
    """Subset gap of one simulated data set, as text, and no verdict."""
    gap = subset_gap(net, *_one_data_set(net, simulator))
    return f": {gap.dropped:.4f} dropped, {gap.reordered:.4f} reordered, nats per target", ""


def _one_data_set(net: ArBufferModel, simulator: Simulator) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs `(n, D_x)` and outcomes of a data set of the largest trained number of trials."""
    with seeded(0):
        drawn = simulator.unseen(1, trained_trials(net.config))(slice(0, 1))
    return drawn.x[0], net.config.squeeze_outcome(drawn.y[0])
