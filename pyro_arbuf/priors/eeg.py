"""Evoked EEG of the UCI database: seven frontal channels, one second a trial, subjects split into three.

The package does not ship the recordings: the user names their file. Knows nothing of networks.

Source:
    Zhang, Begleiter, Porjesz, Wang and Litke (1995), "Event related potentials during object recognition tasks", Brain
    Research Bulletin 38(6); UCI EEG database.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHANNELS = ("FZ", "F1", "F2", "F3", "F4", "F5", "F6")
MIRROR = (0, 2, 1, 4, 3, 6, 5)  # left and right exchanged: odd numbers are on the left
RATE = 256.0  # samples a second
AMPLITUDE = 6.0  # microvolt, sd of a channel within a trial, about the median of the training subjects

# The first of each group, alcoholic (co2a) and control (co2c), by number, but for the one that validates.
TRAINING = ("co2a0000364", "co2a0000365", "co2a0000368", "co2a0000369", "co2c0000337", "co2c0000339", "co2c0000340")
VALIDATION = ("co2c0000338",)
TEST = ("co2a0000370", "co2a0000371", "co2c0000341", "co2c0000342")

FLAT = 0.5  # microvolt, the step of the digitiser: a channel that varies less was not recorded


def read_eeg(path: Path | str) -> dict[str, Tensor]:
    """Reads the trials of every subject.

    A trial in which a channel has a standard deviation below 0.5 microvolt is left out: it was not recorded.

    Args:
        path: A file of NumPy (.npz) with `y` (trials, 7, samples), microvolt, channels in the order of `CHANNELS`, 256
            samples a second, and `subject` (trials,), their names.

    Returns:
        `(trials, samples, 7)` float32 by the subject's name, in the order of the file.

    Raises:
        ValueError: If there is no such file, or its arrays are not as they must be.
    """
    if not Path(path).is_file():
        raise ValueError(f"the file of recordings must exist; there is none at {path}; docs/recordings.md says more")
    with np.load(path) as file:
        missing = sorted({"y", "subject"} - set(file.files))
        if missing:
            raise ValueError(f"the file of recordings must hold y and subject; {path} lacks {missing}")
        y, subject = file["y"], file["subject"].astype(str)
    if y.ndim != 3 or y.shape[1] != len(CHANNELS) or subject.shape != y.shape[:1]:
        raise ValueError(
            f"y must have shape (trials, {len(CHANNELS)}, samples) and subject (trials,); got {y.shape} and "
            f"{subject.shape} in {path}"
        )
    if not np.isfinite(y).all():
        raise ValueError(f"y must be finite; got NaN or infinite values in {path}; leave those trials out")
    recorded = y.std(-1).min(-1) >= FLAT
    trials = torch.from_numpy(y.astype(np.float32)).mT.contiguous()
    return {str(name): trials[torch.from_numpy((subject == name) & recorded)] for name in dict.fromkeys(subject)}


def eeg(path: Path | str) -> tuple[Tensor, Tensor]:
    """Trials to train on, of seven subjects, and to validate on, of another one: `(trials, samples, 7)` each.

    Args:
        path: As `read_eeg` takes it.

    Raises:
        ValueError: If subjects are missing, or as `read_eeg`.
    """
    subjects = read_eeg(path)
    missing = [name for name in TRAINING + VALIDATION if name not in subjects]
    if missing:
        raise ValueError(f"the file of recordings must hold {', '.join(TRAINING + VALIDATION)}; {path} lacks {missing}")
    training, validation = (torch.cat([subjects[name] for name in names]) for names in (TRAINING, VALIDATION))
    return training, validation
