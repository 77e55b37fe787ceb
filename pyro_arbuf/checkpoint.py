"""Folders with config.json and model.safetensors (the Hugging Face Hub layout): save and load, nothing pickled."""

import os
from importlib import resources
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_arbuf.config import ModelConfig
from pyro_arbuf.model import ArBufferModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def models_folder() -> Path:
    """The folder of shipped models: inside the installed package, or `models/` of a checkout."""
    installed = Path(str(resources.files("pyro_arbuf"))) / "models"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "models"


def shipped_models() -> list[str]:
    """Names of the shipped models that `load` knows.

    Returns:
        Sorted names.
    """
    return sorted(path.parent.name for path in models_folder().glob(f"*/{CONFIG}"))


def save(model: ArBufferModel, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Writes config.json and model.safetensors, each replaced atomically.

    Args:
        model: The model.
        folder: Created if missing.
        weights: State to write; `None` = the model's own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict() if weights is None else weights
    temporary = folder / f"{WEIGHTS}.tmp"
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}, temporary)
    temporary.chmod(0o644)  # safetensors writes 0600, which a wheel would carry over
    os.replace(temporary, folder / WEIGHTS)
    temporary = folder / f"{CONFIG}.tmp"
    temporary.write_text(model.config.to_json() + "\n")
    os.replace(temporary, folder / CONFIG)


def load(name: str | Path, trainable: bool = False) -> ArBufferModel:
    """Loads a model: a shipped one by name, a folder, or a Hugging Face Hub id. Offline for the first two.

    Args:
        name: A name of `shipped_models()`; or a folder with config.json and model.safetensors; or "owner/repository".
        trainable: Whether the weights require gradients; they are frozen otherwise.

    Returns:
        The model on the CPU, float32, in eval mode.

    Raises:
        ValueError: If the name is unknown (lists those known), or the folder holds no model of this package, or its
            files are corrupt, truncated or do not fit each other.
    """
    folder = find_model(name)
    config = _read_config(folder / CONFIG)
    model = ArBufferModel(config)
    weights = _read_weights(folder / WEIGHTS)
    expected = model.state_dict()
    wrong = sorted(
        set(weights) ^ set(expected)
        | {n for n in set(weights) & set(expected) if weights[n].shape != expected[n].shape}
    )
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG} beside it: {len(wrong)} tensors are missing, foreign or of "
            f"another shape, e.g. {wrong[0]!r}; take both files from one source"
        )
    model.load_state_dict(weights)
    return model.float().eval().requires_grad_(trainable)


def find_model(name: str | Path) -> Path:
    """The folder of a model: shipped, local, or fetched from the Hub.

    Args:
        name: As for `load`.

    Raises:
        ValueError: If there is none.
    """
    if (models_folder() / str(name) / CONFIG).is_file():
        return models_folder() / str(name)
    if Path(name).is_dir():
        return Path(name)
    known = f"known models: {', '.join(shipped_models()) or 'none'}"
    if isinstance(name, Path) or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"name must be a shipped model, an existing folder or a Hub id; got {str(name)!r}; {known}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no folder {str(name)!r}, and the Hub gave none ({type(error).__name__}: check the id and the network); "
            f"{known}"
        ) from error


def _read_config(path: Path) -> ModelConfig:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a model's folder holds {CONFIG} and {WEIGHTS}")
    try:
        return ModelConfig.from_json(path.read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no model configuration: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a model's folder holds {CONFIG} and {WEIGHTS}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt, truncated or no safetensors file: {error}") from error
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values; the file is damaged")
    return weights
