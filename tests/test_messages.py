"""Texts of errors and warnings, read from the code: short, at most what is wrong, what was given and what to do."""

import ast
import dataclasses
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyro_arbuf

PACKAGE = Path(pyro_arbuf.__file__).parent
LONGEST = 240  # characters without what is filled in


def text_of(node: ast.expr) -> str:
    """The text of a string, with {} for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "{}"


def messages(path: Path) -> list[str]:
    """The first arguments of all errors and warnings that a file makes."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
    named = [(getattr(call.func, "id", getattr(call.func, "attr", "")), call.args[0]) for call in calls]
    return [text_of(first) for name, first in named if name.endswith("Error") or name in ("warn", "SystemExit")]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_messages_are_short(path: Path) -> None:
    for text in messages(path):
        assert len(text) <= LONGEST and text.count("; ") <= 2 and text.count(". ") <= 1, text


def test_messages_are_found() -> None:
    assert sum(len(messages(path)) for path in PACKAGE.rglob("*.py")) > 350


def test_a_warning_is_shown_once_where_nuts_runs_a_line_again_and_again(scalar_model: pyro_arbuf.ArBufferModel) -> None:
    net = pyro_arbuf.ArBufferModel(dataclasses.replace(scalar_model.config, x_range=(-1.0, 1.0)))
    context = net.requires_grad_(False).condition()

    def model() -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(shift, 1.0), obs=torch.tensor(0.5))
        pyro.sample("y", pyro_arbuf.ArBufferJoint(context, torch.full((3, 2), 5.0)), obs=torch.zeros(3))

    def run() -> None:
        MCMC(NUTS(model), num_samples=2, warmup_steps=2, disable_progbar=True, disable_validation=False).run()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()  # what a first run imports changes filters of warnings, after which Python shows each of them again
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run()
    outside = [warning for warning in caught if "outside the trained range" in str(warning.message)]
    assert len(outside) == 1 and outside[0].filename == __file__
