"""What every bridge calls, without JAX or PyTensor: arrays in, arrays out; and what is said where they are missing."""

import importlib
import sys

import numpy as np
import pytest
import torch
from bridge_cases import B, M, data_of, net_of
from latent_nets import values

import pyro_arbuf
from pyro_arbuf import likelihood
from pyro_arbuf.bridges.arrays import ArrayLikelihood, StandIn

EXTRAS = {"jax": ("jax", "numpyro"), "numpyro": ("numpyro", "numpyro"), "pymc": ("pytensor", "pymc")}


def arrays(kind: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    x, y, latents = data_of(kind)
    return x.numpy(), y.numpy(), [latents[name].numpy() for name in net_of(kind).latents]


@pytest.mark.parametrize("kind", ["scalar", "vector", "dependent"])
def test_value_and_gradients_of_each_data_set_are_those_of_torch(kind):
    x, y, given = arrays(kind)
    net = net_of(kind)
    value, *gradients = ArrayLikelihood(net, "float64").log_prob_and_gradients(x, y, *given)
    for b in range(B):
        own = [v if v.shape == () else v[b] for v in given]
        leaves = {n: torch.tensor(v, requires_grad=True) for n, v in zip(net.latents, own, strict=True)}
        density = likelihood(net, torch.tensor(x), leaves).log_prob(torch.tensor(y[b]))
        expected = torch.autograd.grad(density, list(leaves.values()))
        np.testing.assert_allclose(value[b], density.item(), rtol=1e-10)
        for ours, theirs in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours[b], theirs.numpy(), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(ArrayLikelihood(net, "float64").log_prob(x, y, *given), value)


def test_results_have_the_dtype_that_is_asked_for():
    x, y, given = arrays("scalar")
    found = ArrayLikelihood(net_of("scalar"), "float32").log_prob_and_gradients(x, y, *given)
    assert {result.dtype for result in found} == {np.dtype("f4")}


def test_latents_outside_their_support_raise_nothing():
    x, y, given = arrays("scalar")
    ours = ArrayLikelihood(net_of("scalar"), "float64", validate_args=True)
    given[0] = np.full(B, -1.0)  # of a positive latent
    assert np.isnan(ours.log_prob(x, y, *given)).all()
    assert np.isnan(ours.log_prob_and_gradients(x, y, *given)[0]).all()


@pytest.mark.parametrize(("lapse", "inside"), [(-0.3, False), (-1e-8, True), (0.0, True), (0.2, True), (1.3, False)])
def test_latents_beyond_either_end_of_an_interval_have_no_density(lapse, inside):
    ours = ArrayLikelihood(pyro_arbuf.load("psychometric"), "float64")
    x, y = np.linspace(-2, 2, 9)[:, None], np.arange(9) % 2
    density = ours.log_prob(x, y, np.array(0.0), np.array(2.0), np.array(lapse))
    assert np.isfinite(density) == inside
    assert np.isfinite(ours.log_prob_and_gradients(x, y, np.array(0.0), np.array(2.0), np.array(lapse))[0]) == inside


def test_inputs_that_another_library_has_rounded_are_warned_of():
    net = pyro_arbuf.load("psychometric")
    x = 1e6 + np.linspace(-1.9, 2, 9)[:, None]
    ours = ArrayLikelihood(net.in_units(x_loc=1e6, x_scale=1.0), "float64")
    ours.warn_rounded(x, x)
    with pytest.warns(UserWarning, match=r"x is rounded to float32, by up to 0.0\d+ of the network's units; let JAX"):
        ours.warn_rounded(x, x.astype(np.float32))
    ArrayLikelihood(net, "float64").warn_rounded(x - 1e6, (x - 1e6).astype(np.float32))  # no units


def test_missing_trials_are_dropped():
    x, y, given = arrays("scalar")
    y[1, 2:] = np.nan
    found = ArrayLikelihood(net_of("scalar"), "float64", nan="drop").log_prob(x, y, *given)
    alone = ArrayLikelihood(net_of("scalar"), "float64").log_prob(
        x[:2], y[1, :2], *(v if v.shape == () else v[1] for v in given)
    )
    np.testing.assert_allclose(found[1], alone, rtol=1e-10)
    latents = {name: torch.tensor(v) for name, v in zip(net_of("scalar").latents, given, strict=True)}
    law = likelihood(net_of("scalar"), torch.tensor(x), latents, nan="drop")
    np.testing.assert_allclose(found, law.log_prob(torch.tensor(y)).numpy(), rtol=1e-10)


def test_draws_are_a_function_of_all_seeds_and_leave_the_global_state():
    x, _, given = arrays("scalar")
    ours, seeds = ArrayLikelihood(net_of("scalar"), "float64"), np.arange(2 * B, dtype=np.uint32).reshape(2, B)
    state = torch.get_rng_state()
    first, again = (ours.sample(seeds, x, *given) for _ in range(2))
    assert first.shape == (2, B, M) and torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, ours.sample(seeds + 1, x, *given)).any()
    assert len(np.unique(first)) == first.size


def test_rehearsal_says_what_is_wrong_before_another_library_calls():
    net, (x, y, latents) = net_of("scalar"), data_of("scalar")
    ours, shapes = ArrayLikelihood(net, "float64"), {name: tuple(value.shape) for name, value in latents.items()}
    law = ours.rehearse(x, shapes, y)
    assert law.batch_shape == (B,) and law.event_shape == (M,)
    assert ours.rehearse(StandIn((M, 2)), shapes, StandIn((B, M))).batch_shape == (B,)
    with pytest.raises(ValueError, match=r"\['mix'\] are missing"):
        ours.rehearse(x, {name: shape for name, shape in shapes.items() if name != "mix"}, y)
    with pytest.raises(ValueError, match=r"latents\['mix'\] must have shape \(\*batch, 3\); got \(3, 2\)"):
        ours.rehearse(x, shapes | {"mix": (3, 2)}, y)
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 7\); got \(3, 6\)"):
        ours.rehearse(x, shapes, StandIn((B, 6)))
    with pytest.raises(ValueError, match="y must be finite; got 1 NaN"):
        ours.rehearse(x, shapes, y.masked_fill(y == y.max(), torch.nan))


def test_latents_must_be_a_dict():
    with pytest.raises(ValueError, match=r"latents must be a dict of all latents \['rate', .*; got list"):
        likelihood(net_of("scalar"), data_of("scalar")[0], list(values()))


@pytest.mark.parametrize("name", EXTRAS)
def test_a_bridge_without_its_library_says_what_to_install(name, monkeypatch):
    library, extra = EXTRAS[name]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"pyro_arbuf.bridges.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pyro_arbuf.bridges.{name} needs .*; pip install 'pyro-arbuf\[{extra}\]'"):
        importlib.import_module(f"pyro_arbuf.bridges.{name}")
