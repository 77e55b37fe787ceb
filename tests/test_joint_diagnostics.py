"""Diagnostics that see the joint: exact posteriors pass, spoiled ones fail; of a Gaussian with a strong correlation."""

import importlib
import sys

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import sum_of_two
import torch
from latent_nets import LATENTS
from matplotlib.figure import Figure
from sum_of_two import FIELDS, SPOILED, X, Y, exact, independent, shifted
from torch.distributions import MultivariateNormal, Normal

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, calibrate, check_observation, local_c2st, posterior_sbc, tarp
from pyro_arbuf.priors.ar1 import ar1
from pyro_arbuf.programs import local_c2st as local_module
from pyro_arbuf.programs.ranks import LEVELS, plot_ranks
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.tarp import prior_scales

D = 800
sklearn = pytest.importorskip("sklearn.ensemble")


@pytest.fixture(scope="module")
def net(build_model):
    return sum_of_two.with_program(build_model(**FIELDS))


def few_trees():
    return sklearn.HistGradientBoostingClassifier(max_iter=15, max_depth=3, early_stopping=False)


CHECKS = {
    "calibrate": lambda net, law: calibrate(net, D, num_trials=8, posterior=law),
    "tarp": lambda net, law: tarp(net, D, num_trials=8, posterior=law),
    "posterior_sbc": lambda net, law: posterior_sbc(net, X, Y, D, posterior=law),
    "local_c2st": lambda net, law: local_c2st(net, X, Y, D, posterior=law, classifier=few_trees),
}


@pytest.mark.parametrize("check", CHECKS)
def test_exact_posterior_passes(net, check):
    assert CHECKS[check](net, exact).p_value > 0.01


@pytest.mark.parametrize("law", SPOILED)
@pytest.mark.parametrize("check", CHECKS)
def test_spoiled_posterior_fails(net, check, law):
    assert CHECKS[check](net, SPOILED[law]).p_value < 0.01


def test_lost_correlation_is_seen_by_the_density_and_by_no_margin(net):
    found = calibrate(net, D, num_trials=8, posterior=independent)
    assert found.p_values.min() > 0.01 and found.density_p_value < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_p_values_of_exact_posteriors_are_no_luck_of_a_seed(net, seed):
    assert calibrate(net, 200, 39, num_trials=4, posterior=exact, seed=seed).density_p_value > 0.005
    assert tarp(net, 200, 39, num_trials=4, posterior=exact, seed=seed).p_value > 0.005
    assert posterior_sbc(net, X, Y, 200, 39, posterior=exact, seed=seed).p_value > 0.005


def test_density_ranks_count_the_draws_of_lower_density(net):
    """Of a standard normal law the density falls with the distance from zero."""

    def standard(context):
        return MultivariateNormal(torch.zeros(*context.batch_shape, 2), torch.eye(2))

    found = calibrate(net, 2000, 19, 3, posterior=standard)  # the prior, whatever the data
    assert abs(found.density_ranks.double().mean() - 9.5) < 5 * 5.8 / 2000**0.5
    assert found.gain.abs().max() < 1e-4 and found.p_value > 0.01
    wide = calibrate(
        net, 500, 19, 3, posterior=lambda c: MultivariateNormal(torch.zeros(*c.batch_shape, 2), 1e4 * torch.eye(2))
    )
    assert wide.density_ranks.double().mean() > 18.9


def test_posterior_takes_the_place_of_the_prior_around_observed_data(net):
    found = posterior_sbc(net, X, Y, 300, posterior=exact)
    assert found.group == "posterior_sbc" and "posterior sd / sd before" in repr(found)
    ratio = (
        exact(net.condition(torch.zeros(16, 1), torch.zeros(16))).variance / exact(net.condition(X, Y)).variance
    ).sqrt()
    torch.testing.assert_close(found.contraction.double(), ratio[0].double(), rtol=0, atol=0.06)
    assert abs(found.gain.mean() - 0.5 * torch.tensor(33 / 17).log()) < 5 * found.gain.std() / 300**0.5


def test_new_trials_are_simulated_from_the_latents_at_observed_inputs(net):
    simulator = net.simulator
    latents = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    drawn = simulator.draw_given(latents, X[:5])
    assert drawn.y.shape == (2, 5, 1) and (drawn.y[1] - drawn.y[0] > 80).all()
    assert torch.equal(drawn.latents, latents)
    at = simulator.draw_at(torch.full((3, 1), 0.25), 6)
    assert at.latents.shape == (6, 2) and (at.x == 0.25).all() and at.x.shape == (6, 3, 1)


def test_outcomes_that_are_not_finite_are_refused():
    def program(x):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(torch.where(a > 1e3, torch.inf, a), 1.0))

    simulator = Simulator(program, vectorized=True)
    with pytest.raises(
        ValueError, match=r"finite numbers at the given latents; got NaN .* in 1 of 1 data sets; bound the prior"
    ):
        simulator.draw_given(torch.tensor([[0.0], [2e3]]), torch.zeros(3, 1))


def test_fewer_new_trials_fit_into_the_trained_number(net):
    x, y = torch.zeros(15, 1), torch.linspace(-1, 1, 15)
    assert posterior_sbc(net, x, y, 20, 19).ranks.shape == (20, 2)  # 5 new trials
    with pytest.raises(ValueError, match="at most 20 as trained; got 20 observed ones"):
        posterior_sbc(net, torch.zeros(20, 1), torch.zeros(20))
    with pytest.raises(ValueError, match="num_trials must be at most 8"):
        posterior_sbc(net, X, Y, num_trials=9)


def test_trials_that_depend_on_each_other_are_refused():
    net = pyro_arbuf.load("ar1")
    with pytest.raises(ValueError, match="got a program whose trials are: series; use calibrate"):
        posterior_sbc(net, torch.arange(5.0)[:, None], torch.zeros(5), program=Simulator(ar1))


def test_coverage_of_regions_is_the_share_of_true_latents_in_them(net):
    found = tarp(net, 400, 99, 8, posterior=exact, num_references=3)
    assert found.references.shape == (3, 2) and found.ranks.shape == (400, 3)
    for i, level in enumerate(LEVELS):
        direct = ((found.ranks + 0.5) / 100 < level).double().mean(0)
        torch.testing.assert_close(found.coverage[i].double(), direct, rtol=0, atol=0.02)
    assert (found.coverage - torch.tensor(LEVELS)[:, None]).abs().max() < 5 * 0.5 / 400**0.5


def test_distances_are_in_units_of_the_scales_of_the_prior():
    assert prior_scales(LATENTS).tolist() == pytest.approx([0.6, 1.3, 0.8, 1.6, 1.1, 0.9])
    assert prior_scales(FIELDS["latents"]).tolist() == [1.0, 1.0]


def test_local_check_finds_a_posterior_that_is_wrong_only_there(net):
    def sometimes(context):
        wrong = context.observations[1].mean((1, 2)) > 0.5
        good, bad = exact(context), shifted(context)
        return MultivariateNormal(torch.where(wrong[:, None], bad.mean, good.mean), good.covariance_matrix)

    there = local_c2st(net, X, Y, 500, posterior=sometimes, classifier=few_trees)
    elsewhere = local_c2st(net, X, Y - 2.5, 500, num_null=1, posterior=sometimes, classifier=few_trees)
    assert there.p_value < 0.01 and there.statistic > 5 * elsewhere.statistic


def test_default_classifier_is_that_of_scikit_learn(net, monkeypatch):
    found = local_c2st(net, X, Y, 100, 50, 4, posterior=exact)
    assert found.draws.shape == (50, 2) and found.probability.shape == (50,) and found.null.shape == (4,)
    assert 0.2 <= found.p_value <= 1
    monkeypatch.setattr(local_module, "simulating", None)  # nothing is computed
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(RuntimeError, match=r"needs scikit-learn.*pip install 'pyro-arbuf\[diagnostics\]'"):
        local_c2st(net, X, Y)


def test_default_classifier_tells_spoiled_posteriors_from_the_exact_one(net):
    found = {
        name: local_c2st(net, X, Y, 400, 200, 30, posterior=law) for name, law in ({"exact": exact} | SPOILED).items()
    }
    assert found.pop("exact").p_value > 0.03
    assert all(each.p_value < 0.04 for each in found.values())  # none of 30 classifiers of swapped labels


def test_data_of_a_spread_beyond_the_prior_are_told_and_those_within_are_not():
    net, x = pyro_arbuf.load("gaussian"), torch.zeros(30, 1)
    noise = dist.Normal(0.0, 1.0).sample((30,))
    noise = (noise - noise.mean()) / noise.std()
    p = {scale: check_observation(net, x, scale * noise).p_value for scale in (0.05, 0.7, 2.0, 12.0)}
    assert p[0.7] > 0.05 and p[2.0] > 0.05 and p[0.05] < 0.05 and p[12.0] < 0.05


def test_observations_that_the_network_predicts_have_uniform_p_values(net):
    y = ArBufferJoint(net.condition(), X[:3]).sample((60,))
    p = torch.tensor([check_observation(net, X[:3], one, 39, 1, seed=i).p_value for i, one in enumerate(y)])
    for level in (0.1, 0.5):
        share = (p <= level).double().mean()
        assert abs(share - level) < 4 * (level * (1 - level) / 60) ** 0.5


def test_observation_far_from_the_simulations_or_too_regular_is_found(net, scalar_model):
    drawn = ArBufferJoint(net.condition(), X).sample()
    assert check_observation(net, X, drawn).p_value > 0.01
    assert check_observation(net, X, drawn + 30).p_value == 2 / 201
    x = torch.linspace(-1, 1, 6)[:, None].expand(6, 2)
    plain = check_observation(scalar_model, x, ArBufferJoint(scalar_model.condition(), x).sample(), 40)
    assert plain.draws == {} and plain.p_value > 0.01
    regular = plain._replace(log_evidence=1e3)
    assert regular.p_value == 2 / 41


@pytest.mark.parametrize("check", CHECKS)
def test_results_are_functions_of_the_seed_and_leave_the_state(net, check):
    few = {"calibrate": (), "tarp": (), "posterior_sbc": (X, Y), "local_c2st": (X, Y)}[check]
    run = getattr(pyro_arbuf, check)
    options = {"classifier": few_trees, "num_null": 2} if check == "local_c2st" else {}
    state = torch.get_rng_state()
    first, again, other = (run(net, *few, 20, 19, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    which = "probability" if check == "local_c2st" else "ranks"
    assert torch.equal(getattr(first, which), getattr(again, which))
    assert not torch.equal(getattr(first, which), getattr(other, which))


def test_figures_are_drawn_into_given_axes(net):
    found = [
        (calibrate(net, 20, 19, 4), 4),
        (tarp(net, 20, 19, 4), 2),
        (local_c2st(net, X, Y, 40, 30, 2, classifier=few_trees), 3),
    ]
    for result, count in found:
        own = Figure().subplots(1, count)
        assert result.plot(own) is own and all(ax.has_data() for ax in own)
        own[0].figure.canvas.draw()
        with pytest.raises(ValueError, match=f"axes must be {count}, "):
            result.plot(own[:1])
        plt.close(result.plot()[0].figure)
    checked = check_observation(net, X, Y, 30, 5)
    ax = checked.plot(Figure().subplots())
    assert ax.get_title() == f"p = {checked.p_value:.3g}"
    plt.close(checked.plot().figure)


def test_trees_have_the_groups_that_arviz_reads(net):
    for result in (calibrate(net, 20, 19, 4), posterior_sbc(net, X, Y, 20, 19)):
        tree = result.to_datatree()
        assert list(tree.children) == [result.group] and dict(tree[result.group].sizes) == {"chain": 1, "draw": 20}
        shares = tree[result.group]["joint density"].values[0]
        assert shares.tolist() == ((result.density_ranks.double() + 0.5) / 20).tolist()
        assert list(tree[result.group].data_vars) == ["a", "b", "joint density"]
    assert list(tarp(net, 20, 19, 4).to_datatree()["prior_sbc"].data_vars) == [f"point {i}" for i in range(5)]
    local = local_c2st(net, X, Y, 40, 30, 2, classifier=few_trees)
    assert local.to_datatree()["posterior"]["b"].values[0].tolist() == local.draws[:, 1].tolist()
    checked = check_observation(net, X, Y, 30, 25)
    tree = checked.to_datatree()
    assert list(tree.children) == ["posterior", "prior_predictive", "observed_data", "log_likelihood", "log_prior"]
    assert tree["log_prior"]["latents"].shape == tree["posterior"]["a"].shape == (1, 25)
    assert tree["observed_data"]["log_evidence"].item() == pytest.approx(checked.log_evidence)


def test_arviz_1_measures_the_sensitivity_to_the_prior(net):
    stats = pytest.importorskip("arviz_stats", reason="is a part of ArviZ 1.x")
    found = stats.psense_summary(check_observation(net, X, Y).to_datatree())
    assert list(found.index) == ["a", "b"] and found["prior"].notnull().all()


BAD = {"num_datasets": (0, 2.0), "num_draws": (0, True), "seed": (-1, None), "posterior": (3, "exact")}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
@pytest.mark.parametrize("check", CHECKS)
def test_bad_arguments_are_refused_before_any_compute(net, monkeypatch, check, name, value):
    for module in ("calibration", "tarp", "posterior_sbc", "local_c2st"):
        finder = "find_simulator" if module == "posterior_sbc" else "prior_simulator"
        monkeypatch.setattr(importlib.import_module(f"pyro_arbuf.programs.{module}"), finder, None)
    data = (X, Y) if check in ("posterior_sbc", "local_c2st") else ()
    with pytest.raises(ValueError, match=rf"{name} must be .*; got"):
        getattr(pyro_arbuf, check)(net, *data, **{name: value})


def test_own_arguments_are_refused_before_any_compute(net):
    with pytest.raises(ValueError, match="num_references must be an integer of at least 1; got 0"):
        tarp(net, num_references=0)
    with pytest.raises(ValueError, match="num_null must be an integer of at least 1; got 0"):
        local_c2st(net, X, Y, num_null=0)
    with pytest.raises(ValueError, match="classifier must be a function that makes one; got HistGradient"):
        local_c2st(net, X, Y, classifier=few_trees())
    with pytest.raises(ValueError, match="num_orders is for the network's own posterior; got 4 and a posterior"):
        calibrate(net, num_orders=4, posterior=exact)
    with pytest.raises(ValueError, match="num_sets must be an integer of at least 20; got 10"):
        check_observation(net, X, Y, 10)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 1; got 0"):
        check_observation(net, X, Y, num_draws=0)
    with pytest.raises(ValueError, match=r"y must be the outcomes \(8,\) of one data set"):
        check_observation(net, X, Y[:3])
    for check in (posterior_sbc, local_c2st, check_observation):
        with pytest.raises(ValueError, match="x must be the inputs"):
            check(net, X[None], Y[None])


def test_posterior_of_another_batch_is_refused(net):
    with pytest.raises(ValueError, match=r"\(draws, data sets, latent numbers\) = \(19, 20, 2\); got \(19, 2\)"):
        tarp(net, 20, 19, posterior=lambda context: MultivariateNormal(torch.zeros(2), torch.eye(2)))


def with_nan(context):
    """The exact posterior, of which a few draws have failed."""
    law = exact(context)

    class Failing:
        def sample(self, shape):
            draws = law.sample(shape)
            draws[:3] = torch.nan
            return draws

        def log_prob(self, value):
            return law.log_prob(value.nan_to_num())

    return Failing()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("law", "message"),
    [
        (with_nan, r"draws of posterior\(context\) must be finite; got \d+ of \d+ with NaN"),
        (lambda context: None, r"posterior\(context\) must return a distribution with sample and log_prob; got None"),
    ],
    ids=["NaN", "None"],
)
def test_a_posterior_that_draws_no_numbers_is_refused(net, check, law, message):
    with pytest.raises(ValueError, match=message):
        CHECKS[check](net, law)


@pytest.mark.parametrize("check", ["calibrate", "posterior_sbc", "local_c2st"])
def test_a_density_of_each_number_for_that_of_the_joint_is_refused(net, check):
    with pytest.raises(ValueError, match=r"log_prob must give one number .* call .to_event\(1\) on the distribution"):
        CHECKS[check](net, lambda context: Normal(exact(context).mean, 1.0))


def test_a_density_that_is_nan_is_refused(net):
    def law(context):
        found = exact(context)
        found.log_prob = lambda value: torch.full(value.shape[:-1], torch.nan)
        return found

    with pytest.raises(ValueError, match="log_prob must be a number wherever the posterior draws; got NaN"):
        calibrate(net, 20, 19, 4, posterior=law)


@pytest.mark.parametrize("check", [posterior_sbc, local_c2st])
def test_no_data_are_refused(net, check):
    with pytest.raises(ValueError, match="x must hold at least 1 trial"):
        check(net, torch.zeros(0, 1), torch.zeros(0), 20, 19)


def test_gains_of_numbers_are_those_of_the_network_alone(net):
    found = calibrate(net, 20, 19, 4, posterior=exact)
    assert found.marginal_gain.isnan().all() and found.gain.isfinite().all()
    assert "nan" not in str(found) and "nan" not in found._repr_html_()


@pytest.mark.parametrize(("num_datasets", "num_draws"), [(30, 18), (10, 19)])
def test_no_contraction_is_told_of_few_draws_or_data_sets(net, num_datasets, num_draws):
    found = calibrate(net, num_datasets, num_draws, 4, posterior=exact)
    assert found.contraction.isnan().all() and "nan" not in str(found)
    assert calibrate(net, 19, 19, 4, posterior=exact).contraction.isfinite().all()


@pytest.mark.parametrize("num_draws", [9, 19, 30, 99])
def test_bars_of_uniform_ranks_are_level_for_any_number_of_draws(num_draws):
    ax = plt.figure().subplots()
    plot_ranks(ax, torch.arange(num_draws + 1).repeat(7), num_draws, "uniform")
    band, bars = (patch.get_data() for patch in ax.patches)
    torch.testing.assert_close(torch.tensor(bars.values), torch.full((len(bars.values),), 7.0, dtype=torch.float64))
    assert (bars.edges[0], bars.edges[-1]) == (-0.5, num_draws + 0.5)
    assert (band.baseline < 7).all() and (band.values > 7).all()


def test_a_figure_in_one_axes_is_refused(net):
    found, ax = tarp(net, 20, 19, 4), plt.figure().subplots()
    with pytest.raises(ValueError, match=r"axes must be 2, one of ranks and one of coverage; got 1"):
        found.plot(ax)


def test_a_classifier_without_probabilities_is_refused_and_a_sure_one_drawn(net):
    class Blind:
        def fit(self, rows, labels):
            return self

    class Sure(Blind):
        def predict_proba(self, rows):
            return np.tile([0.0, 1.0], (len(rows), 1))

    class Single(Blind):
        def predict_proba(self, rows):
            return np.ones((len(rows), 1))

    with pytest.raises(ValueError, match=r"predict_proba of the classifier must be of shape \(19, 2\); got \(19, 1\)"):
        local_c2st(net, X, Y, 20, 19, 2, posterior=exact, classifier=Single)
    with pytest.raises(ValueError, match="classifier must make one with predict_proba; got Blind"):
        local_c2st(net, X, Y, 20, 19, 2, posterior=exact, classifier=Blind)
    axes = local_c2st(net, X, Y, 20, 19, 2, posterior=exact, classifier=Sure).plot()
    assert all(np.isfinite(patch.get_xy()).all() for ax in axes for patch in ax.patches if hasattr(patch, "get_xy"))


def test_numbers_of_numpy_are_integers(net):
    found = tarp(net, np.int64(20), np.int64(19), 4, seed=np.int64(3))
    assert torch.equal(found.ranks, tarp(net, 20, 19, 4, seed=3).ranks)


def test_network_without_latents_or_program_is_refused(scalar_model, build_model):
    with pytest.raises(ValueError, match="net must have latents"):
        tarp(scalar_model)
    with pytest.raises(ValueError, match="program of this network is not known"):
        local_c2st(build_model(**FIELDS), X, Y)


@pytest.mark.parametrize("check", ["posterior_sbc", "local_c2st"])
def test_data_beyond_the_trained_range_are_warned_of_once(build_model, check):
    net = sum_of_two.with_program(build_model(**FIELDS, y_range=(-1.0, 1.0)))
    options = {"num_null": 1, "classifier": few_trees} if check == "local_c2st" else {}
    with pytest.warns(UserWarning, match="outside the trained range") as caught:
        getattr(pyro_arbuf, check)(net, X, Y, 20, 19, posterior=exact, **options)
    assert len(caught) == 1


def test_units_of_the_network_change_nothing(net):
    scaled = net.in_units(y_loc=1.0, y_scale=10.0)
    assert torch.equal(tarp(net, 20, 19, 4).ranks, tarp(scaled, 20, 19, 4).ranks)
    ours = posterior_sbc(scaled, X, 10 * Y.double() + 1, 20, 19)
    assert torch.equal(ours.ranks, posterior_sbc(net, X, Y, 20, 19).ranks)
    assert check_observation(scaled, X, 10 * Y.double() + 1).p_value == check_observation(net, X, Y).p_value
