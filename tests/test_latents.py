"""Latents as locations: a model with latents equals the dense reference, in context, buffer and targets."""

import copy
import dataclasses
import pickle

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from latent_nets import LATENTS, NETS, SCALAR, VECTOR, P, as_outcomes, coded, locations, numbers, values, weights
from pyro.infer import MCMC, NUTS
from samples import draw, outcome
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent, standardisation
from pyro_arbuf.workflow.loo import exact_loo

B, S, K, N, M = 2, 3, 4, 5, 6
X, X_TARGET = draw(N, 2, seed=1), draw(M, 2, seed=2)
SOME = ["rate", "mix"]


@pytest.fixture(scope="module", params=NETS)
def net(request, build_model):
    return build_model(**NETS[request.param])


@pytest.fixture(scope="module")
def scalar_net(build_model):
    return build_model(**SCALAR)


@pytest.fixture(scope="module")
def vector_net(build_model):
    return build_model(**VECTOR)


def pick(latents, names):
    return {name: latents[name] for name in names}


def outcomes(net, *shape, seed=3):
    """Outcomes as a user gives them, and with their feature dimension."""
    y = draw(*shape, *outcome(net), seed=seed)
    return y, y if net.config.dim_y else y[..., None]


def reference_context(net, names, latents, y, x=X):
    """Coded inputs and outcomes of the context: latents first."""
    given = as_outcomes(numbers(pick(latents, names)), net)
    return torch.cat([locations(names), coded(x)]), torch.cat([given, y], -2)


# The latents themselves


@pytest.mark.parametrize("latent", LATENTS, ids=lambda latent: latent.name)
def test_unconstrained_numbers_are_those_of_the_formula(latent):
    value = values(S, B)[latent.name]
    got = latent.unconstrain(value)
    assert got.shape == (S, B, latent.size) and latent.support.check(value).all()
    assert_close(got, numbers({latent.name: value}))


@pytest.mark.parametrize("latent", LATENTS, ids=lambda latent: latent.name)
def test_constrain_undoes_unconstrain_and_has_the_jacobian_of_autograd(latent):
    unconstrained = draw(S, latent.size)
    value, log_jacobian = latent.constrain(unconstrained)
    assert value.shape == (S, *latent.shape) and log_jacobian.shape == (S,)
    assert_close(latent.unconstrain(value), unconstrained)
    for u, got in zip(unconstrained, log_jacobian, strict=True):
        matrix = torch.autograd.functional.jacobian(lambda u: latent.constrain(u)[0].reshape(-1)[: latent.size], u)
        assert_close(got, torch.linalg.slogdet(matrix.view(latent.size, latent.size)).logabsdet)


@pytest.mark.parametrize(
    ("bounds", "inside"),
    [
        ({}, -7.0),
        ({"lower": 0.0}, 0.3),
        ({"lower": 2.0}, 2.1),
        ({"upper": -1.0}, -3.0),
        ({"lower": 2.0, "upper": 3.0}, 2.5),
    ],
)
def test_bounds_make_the_support(bounds, inside):
    latent = Latent("a", **bounds)
    assert bool(latent.support.check(torch.tensor(inside)))
    assert_close(latent.constrain(latent.unconstrain(torch.tensor(inside)))[0], torch.tensor(inside))
    outside = [bound + 0.1 * (1 if side == "upper" else -1) for side, bound in bounds.items()]
    assert not any(bool(latent.support.check(torch.tensor(value))) for value in outside)


@pytest.mark.parametrize("value", [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
def test_a_probability_of_zero_has_numbers_and_a_density(value, build_model):
    """The first two had none, and what was predicted given them was NaN."""
    latent = Latent("p", (3,), simplex=True)
    numbers = latent.unconstrain(torch.tensor(value))
    assert numbers.isfinite().all()
    assert_close(latent.constrain(numbers)[0], torch.tensor(value), atol=1e-6, rtol=0)
    context = build_model(latents=(latent,)).condition(X, draw(N, seed=3), latents={"p": torch.tensor(value)})
    assert ArBufferMarginals(context, X).log_prob(draw(N, seed=3)).isfinite()


@pytest.mark.parametrize(
    ("latent", "outside"),
    [
        (Latent("a", lower=2.0, upper=3.0), torch.tensor(3.1)),
        (Latent("a", (3,), lower=2.0, upper=3.0), torch.tensor([2.5, 1.9, 2.5])),
        (Latent("a", (3,), simplex=True), torch.tensor([0.7, -0.1, 0.4])),
        (Latent("a", (2, 3), simplex=True), torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.4]])),
    ],
    ids=["interval", "vector in an interval", "simplex", "two simplices"],
)
def test_values_outside_a_support_have_no_number_and_leave_gradients_of_others_alone(latent, outside):
    inside, jacobian = latent.constrain(draw(4, latent.size).float())
    assert jacobian.shape == (4,) and not latent.excludes(inside).any() and latent.contains(inside).all()
    value = torch.cat([inside, outside[None]]).requires_grad_()
    assert latent.contains(value).tolist() == [True] * 4 + [False]
    found = latent.unconstrain(value)
    assert found.shape == (5, latent.size) and found[4].isnan().all()
    assert_close(found[:4], latent.unconstrain(inside))
    (gradient,) = torch.autograd.grad(found[:4].sum(), value)
    assert gradient[:4].isfinite().all() and (gradient[4] == 0).all()


@pytest.mark.parametrize("ends", [(0.1, 0.6), (0.0, 1.0), (1e6 + 0.3, 1e6 + 0.8)])
def test_ends_that_rounding_moves_are_inside(ends):
    latent = Latent("a", lower=ends[0], upper=ends[1])
    value, _ = latent.constrain(torch.tensor([[-200.0], [200.0]]))
    assert latent.unconstrain(value).isfinite().all()


def test_standardisation_has_a_row_per_location():
    loc, scale = standardisation((Latent("a"), *LATENTS), 2, (3.0, 4.0), (5.0, 6.0))
    assert loc.shape == scale.shape == (2 + P, 2)
    assert loc[0].tolist() == [3, 4] and scale[0].tolist() == [5, 6]
    assert loc[1].tolist() == [0, 0] and scale[1].tolist() == [1, 1]
    assert_close(loc[2:, 0], torch.tensor([0.3, -0.2, 0.4, 0.1, 0.2, -0.1]))
    assert (loc[2:, 1] == 0).all() and (scale[2:, 1] == 1).all()


def test_configuration_with_latents_survives_json(scalar_net):
    config = ModelConfig.from_json(scalar_net.config.to_json())
    assert config == scalar_net.config and config.latents == LATENTS and config.num_latents == P


# Equality with the dense reference


@pytest.mark.parametrize("names", [[], SOME, list(values())], ids=["none", "some", "all"])
@pytest.mark.parametrize("num_context", [0, N])
def test_joint_with_latents_in_the_context_equals_the_reference(net, names, num_context):
    y, y_full = outcomes(net, num_context)
    target, target_full = outcomes(net, M, seed=4)
    latents, x = values(), X[:num_context]
    context = net.condition(x, y, latents=pick(latents, names))
    x_context, y_context = reference_context(net, names, latents, y_full, x) if names else (coded(x), y_full)
    orders = torch.stack([torch.arange(M), torch.tensor([3, 0, 5, 1, 4, 2])])
    got = ArBufferJoint(context, X_TARGET, orders).log_prob(target)
    expected = reference.log_prob(
        weights(net), 2, x_context, y_context, coded(X_TARGET), target_full, orders.tolist(), K
    )
    assert_close(got, expected)


@pytest.mark.parametrize("names", [[], SOME], ids=["none", "some"])
@pytest.mark.parametrize("buffer_size", [1, 3, K])
def test_posterior_equals_the_reference_with_latents_in_buffer_and_targets(net, names, buffer_size):
    y, y_full = outcomes(net, N)
    latents = values()
    context = net.condition(X, y, latents=pick(latents, names))
    x_context, y_context = reference_context(net, names, latents, y_full) if names else (coded(X), y_full)
    free = [name for name in latents if name not in names]
    wanted = numbers(pick(values(seed=5), free))
    orders = torch.stack([torch.arange(len(wanted)), torch.arange(len(wanted)).flip(0)])
    got = ArBufferPosterior(context, orders, buffer_size).log_prob(wanted)
    chained = (locations(free), as_outcomes(wanted, net), orders.tolist(), buffer_size)
    assert_close(got, reference.log_prob(weights(net), 2, x_context, y_context, *chained))


def test_posterior_draws_are_those_of_the_reference(net):
    y, y_full = outcomes(net, N)
    dim_y = net.config.dim_y or 1
    order = torch.tensor([[4, 0, 3, 5, 1, 2]])
    torch.manual_seed(1)
    got = ArBufferPosterior(net.condition(X, y), order).sample((S,))
    torch.manual_seed(1)
    uniform = torch.rand(S, P, dim_y, dtype=torch.float64)
    normal = torch.randn_like(uniform)
    chained = (coded(X), y_full, locations(list(values())), order[0].tolist(), K, uniform, normal)
    assert_close(got, reference.sample(weights(net), 2, *chained)[..., 0])


def test_training_forward_mixes_latents_and_observations_as_the_reference(net):
    _, y = outcomes(net, B, N)
    given = as_outcomes(draw(B, P, seed=6), net)
    x_all = torch.cat([locations(list(values())), coded(X)]).expand(B, -1, -1)
    y_all = torch.cat([given, y], -2)
    context, buffer, targets = [0, 6, 3, 7], [8, 1, 4], [2, 9, 5, 10]
    parts = [part[:, rows] for rows in (context, buffer, targets) for part in (x_all, y_all)]
    prefix_len = [0, 3, 1, 2]
    got = net.score(Batch(*parts, torch.tensor(prefix_len)))
    mixture = reference.predictive(weights(net), 2, *parts[:5], prefix_len)
    assert_close(got, mixture.log_prob(parts[5]).sum(-1))


@pytest.mark.parametrize("head", ["mixture", "gaussian"])
def test_predictive_of_an_observation_normalises_in_a_model_with_latents(build_model, head):
    marginals = ArBufferMarginals(build_model(**SCALAR, head=head).condition(latents=values()), X_TARGET[:1])
    grid = torch.linspace(-60, 60, 24_001, dtype=torch.float64)[:, None]
    assert_close(torch.trapezoid(marginals.log_prob(grid).exp(), grid[:, 0]).item(), 1.0, rtol=0, atol=1e-6)


# Units


@pytest.mark.parametrize("dim_y", [None, 3])
def test_standardisation_is_an_exact_change_of_variables(build_model, dim_y):
    fields = {"latents": LATENTS, "dim_y": dim_y}
    loc, scale = (0.5, -1.0, 0.25)[: dim_y or 1], (1.75, 0.5, 2.0)[: dim_y or 1]
    x_loc, x_scale = (0.5, -0.25), (1.5, 0.75)
    plain = build_model(**fields)
    scaled = build_model(**fields, y_loc=loc, y_scale=scale, x_loc=x_loc, x_scale=x_scale)
    to = {"dtype": torch.float64}
    z, z_target = (outcomes(plain, n, seed=n)[0] for n in (N, M))
    y, y_target = (v * torch.tensor(scale, **to).squeeze() + torch.tensor(loc, **to).squeeze() for v in (z, z_target))
    x, x_target = (v * torch.tensor(x_scale, **to) + torch.tensor(x_loc, **to) for v in (X, X_TARGET))
    contexts = plain.condition(X, z), scaled.condition(x, y)
    log_scale = M * torch.tensor(scale, **to).log().sum()
    assert_close(
        ArBufferJoint(contexts[1], x_target).log_prob(y_target),
        ArBufferJoint(contexts[0], X_TARGET).log_prob(z_target) - log_scale,
    )
    assert_close(*(ArBufferPosterior(context).log_prob(draw(P)) for context in contexts))


def test_standardised_latents_are_an_exact_change_of_variables(build_model):
    scaled = build_model(latents=(Latent("a", (2,), loc=(0.5, -0.25), scale=(2.0, 0.5)), Latent("b", lower=0.0)))
    plain = build_model(latents=(Latent("a", (2,)), Latent("b", lower=0.0)))
    y, scale = draw(N), torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    z = draw(3)
    u = z * scale + torch.tensor([0.5, -0.25, 0.0], dtype=torch.float64)
    got = ArBufferPosterior(scaled.condition(X, y)).log_prob(u)
    assert_close(got, ArBufferPosterior(plain.condition(X, y)).log_prob(z) - scale.log().sum())
    given = [net.condition(X, y, latents={"a": v[:2]}) for net, v in ((scaled, u), (plain, z))]
    assert_close(*(ArBufferMarginals(context, X_TARGET).log_prob(draw(M)) for context in given))


# Contexts


def density(context):
    joint = ArBufferJoint(context, X_TARGET)
    return joint.log_prob(draw(*context.batch_shape, *joint.event_shape, seed=7))


def test_context_is_permutation_invariant_and_latents_may_come_in_any_order(net):
    y, latents = outcomes(net, N)[0], values()
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    other = net.condition(X[shuffled], y[shuffled], latents=dict(reversed(latents.items())))
    assert other.latents == net.latents
    assert_close(density(other), density(net.condition(X, y, latents=latents)))


def test_given_latents_matter_to_every_target(net):
    y, latents = outcomes(net, N)[0], values()
    for name in latents:
        changed = latents | {name: values(seed=8)[name]}
        contexts = (net.condition(X, y, latents=given) for given in (latents, changed))
        before, after = (
            ArBufferMarginals(context, X_TARGET).log_prob_factors(outcomes(net, M)[0]) for context in contexts
        )
        assert ((before - after).abs() > 1e-6).all()


@pytest.mark.parametrize("batch", [(), (3,)])
def test_padding_leaves_no_trace_beside_latents(net, batch):
    lengths, latents = [0, 2, N], pick(values(*batch), SOME)
    y = outcomes(net, N)[0]
    context = net.condition([X[:n] for n in lengths], [y[:n] for n in lengths], latents=latents)
    assert context.batch_shape == (3,) and context.num_context == N and context.observations[2].tolist() == lengths
    wanted = outcomes(net, M, seed=4)[0]
    for i, n in enumerate(lengths):
        own = {name: value[i] if batch else value for name, value in latents.items()}
        alone = ArBufferJoint(net.condition(X[:n], y[:n], latents=own), X_TARGET).log_prob(wanted)
        assert_close(ArBufferJoint(context, X_TARGET).log_prob(wanted)[i], alone)
        assert_close(ArBufferJoint(context[i], X_TARGET).log_prob(wanted), alone)


@pytest.mark.parametrize(("of_latents", "of_data"), [((S,), ()), ((S, 1), (B,)), ((), (B,)), ((B,), (S, 1))])
def test_batches_of_latents_and_of_data_broadcast(vector_net, of_latents, of_data):
    net, latents = vector_net, pick(values(*of_latents), SOME)
    x, y = draw(*of_data, N, 2, seed=1), outcomes(net, *of_data, N)[0]
    context = net.condition(x, y, latents=latents)
    shape = torch.broadcast_shapes(of_latents, of_data)
    assert context.batch_shape == shape and context.num_context == N
    wanted = outcomes(net, M, seed=4)[0]
    got = ArBufferJoint(context, X_TARGET).log_prob(wanted)
    for index in torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape)).tolist():
        own = {
            latent.name: latents[latent.name].expand(*shape, *latent.shape)[tuple(index)]
            for latent in LATENTS
            if latent.name in latents
        }
        alone = net.condition(x.expand(*shape, N, 2)[tuple(index)], y.expand(*shape, N, 3)[tuple(index)], latents=own)
        assert_close(got[tuple(index)], ArBufferJoint(alone, X_TARGET).log_prob(wanted))


def test_observations_and_given_numbers_are_told_apart(net):
    y, y_full = outcomes(net, N)
    latents = pick(values(B), SOME)
    context = net.condition(X, y, latents=latents)
    x_seen, y_seen, length = context.observations
    assert_close(x_seen, X.expand(B, N, 2))
    assert_close(y_seen, y_full.expand(B, *y_full.shape))
    assert length is None and context.num_context == N and context.num_given == 3
    assert_close(context.given, numbers(latents))


def test_observations_that_join_later_are_not_taken_for_latents(net):
    y, y_full = outcomes(net, N)
    more, more_full = outcomes(net, 2, seed=9)
    latents = pick(values(), SOME)
    grown = ArBufferJoint(net.condition(X, y, latents=latents), X_TARGET).condition([4, 1], more).context
    assert grown.latents == ("rate", "mix") and grown.num_context == N + 2
    x_seen, y_seen, _ = grown.observations
    assert_close(x_seen[0], torch.cat([X_TARGET[[4, 1]], X]))
    assert_close(y_seen[0], torch.cat([more_full, y_full]))
    assert_close(grown.given[0], numbers(latents))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda context: pickle.loads(pickle.dumps(context))])
def test_copy_of_a_context_keeps_its_latents(scalar_net, copied):
    context = scalar_net.condition(X, draw(N), latents=pick(values(S), SOME))
    other = copied(context)
    assert other.latents == context.latents and other.num_context == N
    assert_close(density(other), density(context))
    assert_close(ArBufferPosterior(other).log_prob(draw(3)), ArBufferPosterior(context).log_prob(draw(3)))


def test_context_with_latents_is_indexed_expanded_and_moved(build_model):
    net = build_model(**SCALAR).float()
    latents = pick(values(S), SOME)
    context = net.condition(X, draw(N), latents=latents)
    assert context[1].latents == context.latents
    own = {name: value[1] for name, value in latents.items()}
    assert_close(density(context[1]), density(net.condition(X, draw(N), latents=own)), rtol=0, atol=1e-4)
    wide = context.expand(B, S)
    assert_close(
        ArBufferPosterior(wide).log_prob(draw(3)),
        ArBufferPosterior(context).log_prob(draw(3)).expand(B, S),
        check_dtype=False,
    )
    net.double()
    moved = context.to(torch.float64)
    assert moved.latents == context.latents and moved.x.dtype == torch.float64 and moved.num_context == N
    assert_close(density(moved), density(net.condition(X, draw(N), latents=latents)), rtol=0, atol=1e-4)


def test_integer_and_float_values_of_latents_are_taken(scalar_net):
    got = density(scalar_net.condition(latents={"rate": 2, "share": 0.5}))
    tensors = {"rate": torch.tensor(2.0), "share": torch.tensor(0.5)}
    assert_close(got, density(scalar_net.condition(latents=tensors)))


REFUSED = {
    "unknown": ({"speed": torch.tensor(1.0)}, "got 'speed'; the model's latents are"),
    "below_support": ({"rate": torch.tensor(-0.1)}, "latents['rate'] must lie in its support"),
    "above_support": ({"share": torch.tensor(2.1)}, "latents['share'] must lie in its support"),
    "no_simplex": ({"mix": torch.tensor([0.5, 0.4, 0.3])}, "latents['mix'] must lie in its support"),
    "shape": ({"shift": torch.zeros(3)}, "latents['shift'] must have shape (*batch, 2); got (3,)"),
    "number_for_a_vector": ({"shift": 0.5}, "latents['shift'] must have shape (*batch, 2); got ()"),
    "integers": ({"rate": torch.tensor([1, 2])}, "latents['rate'] must have a floating dtype"),
    "nan": ({"share": torch.tensor(float("nan"))}, "latents['share'] must be finite"),
    "batches": ({"rate": torch.ones(2), "share": torch.ones(3)}, "batch shapes must broadcast"),
    "batch_against_data": ({"rate": torch.ones(3)}, "batch shapes must broadcast; got x and y (2,), latents (3,)"),
    "no_task": ({"rate": torch.ones(0, 1)}, "must hold at least one task; got the batch shape (0, 2)"),
    "list": ({"rate": [1.0]}, "latents['rate'] must be a torch.Tensor; got list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_latents_are_refused_before_any_compute(scalar_net, monkeypatch, case):
    latents, message = REFUSED[case]
    monkeypatch.setattr(type(scalar_net), "encode", None)
    with pytest.raises(ValueError) as caught:
        scalar_net.condition(X.expand(2, N, 2), draw(N), latents=latents)
    assert message in str(caught.value)


def test_latents_of_a_model_without_are_refused(scalar_model):
    with pytest.raises(ValueError, match="got 'rate'; the model has none"):
        scalar_model.condition(latents={"rate": 1.0})


def test_latents_of_one_name_are_refused(scalar_net):
    with pytest.raises(ValueError, match="different names"):
        dataclasses.replace(scalar_net.config, latents=(Latent("a"), Latent("a")))


def test_exact_loo_of_a_model_with_latents_equals_conditioning_by_hand(net):
    y = outcomes(net, N)[0]
    got = torch.from_numpy(exact_loo(net, X, y).elpd_i.values)
    for i in range(N):
        rest = [j for j in range(N) if j != i]
        alone = ArBufferMarginals(net.condition(X[rest], y[rest]), X[i : i + 1])
        assert_close(got[i], alone.log_prob(y[i : i + 1]))


# Gradients


def test_amortised_likelihood_has_the_gradient_of_finite_differences(net):
    y = outcomes(net, S, N)[0]

    def log_likelihood(*parts):
        latents = dict(zip(values(), parts, strict=True)) | {"mix": torch.softmax(parts[3], -1)}
        return ArBufferMarginals(net.condition(latents=latents), X).log_prob(y)

    parts = [value.clone().requires_grad_() for value in values(S).values()]
    assert torch.autograd.gradcheck(log_likelihood, parts, eps=1e-6, atol=1e-6)


def test_likelihood_with_other_latents_integrated_out_has_gradients(scalar_net):
    def log_likelihood(rate):
        return ArBufferJoint(scalar_net.condition(X[:2], draw(2), latents={"rate": rate}), X).log_prob(draw(N))

    assert torch.autograd.gradcheck(log_likelihood, [values(S)["rate"].clone().requires_grad_()], eps=1e-6, atol=1e-6)


def test_posterior_given_a_latent_has_gradients_in_it(vector_net):
    def log_posterior(rate, u):
        return ArBufferPosterior(vector_net.condition(X, draw(N, 3), latents={"rate": rate})).log_prob(u)

    arguments = [values(S)["rate"].clone().requires_grad_(), draw(S, 5).requires_grad_()]
    assert torch.autograd.gradcheck(log_posterior, arguments, eps=1e-6, atol=1e-6)


def test_nuts_runs_through_the_amortised_likelihood(scalar_net):
    y = draw(N)

    def model():
        latents = {
            "rate": pyro.sample("rate", dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), 0.5)),
            "shift": pyro.sample("shift", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)),
            "share": pyro.sample("share", dist.Uniform(torch.tensor(-1.0, dtype=torch.float64), 2.0)),
            "mix": pyro.sample("mix", dist.Dirichlet(torch.ones(3, dtype=torch.float64))),
        }
        pyro.sample("y", ArBufferMarginals(scalar_net.condition(latents=latents), X), obs=y)

    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=8, warmup_steps=8, disable_progbar=True)
    mcmc.run()
    sampled = mcmc.get_samples()
    for latent in LATENTS:
        draws = sampled[latent.name]
        assert latent.support.check(draws).all() and len(draws.reshape(8, -1).unique(dim=0)) > 4
