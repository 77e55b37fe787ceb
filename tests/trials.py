"""A file of simulated recordings that looks like the EEG the package does not ship, for tests and nothing else."""

from pathlib import Path

import numpy as np

from pyro_arbuf.priors.eeg import CHANNELS, TEST, TRAINING, VALIDATION


def simulated(num_trials: int, num_samples: int = 256, seed: int = 0) -> np.ndarray:
    """Trials `(trials, 7, samples)`, microvolt: rhythms and drifts of three sources, mixed into the channels."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(len(CHANNELS), 3))
    sources, noise = np.zeros((num_trials, 3, num_samples)), generator.normal(size=(num_trials, 3, num_samples))
    for t in range(2, num_samples):
        sources[..., t] = 1.7 * sources[..., t - 1] - 0.8 * sources[..., t - 2] + noise[..., t]
    return (mixing @ sources + 0.3 * generator.normal(size=(num_trials, len(CHANNELS), num_samples))).astype(np.float32)


def write_trials(path: Path, per_subject: int = 3, num_samples: int = 256) -> Path:
    """Writes a file as `read_eeg` takes it, of all subjects, `per_subject` trials each."""
    names = TRAINING + VALIDATION + TEST
    y = simulated(per_subject * len(names), num_samples)
    np.savez(path, y=y, subject=np.repeat(np.array(names), per_subject))
    return path
