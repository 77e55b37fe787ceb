"""The PyMC bridge against torch: value, gradient, what is refused, NUTS. Run by `make test-bridges`."""

import numpy as np
import pytest
import torch

pm = pytest.importorskip("pymc")

import pytensor
import pytensor.tensor as pt
from bridge_cases import (
    CHOICES,
    INTENSITIES,
    MAX_TREE_DEPTH,
    NUM_DRAWS,
    NUM_WARMUP,
    B,
    assert_same_posterior,
    data_of,
    net_of,
    own_gradients,
    page_code,
    pyro_draws,
)

import pyro_arbuf
from pyro_arbuf.bridges.pymc import log_likelihood

WEIGHTS = np.arange(1.0, B + 1)


def arrays(kind: str = "scalar"):
    x, y, latents = data_of(kind)
    return x.numpy(), y.numpy(), {name: value.numpy() for name, value in latents.items()}


def variables(latents: dict[str, np.ndarray]) -> dict[str, pt.TensorVariable]:
    """Variables of which PyTensor knows how many dimensions they have."""
    return {name: pt.tensor(name, dtype="float64", shape=(None,) * value.ndim) for name, value in latents.items()}


@pytest.mark.parametrize("kind", ["scalar", "vector", "dependent"])
@pytest.mark.parametrize("data", ["numbers", "variables"])
def test_value_and_gradient_are_those_of_torch(kind, data):
    x, y, latents = arrays(kind)
    inputs = variables(latents)
    given = variables({"x": x, "y": y}) if data == "variables" else {}
    value = log_likelihood(net_of(kind), given.get("x", x), inputs, given.get("y", y))
    outputs = [value, *pytensor.grad((WEIGHTS * value).sum(), list(inputs.values()))]
    compute = pytensor.function([*given.values(), *inputs.values()], outputs)
    found, *gradients = compute(*([x, y] if given else []), *latents.values())
    density, expected = own_gradients(kind)
    np.testing.assert_allclose(found, density, rtol=1e-10)
    for name, gradient in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-8, atol=1e-10)


def test_value_and_gradient_are_computed_together():
    x, y, latents = arrays()
    inputs = variables(latents)
    value = log_likelihood(net_of("scalar"), x, inputs, y).sum()
    compute = pytensor.function(list(inputs.values()), [value, *pytensor.grad(value, list(inputs.values()))])
    assert sum(str(node.op) == "LogLikelihood" for node in compute.maker.fgraph.toposort()) == 1


def test_what_the_bridge_cannot_do_is_refused():
    x, y, latents = arrays()
    outcomes, numbers = pt.matrix("outcomes"), pt.vector("numbers")
    with pytest.raises(pytensor.gradient.NullTypeGradError, match="has derivatives by latents only"):
        pytensor.grad(log_likelihood(net_of("scalar"), x, variables(latents), outcomes).sum(), outcomes)
    value = log_likelihood(net_of("scalar"), x, latents | {"shift": numbers}, y[0]).sum()
    with pytest.raises(pytensor.gradient.NullTypeGradError, match="the bridge to torch has first derivatives only"):
        pytensor.gradient.hessian(value, numbers)


def test_wrong_shapes_are_named_as_soon_as_they_are_known():
    x, y, latents = arrays()
    net = net_of("scalar")
    with pytest.raises(ValueError, match=r"are missing; where some are not known"):
        log_likelihood(net, x, {"rate": latents["rate"]}, y)
    with pytest.raises(ValueError, match=r"latents\['mix'\] must have shape \(\*batch, 3\); got \(3, 2\)"):
        log_likelihood(net, x, latents | {"mix": latents["mix"][:, :2]}, y)
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 7\); got \(3, 6\)"):
        log_likelihood(net, x, latents, y[:, :6])
    with pytest.raises(ValueError, match="y must be finite; got 1 NaN"):
        log_likelihood(net, x, latents, np.where(y == y.max(), np.nan, y))
    outcomes = pt.matrix("outcomes")
    later = pytensor.function([outcomes], log_likelihood(net, x, latents, outcomes))
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 7\); got \(3, 6\)"):
        later(y[:, :6])


def test_a_plate_of_subjects_with_missing_trials_is_the_density_of_torch():
    x, y, _ = arrays()
    y[1, 3:] = np.nan
    with pm.Model(coords={"subject": range(B)}) as model:
        given = {
            "shift": pm.Normal("shift", 0, 1, shape=2),
            "rate": pm.LogNormal("rate", 0.3, 0.6, dims="subject"),
            "share": pm.Uniform("share", -1, 2),
            "mix": pm.Dirichlet("mix", np.ones(3), shape=(B, 3)),
        }
        pm.Potential("y", log_likelihood(net_of("scalar"), pm.Data("x", x), given, y, nan="drop").sum())
    point = model.initial_point()
    compute = model.compile_fn(model.replace_rvs_by_values([model.potentials[0], *given.values()]))
    value, *latents = compute(point)
    own = {name: torch.tensor(each) for name, each in zip(given, latents, strict=True)}
    law = pyro_arbuf.likelihood(net_of("scalar"), torch.tensor(x), own, nan="drop")
    np.testing.assert_allclose(value, law.log_prob(torch.tensor(y)).sum().numpy(), rtol=1e-10)
    assert np.isfinite(model.compile_dlogp()(point)).all()


def test_nuts_agrees_with_that_of_pyro():
    net = pyro_arbuf.load("psychometric")
    with pm.Model():
        latents = {
            "threshold": pm.Normal("threshold", 0.0, 1.0),
            "slope": pm.LogNormal("slope", 1.0, 0.5),
            "lapse": pm.Beta("lapse", 1.0, 19.0),
        }
        pm.Potential("y", log_likelihood(net, INTENSITIES, latents, CHOICES))
        found = pm.sample(
            NUM_DRAWS,
            tune=NUM_WARMUP,
            chains=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
            nuts={"max_treedepth": MAX_TREE_DEPTH},
        )
    draws = {name: found.posterior[name].values[0] for name in latents}
    assert_same_posterior(draws, pyro_draws())


def test_code_of_the_page_runs():
    names: dict = {}
    exec(page_code(1), names)
    assert names["replicated"].shape == (2, 4, 3, 40) and names["density"].shape == (2, 4, 3)
