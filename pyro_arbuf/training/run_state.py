"""RunState: the state of a training run, one file with a checksum; and Ctrl-C held back until a step is done."""

import dataclasses
import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyro_arbuf.files import write_atomically
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.network import Network

FROM_SCRATCH: dict[str, Any] = {"started_from": None, "steps": 0, "minutes": 0.0}


@dataclass
class RunState:
    """Where a run is; weights and optimisers are saved with it.

    Attributes:
        setup: How the run was begun: what a resumed one must agree with.
        origin: Of a warm start: "started_from", perhaps the "folder" of that, the "steps" and "minutes" its weights
            had, and perhaps the "runs" behind them.
        step: Steps done.
        seconds: Time used, over all resumed parts.
        history: Of every validation, "step", mean training "loss" since the one before, and "validation".
        best_score: Best validation density so far, nats per target.
        running_loss: Sum of the losses since the last validation.
        best_weights: The weights with the best score; empty before the first validation.
        average: The average of the weights over the last steps, where one is kept.
    """

    setup: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=FROM_SCRATCH.copy)
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = -math.inf
    running_loss: float = 0.0
    best_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def minutes(self) -> float:
        """Time used, over all resumed parts."""
        return self.seconds / 60

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many validations in a row, the last ones of the history, were not better than one before."""
        scores = [-math.inf if math.isnan(entry["validation"]) else entry["validation"] for entry in self.history]
        return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def snapshot(self) -> "RunState":
        """The state as it is now, which later steps do not change."""
        return dataclasses.replace(
            self, history=list(self.history), average={n: w.clone() for n, w in self.average.items()}
        )

    def record_validation(self, score: float, loss: float | None, model: Network) -> None:
        """Keeps the weights if they are the best, and adds to the history where there is a loss to tell."""
        if score > self.best_score:
            self.best_score = score
            self.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        if loss is not None:
            self.history.append({"step": self.step, "loss": loss, "validation": score})

    def save(self, path: Path, model: Network, optimizers: list[torch.optim.Optimizer]) -> None:
        """Writes the whole state of a run into one safetensors file, numbers as JSON in its header, atomically.

        Raises:
            ValueError: If the file cannot be written; the one before is unchanged.
        """
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for i, optimizer in enumerate(optimizers):
            for parameter, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{parameter}.{name}": torch.as_tensor(v) for name, v in values.items()}
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        text = json.dumps({name: getattr(self, name) for name in _NUMBERS})
        metadata = {"record": text, "checksum": _checksum(tensors, text)}
        write_atomically(path, lambda file: save_file(tensors, file, metadata=metadata))

    @staticmethod
    def read(path: Path) -> "RunState":
        """The numbers in the header of the file of a run, without any weights.

        Raises:
            ValueError: If the file is corrupt, truncated or something else.
        """
        try:
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {})["record"])
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no state of a run, or damaged ({error}); start without resume") from error
        if not isinstance(record, dict) or set(record) != set(_NUMBERS):
            raise ValueError(
                f"{path} is no state of a run, or of an older version: its record must hold {sorted(_NUMBERS)}; start "
                "without resume"
            )
        return RunState(**record)

    @staticmethod
    def load(path: Path, model: Network, optimizers: list[torch.optim.Optimizer]) -> "RunState":
        """The state of a run; model and optimizers are given theirs.

        Raises:
            ValueError: If the file is not as `save` wrote it.
        """
        state = RunState.read(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no state of a run, or damaged ({error}); start without resume") from error
        if metadata.get("checksum") != _checksum(tensors, metadata["record"]):
            raise ValueError(
                f"{path} is damaged, or of an older version: its content does not have its checksum; start without "
                "resume"
            )
        model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        state.best_weights = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
        state.average = {n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")}
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, parameter, key = name.split(".")
                states[int(i)].setdefault(int(parameter), {})[key] = tensor
        for optimizer, found in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
        return state

    def check_setup(self, path: Path, setup: Mapping[str, Any]) -> None:
        """Raises ValueError, naming what differs, if this run, whose state is in `path`, was begun with another setup.

        A setup's "config" is compared field by field.
        """
        before, now = (dict(each) | {"config": {}} | _fields_of(each.get("config")) for each in (self.setup, setup))
        names = [name for name in (now | before) if before.get(name) != now.get(name)]
        if names:
            changes = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
            raise ValueError(
                f"{path} belongs to another run: {changes}; call it as it was begun, or start a new run without resume"
            )


_TENSORS = ("best_weights", "average")
_NUMBERS = tuple(f.name for f in dataclasses.fields(RunState) if f.name not in _TENSORS)  # in the file's header


def _fields_of(config: str | None) -> dict[str, Any]:
    """Fields of a configuration; those that its version did not have yet have the values that held then."""
    if not config:
        return {}
    return {f"config.{name}": value for name, value in dataclasses.asdict(ModelConfig.from_json(config)).items()}


def _checksum(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
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
