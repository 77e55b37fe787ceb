"""Fixed sets of simulations in a file beside the run that trains on them, so that a resumed run simulates none anew."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyro_arbuf.files import write_atomically
from pyro_arbuf.programs.program_batches import make_bank
from pyro_arbuf.programs.same_law import Bank, Simulations
from pyro_arbuf.programs.simulator import Simulator

BANK = "simulations.safetensors"


def kept_bank(
    simulator: Simulator, num_simulations: int, num_trials: int, seed: int, folder: Path | None, resume: bool
) -> Bank:
    """The bank of a run: the one in its folder where it goes on, else a new one, which is written there.

    Of a simulator with stored simulations it is these; a run must go on with the same ones.

    Args:
        simulator: The program.
        num_simulations: As for `make_bank`, as are the next two.
        num_trials: Likewise.
        seed: Likewise.
        folder: Of the run; `None` = nothing is written.
        resume: Whether the run goes on. One that was begun before there were such files simulates its bank anew.

    Raises:
        ValueError: If the file is damaged, or of other simulations.
    """
    asked = {"num_simulations": num_simulations, "num_trials": num_trials, "seed": seed}
    stored = simulator.stored
    if stored is not None:
        asked = {"num_simulations": num_simulations, "num_trials": stored.num_trials}
    path = None if folder is None else folder / BANK
    if path is not None and resume and path.exists():
        bank = _read(path, asked)
        if stored is not None and not _same(bank, stored.bank):
            raise ValueError(
                f"simulations must be those that the run in {folder} was begun with, to go on with it; got others; "
                "give those, or start without resume"
            )
        return bank
    bank = stored.bank if stored is not None else make_bank(simulator, num_simulations, num_trials, seed)
    if path is None:
        return bank
    tensors = {
        f"{part}.{name}": value for part, drawn in bank._asdict().items() for name, value in drawn._asdict().items()
    }
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata={"asked": json.dumps(asked)}))
    return bank


def _same(one: Bank, other: Bank) -> bool:
    """Whether two banks hold the same numbers."""
    pairs = [(a, b) for parts in zip(one, other, strict=True) for a, b in zip(*parts, strict=True)]
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def _read(path: Path, asked: dict[str, int]) -> Bank:
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})["asked"])
            parts = [
                Simulations(
                    *(file.get_tensor(f"{part}.{name}").to(torch.get_default_device()) for name in Simulations._fields)
                )
                for part in Bank._fields
            ]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds no simulations of a run, or is damaged ({error}); start without resume"
        ) from error
    if found != asked:
        raise ValueError(
            f"{path} must hold the simulations that are asked for, {asked}; got those of {found}; go on with the same "
            "simulations, num_context and seed, or start without resume"
        )
    return Bank(*parts)
