"""Numbers that a benchmark keeps in a file, so that it goes on where it was stopped."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_arbuf import ArBufferModel
from pyro_arbuf.files import write_atomically


def read_kept(path: Path, default: Any) -> Any:
    """What `keep` wrote; the default where there is no file."""
    return json.loads(path.read_text()) if path.exists() else default


def keep(path: Path, value: Any) -> None:
    """Writes numbers as JSON, a line each, whole or not at all."""
    write_atomically(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n"))


def weights_key(*nets: ArBufferModel) -> str:
    """A short name of the weights of networks, for files of what they scored."""
    weights = (weight.numpy(force=True).tobytes() for net in nets for weight in net.state_dict().values())
    return hashlib.sha256(b"".join(weights)).hexdigest()[:12]


def kept_or_made(folder: Path, name: str, settings: list[Any], make: Callable[[], Any]) -> Any:
    """What a run with these settings has found, which is kept in a file of its own: made if it is not there."""
    key = json.dumps(settings)
    path = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    if not path.exists():
        keep(path, {"key": key, "found": make()})
    return read_kept(path, {})["found"]
