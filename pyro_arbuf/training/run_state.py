"""The state of a training run: one safetensors file with a checksum, and Ctrl-C held back until a step is done."""

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyro_arbuf.files import write_atomically
from pyro_arbuf.network.network import Network


def save_state(
    path: Path, model: Network, optimizers: list[torch.optim.Optimizer], best: dict[str, Tensor], record: dict
) -> None:
    """Writes the whole state of a run into one safetensors file, numbers as JSON in its header, atomically.

    Raises:
        ValueError: If the file cannot be written; the one before is unchanged.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for i, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{parameter}.{name}": torch.as_tensor(v) for name, v in values.items()}
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    text = json.dumps(record)
    metadata = {"record": text, "checksum": _checksum(tensors, text)}
    write_atomically(path, lambda file: save_file(tensors, file, metadata=metadata))


def read_record(path: Path) -> dict[str, Any]:
    """The numbers in the header of `save_state`'s file.

    Raises:
        ValueError: If the file is corrupt, truncated or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["record"])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no state of a run, or damaged ({error}); start without resume") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no state of a run, or damaged (its record is no object); start without resume")
    return record


def load_state(path: Path, model: Network, optimizers: list[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], dict]:
    """Restores model and optimizers from `save_state`'s file, whose record has been read.

    Returns:
        The best weights so far and the record.

    Raises:
        ValueError: If the file is not as `save_state` wrote it.
    """
    record = read_record(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no state of a run, or damaged ({error}); start without resume") from error
    if metadata.get("checksum") != _checksum(tensors, metadata["record"]):
        raise ValueError(
            f"{path} is damaged, or of an older version: its content does not have its checksum; start without resume"
        )
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    best = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, parameter, key = name.split(".")
            states[int(i)].setdefault(int(parameter), {})[key] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return best, record


def check_setup(path: Path, setup: Mapping[str, Any]) -> None:
    """Raises ValueError, naming what differs, if the run whose state is in `path` was begun with another setup."""
    found = read_record(path).get("setup", {})
    before, now = (dict(each) | {"config": {}} | _fields_of(each.get("config")) for each in (found, setup))
    names = [name for name in (now | before) if before.get(name) != now.get(name)]
    if names:
        changes = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
        raise ValueError(
            f"{path} belongs to another run: {changes}; call it as it was begun, or start a new run without resume"
        )


def _fields_of(config: str | None) -> dict[str, Any]:
    parts = json.loads(config or "{}").values()
    return {f"config.{name}": value for part in parts for name, value in part.items()}


def _checksum(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back, so that a step is done or not done; the second one interrupts at once.

    Yields:
        Says whether Ctrl-C has been pressed. Nothing is held back where another handler is installed, or in threads
        other than the main one.
    """
    pressed: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def hold(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if ours:
        signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
