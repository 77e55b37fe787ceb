"""Warnings name the line of the user's program, whatever stands between."""

import threading
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, exact_loo, likelihood, log_evidence, self_consistency
from pyro_arbuf.user_warnings import warn

X, FAR = torch.zeros(4, 1), torch.tensor([0.5, -0.3, 9e3, 0.8])
OUTSIDE = ".*outside the trained range.*"


@pytest.fixture(scope="module")
def net():
    return pyro_arbuf.load("gaussian")


def test_a_warning_is_of_the_line_that_calls():
    with pytest.warns(RuntimeWarning, match="^this$") as caught:
        warn("this", RuntimeWarning)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_what_stands_between_is_left_out():
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    layer = Layer()
    layer.register_forward_hook(lambda *_: warn("from a hook"))  # of this file: below torch, and the nearest line
    code = compile("def inside(warn):\n    warn('from inside')", "inside.py", "exec")
    space = {"__name__": "pyro_arbuf.inside"}
    exec(code, space)  # as a module of the package
    with pytest.warns(UserWarning, match="from") as caught:
        torch.no_grad()(space["inside"])(warn)
        layer(torch.zeros(1))
    assert [warning.filename for warning in caught] == [__file__] * 2


@pytest.mark.parametrize("name", [None, ""])
def test_code_without_a_name_is_no_error(name):
    with pytest.warns(UserWarning, match="nameless") as caught:
        exec(compile("warn('nameless')", "inside.py", "exec"), {"__name__": name, "warn": warn})
    assert [warning.filename for warning in caught] == [__file__]


def test_without_a_line_of_the_user_a_warning_is_of_the_outermost_one():
    found = []

    def run() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exec(compile("warn('alone')", "inside.py", "exec"), {"__name__": "pyro_arbuf.inside", "warn": warn})
        found.extend(caught)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [str(warning.message) for warning in found] == ["alone"]


@pytest.mark.parametrize(
    "call",
    [
        lambda net: net.condition(X, FAR),
        lambda net: log_evidence(net, X, FAR, 4),
        lambda net: log_evidence(net, [X, X[:2]], [FAR, FAR[:2]], 4),
        lambda net: likelihood(net, X, {"mu": 0.1, "tau": 1.0}).log_prob(FAR),
        lambda net: exact_loo(net, X, FAR),
        lambda net: self_consistency(net, X, FAR, num_draws=8),
        lambda net: ArBufferJoint(net.condition(), X, pyro_arbuf.random_orders(4, 2)).order_spread(FAR),
    ],
)
def test_a_warning_of_any_function_is_of_its_call(net, call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(net)
    assert any("outside the trained range" in str(warning.message) for warning in caught)
    assert {warning.filename for warning in caught} == {__file__}


def test_in_a_pyro_model_it_is_of_the_line_that_runs_the_model(net):
    def model() -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("units", 2):
            pyro.sample("y", ArBufferJoint(net.condition(), X), obs=FAR + shift.detach())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        trace = poutine.trace(model).get_trace()
        trace.compute_log_prob()
        MCMC(NUTS(model), num_samples=2, warmup_steps=1, disable_progbar=True, disable_validation=False).run()
    found = [warning for warning in caught if "outside the trained range" in str(warning.message)]
    assert len(found) == 2 and {warning.filename for warning in found} == {__file__}
    assert len({warning.lineno for warning in found}) == 2, "a line each: of the density, and of the chain"
