"""Numbers that a benchmark keeps in a file, so that it goes on where it was stopped."""

import json
from pathlib import Path
from typing import Any

from pyro_arbuf.files import write_atomically


def read_kept(path: Path, default: Any) -> Any:
    """What `keep` wrote; the default where there is no file."""
    return json.loads(path.read_text()) if path.exists() else default


def keep(path: Path, value: Any) -> None:
    """Writes numbers as JSON, a line each, whole or not at all."""
    write_atomically(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n"))
