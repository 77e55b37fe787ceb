"""Groups, dimensions and densities of a DataTree, and that both lines of ArviZ read it."""

from functools import partial

import ar1
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC, Importance, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc import RandomWalkKernel
from pyro.infer.reparam import LocScaleReparam
from samples import draw, draw_outcomes

import pyro_arbuf.workflow.datatree
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.workflow.datatree import to_datatree, to_inference_data
from pyro_arbuf.workflow.loo import arviz_line, loo_conditionals
from pyro_arbuf.workflow.predictive import predictive

pytestmark = [  # ArviZ's own
    pytest.mark.filterwarnings(r"ignore:\s*ArviZ is undergoing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter"),
]
S, B, N, M = 3, 2, 5, 6


@pytest.fixture
def task(scalar_model, draw_task):
    return draw_task(scalar_model)


@pytest.fixture
def draws():
    return {"level": torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64)}


def shifted(fn, level):
    return dist.TransformedDistribution(fn, dist.transforms.AffineTransform(level.unsqueeze(-1), 1.0, event_dim=1))


def one_event(net, x, y=None, kind=ArBufferJoint):
    """One event of M targets around a level."""
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.deterministic("twice", 2 * level)
    pyro.sample("y", shifted(kind(net.condition(), x), level), obs=y)


def subjects(ctx, x, y=None):
    """Subjects in a plate, each with its own context, around one level."""
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    with pyro.plate("subject", len(x)):
        pyro.sample("y", shifted(ArBufferJoint(ctx, x), level), obs=y)


def rows(y=None):
    """An ordinary site in a plate, and a factor."""
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.factor("bonus", level)
    with pyro.plate("row", 4):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


@pytest.fixture
def event(scalar_model, task):
    """`(model, y)` of one event."""
    return partial(one_event, scalar_model, task.x_target[0]), task.y_target[0, :, 0]


@pytest.fixture
def plate(scalar_model, task):
    """`(model, y)` of subjects."""
    ctx = scalar_model.condition(task.x_context, task.y_context[..., 0])
    return partial(subjects, ctx, task.x_target), task.y_target[..., 0]


def test_a_joint_event_goes_to_joint_log_likelihood_alone(event, draws, scalar_model, task):
    model, y = event
    tree = to_datatree(draws, model, y)
    assert "log_likelihood" not in tree.children
    joint = ArBufferJoint(scalar_model.condition(), task.x_target[0])
    expected = joint.log_prob(y - draws["level"][:, None])
    found = tree["joint_log_likelihood/y"]
    assert found.dims == ("chain", "draw")
    torch.testing.assert_close(torch.from_numpy(found.values[0]), expected)


def test_conditionals_given_by_the_user_stand_beside_the_joint_score(event, draws):
    model, y = event
    densities = loo_conditionals(model, draws, y, num_ratio_draws=0).log_likelihood
    tree = to_datatree(draws, model, y, log_likelihood=densities)
    assert tree["log_likelihood/y"].dims == ("chain", "draw", "target")
    assert tree["joint_log_likelihood/y"].dims == ("chain", "draw")
    np.testing.assert_array_equal(tree["log_likelihood/y"].values[0], densities["y"].numpy())


def test_conditionals_of_subjects_leave_their_joint_scores_too(plate, draws):
    model, y = plate
    densities = loo_conditionals(model, draws, y, num_ratio_draws=0).log_likelihood
    tree = to_datatree(draws, model, y, log_likelihood=densities, posterior_predictive={})
    assert tree["log_likelihood/y"].dims == ("chain", "draw", "subject", "target")
    assert tree["joint_log_likelihood/y"].dims == ("chain", "draw", "subject")


def test_chain_factors_never_get_into_log_likelihood(event, plate, draws, monkeypatch):
    def refuse(self, y):
        raise AssertionError("chain factors asked for")

    monkeypatch.setattr(ArBufferJoint, "log_prob_factors", refuse)
    for (model, y), expected in ((event, None), (plate, ("chain", "draw", "subject"))):
        tree = to_datatree(draws, model, y)
        assert ("log_likelihood" not in tree.children) if expected is None else True
        assert expected is None or tree["log_likelihood/y"].dims == expected


def test_subjects_have_one_density_each(plate, draws, scalar_model, task):
    model, y = plate
    tree = to_datatree(draws, model, y)
    joint = ArBufferJoint(scalar_model.condition(task.x_context, task.y_context[..., 0]), task.x_target)
    expected = joint.log_prob(y - draws["level"][:, None, None])
    torch.testing.assert_close(torch.from_numpy(tree["log_likelihood/y"].values[0]), expected)
    assert "joint_log_likelihood" not in tree.children


def test_marginals_and_ordinary_sites_have_elementwise_densities(scalar_model, task, draws):
    y = task.y_target[0, :, 0]
    tree = to_datatree(draws, partial(one_event, scalar_model, task.x_target[0], kind=ArBufferMarginals), y)
    assert tree["log_likelihood/y"].dims == ("chain", "draw", "target")
    tree = to_datatree(draws, rows, torch.arange(4.0))
    expected = dist.Normal(draws["level"][:, None], 1.0).log_prob(torch.arange(4.0))
    np.testing.assert_allclose(tree["log_likelihood/y"].values[0], expected.numpy())
    assert set(tree.children) == {
        *("posterior", "posterior_predictive", "observed_data", "log_likelihood", "log_prior")
    }


def test_log_prior_has_the_density_of_every_latent_in_its_plate(draws):
    def model(y=None):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("group", 2), poutine.scale(scale=3.0):  # is in no pointwise density either
            effect = pyro.sample("effect", dist.Normal(level, 0.5))
        with pyro.plate("row", 4):
            pyro.sample("y", dist.Normal(effect[..., :1], 1.0), obs=y)

    given = draws | {"effect": torch.randn(S, 2, dtype=torch.float64)}
    tree = to_datatree(given, model, torch.arange(4.0))
    assert tree["log_prior/level"].dims == ("chain", "draw") and set(tree["log_prior"].data_vars) == {"level", "effect"}
    assert tree["log_prior/effect"].dims == ("chain", "draw", "group")
    expected = dist.Normal(draws["level"][:, None], 0.5).log_prob(given["effect"])
    np.testing.assert_allclose(tree["log_prior/effect"].values[0], expected.numpy())


def test_log_prior_leaves_out_what_has_none(scalar_model, task, draws):
    class NoDensity(dist.Normal):
        def log_prob(self, value):
            raise NotImplementedError

    def model(mask, y=None):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("dark", NoDensity(level, 1.0))
        pyro.sample("curve", ArBufferJoint(scalar_model.condition(), task.x_target[0]))
        with pyro.plate("row", 4), poutine.mask(mask=mask):
            pyro.sample("spread", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y, obs_mask=torch.tensor([True, True, True, False]))

    mask = torch.tensor([True, False, True, True])
    others = {"dark": torch.zeros(S), "curve": torch.zeros(S, M, dtype=torch.float64)}
    others |= {"spread": torch.full((S, 4), 0.5, dtype=torch.float64), "y_unobserved": torch.zeros(S, 4)}
    others["spread"][0, :2] = -1.0  # out of its support: no error, a density of 0 where no mask hides it
    tree = to_datatree(draws | others, model, mask, torch.arange(4.0), posterior_predictive={})
    assert set(tree["log_prior"].data_vars) == {"level", "spread"}
    density = tree["log_prior/spread"].values[0]
    assert (density[:, 1] == 0).all() and np.isneginf(density[0, 0]) and np.isfinite(density[1:]).all()
    np.testing.assert_array_equal(density[0, 2:], density[1, 2:])


def test_log_prior_is_minus_infinity_for_the_members_of_a_plate_that_are_outside_the_support():
    inside = torch.tensor([True, True, False])

    def model(y):
        with pyro.plate("row", 3):
            rate = pyro.sample("rate", dist.Uniform(torch.zeros(3, dtype=torch.float64), 1.0))
            pyro.sample("kind", dist.Categorical(torch.ones(4) / 4))
            pyro.sample("y", dist.Normal(rate, 1.0), obs=y)
        pyro.sample("part", dist.HalfNormal(torch.ones(3)).mask(inside).to_event(1))
        pyro.sample("whole", dist.HalfNormal(torch.ones(3)).to_event(1))

    rate = torch.tensor([[0.5, 0.5, 1.5], [0.5, 0.5, 0.5]], dtype=torch.float64)
    kind, level = torch.tensor([[4, 1, 3], [0, 1, 3]]), torch.tensor([[1.0, 2.0, -1.0], [1.0, 2.0, 1.0]])
    draws = {"rate": rate, "kind": kind, "part": level, "whole": level}
    prior = to_datatree(draws, model, torch.zeros(3), posterior_predictive={})["log_prior"]
    assert prior["rate"].values.tolist() == [[[0, 0, -np.inf], [0, 0, 0]]] and prior["rate"].dtype == np.float64
    assert np.isneginf(prior["kind"].values[0, 0, 0]) and np.isfinite(prior["kind"].values[0].flat[1:]).all()
    assert prior["part"].values[0, 0] == prior["part"].values[0, 1] > -10
    assert np.isneginf(prior["whole"].values[0, 0]) and np.isfinite(prior["whole"].values[0, 1])


def test_a_mask_inside_an_event_hides_data_as_one_in_a_plate_does(scalar_model, task, draws):
    mask = torch.tensor([True, False])
    marginals = ArBufferMarginals(scalar_model.condition(), task.x_target)

    def model(y, z):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(level.unsqueeze(-1).expand(2), 1.0).mask(mask).to_event(1), obs=y)
        pyro.sample("z", marginals.mask(mask).to_event(1), obs=z)

    y, z = torch.tensor([0.0, 9.0]), task.y_target[..., 0]
    tree = to_datatree(draws, model, y, z, posterior_predictive={})
    expected = dist.Normal(draws["level"], 1.0).log_prob(y[0])
    assert tree["log_likelihood/y"].y_dim_0.values.tolist() == tree["log_likelihood/z"].z_dim_0.values.tolist() == [0]
    np.testing.assert_allclose(tree["log_likelihood/y"].values[0, :, 0], expected.numpy())
    assert tree["log_likelihood/z"].shape == (1, S, 1, M)
    seen = tree["observed_data"]
    assert seen["y"].isnull().values.tolist() == [False, True] and seen["z"].isnull().all("target").values[1]


def test_a_masked_number_has_no_density(draws):
    def model(y):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(level, 1.0).mask(torch.tensor(False)), obs=y)

    tree = to_datatree(draws, model, torch.zeros(()), posterior_predictive={})
    assert "log_likelihood" not in tree.children and bool(tree["observed_data/y"].isnull())


@pytest.mark.parametrize(("last", "number"), [(3.0, 1), (1.0, 3)])
def test_a_density_that_is_nan_stays_with_a_warning(last, number):
    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 3):
            scale = (level - torch.tensor([0.0, 0.0, 2.0])).sqrt()
            pyro.sample("y", dist.Normal(0.0, scale, validate_args=False), obs=y)

    levels = torch.tensor([1.0, last, last])
    with pytest.warns(UserWarning, match=f"log_likelihood of site 'y' is NaN at {number} of 3 draws where it was"):
        tree = to_datatree({"level": levels}, model, torch.zeros(3), posterior_predictive={})
    assert tree["log_likelihood/y"].isnull().sum(["chain", "draw"]).values.tolist() == [0, 0, number]


def test_a_latent_called_as_what_a_guide_adds_is_a_latent():
    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        raw = pyro.sample("level_unconstrained", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(level + raw, 1.0), obs=y)

    draws = {"level": torch.zeros(S), "level_unconstrained": torch.full((S,), 2.0)}
    tree = to_datatree(draws, model, torch.tensor(2.0), posterior_predictive={})
    assert set(tree["posterior"].data_vars) == set(tree["log_prior"].data_vars) == {*draws}
    expected = dist.Normal(0.0, 1.0).log_prob(torch.zeros(S))
    np.testing.assert_allclose(tree["log_likelihood/y"].values[0], expected.numpy())


def test_what_a_mask_hides_is_no_data(scalar_model, task, draws):
    def model(y):
        pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("subject", 2):
            joint = ArBufferJoint(scalar_model.condition(), task.x_target[0])
            pyro.sample("y", joint, obs=y, obs_mask=torch.tensor([True, False]))

    y = torch.ones(2, M, dtype=torch.float64)
    tree = to_datatree(draws | {"y_unobserved": torch.zeros(S, 2, M)}, model, y)
    seen = tree["observed_data/y_observed"]
    assert (seen[0] == 1).all() and seen[1].isnull().all() and seen.dims == ("subject", "target")
    assert tree["posterior/y"].dims == ("chain", "draw", "subject", "target")


def test_names_that_end_like_those_of_obs_mask_are_of_their_own_plates(draws):
    def model(y):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("p", 3):
            pyro.sample("heat_observed", dist.Normal(level, 1.0), obs=y)
        with pyro.plate("q", 2):
            pyro.sample("heat", dist.Normal(level, 1.0))

    tree = to_datatree(draws | {"heat": torch.zeros(S, 2)}, model, torch.zeros(3), posterior_predictive={})
    assert tree["posterior/heat"].dims == ("chain", "draw", "q")


def test_log_prior_under_a_broad_mask_counts_every_element(draws):
    with poutine.mask(mask=torch.tensor([True, True, False, False])):
        tree = to_datatree(draws, rows, torch.arange(4.0), posterior_predictive={})
    expected = 2 * dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(draws["level"])
    np.testing.assert_allclose(tree["log_prior/level"].values[0], expected.numpy())


def test_groups_have_named_dimensions_and_the_users_labels(plate, draws):
    model, y = plate
    coords = {"subject": ["anna", "ben"], "target": list(range(10, 16))}
    tree = to_datatree(draws, model, y, coords=coords, constant_data={"age": torch.ones(2)}, dims={"age": ["subject"]})
    assert tree["posterior_predictive/y"].dims == ("chain", "draw", "subject", "target")
    assert tree["observed_data/y"].dims == ("subject", "target")
    assert tree["observed_data/y"].sel(subject="ben", target=12).item() == y[1, 2]
    assert tree["constant_data/age"].subject.values.tolist() == ["anna", "ben"]
    assert tree["log_likelihood/y"].subject.values.tolist() == ["anna", "ben"]
    assert tree.attrs["inference_library"] == "pyro"


def test_deterministic_sites_are_posterior_and_not_data(event, draws):
    model, y = event
    tree = to_datatree(draws, model, y)
    np.testing.assert_array_equal(tree["posterior/twice"].values, 2 * draws["level"].numpy()[None])
    assert set(tree["observed_data"].data_vars) == set(tree["posterior_predictive"].data_vars) == {"y"}


@pytest.mark.parametrize("num_new", [4, M])
def test_predictions_of_new_targets_have_dimensions_of_their_own(scalar_model, event, draws, task, num_new):
    model, y = event
    new = predictive(partial(one_event, scalar_model, task.x_target[0, :num_new]), draws)
    coords = {"target": range(M), "new_target": list("abcdef"[:num_new])}
    tree = to_datatree(draws, model, y, predictions={"y": new["y"]}, coords=coords)
    assert tree["predictions/y"].dims == ("chain", "draw", "new_target")
    assert tree["predictions/y"].new_target.values.tolist() == coords["new_target"]


def test_prior_draws_are_split_by_what_is_observed(event, draws):
    model, y = event
    tree = to_datatree(draws, model, y, prior=Predictive(model, num_samples=7)())
    assert set(tree["prior"].data_vars) == {"level", "twice"} and set(tree["prior_predictive"].data_vars) == {"y"}
    assert tree["prior_predictive/y"].sizes == {"chain": 1, "draw": 7, "target": M}


def test_mcmc_brings_its_model_arguments_and_chains():
    y = torch.arange(4.0)
    mcmc = MCMC(RandomWalkKernel(rows), num_samples=5, warmup_steps=2, disable_progbar=True)
    mcmc.run(y)
    samples = mcmc._samples["level"]
    mcmc._samples, mcmc._diagnostics, mcmc.num_chains = {"level": samples.repeat(2, 1)}, mcmc._diagnostics * 2, 2
    mcmc._diagnostics[0]["divergences"] = [3]
    tree = to_datatree(mcmc)
    assert tree["posterior/level"].sizes == {"chain": 2, "draw": 5}
    np.testing.assert_array_equal(tree["posterior/level"].values[1], samples[0].numpy())
    assert tree["sample_stats/diverging"].values.nonzero()[1].tolist() == [3, 3]
    assert tree["sample_stats/acceptance_rate"].dims == ("chain",)
    assert tree["log_likelihood/y"].sizes == {"chain": 2, "draw": 5, "row": 4}


def test_importance_keeps_weights_or_resamples():
    run = Importance(rows, num_samples=6).run(torch.arange(4.0))
    weighted, resampled = to_datatree(run), to_datatree(run, num_samples=9, seed=1)
    assert weighted["sample_stats/log_weight"].sizes == {"chain": 1, "draw": 6}
    assert "sample_stats" not in resampled.children and resampled["posterior/level"].sizes["draw"] == 9
    assert set(resampled["posterior/level"].values[0]) <= set(weighted["posterior/level"].values[0])


def test_a_joint_alone_gives_predictions_and_constants(vector_model, draw_task):
    task = draw_task(vector_model)
    joint = ArBufferJoint(
        vector_model.condition([task.x_context[0, :3], task.x_context[1]], [*short(task)]), task.x_target
    )
    tree = to_datatree(
        joint, num_samples=4, dims={"y": ["subject", "target", "output"]}, coords={"output": list("abc")}
    )
    assert tree["predictions/y"].sizes == {"chain": 1, "draw": 4, "subject": B, "target": M, "output": 3}
    constants = tree["constant_data"]
    np.testing.assert_array_equal(constants["x"].values, task.x_target.numpy())
    np.testing.assert_array_equal(constants["y_context"].values[1], task.y_context[1].numpy())
    assert np.isnan(constants["x_context"].values[0, 3:]).all() and not np.isnan(constants["x_context"].values[1]).any()
    assert set(tree.children) == {"predictions", "constant_data"}


def short(task):
    return task.y_context[0, :3], task.y_context[1]


def test_a_joint_alone_with_outcomes_gives_a_posterior_predictive(scalar_model, task):
    joint, y = ArBufferJoint(scalar_model.condition(), task.x_target[0]), task.y_target[0, :, 0]
    tree = to_datatree(joint, observed=y, num_samples=4)
    assert float(tree["joint_log_likelihood/y"]) == pytest.approx(float(joint.log_prob(y)))
    assert tree["posterior_predictive/y"].sizes["target"] == tree["observed_data/y"].sizes["target"] == M


def test_a_seed_repeats_the_result_and_leaves_the_random_state(event, draws):
    model, y = event
    state = torch.get_rng_state()
    first, second = (to_datatree(draws, model, y, seed=3)["posterior_predictive"] for _ in range(2))
    xr.testing.assert_identical(first.to_dataset(), second.to_dataset())
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_outcomes_stay_in_the_data_and_leave_the_densities(scalar_model, task, draws):
    y = task.y_target[0, :, 0]
    y[2] = torch.nan
    kind = partial(ArBufferMarginals, nan="drop", validate_args=False)
    tree = to_datatree(draws, partial(one_event, scalar_model, task.x_target[0], kind=kind), y, posterior_predictive={})
    assert np.isnan(tree["observed_data/y"].values).nonzero()[0].tolist() == [2]
    assert tree["log_likelihood/y"].target.values.tolist() == [0, 1, 3, 4, 5]
    assert "posterior_predictive" not in tree.children


def test_scattered_missing_outcomes_leave_one_dimension_of_those_observed(scalar_model, task, draws):
    y = task.y_target[..., 0].clone()
    y[0, 2] = y[1, 4] = torch.nan
    ctx = scalar_model.condition(task.x_context, task.y_context[..., 0])

    def model(y):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        kind = partial(ArBufferMarginals, nan="drop", validate_args=False)
        with pyro.plate("subject", B):
            pyro.sample("y", shifted(kind(ctx, task.x_target), level), obs=y)

    array = to_datatree(draws, model, y, posterior_predictive={})["log_likelihood/y"]
    seen = [(s, t) for s in range(B) for t in range(M) if (s, t) not in ((0, 2), (1, 4))]
    assert array.dims == ("chain", "draw", "y_observed") and bool(array.notnull().all())
    assert list(zip(array.subject.values.tolist(), array.target.values.tolist(), strict=True)) == seen


def test_draws_of_a_guide_and_of_the_prior_come_as_pyro_gives_them(plate):
    model, y = plate
    drawn = Predictive(AutoNormal(model), num_samples=S)(y)
    assert "level_unconstrained" in drawn
    drawn["level"] = drawn["level"].view(S, 1)  # as a guide with particles gives it
    tree = to_datatree(drawn, model, y, prior=Predictive(model, num_samples=7)())
    assert set(tree["posterior"].data_vars) == {"level"} and tree["posterior/level"].shape == (1, S)
    assert tree["prior/level"].shape == (1, 7) and tree["prior_predictive/y"].shape == (1, 7, B, M)
    assert loo_conditionals(model, drawn, y).log_likelihood["y"].shape == (S, B, M)


def test_a_plate_left_of_an_empty_dimension_is_named_alone(draws):
    def model(y):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("group", 4, dim=-2):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    tree = to_datatree(draws, model, torch.zeros(4, 1))
    for group in ("log_likelihood", "posterior_predictive"):
        assert tree[group]["y"].sizes == {"chain": 1, "draw": S, "group": 4}


def test_draws_without_a_model_are_a_posterior():
    tree = to_datatree({"w": torch.zeros(5, 2)}, dims={"w": ["feature"]}, coords={"feature": ["a", "b"]})
    assert set(tree.children) == {"posterior"} and tree["posterior/w"].sizes == {"chain": 1, "draw": 5, "feature": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": {"row": [1, 2]}}, "length 4 of 'y'.*2 labels"),
        ({"coords": {"rows": [1, 2]}}, r"coords must have keys among .*'row'.*; got \['rows'\]"),
        ({"dims": {"z": ["a"]}}, r"dims must have keys among .*; got \['z'\]"),
        ({"dims": {"y": ["a", "b"]}}, "must name the 1 dimensions"),
        ({"log_likelihood": {"z": torch.zeros(S, 4)}}, r"observed sites, of \['y'\]; got 'z'"),
        ({"log_likelihood": {"y": torch.zeros(2, 4)}}, "hold the 3 draws of the posterior; got 2"),
        ({"log_likelihood": {"y": torch.zeros(S, 4, 2)}}, "must have the dimensions"),
        ({"posterior_predictive": {"y": np.zeros((S, 4))}}, "use torch.stack"),
        ({"constant_data": {"age": [1, 2]}}, "use torch.as_tensor"),
        ({"num_samples": 5}, "num_samples for that, an ArBufferPosterior and Importance"),
        ({"num_samples": 0}, "at least 1"),
        ({"observed": torch.zeros(4)}, "observed is for an ArBufferJoint alone"),
    ],
)
def test_options_that_do_not_fit_are_refused(draws, options, message):
    with pytest.raises(ValueError, match=message):
        to_datatree(draws, rows, torch.zeros(4), **options)


def test_a_joint_alone_takes_no_model(scalar_model, task):
    joint = ArBufferJoint(scalar_model.condition(), task.x_target[0])
    with pytest.raises(ValueError, match="got a model too"):
        to_datatree(joint, rows)
    with pytest.raises(ValueError, match=r"got \['prior'\] too"):
        to_datatree(joint, prior={"y": torch.zeros(3, M)})


def test_inference_data_without_arviz_0_points_to_the_datatree(draws, monkeypatch):
    monkeypatch.setattr(pyro_arbuf.workflow.datatree, "arviz_line", lambda: 1)
    with pytest.raises(RuntimeError, match="use to_datatree"):
        to_inference_data(draws, rows, torch.zeros(4))


@pytest.fixture
def ar1_fit():
    """Arguments of `to_datatree` for AR(1) errors, whose elpd is known, and that elpd."""
    y = ar1.data()
    posterior = ar1.posterior(y, 400)
    densities = loo_conditionals(ar1.model, posterior, y, num_ratio_draws=0).log_likelihood
    return partial(to_datatree, posterior, ar1.model, y, log_likelihood=densities), float(ar1.exact_elpd(y))


def test_arviz_0_reads_it(ar1_fit, tmp_path):
    if arviz_line() != 0:
        pytest.skip("needs ArviZ 0.x")
    import arviz
    import matplotlib.pyplot as plt

    build, elpd = ar1_fit
    data = to_inference_data(*build.args, **build.keywords)
    assert arviz.loo(data)["elpd_loo"] == pytest.approx(elpd, abs=0.15)
    assert list(arviz.summary(data).index) == ["mu"]
    assert list(arviz.compare({"a": data, "b": data}).index) == ["a", "b"]
    arviz.plot_ppc(data, num_pp_samples=3)
    arviz.plot_loo_pit(data, y="y")
    plt.close("all")
    data.to_netcdf(tmp_path / "fit.nc")
    assert "joint_log_likelihood" in arviz.from_netcdf(tmp_path / "fit.nc").groups()


def test_arviz_1_reads_it(ar1_fit):
    pytest.importorskip("arviz_base")
    arviz_stats = pytest.importorskip("arviz_stats")
    build, elpd = ar1_fit
    tree = build()
    assert arviz_stats.loo(tree).elpd == pytest.approx(elpd, abs=0.15)
    assert list(arviz_stats.summary(tree).index) == ["mu"]
    assert set(arviz_stats.compare({"a": tree, "b": tree}).index) == {"a", "b"}


def test_netcdf_keeps_it(event, draws, tmp_path):
    pytest.importorskip("h5netcdf")
    model, y = event
    tree = to_datatree(draws, model, y)
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as found:
        xr.testing.assert_identical(found.load(), tree)


def named(latent="level", plate="row"):
    """A model that gives its latent and its plate these names."""

    def model(y=None):
        level = pyro.sample(latent, dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate(plate, 4):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    return model


@pytest.mark.parametrize("name", ["chain", "draw", "scope/level"])
def test_a_latent_whose_name_has_no_place_is_refused_and_does_not_vanish(name):
    rule = "must hold no '/'.*rename the sites in the model" if "/" in name else "may be called 'chain' or 'draw'"
    for arguments in ((named(name), torch.zeros(4)), ()):
        with pytest.raises(ValueError, match=rule):
            to_datatree({name: torch.zeros(S)}, *arguments)
    with pytest.raises(ValueError, match=rule):
        to_datatree({"level": torch.zeros(S)}, prior={name: torch.zeros(7)})


@pytest.mark.parametrize("plate", ["chain", "scope/row"])
def test_a_plate_whose_name_has_no_place_is_refused_and_renamed_by_dims(plate, draws):
    with pytest.raises(ValueError, match=r"dims=\{site: \[...\]\}"):
        to_datatree(draws, named(plate=plate), torch.zeros(4))
    tree = to_datatree(draws, named(plate=plate), torch.zeros(4), dims={"y": ["row"]})
    assert tree["posterior_predictive/y"].dims == ("chain", "draw", "row")


def test_a_dimension_of_the_name_of_a_latent_is_refused():
    draws = {"level": torch.zeros(S), "effect": torch.zeros(S, 2)}
    with pytest.raises(ValueError, match=r"would take its place in posterior; got \['level'\]"):
        to_datatree(draws, dims={"effect": ["level"]})
    with pytest.raises(ValueError, match=r"different names; got .'k', 'k'. for 'effect'"):
        to_datatree({"effect": torch.zeros(S, 2, 2)}, dims={"effect": ["k", "k"]})


def test_predictive_draws_of_a_model_that_mixes_draws_are_right():
    def model(y=None):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        with pyro.plate("row", 4):
            pyro.sample("y", dist.Normal(theta.sum(), 1e-3), obs=y)

    theta = torch.tensor([[1.0, 2.0], [30.0, 4.0], [-5.0, 6.0]], dtype=torch.float64)
    with pytest.warns(UserWarning, match="the model mixes draws"):
        tree = to_datatree({"theta": theta}, model, torch.zeros(4))
    np.testing.assert_allclose(tree["posterior_predictive/y"].values[0], theta.sum(1)[:, None].expand(3, 4), atol=0.02)


KINDS = {
    "category": {"outcomes": ("categorical(3)",)},
    "count": {"outcomes": ("count",)},
    "mixed": {"dim_y": 2, "outcomes": ("categorical(2)", "real")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_discrete_outcomes_keep_their_dtype_and_arviz_reads_them(kind, build_model, tmp_path):
    net = build_model(chained=True, **KINDS[kind])
    y = net.config.squeeze_outcome(draw_outcomes(net.config, M))
    y = y.long() if kind == "category" else y

    def model(y=None):
        offset = pyro.sample("offset", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", ArBufferJoint(net.condition(), draw(M, 2) + offset[..., None, None]), obs=y)

    draws = {"offset": draw(40, seed=2)}
    densities = loo_conditionals(model, draws, y, num_ratio_draws=1).log_likelihood
    tree = to_datatree(draws, model, y, log_likelihood=densities, seed=0)
    names = ("chain", "draw", "target", "output")[: 2 + y.dim()]
    assert tree["posterior_predictive/y"].dims == names and tree["observed_data/y"].dims == names[2:]
    for group in ("posterior_predictive", "observed_data"):
        assert tree[group]["y"].dtype == y.numpy().dtype
    if arviz_line() == 0:
        import arviz
        import matplotlib.pyplot as plt

        data = arviz.InferenceData.from_datatree(tree)
        assert np.isfinite(arviz.loo(data)["elpd_loo"]) and list(arviz.summary(data).index) == ["offset"]
        arviz.plot_ppc(data, num_pp_samples=3)
        plt.close("all")
        data.to_netcdf(tmp_path / "fit.nc")
        assert arviz.from_netcdf(tmp_path / "fit.nc").observed_data.y.dtype == y.numpy().dtype


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float64])
def test_choices_stand_in_the_data_as_they_were_given(build_model, dtype):
    net = build_model(chained=True, outcomes=("categorical(2)",))
    y = torch.tensor([True, False, True, True, False, False]).to(dtype)
    tree = to_datatree(ArBufferJoint(net.condition(), draw(M, 2)), observed=y, num_samples=3)
    assert tree["observed_data/y"].dtype == y.numpy().dtype
    assert tree["posterior_predictive/y"].dtype == np.int64


@pytest.mark.parametrize("as_given", [pd.Series, np.asarray])
@pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])
def test_arrays_and_series_observed_make_the_tree_of_tensors(distribution, as_given, scalar_model, draws, task):
    x, y = task.x_context[0], task.y_context[0, :, 0]

    def program(y=None):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        return pyro.sample("y", distribution(scalar_model.condition(), x + level[..., None, None]), obs=y)

    trees = [to_datatree(draws, program, each, seed=0) for each in (as_given(y.numpy()), y)]
    for group in ("observed_data", "posterior_predictive"):
        xr.testing.assert_equal(trees[0][group].to_dataset(), trees[1][group].to_dataset())
    assert set(trees[0].groups) == set(trees[1].groups)


def non_centred(x, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("subjects", len(x)):
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        pyro.sample("aside", dist.Normal(level, 1.0).mask(False), obs=torch.zeros(()))
        pyro.sample("y", dist.Normal(level + x, 1.0), obs=y)


def test_non_centred_and_masked_sites_make_a_tree():
    model = poutine.reparam(non_centred, {"level": LocScaleReparam(0.0)})
    x, y = torch.zeros(3), torch.tensor([0.3, -0.2, 1.0])
    mcmc = MCMC(RandomWalkKernel(model), num_samples=5, warmup_steps=2, disable_progbar=True)
    mcmc.run(x, y)
    tree = to_datatree(mcmc, seed=0)
    posterior = tree["posterior"]
    assert posterior["level"].shape == posterior["level_decentered"].shape == (1, 5, 3)
    np.testing.assert_allclose(posterior["level"], posterior["mean"] + posterior["level_decentered"], rtol=1e-5)
    densities = tree["log_likelihood"]
    assert set(tree["observed_data"].data_vars) == {"y", "aside"} and bool(densities["aside"].isnull().all())
    assert densities["y"].shape == (1, 5, 3) and bool(densities["y"].notnull().all())
