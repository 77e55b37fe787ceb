"""Posterior predictive in chunks: shapes, law, chunking, seeds, errors."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from samples import draw
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.workflow.predictive import predictive

B, N, M, DIM_X, DRAWS = 2, 5, 6, 2, 11
ZERO = torch.zeros((), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _clear() -> None:
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def context(scalar_model: ArBufferModel) -> Context:
    return scalar_model.condition(draw(N, DIM_X, seed=2), draw(N, seed=3))


@pytest.fixture(scope="module")
def subjects(scalar_model: ArBufferModel) -> Context:
    """B subjects whose contexts differ."""
    return scalar_model.condition(draw(B, N, DIM_X, seed=2), draw(B, N, seed=3))


def shifted(context: Context, shift: Tensor) -> dist.TransformedDistribution:
    """The joint of M targets, moved by a latent of shape `(*batch,)`."""
    return dist.TransformedDistribution(
        ArBufferJoint(context, draw(M, DIM_X, seed=1)), [AffineTransform(shift.unsqueeze(-1), 1.0, event_dim=1)]
    )


def one_subject(context: Context, y: Tensor | None = None) -> None:
    shift = pyro.sample("shift", dist.Normal(ZERO, 1.0))
    pyro.deterministic("twice", 2 * shift)
    pyro.sample("y", shifted(context, shift), obs=y)


def many_subjects(subjects: Context, y: Tensor | None = None) -> None:
    """Latents of every kind: scalar, of an event, in a plate; and sites with plates to both sides of the subjects."""
    centre = pyro.sample("centre", dist.Normal(ZERO, 1.0))
    slope = pyro.sample("slope", dist.Normal(draw(3, seed=5), 1.0).to_event(1))
    pyro.deterministic("sum", centre + slope.sum(-1))
    with pyro.plate("subjects", B, dim=-1):
        shift = pyro.sample("shift", dist.Normal(centre, 1.0))
        pyro.deterministic("difference", shift - centre)
        pyro.sample("y", shifted(subjects, shift), obs=y)
        with pyro.plate("sessions", 4, dim=-2):
            jitter = pyro.sample("jitter", dist.Normal(shift, 1.0))
            pyro.sample("z", dist.Normal(jitter.unsqueeze(-1) + slope, 1.0).to_event(1))
    with pyro.plate("devices", 5, dim=-2):
        pyro.deterministic("device", pyro.sample("gain", dist.Normal(centre, 1.0)).exp())


def posterior(num_draws: int = DRAWS) -> dict[str, Tensor]:
    """Draws of every latent of `many_subjects`, shaped as MCMC gives them."""
    shapes = {"centre": (), "slope": (3,), "shift": (B,), "jitter": (4, B), "gain": (5, 1)}
    return {name: draw(num_draws, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def assert_same_law(a: Tensor, b: Tensor) -> None:
    """Equal means and second moments of every value and pair of values, within 5 standard errors."""
    statistics = [torch.cat([v, (v[:, :, None] * v[:, None]).flatten(1)], 1) for v in (a.flatten(1), b.flatten(1))]
    error = torch.stack([v.var(0) / len(v) for v in statistics]).sum(0).sqrt()
    assert ((statistics[0].mean(0) - statistics[1].mean(0)).abs() <= 5 * error).all()


# Shapes


def test_sites_have_the_draws_in_front_and_no_dimension_added(subjects: Context) -> None:
    got = predictive(many_subjects, posterior(), subjects, batch_size=4)
    assert {name: tuple(value.shape[1:]) for name, value in got.items()} == {
        "sum": (),
        "difference": (B,),
        "y": (B, M),
        "z": (4, B, 3),
        "device": (5, 1),
    }
    assert {len(value) for value in got.values()} == {DRAWS}


def test_joint_outside_plates_gives_draws_by_targets(context: Context) -> None:
    assert predictive(one_subject, {"shift": draw(DRAWS)}, context)["y"].shape == (DRAWS, M)


def test_outcome_dimensions_are_kept(vector_model: ArBufferModel) -> None:
    context = vector_model.condition(draw(N, DIM_X), draw(N, 3))

    def model() -> None:
        x = pyro.sample("x", dist.Normal(draw(M, DIM_X), 1.0).to_event(2))
        pyro.sample("y", ArBufferMarginals(context, x))

    assert predictive(model, {"x": draw(DRAWS, M, DIM_X)})["y"].shape == (DRAWS, M, 3)


def test_draws_that_have_the_added_dimensions_already_give_the_same(subjects: Context) -> None:
    draws = posterior()
    added = {**draws, "centre": draws["centre"][:, None, None], "slope": draws["slope"][:, None, None, :]}
    added["shift"], added["gain"] = draws["shift"][:, None, :], draws["gain"].squeeze(-1)
    a, b = (predictive(many_subjects, d, subjects, seed=0) for d in (draws, added))
    assert all(torch.equal(a[name], b[name]) for name in a)


# Agreement with Predictive


def test_deterministic_sites_equal_those_of_predictive(subjects: Context) -> None:
    draws = posterior()
    expected = Predictive(many_subjects, draws, parallel=False)(subjects)
    got = predictive(many_subjects, draws, subjects, batch_size=4)
    for name in ("sum", "difference", "device"):
        assert torch.equal(got[name], expected[name].reshape(got[name].shape))


def test_law_is_that_of_predictive(subjects: Context) -> None:
    draws = posterior(3000)
    parallel = {**draws, "centre": draws["centre"][:, None, None], "slope": draws["slope"][:, None, None, :]}
    expected = Predictive(many_subjects, parallel, parallel=True)(subjects)
    got = predictive(many_subjects, draws, subjects)
    for name in ("y", "z"):
        assert_same_law(got[name], expected[name].reshape(got[name].shape))


def test_latents_move_the_outcomes_of_their_own_draw_and_subject(subjects: Context) -> None:
    draws = posterior()
    still = {**draws, "shift": torch.zeros(DRAWS, B, dtype=torch.float64)}
    moved, unmoved = (predictive(many_subjects, d, subjects, seed=3, batch_size=4)["y"] for d in (draws, still))
    torch.testing.assert_close(moved - unmoved, draws["shift"][..., None].expand(DRAWS, B, M), rtol=0, atol=1e-12)


def test_subjects_keep_their_own_contexts(subjects: Context) -> None:
    draws = {name: value[:1].expand(2000, *value.shape[1:]) for name, value in posterior().items()}
    y = predictive(many_subjects, draws, subjects)["y"]
    expected = shifted(subjects, draws["shift"][0]).sample((2000,))
    assert_same_law(y, expected)


# Chunks and seeds


@pytest.mark.parametrize("batch_size", [1, 4, 250])
def test_every_draw_is_in_one_chunk_and_keeps_its_place(context: Context, batch_size: int) -> None:
    shift = draw(DRAWS)
    got = predictive(one_subject, {"shift": shift}, context, batch_size=batch_size)
    assert torch.equal(got["twice"], 2 * shift)
    assert got["y"].unique().numel() == DRAWS * M


def test_chunks_hold_at_most_batch_size_draws(context: Context) -> None:
    sizes = []

    def model() -> None:
        sizes.append(pyro.sample("shift", dist.Normal(0.0, 1.0)).numel())

    predictive(model, {"shift": draw(DRAWS)}, batch_size=4)
    assert sizes == [1, 4, 1, 3, 4, 1, 3, 3, 1, 3]  # one draw, then chunks, one of each alone, three again


def test_seed_fixes_the_draws_and_leaves_the_random_state(context: Context) -> None:
    before = torch.get_rng_state()
    a, b, c = (predictive(one_subject, {"shift": draw(DRAWS)}, context, seed=seed)["y"] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_seed_the_global_state_decides_and_moves_on(context: Context) -> None:
    pyro.set_rng_seed(1)
    a, b = (predictive(one_subject, {"shift": draw(DRAWS)}, context)["y"] for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(a, predictive(one_subject, {"shift": draw(DRAWS)}, context, seed=1)["y"])


# What is drawn anew


def test_observed_sites_are_drawn_anew(subjects: Context) -> None:
    y = torch.zeros(B, M, dtype=torch.float64)
    got = predictive(many_subjects, posterior(), subjects, y, seed=0)
    expected = predictive(many_subjects, posterior(), subjects, seed=0)
    assert got.keys() == expected.keys()
    assert torch.equal(got["y"], expected["y"])


def test_conditioned_sites_are_drawn_anew_and_intervened_ones_stay(context: Context) -> None:
    y = torch.zeros(M, dtype=torch.float64)
    got = predictive(poutine.condition(one_subject, {"y": y}), {"shift": draw(DRAWS)}, context)
    assert (got["y"] != 0).all()
    got = predictive(poutine.do(one_subject, {"shift": torch.tensor(3.0)}), {"y": draw(DRAWS, M)}, context)
    assert torch.equal(got["twice"], torch.full((DRAWS,), 6.0))


def test_latents_without_draws_come_from_the_model(subjects: Context) -> None:
    draws = posterior()
    del draws["jitter"]
    assert predictive(many_subjects, draws, subjects)["jitter"].shape == (DRAWS, 4, B)


def test_deterministic_draws_are_computed_anew_and_not_returned(context: Context) -> None:
    draws = {"shift": draw(DRAWS), "twice": torch.zeros(DRAWS)}
    assert predictive(one_subject, draws, context).keys() == {"y"}


def test_factors_and_constants_pass(context: Context) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("two", 2, dim=-1):
            pyro.factor("penalty", -(z**2))
        pyro.deterministic("grid", torch.arange(3.0))

    got = predictive(model, {"z": torch.randn(DRAWS)})
    assert got.keys() == {"grid"}
    assert torch.equal(got["grid"], torch.arange(3.0).expand(DRAWS, 3))


def test_sequential_plates_add_no_dimension() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("trials", 2):
            pyro.deterministic(f"y{i}", i * pyro.sample(f"x{i}", dist.Normal(z, 1.0)))

    draws = {"z": torch.randn(DRAWS), "x0": torch.randn(DRAWS), "x1": torch.randn(DRAWS)}
    assert torch.equal(predictive(model, draws)["y1"], draws["x1"])


def test_masked_observations_are_drawn_anew(subjects: Context) -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("subjects", B):
            shift = pyro.sample("shift", dist.Normal(ZERO, 1.0))
            pyro.sample("y", shifted(subjects, shift), obs=y, obs_mask=torch.tensor([True, False]))

    unobserved = draw(DRAWS, B, M)
    got = predictive(model, {"shift": draw(DRAWS, B), "y_unobserved": unobserved}, torch.zeros(B, M))
    assert torch.equal(got["y"][:, 0], got["y_observed"][:, 0])
    assert torch.equal(got["y"][:, 1], unobserved[:, 1])


def test_improper_priors_are_never_sampled() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.deterministic("twice", 2 * z)

    z = torch.randn(DRAWS)
    assert torch.equal(predictive(model, {"z": z})["twice"], 2 * z)


def test_results_carry_no_graph_and_store_nothing(context: Context) -> None:
    got = predictive(one_subject, {"shift": draw(DRAWS).requires_grad_()}, context)
    assert not any(value.requires_grad for value in got.values())
    assert list(pyro.get_param_store()) == []


# After Pyro's inference


def test_takes_samples_of_nuts_and_the_arguments_of_its_run(subjects: Context) -> None:
    y = draw(B, M)
    kernel = NUTS(poutine.block(many_subjects, hide=["z", "jitter", "gain", "device"]), max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=4, warmup_steps=2, disable_progbar=True)
    mcmc.run(subjects, y)
    got = predictive(many_subjects, mcmc.get_samples(), subjects, y)
    assert got["y"].shape == (4, B, M)


def test_takes_draws_of_a_guide_of_its_own_shapes(subjects: Context) -> None:
    guide = AutoNormal(poutine.block(many_subjects, hide=["z", "jitter", "gain", "device", "sum", "difference"]))
    draws = Predictive(guide, num_samples=DRAWS)(subjects, draw(B, M))
    assert draws["centre"].shape != (DRAWS,) and "centre_unconstrained" in draws
    assert predictive(many_subjects, draws, subjects)["y"].shape == (DRAWS, B, M)


# Errors


def flat(y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z.unsqueeze(-1) * torch.ones(3), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({}, "got {}"),
        ([torch.zeros(2)], "got list"),
        ({"z": [0.0, 1.0]}, "got {'z': 'list'}; use torch.stack"),
        ({"z": torch.tensor(0.0)}, "got {'z': 'Tensor'}"),
        ({"z": torch.zeros(0)}, "S >= 1; got {'z': 0}"),
        ({"z": torch.zeros(2), "y": torch.zeros(4, 3)}, "'z': 2, 'y': 4"),
        ({"zz": torch.zeros(2)}, r"sites of the model, \['z', 'y'\]; got \['zz'\]"),
        ({"z": torch.zeros(2, 4)}, r"posterior\['z'\] must have shape \(S, \*\(\)\); got \(S, \*\(4,\)\)"),
        ({"z": torch.zeros(2), "y": torch.zeros(2, 4)}, r"posterior\['y'\] must have shape \(S, \*\(3,\)\)"),
    ],
)
def test_posterior_that_does_not_fit_is_an_error(draws: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictive(flat, draws)


def test_a_latent_called_as_what_a_guide_adds_is_taken() -> None:
    def model(y: Tensor | None = None) -> None:
        raw = pyro.sample("z_unconstrained", dist.Normal(0.0, 1.0))
        z = pyro.deterministic("z", raw)
        pyro.sample("y", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), 0.1).to_event(1), obs=y)

    five = torch.full((50,), 5.0)
    drawn = predictive(model, {"z_unconstrained": five, "z": five}, torch.zeros(3), seed=0)
    assert drawn["y"].mean() == pytest.approx(5.0, abs=0.1)


def test_draws_of_what_a_guide_adds_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \['_AutoNormal_latent'\] alone, which a guide adds to them; take what"):
        predictive(flat, {"_AutoNormal_latent": torch.zeros(2, 1)})


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_batch_size_below_one_is_an_error(batch_size: object) -> None:
    with pytest.raises(ValueError, match="batch_size must be an integer, at least 1; got"):
        predictive(flat, {"z": torch.zeros(2)}, batch_size=batch_size)


def test_model_that_is_not_callable_is_an_error() -> None:
    with pytest.raises(ValueError, match="model must be a Pyro model, a callable; got dict"):
        predictive({}, {"z": torch.zeros(2)})


def test_random_subsample_is_an_error_and_a_given_one_is_not() -> None:
    def model(**subsample: object) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("subjects", 5, **subsample):
            pyro.sample("y", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match=r"plate 'subjects' must not subsample at random.*subsample_size=3 of 5"):
        predictive(model, {"z": torch.zeros(2)}, subsample_size=3)
    with pytest.raises(ValueError, match=r"plate 'subjects' takes 3 of its 5 members; predict without the subsample"):
        predictive(model, {"z": torch.zeros(2), "y": torch.zeros(2, 5)}, subsample_size=3)  # of all subjects
    for size, given in ((3, {"subsample": torch.tensor([0, 3, 4])}), (5, {"subsample_size": 5})):
        assert predictive(model, {"z": torch.zeros(2)}, **given)["y"].shape == (2, size)


def branch(z: Tensor) -> None:
    pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0))


def mistaken_for_an_event(z: Tensor) -> None:
    pyro.sample("y", dist.Normal(z * torch.ones(3), 1.0).to_event(1))


def mean_over_draws(z: Tensor) -> None:
    pyro.deterministic("y", z.mean())


def site_of_one_draw_only(z: Tensor) -> None:
    if z.numel() == 1:
        pyro.sample("y", dist.Normal(z, 1.0))


def wider_than_the_draws(z: Tensor) -> None:
    pyro.deterministic("y", z * torch.ones(z.numel(), 2).T)


@pytest.mark.parametrize(
    "rest", [branch, mistaken_for_an_event, mean_over_draws, site_of_one_draw_only, wider_than_the_draws]
)
@pytest.mark.parametrize("num_draws", [3, 7])
def test_model_that_cannot_be_vectorised_is_run_one_by_one(rest: Callable, num_draws: int) -> None:
    def model() -> None:
        rest(pyro.sample("z", dist.Normal(0.0, 1.0)))

    z = torch.randn(num_draws)
    with pytest.warns(UserWarning, match=r"broadcast from the left.*; the draws are run one by one"):
        y = predictive(model, {"z": z})["y"]
    alone = Predictive(model, {"z": z}, parallel=False)()["y"]
    assert y.shape == alone.reshape(y.shape).shape and y.shape[0] == num_draws
    if rest in (mean_over_draws, wider_than_the_draws):
        assert torch.equal(y, alone.reshape(y.shape))


# Models that run for several draws at once and mix them

FEATURES = draw(8, 3, seed=9, dtype=torch.float32)


class Unscored(dist.TorchDistribution):
    """A normal law without density."""

    arg_constraints = {}

    def __init__(self, loc: Tensor, batch_shape: torch.Size | None = None):
        self.loc = loc
        super().__init__(loc.shape if batch_shape is None else batch_shape)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Unscored":
        return Unscored(self.loc.expand(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.normal(self.loc.expand((*sample_shape, *self.batch_shape)), 1.0)


MIXING = {
    "sum": lambda theta: dist.Normal(theta.sum(), 0.1),
    "mean": lambda theta: dist.Normal(theta.mean(), 0.1),
    "softmax": lambda theta: dist.Normal(torch.softmax(theta, 0)[..., 0], 0.1),
    "norm": lambda theta: dist.Normal(0.0, theta.norm()),
    "deep inside": lambda theta: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [AffineTransform(theta.sum(), 0.1)]
    ),
    "without density": lambda theta: Unscored(theta.sum()),
    "delta": lambda theta: dist.Delta(theta.max()),
    "where any is large": lambda theta: dist.Normal(theta[..., 0] * (10.0 if (theta > 2).any() else 1.0), 0.1),
}


def vector_model(law: Callable, length: int = 3) -> Callable:
    """A vector latent and one outcome, whose law is computed from it as one computes with a vector."""

    def model(y: Tensor | None = None) -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(length), 1.0).to_event(1))
        pyro.sample("y", law(theta), obs=y)

    return model


@pytest.mark.parametrize("law", MIXING)
def test_model_that_mixes_draws_is_run_one_by_one_and_says_so(law: str) -> None:
    theta = draw(600, 3, dtype=torch.float32)
    with pytest.warns(
        UserWarning, match=r"site 'y' has another .*theta.sum\(-1\).*; the draws are run one by one"
    ) as said:
        y = predictive(vector_model(MIXING[law]), {"theta": theta}, torch.tensor(0.0), seed=0)["y"]
    assert len(said) == 1 and said[0].filename == __file__
    alone = Predictive(vector_model(MIXING[law]), {"theta": theta}, parallel=False)()["y"].reshape(y.shape)
    assert (y - alone).std() < 4.0 and (y.std() / alone.std() - 1).abs() < 0.15


@pytest.mark.parametrize("index", [0, -1])
def test_one_number_of_a_vector_of_one_is_that_of_its_own_draw(index: int) -> None:
    theta = draw(50, 1, dtype=torch.float32)
    with pytest.warns(UserWarning, match="the draws are run one by one"):
        y = predictive(vector_model(lambda t: dist.Normal(t[index], 1e-3), 1), {"theta": theta})["y"]
    torch.testing.assert_close(y, theta[:, 0], rtol=0, atol=0.01)


def test_deterministic_site_that_mixes_draws_is_right() -> None:
    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.deterministic("share", 1e-6 * torch.softmax(theta, 0), event_dim=1)

    theta = draw(20, 3)
    with pytest.warns(UserWarning, match="site 'share' has another value"):
        share = predictive(model, {"theta": theta})["share"]
    torch.testing.assert_close(share, 1e-6 * torch.softmax(theta, -1))


def test_regression_that_reduces_over_the_event_dimension_is_run_at_once() -> None:
    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
        with pyro.plate("rows", 8):
            y = pyro.sample("y", dist.Normal((theta * FEATURES).sum(-1), scale))
            pyro.sample("count", dist.Poisson(y.abs()))

    runs = []
    counted = lambda: (runs.append(1), model())  # noqa: E731
    draws = {
        "theta": 100 * draw(500, 3, dtype=torch.float32),
        "scale": draw(500, seed=1, dtype=torch.float32).mul(3).exp(),
    }
    assert predictive(counted, draws)["y"].shape == (500, 8)
    assert len(runs) == 7


def test_seed_gives_the_same_draws_one_by_one_too() -> None:
    draws = {"theta": draw(9, 3, dtype=torch.float32)}
    with pytest.warns(UserWarning):
        a, b = (predictive(vector_model(MIXING["sum"]), draws, seed=1)["y"] for _ in range(2))
    assert torch.equal(a, b)


def test_site_that_some_draws_lack_is_an_error() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z < 0:
            pyro.sample("y", dist.Normal(0.0, 1.0))

    with (
        pytest.warns(UserWarning),
        pytest.raises(RuntimeError, match="site 'y' must be there for every posterior draw"),
    ):
        predictive(model, {"z": torch.tensor([-1.0, 1.0])})
