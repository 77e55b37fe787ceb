"""The wheel alone, in an environment of its own: what it holds, and that a shipped network of it draws."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from pyro_arbuf import shipped_models

pytestmark = pytest.mark.slow  # some seconds to build and install, and torch is imported twice
ROOT = Path(__file__).resolve().parent.parent
LARGEST_WHEEL = 25e6  # bytes
DRAW = """
import sys
from pathlib import Path
import torch
import pyro_arbuf

assert Path(pyro_arbuf.__file__).is_relative_to(sys.prefix), pyro_arbuf.__file__
net = pyro_arbuf.load("gp-1d-noisy")
x = torch.linspace(-1, 1, 5)[:, None]
joint = pyro_arbuf.ArBufferJoint(net.condition(x, x[:, 0]), x + 0.1)
assert joint.sample((3,)).shape == (3, 5)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, without what makes the checkout importable."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network from a copy of what is committed for it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyro_arbuf", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=folder / "source")
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_is_small_and_complete(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_WHEEL
    names = set(zipfile.ZipFile(wheel).namelist())
    for model in shipped_models():
        assert {
            f"pyro_arbuf/models/{model}/{file}" for file in ("config.json", "model.safetensors", "README.md")
        } <= names
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "pyro_arbuf").rglob("*.py")}
    assert code | {"pyro_arbuf/py.typed", "pyro_arbuf/house.mplstyle"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pyro_arbuf"}  # no tests, no docs


def test_wheel_alone_draws_and_has_its_command(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")})
    scripts, installed = Path(paths["scripts"]), Path(paths["purelib"])
    # The dependencies of this environment, but not its editable install of the checkout, which is a .pth in it.
    (installed / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    python = scripts / "python"
    offline = ["--no-index", "--no-deps", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel, cwd=tmp_path)
    run(python, "-c", DRAW, cwd=tmp_path)
    listed = run(scripts / "pyro-arbuf", "models", cwd=tmp_path)
    assert f"shipped in {installed / 'pyro_arbuf' / 'models'}" in listed and "gp-1d-noisy" in listed
