"""What the folder of a network says of its training: training.json, or else the state of the run."""

import json
from pathlib import Path
from typing import Any

from pyro_arbuf.programs.training_rounds import STATE
from pyro_arbuf.training.run_state import RunState

RECORD = "training.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What training.json in a network's folder says, or else the state of its run; empty where there is neither.

    Raises:
        ValueError: If it is no JSON object.
    """
    path = folder / RECORD
    if not path.is_file():
        if not (folder / STATE).is_file():
            return {}
        state = RunState.read(folder / STATE)
        return {"steps": state.step, "minutes": round(state.minutes, 1), "validation": state.best_score}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it, or take it anew") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold an object; got {type(record).__name__}; remove it")
    return record
