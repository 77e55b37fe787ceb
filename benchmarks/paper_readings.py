"""The tasks that our own shipped networks read in several ways: sets of trials, and tables. See paper.py."""

from pathlib import Path

import numpy as np
import torch
from multisensory_evidence import RHO, log_evidence
from paper_systems import System, log_prob
from quality import Functions
from sbi import SEED, draw_sets
from tabular import PAPER, SOURCES, Cell, draw_split, read_table
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf.random_state import seeded

TRIALS, TABLES = "multisensory prediction", "tabular forecasting"
NUM_DRAWS = 300  # of importance sampling, for an evidence
SERIES = tuple(name for name, source in SOURCES.items() if source.series)
INDEPENDENT = "independent"
_BUFFERS = {"buffer K=4": System("buffer", 4), "buffer K=1": System("buffer", 1)}
_ALONE = {INDEPENDENT: System("buffer", independent=True)}
READINGS: dict[str, dict[str, System | None]] = {  # `None` = the exact prediction
    TRIALS: {"oracle": None, "buffer K=16": System("buffer", 16), **_BUFFERS, **_ALONE},
    TABLES: {"buffer K=32": System("buffer", 32), **_BUFFERS, **_ALONE},
}
NETWORKS = {TRIALS: tuple(RHO), TABLES: ("tabular",)}
NUM_TARGETS = {TRIALS: 16, TABLES: 32}
NUM_CONTEXT = {TRIALS: (16, 64), TABLES: (16, 256)}  # beyond 64 trials the exact prediction takes minutes
_PUBLISHED_CELLS = [PAPER[name, "forecasting"][n] for name in SERIES for n in NUM_CONTEXT[TABLES]]
_ALONE_PUBLISHED, _EXACT, _BUFFER = (float(np.mean(values)) for values in zip(*_PUBLISHED_CELLS, strict=True))
# Hassan et al. (2026): mean over N to 256; Table 3, mean over the same four series and the same N.
PUBLISHED_READINGS = {
    (TRIALS, 16): {"buffer K=16": -2.76, "buffer K=1": -2.76, INDEPENDENT: -2.77},
    (TABLES, 32): {"buffer K=32": _BUFFER, "buffer K=1": _EXACT, INDEPENDENT: _ALONE_PUBLISHED},
}


def draw_trials(program: str, num_context: int, size: int) -> Functions:
    """Simulated data sets of a shipped network's program, the same ones every time, and others for each program."""
    seed = SEED + list(RHO).index(program)
    drawn = draw_sets(pyro_arbuf.load(program), size, num_context + NUM_TARGETS[TRIALS], seed)
    x, y = drawn.x, drawn.y
    return x[:, :num_context], y[:, :num_context], x[:, num_context:], y[:, num_context:]


def draw_rows(data: Path, name: str, num_context: int, size: int) -> Functions:
    """Splits of a table, outcomes standardised by the observed rows."""
    table = read_table(data, name)
    if table is None:
        raise SystemExit(f"{data / name / name}.npz is missing: {TABLES} needs it; --tables says where the tables are")
    splits = [draw_split(table, Cell(name, "forecasting", num_context), index) for index in range(size)]
    parts = (
        torch.from_numpy(np.stack(part)) for split in zip(*splits, strict=True) for part in zip(*split, strict=True)
    )
    x, y, x_new, y_new = parts
    return x, y.unsqueeze(-1), x_new, y_new.unsqueeze(-1)


def exact_prediction(program: str, trials: Functions) -> Tensor:
    """Exact joint log density `(B,)` of trials given others, nats per target: a difference of two log evidences."""
    x_context, y_context, x, y = (part.float() for part in trials)
    found = []
    for i in tqdm(range(len(x)), desc=f"exact, {program}", leave=False):
        observed, outcomes = x_context[i], y_context[i, :, 0]
        with seeded(SEED + i):
            before = log_evidence(observed, outcomes, RHO[program], NUM_DRAWS)
            after = log_evidence(
                torch.cat([observed, x[i]]), torch.cat([outcomes, y[i, :, 0]]), RHO[program], NUM_DRAWS
            )
        found.append((after.log_evidence - before.log_evidence) / x.shape[1])
    return torch.tensor(found, dtype=torch.float64)


def score_readings(task: str, name: str, num_context: int, size: int, orders: Tensor, data: Path) -> list[float]:
    """Scores `(size,)` of a reading: of data sets of both programs, or of splits, means over the four series."""
    system, found = READINGS[task][name], []
    if task == TRIALS:
        for program in RHO:
            trials = draw_trials(program, num_context, size // 2)
            if system is None:
                found.append(exact_prediction(program, trials))
            else:
                found.append(log_prob(pyro_arbuf.load(program), system, trials, orders))
        return torch.cat(found).tolist()
    assert system is not None
    net = pyro_arbuf.load(NETWORKS[TABLES][0])
    for series in tqdm(SERIES, desc=name, leave=False):
        found.append(log_prob(net, system, draw_rows(data, series, num_context, size), orders))
    return torch.stack(found).mean(0).tolist()
