"""The shipped models score what their records and cards say."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import pyro_arbuf
from pyro_arbuf import random_orders
from pyro_arbuf.checkpoint import find_model
from pyro_arbuf.cli import PRIORS
from pyro_arbuf.tasks import validation_tasks
from pyro_arbuf.training import validate

MODELS = pytest.mark.parametrize("name", pyro_arbuf.shipped_models())


@MODELS
def test_validation_score_is_the_recorded_one(name):
    net = pyro_arbuf.load(name)
    scores = validate(net, validation_tasks(PRIORS[net.config.prior], net.config))
    recorded = json.loads((find_model(name) / "training.json").read_text())["validation"]
    assert sum(scores) / len(scores) == pytest.approx(recorded, abs=2e-3)


@MODELS
def test_joint_beats_independent_marginals_on_its_prior(name):
    net = pyro_arbuf.load(name)
    task = PRIORS[net.config.prior](64, 8, 0, 16, torch.Generator().manual_seed(5))
    joint = pyro_arbuf.ArBufferJoint(net.condition(task.x_context, task.y_context[..., 0]), task.x_target)
    y = task.y_target[..., 0]
    gain = (joint.log_prob(y) - joint.marginals().log_prob(y)) / 16
    assert gain.mean() > 4 * gain.std() / 8 > 0


@pytest.mark.slow
@MODELS
def test_gap_to_the_oracle_is_the_one_of_the_card(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    quality, oracle = (importlib.import_module(module) for module in ("quality", "oracle"))
    net, gaps = pyro_arbuf.load(name), []
    for num_context in (8, 16, 32, 64, 128):
        task = quality.draw_functions(net.config.prior, 64, num_context, 16)
        best = oracle.oracle_log_prob(net.config.prior, *task[:2], *task[4:])
        gaps.append((best - quality.model_log_prob(net, task, random_orders(16, 16), 16, 16, "")) / 16)
    gaps = torch.stack(gaps)
    card = next(row for row in (find_model(name) / "README.md").read_text().splitlines() if row.startswith("| mean |"))
    stated = float(card.split("|")[-3].split("(")[0])
    assert abs(gaps.mean() - stated) < 4 * (gaps.var(1) / 64).sum().sqrt() / 5
