"""The NumPyro bridge against torch: value, gradient, `jit`, `vmap`, draws, NUTS. Run by `make test-bridges`."""

import warnings

import numpy as np
import pytest
import torch

numpyro = pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from bridge_cases import (
    CHOICES,
    INTENSITIES,
    MAX_TREE_DEPTH,
    NUM_DRAWS,
    NUM_WARMUP,
    B,
    M,
    assert_same_posterior,
    data_of,
    net_of,
    own_gradients,
    page_code,
    pyro_draws,
)
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide, init_to_median
from numpyro.infer import log_likelihood as pointwise
from numpyro.infer.util import log_density

import pyro_arbuf
from pyro_arbuf.bridges.jax import log_likelihood
from pyro_arbuf.bridges.numpyro import likelihood

jax.config.update("jax_enable_x64", True)  # the context manager does not reach the threads of callbacks
WEIGHTS = np.arange(1.0, B + 1)
KINDS = pytest.mark.parametrize("kind", ["scalar", "vector", "dependent"])


def arrays(kind: str = "scalar"):
    x, y, latents = data_of(kind)
    return x.numpy(), y.numpy(), {name: value.numpy() for name, value in latents.items()}


@KINDS
def test_value_and_gradient_are_those_of_torch(kind):
    x, y, latents = arrays(kind)
    net, (density, gradients) = net_of(kind), own_gradients(kind)

    def loss(latents):
        value = log_likelihood(net, x, latents, y)
        return (WEIGHTS * value).sum(), value

    found, value = jax.jit(jax.grad(loss, has_aux=True))(latents)
    np.testing.assert_allclose(value, density, rtol=1e-10)
    np.testing.assert_allclose(log_likelihood(net, x, latents, y), density, rtol=1e-10)  # without jit
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-8, atol=1e-10)


@KINDS
def test_vmap_is_a_loop(kind):
    x, y, latents = arrays(kind)
    net = net_of(kind)
    several = {name: np.stack([value, value, value]) for name, value in latents.items()}
    several["rate"] = several["rate"] * np.array([[0.8], [1.0], [1.3]])
    batched = {"mix": None, "rate": 0, "share": None, "shift": 0}
    several |= {name: latents[name] for name, axis in batched.items() if axis is None}

    def loss(latents):
        return (WEIGHTS * log_likelihood(net, x, latents, y)).sum()

    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(batched,)))(several)
    for i in range(3):
        own = {name: v if batched[name] is None else v[i] for name, v in several.items()}
        expected, gradients = jax.value_and_grad(loss)(own)
        np.testing.assert_allclose(value[i], expected, rtol=1e-10)
        for name, each in gradients.items():
            np.testing.assert_allclose(gradient[name][i], each, rtol=1e-8, atol=1e-10)
    nested = jax.vmap(jax.vmap(lambda a, b: loss(latents | {"rate": a, "share": b}), (0, None)), (None, 0))
    assert nested(several["rate"], jnp.array([0.1, 0.4])).shape == (2, 3)


def test_data_may_be_traced_as_a_plate_that_subsamples_does():
    x, y, latents = arrays()
    net, index = net_of("scalar"), jnp.array([2, 0])

    def density(x, y, index):
        own = {name: value if value.ndim == 0 else jnp.asarray(value)[index] for name, value in latents.items()}
        return log_likelihood(net, x, own, y[index])

    found = jax.jit(density)(x, y, index)
    np.testing.assert_allclose(found, own_gradients("scalar")[0][[2, 0]], rtol=1e-10)


def test_a_plate_over_the_trials_is_warned_of_and_one_of_as_many_subjects_is_not():
    net, x = pyro_arbuf.load("psychometric"), np.linspace(-2, 2, 7)[:, None]
    y, given = np.arange(7) % 2, {"threshold": 0.0, "slope": 2.0, "lapse": 0.05}

    def in_plate(values, latents):
        law = likelihood(net, x, latents)
        with numpyro.plate("trials", 7):
            numpyro.sample("y", law, obs=values)

    with pytest.warns(pyro_arbuf.PlateOverTargetsWarning, match="a plate of 7 stands around one event of 7 trials"):
        log_density(in_plate, (y, given), {}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", pyro_arbuf.PlateOverTargetsWarning)
        log_density(in_plate, (np.stack([y] * 7), given), {}, {})
        log_density(in_plate, (y, given | {"slope": jnp.linspace(1.0, 2.0, 7)}), {}, {})


def test_what_the_bridge_cannot_do_is_refused():
    x, y, latents = arrays()
    net = net_of("scalar")
    for name, density in (
        ("x", lambda x: log_likelihood(net, x, latents, y).sum()),
        ("y", lambda y: log_likelihood(net, x, latents, y).sum()),
    ):
        with pytest.raises(ValueError, match=f"{name} must be data: the bridge has derivatives by latents only"):
            jax.jit(jax.grad(density))({"x": x, "y": y}[name])
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.hessian(lambda share: log_likelihood(net, x, latents | {"share": share}, y).sum())(0.3)


def test_wrong_shapes_are_named_while_jax_traces():
    x, y, latents = arrays()
    net = net_of("scalar")
    with pytest.raises(ValueError, match=r"\['shift', 'share', 'mix'\] are missing"):
        likelihood(net, x, {"rate": latents["rate"]})
    with pytest.raises(ValueError, match=r"latents\['mix'\] must have shape \(\*batch, 3\); got \(3, 2\)"):
        jax.jit(lambda mix: log_likelihood(net, x, latents | {"mix": mix}, y))(latents["mix"][:, :2])
    with pytest.raises(ValueError, match=r"x must have shape \(\*batch, points, 2\); got \(7, 3\)"):
        likelihood(net, np.zeros((M, 3)), latents)
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 7\); got \(3, 6\)"):
        jax.jit(likelihood(net, x, latents).log_prob)(y[:, :6])
    with pytest.raises(ValueError, match="y must be finite; got 1 NaN"):
        log_likelihood(net, x, latents, np.where(y == y.max(), np.nan, y))


def subjects(net, x, y=None):
    shift = numpyro.sample("shift", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("subjects", B):
        rate = numpyro.sample("rate", dist.LogNormal(0.3, 0.6))
        share = numpyro.sample("share", dist.Uniform(-1, 2))
        mix = numpyro.sample("mix", dist.Dirichlet(jnp.ones(3)))
        law = likelihood(net, x, {"shift": shift, "rate": rate, "share": share, "mix": mix}, nan="drop")
        numpyro.sample("y", law, obs=y)


def test_several_chains_run_at_once_and_give_replicated_data_and_pointwise_densities():
    x, y, _ = arrays()
    y[1, 3:] = np.nan
    net = net_of("scalar")
    kernel = NUTS(subjects, max_tree_depth=1)
    mcmc = MCMC(kernel, num_warmup=1, num_samples=2, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), net, x, y)
    draws = mcmc.get_samples()
    assert draws["mix"].shape == (4, B, 3)
    for parallel in (False, True):
        drawn = Predictive(subjects, draws, parallel=parallel)(jax.random.key(1), net, x)["y"]
        assert drawn.shape == (4, B, M) and len(np.unique(drawn)) == drawn.size
    density = pointwise(subjects, draws, net, x, y)["y"]
    own = {name: torch.tensor(np.array(value)) for name, value in draws.items()}
    own["shift"] = own["shift"][:, None]
    np.testing.assert_allclose(
        density, pyro_arbuf.likelihood(net, torch.tensor(x), own, nan="drop").log_prob(torch.tensor(y)), rtol=1e-10
    )


def test_variational_inference_runs_with_vectorised_particles():
    x, y, _ = arrays()
    svi = SVI(subjects, autoguide.AutoNormal(subjects), numpyro.optim.Adam(0.1), Trace_ELBO(2))
    found = svi.run(jax.random.key(0), 2, net_of("scalar"), x, y, progress_bar=False)
    assert np.isfinite(found.losses).all()


def test_draws_follow_the_density():
    net = pyro_arbuf.load("psychometric")
    latents = {"threshold": 0.2, "slope": 2.0, "lapse": 0.05}
    law = likelihood(net, INTENSITIES, latents)
    drawn = law.sample(jax.random.key(0), (400,))
    expected = pyro_arbuf.likelihood(net, INTENSITIES, latents).probs[..., 1].numpy()
    assert drawn.shape == (400, 16)
    error = np.sqrt(expected * (1 - expected) / 400)
    assert (np.abs(drawn.mean(0) - expected) < 4.5 * error + 1e-3).all()
    assert bool(law.support(drawn).all()) and not bool(law.support(drawn + 2).any())


def test_nuts_agrees_with_that_of_pyro():
    net = pyro_arbuf.load("psychometric")

    def observer():
        latents = {
            "threshold": numpyro.sample("threshold", dist.Normal(0.0, 1.0)),
            "slope": numpyro.sample("slope", dist.LogNormal(1.0, 0.5)),
            "lapse": numpyro.sample("lapse", dist.Beta(1.0, 19.0)),
        }
        numpyro.sample("y", likelihood(net, INTENSITIES, latents), obs=CHOICES.numpy())

    kernel = NUTS(observer, max_tree_depth=MAX_TREE_DEPTH, init_strategy=init_to_median)
    mcmc = MCMC(kernel, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, progress_bar=False)
    mcmc.run(jax.random.key(0))
    assert_same_posterior(mcmc.get_samples(), pyro_draws())


def test_code_of_the_page_runs():
    names: dict = {}
    exec(page_code(0), names)
    assert names["replicated"].shape == (4, 3, 40) and set(np.unique(names["replicated"])) == {0.0, 1.0}
