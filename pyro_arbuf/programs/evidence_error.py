"""How far off a network's evidence is, measured on simulated data sets whose evidence is known."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple, SupportsFloat, cast

import torch
from torch import Tensor

from pyro_arbuf.display import Table, cells, labels, shown_as_table
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.evidence import log_evidence
from pyro_arbuf.programs.known_truth import chosen_trials, simulating
from pyro_arbuf.programs.program_batches import draw_designs
from pyro_arbuf.programs.refine import MAX_K_HAT, MIN_DRAWS, importance_sample
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.progress import progress_bar

Exact = Callable[[Tensor, Tensor], float]  # the log evidence of inputs and outcomes, nats
FEWEST = 5  # data sets with a known evidence: fewer say little of an error
ACCEPTED = 0.8  # of the data sets: those that importance sampling cannot do are the network's worst


def _summary(found: "EvidenceError") -> tuple[str, Table]:
    table = {"data set": labels(found.errors.shape), "error": cells(found.errors)}
    table |= {} if found.k_hats is None else {"k-hat": cells(found.k_hats)}
    return f"EvidenceError(rmse={found.rmse:.3g} +- {found.standard_error:.2g} nats)", table


@shown_as_table(_summary)
class EvidenceError(NamedTuple):
    """The error of a network's log evidence on data sets of its own program.

    Attributes:
        rmse: Root mean square error, nats: of the data sets of k-hat below 0.7, or of all where that is larger.
        standard_error: Of `rmse`, over the data sets, nats.
        errors: `(D,)` nats, the network's log evidence minus the known one; no more than a guess where k-hat is above.
        k_hats: `(D,)`, of the importance sampling that gave the known evidence; `None` = exact values were given.
    """

    rmse: float
    standard_error: float
    errors: Tensor
    k_hats: Tensor | None


@torch.no_grad()
def measure_evidence_error(
    net: ArBufferModel,
    num_datasets: int = 20,
    num_trials: int | None = None,
    program: Program | None = None,
    exact: Exact | None = None,
    num_orders: int = 64,
    num_draws: int = 10_000,
    seed: int = 0,
) -> EvidenceError:
    """Measures how far off `log_evidence` is, and stores it in the network, where `compare_evidence` needs it.

    Data sets are drawn from the program, and the network's evidence of each is compared with a known one: an exact
    value of the user's, or the importance sampling of `refine` where the program has a density. The network is never
    its own judge: `self_consistency` misses an error that posterior and likelihood share. Data sets whose k-hat is
    above 0.7 have no known evidence. Often they are those where the network errs most, so their apparent error counts
    where it raises the result. The error is stored as `net.config.evidence_rmse`, and stays with the network where it
    is saved.

    Args:
        net: A network with latents, or without where exact values are given.
        num_datasets: Data sets D, at least 5.
        num_trials: Trials of each; `None` = the largest trained number, where errors are largest.
        program: The program; `None` = the one the network was trained on.
        exact: The exact log evidence, nats, of inputs `(n, D_x)` and outcomes `(n,)` or `(n, D_y)`; `None` = importance
            sampling by the program's density.
        num_orders: Random orders R of the network's evidence, at least 2; as in the comparisons to come. Not used for
            a series, which has one order.
        num_draws: Draws of importance sampling, at least 100.
        seed: Of data sets, orders and draws.

    Returns:
        Root mean square error with its standard error, and the error of every data set.

    Raises:
        ValueError: If the network's program is not known or has no density, an exact value is no finite number, k-hat
            is above 0.7 in more than a fifth of the data sets, or an argument breaks its rule. Nothing is stored then.
    """
    if exact is not None and not callable(exact):
        raise ValueError(f"exact must be a function of (x, y) that returns a number; got {type(exact).__name__}")
    num_trials = chosen_trials(net.config, num_trials)
    check_count("num_datasets", num_datasets, FEWEST)
    check_count("num_orders", num_orders, 2)
    check_count("num_draws", num_draws, MIN_DRAWS)
    simulator = find_simulator(net, program, needs_latents=exact is None)
    plain = net.in_units()  # the program's units
    device, errors, k_hats = next(net.parameters()).device, [], []
    with simulating(seed):
        warnings.filterwarnings("ignore", message=".*rests on few of its.*orders.*")
        if simulator.stored is None:
            drawn = draw_designs(simulator, num_datasets, num_trials)
        else:  # those that the network was not trained on
            drawn = simulator.unseen(num_datasets, num_trials)(slice(0, num_datasets))
        for x, y in progress_bar(
            list(zip(drawn.x.to(device), drawn.y.to(device), strict=True)), desc="evidence", leave=False
        ):
            y = net.config.squeeze_outcome(y)
            known, k_hat = _known_evidence(simulator, plain, x, y, exact, num_draws)
            k_hats.append(k_hat)
            ours = log_evidence(plain, x, y, num_orders, seed=seed).value.item()
            if not math.isfinite(ours):
                raise ValueError(f"the network's log evidence must be a finite number; got {ours}; train it again")
            errors.append(ours - known)
    errors, k_hats = (torch.tensor(part, dtype=torch.float64) for part in (errors, k_hats))
    squares = errors.square()
    trusted = squares[k_hats < MAX_K_HAT]
    if len(trusted) < max(FEWEST, ACCEPTED * num_datasets):
        raise ValueError(
            f"the evidence must be known, by a k-hat below {MAX_K_HAT}, in {ACCEPTED:.0%} of the data sets and in "
            f"{FEWEST} of them; it was in {len(trusted)} of {num_datasets}. Train the network longer, raise num_draws, "
            "or give exact values by exact=..."
        )
    squares = max(trusted, squares, key=lambda part: part.mean().item())
    rmse = squares.mean().sqrt().item()
    error = squares.std().item() / math.sqrt(len(squares)) / (2 * rmse) if rmse else 0.0  # delta method
    net.replace_measured(evidence_rmse=rmse, evidence_trials=num_trials)
    return EvidenceError(rmse, error, errors, k_hats if exact is None else None)


def _known_evidence(
    simulator: Simulator, net: ArBufferModel, x: Tensor, y: Tensor, exact: Exact | None, num_draws: int
) -> tuple[float, float]:
    """The known log evidence of a data set, nats, and k-hat; 0 where the evidence is exact."""
    if exact is not None:
        return _number(exact(x, y)), 0.0
    try:
        sample = importance_sample(simulator, net.condition(x, y), num_draws)
    except ValueError as error:
        raise ValueError(f"the evidence must be known, by the program's density or by exact=...: {error}") from None
    return sample.log_evidence, sample.k_hat


def _number(value: object) -> float:
    try:
        number = float(cast(SupportsFloat, value))
    except (TypeError, ValueError, RuntimeError):  # of tensors of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"exact(x, y) must return one finite number, the log evidence in nats; got {value!r}")
    return number
