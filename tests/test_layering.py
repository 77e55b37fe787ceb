"""One direction of imports, small modules, no work at import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_arbuf

PACKAGE = Path(pyro_arbuf.__file__).parent
ORDER = [
    "tracing",
    "visibility",
    "attention",
    "cache",
    "latents",
    "config",
    "embedding",
    "backbone",
    "predictives",
    "heads",
    "network",
    "validation",
    "context",
    "conditioning",
    "model",
    "orders",
    "moments",
    "folding",
    "inference",
    "files",
    "hub",
    "progress",
    "checkpoint",
    "tasks",
    "run_state",
    "training",
    "marginals",
    "distributions",
    "priors",
    "random_state",
    "sites",
    "at_once",
    "predictive",
    "checks",
    "loo",
    "fits",
    "datatree",
    "program_sites",
    "same_law",
    "program_runs",
    "vectorisation",
    "program_notes",
    "simulation",
    "programs",
    "roles",
    "posteriors",
    "guides",
    "evidence",
    "evidence_error",
    "calibration",
    "reports",
    "amortization",
    "cli",
]
CORE = ORDER[: ORDER.index("training") + 1]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def layer(path: Path) -> str:
    """Name of the module, or of the subpackage it is in; empty for the package's own `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_place_in_the_order() -> None:
    assert {layer(path) for path in FILES} - {""} == set(ORDER)


@MODULES
def test_module_imports_only_modules_above_it(path: Path) -> None:
    own = layer(path)
    names = {name.split(".")[1] for name in imports(path) if name.startswith("pyro_arbuf.")}
    above = set(ORDER if own == "" else ORDER[: ORDER.index(own)])
    inside = {own} if path.parent != PACKAGE else set()
    assert names <= above | inside
    assert "pyro_arbuf" not in imports(path)


@pytest.mark.parametrize("name", CORE)
def test_core_knows_nothing_of_pyro_arviz_or_xarray(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(PACKAGE / f"{name}.py")}
    assert not roots & {"pyro", "arviz", "xarray"}


@MODULES
def test_module_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


@MODULES
def test_masks_are_stated_in_visibility_alone(path: Path) -> None:
    if layer(path) != "visibility":
        assert re.findall(r"\b(?:tril|triu|is_causal)\w*", path.read_text()) == []


@MODULES
def test_no_import_is_hidden_from_the_layering(path: Path) -> None:
    assert "TYPE_CHECKING" not in path.read_text()


AT_IMPORT = """
import os, sys
import accelerate, matplotlib.figure, pyro, torch, tyro  # what others do at import is theirs

def refuse(*args, **kwargs):
    raise AssertionError("compiled at import")

torch.compile = torch.jit.script = torch.jit.trace = refuse
state = lambda: (
    dict(os.environ), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
    torch.get_rng_state().tolist(), torch.get_float32_matmul_precision(),
)
before = state()
import pyro_arbuf, pyro_arbuf.cli
assert state() == before
"""


def test_import_compiles_nothing_and_sets_nothing() -> None:
    subprocess.run([sys.executable, "-c", AT_IMPORT], check=True, cwd=PACKAGE.parent)
