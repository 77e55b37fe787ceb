"""Folders with config.json and model.safetensors (the Hugging Face Hub layout): save and load, nothing pickled."""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Size, Tensor

from pyro_arbuf.baselines.architectures import described, make_model
from pyro_arbuf.files import write_atomically
from pyro_arbuf.hub import fetch
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.network import own_parts

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LARGEST_CONFIG = 2**23  # bytes
FLOATING = ("F64", "F32", "F16", "BF16")
HUB = "hf:"
OWN_PARTS = "own_parts"  # of the metadata of the weights: modules that the configuration does not describe
RENAMED = {"embedder.slot": "embedder.positions.slot"}  # weights of files written before they had their present name


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


def save(net: ArBufferModel, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Writes a network's config.json and model.safetensors, each replaced atomically; `load` reads them.

    Args:
        net: The network; one amortised from a program is saved without the program, and one of parts of your own
            without their code, so that `load` refuses it.
        folder: Created if missing; a network in it is replaced.
        weights: Weights to write, of the names and shapes of the network's; `None` = its own.

    Raises:
        ValueError: If `net` is no network, its weights are not finite in float32 or do not fit it, or the folder cannot
            be written.

    Example:
        >>> save(ArBufferModel(ModelConfig()), getfixture("tmp_path") / "mine")
        >>> load(getfixture("tmp_path") / "mine").config == ModelConfig()
        True
    """
    if not isinstance(net, ArBufferModel):
        raise ValueError(f"net must be an ArBufferModel; got {type(net).__name__}")
    path = _as_path(folder, "folder")
    check_is_folder(path)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    weights = net.state_dict() if weights is None else weights
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must be a dict of tensors, as net.state_dict(); got {type(weights).__name__}")
    wrong = _differing(shapes, {name: value.shape for name, value in weights.items()})
    if wrong:
        raise ValueError(
            f"weights must have the names and shapes of the network's; {len(wrong)} differ, e.g. {wrong[0]!r}"
        )
    for name, value in weights.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value.float()).all()):
            raise ValueError(
                f"weights must be finite in float32; {name!r} is not, and load would refuse it; take earlier weights, "
                "or train with a lower learning rate"
            )
    stored = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    own = ", ".join(f"{name or 'the network'}: {kind}" for name, kind in own_parts(net, described(net.config)).items())
    write_atomically(path / WEIGHTS, lambda file: save_file(stored, file, {OWN_PARTS: own} if own else None))
    write_atomically(path / CONFIG, lambda file: file.write_text(net.config.to_json() + "\n"))


def load(name: str | Path, trainable: bool = False) -> ArBufferModel:
    """Loads a network: a shipped one by name, one in a folder, or one of the Hugging Face Hub (online).

    Args:
        name: A name of `shipped_models()`; or a folder with config.json and model.safetensors, as a Path or as a string
            (one with a separator, like "./gp-1d", is always a folder); or "hf:owner/name" of a repository of the Hub.
        trainable: Whether the weights require gradients; they are frozen otherwise.

    Returns:
        The network on the CPU, float32, in eval mode.

    Raises:
        ValueError: If the name is unknown (lists those known) or names two networks, or the Hub does not give it, or
            its files are missing, unreadable, damaged or do not fit each other, or it was saved with parts of its
            owner's, which no configuration describes.
    """
    if not isinstance(trainable, bool):
        raise ValueError(f"trainable must be True or False; got {trainable!r}")
    folder = find_model(name)
    try:
        config = read_config(folder)
        _check_weights(folder / WEIGHTS, config)
        weights = _read_weights(folder / WEIGHTS)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error}); check its permissions") from error
    model = make_model(config)
    model.load_state_dict(weights)
    return model.float().eval().requires_grad_(trainable)


def check_is_folder(path: Path) -> None:
    """Raises ValueError if there is a file where a folder is wanted."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder must be a folder, or not exist yet; got the file {str(path)!r}")


def find_model(name: str | Path) -> Path:
    """The folder of a network: shipped, the user's, or fetched from the Hub.

    Args:
        name: As for `load`.

    Raises:
        ValueError: If there is none, or two.
    """
    folder = _as_path(name, "name")
    if isinstance(name, str) and name.startswith(HUB):
        return fetch(name.removeprefix(HUB), (CONFIG, WEIGHTS))
    separators = {os.sep, os.altsep or os.sep}
    bare = isinstance(name, str) and not separators & set(name)
    try:
        shipped = models_folder() / folder if bare and (models_folder() / folder / CONFIG).is_file() else None
        if shipped is None and folder.is_dir():
            return folder
        own = any((folder / file).exists() for file in (CONFIG, WEIGHTS))
        if shipped is not None and own and not folder.samefile(shipped):
            raise ValueError(
                f"{name!r} is a shipped network and a folder here; write './{name}' for the folder, or '{shipped}' for "
                "the shipped one"
            )
    except OSError as error:
        raise ValueError(
            f"name must be a shipped network or a folder that can be read; got {name!r} ({error})"
        ) from error
    if shipped is not None:
        return shipped
    raise ValueError(
        f"name must be a shipped network, an existing folder, or 'hf:owner/name' of the Hugging Face Hub; got "
        f"{str(name)!r}; known networks: {', '.join(shipped_models()) or 'none'}"
    )


def read_config(folder: Path) -> ModelConfig:
    """The configuration of the network in a folder.

    Raises:
        ValueError: If there is none, or it is damaged.
        OSError: If it cannot be read.
    """
    path = folder / CONFIG
    _check_there(path)
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{path} is no model configuration: it has more than {LARGEST_CONFIG} bytes")
    try:
        return ModelConfig.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no model configuration: {error}") from error


def _as_path(name: object, argument: str) -> Path:
    """The path that a user gave, or ValueError."""
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{argument} must be a string or a Path, not empty; got {name!r}")
    return Path(text)


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a model's folder holds {CONFIG} and {WEIGHTS}")


def _differing(expected: dict[str, Size], got: dict[str, Size]) -> list[str]:
    """Names that only one of them has, or whose shapes differ."""
    return sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))


def _check_weights(path: Path, config: ModelConfig) -> None:
    """Raises ValueError if the tensors that a file announces are not those of the configuration; allocates none."""
    _check_there(path)
    try:
        with safe_open(path, "pt") as file:
            header = {str(RENAMED.get(n, n)): file.get_slice(n) for n in file.keys()}  # noqa: SIM118
            shapes = {name: Size(part.get_shape()) for name, part in header.items()}
            types = {name: part.get_dtype() for name, part in header.items()}
            own = (file.metadata() or {}).get(OWN_PARTS)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt, truncated or no safetensors file: {error}") from error
    for name, dtype in types.items():
        if dtype not in FLOATING:
            raise ValueError(f"{path}: tensor {name!r} must hold floating numbers, of {FLOATING}; got {dtype}")
    if own:
        raise ValueError(
            f"load builds networks of this package's parts, and {path.parent} holds one of its owner's ({own}); build "
            f"it as before, and call net.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
        )
    # Before a layer is built: a damaged number of layers would take all the memory, on the meta device too.
    num_layers = len({name.split(".")[2] for name in shapes if name.startswith("backbone.blocks.")})
    if num_layers != config.num_layers:
        raise ValueError(
            f"{path} does not fit {CONFIG} beside it: it holds {num_layers} layers, num_layers is {config.num_layers}; "
            "take both files from one source"
        )
    expected = {name: value.shape for name, value in described(config).state_dict().items()}
    wrong = _differing(expected, shapes)
    if wrong:
        raise ValueError(
            f"{path} does not fit {CONFIG} beside it: {len(wrong)} tensors are missing, foreign or of another shape, "
            f"e.g. {wrong[0]!r}; take both files from one source"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = {RENAMED.get(name, name): value for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt, truncated or no safetensors file: {error}") from error
    for name, value in weights.items():
        if not bool(torch.isfinite(value.float()).all()):
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values in float32; the file is damaged")
    return weights
