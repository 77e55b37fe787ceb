"""ArBufferPosterior: one law in sampling and density, in the units of the program's own latents."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_nets import LATENTS, ONE, SCALAR, TWO, VECTOR, P, numbers, values
from pyro import poutine
from samples import draw
from torch.testing import assert_close

from pyro_arbuf.distributions import joint
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.network.latents import Latent, Locations

B, S, N = 2, 3, 5
X = draw(N, 2, seed=1)
ORDERS = torch.tensor([[0, 1], [1, 0]])


@pytest.fixture(scope="module", params=[SCALAR, VECTOR], ids=["scalar", "vector"])
def net(request, build_model):
    return build_model(**request.param)


def outcomes(net, *shape, seed=3):
    return draw(*shape, *([net.config.dim_y] if net.config.dim_y else []), seed=seed)


def posterior(net, *batch, latents=None, **options):
    return ArBufferPosterior(net.condition(X, outcomes(net, *batch, N), latents=latents), **options)


def grid_of(num_points, bound=10.0):
    return torch.linspace(-bound, bound, num_points, dtype=torch.float64)


# One law


@pytest.mark.parametrize("dim_y", [None, 3])
def test_density_of_one_latent_normalises(build_model, dim_y):
    grid = grid_of(4001)
    density = posterior(build_model(latents=ONE, dim_y=dim_y)).log_prob(grid[:, None]).exp()
    assert_close(torch.trapezoid(density, grid).item(), 1.0, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def two_latents(build_model):
    """A mixture of both orders of two latents, its density on a square grid, and the grid."""
    d, grid = posterior(build_model(latents=TWO), orders=ORDERS), grid_of(161, 8.0)
    return d, d.log_prob(torch.cartesian_prod(grid, grid)).exp().view(161, 161), grid


def test_density_of_two_latents_in_two_orders_normalises(two_latents):
    _, density, grid = two_latents
    assert_close(torch.trapezoid(torch.trapezoid(density, grid), grid).item(), 1.0, rtol=0, atol=1e-4)


def test_density_is_the_mixture_of_the_orders(two_latents):
    d, u = two_latents[0], draw(S, 2)
    one = torch.stack([ArBufferPosterior(d.context, order[None]).log_prob(u) for order in ORDERS])
    assert (one[0] - one[1]).abs().min() > 1e-3
    assert_close(d.log_prob(u), torch.logsumexp(one, 0) - torch.tensor(2.0, dtype=torch.float64).log())
    assert torch.equal(d.orders, ORDERS)


def test_draws_have_the_moments_of_the_density(two_latents):
    d, density, grid = two_latents
    u = d.sample((20_000,))
    a, b = grid[:, None], grid[None]
    cell = (grid[1] - grid[0]) ** 2
    for power_a, power_b in [(1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]:
        expected = (density * a**power_a * b**power_b).sum() * cell
        feature = u[:, 0] ** power_a * u[:, 1] ** power_b
        assert (feature.mean() - expected).abs() < 5 * feature.std() / len(u) ** 0.5 + 1e-4


def test_chunks_change_neither_draws_nor_densities(net, monkeypatch):
    d = posterior(net, B, orders=random_orders(P, 2))
    pyro.set_rng_seed(1)
    draws = d.sample((S,))
    density = d.log_prob(draws)
    for name in ("sample_joint", "score_joint"):
        monkeypatch.setattr(joint, name, functools.partial(getattr(joint, name), max_tokens=1))
    pyro.set_rng_seed(1)
    assert_close(d.sample((S,)), draws)
    assert_close(d.log_prob(draws), density)


def test_buffer_size_is_part_of_the_density(net):
    u = draw(P)
    densities = torch.stack([posterior(net, buffer_size=size).log_prob(u) for size in (1, 2, 4)])
    assert densities.diff().abs().min() > 1e-6
    assert_close(posterior(net).log_prob(u), densities[2])


def test_density_is_repeatable_and_leaves_the_random_state_alone(net):
    state = torch.get_rng_state()
    u = draw(P)
    assert torch.equal(posterior(net).log_prob(u), posterior(net).log_prob(u))
    assert torch.equal(torch.get_rng_state(), state)


# Sites


def test_sites_are_named_shaped_and_in_their_supports(net):
    sites = posterior(net, B).sites(posterior(net, B).sample((S,)))
    assert list(sites) == list(net.latents)
    for latent in LATENTS:
        assert sites[latent.name].shape == (S, B, *latent.shape)
        assert latent.support.check(sites[latent.name]).all()


def test_sites_and_unconstrain_undo_each_other(net):
    d, u = posterior(net), draw(S, B, P)
    assert_close(d.unconstrain(d.sites(u)), u)
    assert_close(d.unconstrain(values(S)), numbers(values(S)))


def test_density_of_sites_has_the_jacobian_of_autograd(net):
    d = posterior(net)
    for u, got in zip(draw(S, P), d.log_prob_sites(d.sites(draw(S, P))), strict=True):

        def free_coordinates(u):
            sites = d.sites(u)
            return torch.cat([sites["rate"][None], sites["shift"], sites["share"][None], sites["mix"][:2]])

        jacobian = torch.autograd.functional.jacobian(free_coordinates, u)
        assert_close(got, d.log_prob(u) - torch.linalg.slogdet(jacobian).logabsdet)


def test_density_of_a_positive_site_normalises_in_its_own_space(build_model):
    d = posterior(build_model(latents=LATENTS[:1]))
    grid = torch.linspace(1e-4, 60, 60_001, dtype=torch.float64)
    assert_close(torch.trapezoid(d.log_prob_sites({"rate": grid}).exp(), grid).item(), 1.0, rtol=0, atol=1e-2)


def test_sites_of_one_draw_and_of_many_broadcast(net):
    d, sites = posterior(net), values(S)
    mixed = sites | {"rate": sites["rate"][0]}
    expected = d.log_prob_sites(mixed | {"rate": mixed["rate"].expand(S)})
    assert_close(d.log_prob_sites(mixed), expected)


def test_given_latents_are_left_out_in_order(net):
    given = {name: value for name, value in values().items() if name in ("shift", "mix")}
    d = posterior(net, latents=given)
    assert d.event_shape == (2,) and list(d.sites(d.sample())) == ["rate", "share"]
    assert d.log_prob(draw(S, 2)).shape == (S,)


def test_given_latents_of_a_batch_make_a_batch_of_posteriors(net):
    given = {"rate": values(S)["rate"]}
    d, u = posterior(net, latents=given), draw(5)
    alone = torch.stack([posterior(net, latents={"rate": rate}).log_prob(u) for rate in given["rate"]])
    assert d.batch_shape == (S,)
    assert_close(d.log_prob(u), alone)


def test_posterior_is_the_joint_at_the_locations_of_the_latents(net):
    d, u = posterior(net, B), draw(B, P)
    coded = torch.tensor([[0.0, 0.0, p + 1] for p in range(P)], dtype=torch.float64)
    y = u if net.config.dim_y is None else torch.cat([u[..., None], torch.zeros(B, P, 2)], -1)
    assert_close(d.log_prob(u), ArBufferJoint(d.context, Locations(coded)).log_prob(y))


# Shapes and Pyro


def test_posterior_is_expanded_without_copies(net):
    d = posterior(net, B, orders=random_orders(P, 2), buffer_size=3, validate_args=False)
    wide = d.expand([S, B])
    assert isinstance(wide, ArBufferPosterior) and wide.context is d.context and wide.batch_shape == (S, B)
    assert wide.has_rsample is False and wide._validate_args is False and d.batch_shape == (B,)
    u = draw(B, P)
    assert_close(wide.log_prob(u), d.log_prob(u).expand(S, B))
    y = wide.sample((4,))
    assert y.shape == (4, S, B, P) and len(y.flatten(0, 2).unique(dim=0)) == 4 * S * B
    with pytest.raises(ValueError, match="expand"):
        wide.expand([B])


@pytest.mark.parametrize("sample_shape", [(), (0,), (S,), (S, 1, 4)])
def test_shapes_of_draws_and_densities(net, sample_shape):
    d = posterior(net, B)
    u = d.sample(sample_shape)
    assert u.shape == (*sample_shape, B, P) and d.log_prob(u).shape == (*sample_shape, B)
    assert d.support.check(u).shape == (*sample_shape, B)


def test_plate_of_data_sets_scales_and_indexes(net):
    d, u = posterior(net, B), draw(B, P)

    def model(full):
        with pyro.plate("data_sets", B, subsample=None if full else torch.tensor([1])) as index:
            pyro.sample("u", d if full else ArBufferPosterior(d.context[index]), obs=u[index])

    every, part = (poutine.trace(model).get_trace(full).log_prob_sum() for full in (True, False))
    assert_close(every, d.log_prob(u).sum())
    assert_close(part, B * d.log_prob(u)[1])


def test_vectorised_particles_each_have_their_draw(net):
    d = posterior(net)

    def program():
        return pyro.sample("u", d)

    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(program).get_trace()
    u = trace.nodes["u"]["value"]
    assert u.shape == (7, 1, P) and len(u.flatten(0, 1).unique(dim=0)) == 7
    trace.compute_log_prob()
    assert_close(trace.nodes["u"]["log_prob"], d.log_prob(u))


def test_draws_follow_pyros_seed(net):
    draws = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        draws.append(posterior(net).sample((S,)))
    assert torch.equal(*draws)


def test_reparameterised_draws_are_the_draws(net):
    pyro.set_rng_seed(2)
    plain = posterior(net).sample((S,))
    pyro.set_rng_seed(2)
    assert_close(posterior(net, rsample=True).rsample((S,)), plain)
    with pytest.raises(NotImplementedError, match=r"opt in: .* ArBufferPosterior\(ctx, rsample=True\)"):
        posterior(net).rsample()


def test_entropy_says_how_to_estimate_it(net):
    with pytest.raises(NotImplementedError, match=r"-d\.log_prob\(d\.sample"):
        posterior(net).entropy()


def test_reparameterised_draw_moves_with_the_quantile(build_model):
    net = build_model(latents=ONE)
    location = Locations(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))

    def cdf(y, u):
        return ArBufferMarginals(net.condition(X, y), location).cdf(u)

    y = draw(N, seed=3).requires_grad_()
    d = ArBufferPosterior(net.condition(X, y), rsample=True)
    pyro.set_rng_seed(0)
    u = d.rsample()
    got = torch.autograd.grad(u.sum(), y)[0]
    with torch.no_grad():
        step = 1e-6 * torch.eye(N, dtype=torch.float64)
        slope = torch.stack([(cdf(y + h, u) - cdf(y - h, u))[0] / 2e-6 for h in step])
        density = ArBufferPosterior(net.condition(X, y.detach())).log_prob(u).exp()
    assert_close(got, -slope / density, rtol=1e-5, atol=1e-8)


def test_posterior_as_a_prior_in_another_model_is_scored_there(build_model):
    d = posterior(build_model(latents=ONE))
    one = torch.tensor(1.0, dtype=torch.float64)

    def model():
        u = pyro.sample("u", d)
        pyro.sample("z", dist.Normal(u[..., 0], one), obs=one)

    trace = poutine.trace(poutine.condition(model, {"u": draw(1)})).get_trace()
    assert_close(trace.log_prob_sum(), d.log_prob(draw(1)) + dist.Normal(draw(1)[0], 1.0).log_prob(one))


# Errors


def test_posterior_with_nothing_free_is_refused(net, scalar_model):
    with pytest.raises(ValueError, match=r"must leave a latent free; got one where all of \['rate', .* are given"):
        posterior(net, latents=values())
    with pytest.raises(ValueError, match="must leave a latent free; got one where the net has no latents"):
        ArBufferPosterior(scalar_model.condition())
    with pytest.raises(ValueError, match=r"context must be a Context; got ArBufferModel; make one with net.condition"):
        ArBufferPosterior(net)


def test_draws_of_a_large_simplex_can_be_scored_in_single_precision(build_model):
    config = {"dim_x": 2, "latents": (Latent("mix", (20,), simplex=True),), "buffer_size": 19}
    posterior = ArBufferPosterior(build_model(**SCALAR | config).float().condition())
    draws = posterior.sample((50,))
    assert torch.isfinite(posterior.log_prob_sites(posterior.sites(draws))).all()


WRONG = {
    "too_few": (
        lambda d: d.log_prob(draw(P - 1)),
        r"value must be a tensor \(\*batch, 6\).*got \(5,\).*log_prob_sites",
    ),
    "number": (lambda d: d.log_prob(draw()), r"got \(\)"),
    "list": (lambda d: d.log_prob([0.0] * P), "got list"),
    "integers": (lambda d: d.log_prob(torch.zeros(P, dtype=torch.int64)), "floating dtype"),
    "nan": (lambda d: d.log_prob(draw(P) * torch.nan), "must be finite"),
    "batch": (lambda d: d.log_prob(draw(3, P)), "batch shapes must broadcast"),
    "draws": (lambda d: d.sites(draw(P + 1)), r"draws must have shape \(\*batch, 6\); got \(7,\)"),
    "missing_site": (lambda d: d.log_prob_sites({"rate": draw()}), "must hold exactly the free latents"),
    "unknown_site": (lambda d: d.unconstrain(values() | {"speed": draw()}), "must hold exactly the free latents"),
    "site_shape": (lambda d: d.log_prob_sites(values() | {"shift": draw(3)}), r"\(\*batch, 2\); got \(3,\)"),
    "simplex_shape": (lambda d: d.unconstrain(values() | {"mix": draw(2)}), r"\(\*batch, 3\); got \(2,\)"),
    "outside": (
        lambda d: d.log_prob_sites(values() | {"rate": -draw().exp()}),
        r"values\['rate'\] must lie in its sup",
    ),
    "no_simplex": (
        lambda d: d.log_prob_sites(values() | {"mix": torch.ones(3)}),
        r"values\['mix'\] must lie in its sup",
    ),
    "site_number": (lambda d: d.log_prob_sites(values() | {"rate": 2.0}), r"values\['rate'\] must be a torch.Tensor"),
    "orders": (lambda d: ArBufferPosterior(d.context, torch.arange(P)), "orders must be an int64 tensor of shape"),
    "buffer_size": (lambda d: ArBufferPosterior(d.context, buffer_size=5), r"buffer_size must be an integer in 1..4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused(net, case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call(posterior(net, B))


def test_repr_names_the_free_latents(net):
    assert repr(posterior(net, B)) == "ArBufferPosterior(['rate', 'shift', 'share', 'mix'], batch_shape=(2,))"


def test_the_default_order_is_that_of_the_latents_where_the_network_was_trained_in_it(build_model):
    config = {"latents": LATENTS, "dim_y": None}
    shuffled, ordered = (posterior(build_model(**config, ordered_latents=flag)) for flag in (False, True))
    assert torch.equal(ordered.orders, torch.arange(P)[None])
    assert torch.equal(shuffled.orders, random_orders(P, 1))
    given = posterior(build_model(**config, ordered_latents=True), orders=random_orders(P, 3))
    assert torch.equal(given.orders, random_orders(P, 3))
