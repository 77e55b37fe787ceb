"""What only a machine meets that has never run anything: an empty home folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_first_test_of_the_day_that_imports_arviz_passes(tmp_path: Path) -> None:
    pytest.importorskip("arviz")
    (tmp_path / "test_first.py").write_text("def test_import():\n    import arviz\n")
    empty = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home" / ".cache")}
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    command += ["--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=os.environ | empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ci_starts_from_an_empty_home() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "HOME=$(mktemp -d)" in script and "export HOME XDG_CACHE_HOME" in script
