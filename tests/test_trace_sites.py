"""Which sites hold data, which draws fit them, and how dimensions are called."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.workflow.trace_sites import dimension_names, observed_sites, replayed_traces

B, M = 2, 6


def trace_of(fn):
    return poutine.trace(fn).get_trace()


@pytest.fixture
def task(scalar_model, draw_task):
    return draw_task(scalar_model)


def test_deterministic_sites_and_factors_hold_no_data():
    def run():
        pyro.deterministic("twice", torch.ones(2))
        pyro.factor("bonus", torch.tensor(1.0))
        with pyro.plate("row", 3):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(3))

    assert list(observed_sites(trace_of(run))) == ["y"]


def test_dimensions_are_called_after_plates_and_roles(vector_model, draw_task):
    task = draw_task(vector_model)
    joint = ArBufferJoint(vector_model.condition(), task.x_target[0])

    def run():
        with pyro.plate("group", 4, dim=-2):
            pyro.sample("level", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("subject", 1):
                pyro.deterministic("mean", torch.zeros(4, 1))
                pyro.sample("y", joint)
        pyro.deterministic("matrix", torch.zeros(2, 3))

    names, targets = dimension_names(trace_of(run), {})
    assert names["level"] == ("group", None, "level_dim_2")
    assert names["mean"] == ("group", "subject")
    assert names["y"] == ("group", "subject", "target", "output") and targets == {"target"}
    assert names["matrix"] == ("matrix_dim_0", "matrix_dim_1")


def test_targets_of_sites_that_differ_in_number_are_told_apart(scalar_model, task):
    def run(last):
        for name, x in (("a", task.x_target[0]), ("b", task.x_target[0, :last])):
            pyro.sample(name, ArBufferJoint(scalar_model.condition(), x))

    names, targets = dimension_names(trace_of(lambda: run(4)), {})
    assert (names["a"], names["b"]) == (("a_target",), ("b_target",)) and targets == {"a_target", "b_target"}
    assert dimension_names(trace_of(lambda: run(M)), {})[1] == {"target"}


def test_a_user_names_dimensions_that_there_are(scalar_model, task):
    trace = trace_of(lambda: pyro.sample("y", ArBufferJoint(scalar_model.condition(), task.x_target[0])))
    assert dimension_names(trace, {"y": ["week"]}) == ({"y": ("week",)}, {"week"})
    with pytest.raises(ValueError, match=r"must name the 1 dimensions \['target'\]; got \['week', 'day'\]"):
        dimension_names(trace, {"y": ["week", "day"]})


def subsampled():
    pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 5, subsample_size=2):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(2))


def two_latents():
    pyro.sample("b", dist.Normal(0.0, 1.0), obs=torch.zeros(()))
    pyro.sample("a", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "draws", "message"),
    [
        (two_latents, {"a": torch.zeros(3), "c": torch.zeros(3)}, r"unknown \['c'\]"),
        (two_latents, {"a": torch.zeros(3), "b": torch.zeros(3)}, r"unknown \['b'\]"),
        (subsampled, {"a": torch.zeros(3, 2)}, r"shape \(S, \*\(\)\)"),
        (subsampled, {"a": torch.zeros(3)}, "subsample of 2 of 5"),
        (subsampled, {"z": torch.zeros(3)}, r"missing \['a'\]"),
        (two_latents, {"a": [0.0]}, "torch.stack"),
        (two_latents, {"a": torch.zeros(3), "c": torch.zeros(2)}, "same number of draws"),
        (two_latents, {}, "same number of draws"),
    ],
)
def test_draws_that_do_not_fit_the_model_are_refused(model, draws, message):
    with pytest.raises(ValueError, match=message):
        next(replayed_traces(model, draws, (), {}))
