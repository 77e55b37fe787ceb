"""One direction of imports, small modules, no work at import."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pyro_arbuf

PACKAGE = Path(pyro_arbuf.__file__).parent
# What each folder, and each module beside them, may import of the others.
LEAVES = {"display", "files", "hub", "progress", "random_state", "user_warnings"}
MAY_IMPORT = {
    **{leaf: set() for leaf in LEAVES},
    "network": set(),
    "inference": {"network", "display", "user_warnings"},
    "model": {"network", "inference", "display"},
    "distributions": {"network", "inference", "display", "user_warnings"},
    "baselines": {"network", "inference", "model", "distributions"},
    "checkpoint": {"network", "model", "baselines", "files", "hub"},
    "workflow": {"network", "inference", "model", "distributions", *LEAVES - {"files", "hub"}},
    "training": {"network", "files", "progress", "random_state"},
    "priors": {"network", "training"},
}
MAY_IMPORT["programs"] = {*MAY_IMPORT}
MAY_IMPORT["cli"] = {*MAY_IMPORT}
MAY_IMPORT["bridges"] = {"model", "inference", "distributions", "network", "programs", "random_state", "user_warnings"}
MOST_FLOORS = 9
CORE = ("network", "inference", "model", "training", "display", "files", "progress")
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


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


def room(path: Path) -> str:
    """The folder of a module, or its own name beside the folders; empty for the package's own `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def own_imports(path: Path) -> set[str]:
    """Dotted names, without `pyro_arbuf.`, of the package's modules that a file imports."""
    modules = {".".join(each.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for each in FILES}
    names = {name.removeprefix("pyro_arbuf.") for name in imports(path) if name.startswith("pyro_arbuf.")}
    return {max((m for m in modules if name == m or name.startswith(f"{m}.")), key=len, default=name) for name in names}


def depths(graph: dict[str, set[str]]) -> dict[str, int]:
    """Floor of every node, above all it imports; raises where there is a circle."""
    found = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[other] for other in graph.get(name, ())), default=0)
    return found


def test_every_module_has_a_place() -> None:
    assert {room(path) for path in FILES} - {""} == set(MAY_IMPORT)


@MODULES
def test_module_imports_only_what_its_room_may(path: Path) -> None:
    own = room(path)
    names = {name.split(".")[0] for name in own_imports(path)}
    assert names <= (set(MAY_IMPORT) if own == "" else MAY_IMPORT[own] | {own})
    assert "pyro_arbuf" not in imports(path)


def test_rooms_stand_on_few_floors_and_files_in_no_circle() -> None:
    rooms = {name: set() for name in MAY_IMPORT}
    for path in FILES:
        if room(path):
            rooms[room(path)] |= {name.split(".")[0] for name in own_imports(path)} - {room(path)}
    assert max(depths(rooms).values()) <= MOST_FLOORS
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES}
    depths({names[path]: own_imports(path) for path in FILES if path.stem != "__init__"})


@pytest.mark.parametrize("name", CORE)
def test_core_knows_nothing_of_pyro_arviz_or_xarray(name: str) -> None:
    for path in (path for path in FILES if room(path) == name):
        assert not {imported.split(".")[0] for imported in imports(path)} & {"pyro", "arviz", "xarray"}


@MODULES
def test_only_bridges_know_other_probabilistic_languages(path: Path) -> None:
    others = {name.split(".")[0] for name in imports(path)} & {"jax", "numpyro", "pytensor", "pymc"}
    assert not others or (room(path) == "bridges" and path.stem in ("jax", "numpyro", "pymc"))


def test_every_folder_is_installed_with_its_types() -> None:
    setuptools = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["include"] == ["pyro_arbuf*"]
    assert all((path.parent / "__init__.py").exists() for path in FILES)
    assert (PACKAGE / "models").resolve() == PACKAGE.parent / "models"  # what is installed as pyro_arbuf/models
    assert (PACKAGE / "py.typed").exists() and "py.typed" in setuptools["package-data"]["pyro_arbuf"]


def test_contributing_lists_every_module() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^\| `([\w./]+)` \|", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(str(p.relative_to(PACKAGE).with_suffix("")) for p in FILES if p.stem != "__init__")


def test_contributing_has_the_deviations_that_heads_name() -> None:
    root = PACKAGE.parent
    page = (root / "CONTRIBUTING.md").read_text().split("## Deviations from the paper")[1].split("\n## ")[0]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    assert all(len(row) == 6 and all(cell.strip() for cell in row[1:5]) for row in rows)
    heads = {path: ast.get_docstring(ast.parse(path.read_text())) for path in [*FILES, *root.glob("benchmarks/*.py")]}
    deviating = {path.relative_to(root) for path, head in heads.items() if "Deviation:" in (head or "")}
    names = {str(path.with_suffix("")).removeprefix("pyro_arbuf/") for path in deviating}
    assert {row[4].strip(" `") for row in rows} == names


@MODULES
def test_module_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


LONGEST = 40  # lines of a function's body, without its docstring
LONGER: set[str] = set()  # functions that may be longer, each with the reason


def body_lines(function: ast.FunctionDef) -> int:
    """Lines from the first statement that is no docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@MODULES
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert {f.name: body_lines(f) for f in functions if body_lines(f) > LONGEST and f.name not in LONGER} == {}


@MODULES
def test_masks_are_stated_in_visibility_alone(path: Path) -> None:
    if path.stem != "visibility":
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
