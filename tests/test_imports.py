"""What `import pyro_arbuf` leaves for the functions that need it."""

import subprocess
import sys
from pathlib import Path

import pytest

import pyro_arbuf

HEAVY = ("matplotlib", "xarray", "arviz", "pandas", "huggingface_hub", "tyro", "accelerate")


def modules_after(code: str) -> set[str]:
    """Names of the packages that a fresh process has loaded after some code."""
    code = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    folder = Path(pyro_arbuf.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=folder)
    return set(done.stdout.split())


def test_import_loads_no_heavy_library_that_pyro_does_not() -> None:
    ours = modules_after("import pyro_arbuf")
    found = ours & set(HEAVY)
    assert not found or found <= modules_after("import pyro"), found


@pytest.mark.parametrize("name", pyro_arbuf.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(pyro_arbuf) and getattr(pyro_arbuf, name).__name__ == name
