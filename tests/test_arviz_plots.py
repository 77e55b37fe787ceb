"""The plots of ArviZ 1.x read our trees, and show what is wrong with a spoiled posterior."""

import matplotlib.pyplot as plt
import pytest
import sum_of_two
import torch
from pyro.infer import Predictive
from sum_of_two import FIELDS, SPOILED, exact

import pyro_arbuf
from pyro_arbuf import ArBufferPosterior, calibrate, check_observation, local_c2st, posterior_sbc, tarp, to_datatree
from pyro_arbuf.priors.gaussian import gaussian

plots = pytest.importorskip("arviz_plots", reason="is a part of ArviZ 1.x")
pytestmark = pytest.mark.filterwarnings("ignore")  # ArviZ's own
D = 800


@pytest.fixture(scope="module")
def trees():
    """Trees of a fit, and of every diagnostic, by name."""
    torch.manual_seed(0)
    x = torch.zeros(20, 1)
    y = gaussian(x)
    net = pyro_arbuf.load("gaussian")
    posterior = ArBufferPosterior(net.condition(x, y))
    prior = Predictive(gaussian, num_samples=100)(x)
    return {
        "fit": to_datatree(posterior, gaussian, num_samples=100, prior=prior),
        "posterior": to_datatree(posterior, num_samples=100),
        "observation": to_datatree(check_observation(net, x, y, 50, 100)),
        "local": to_datatree(local_c2st(net, x, y, 60, 50, 2, program=gaussian)),
        "calibrate": to_datatree(calibrate(net, 30, 19, 20, program=gaussian)),
        "posterior_sbc": to_datatree(posterior_sbc(net, x, y, 30, 19, program=gaussian)),
        "tarp": to_datatree(tarp(net, 30, 19, 20, program=gaussian)),
    }


READS = [
    *[(name, "plot_dist") for name in ("fit", "posterior", "observation", "local")],
    *[(name, "plot_pair") for name in ("fit", "posterior", "local")],
    *[("fit", name) for name in ("plot_trace_dist", "plot_forest", "plot_prior_posterior", "plot_psense_dist")],
    *[("fit", name) for name in ("plot_ppc_dist", "plot_ppc_pit", "plot_ppc_tstat", "plot_loo_pit")],
    ("observation", "plot_psense_dist"),
    *[(name, "plot_ecdf_pit") for name in ("calibrate", "posterior_sbc", "tarp")],
]


@pytest.mark.parametrize(("name", "plot"), READS)
def test_plots_read_the_trees(trees, name, plot):
    options = {"group": "posterior_sbc"} if name == "posterior_sbc" else {}
    found = getattr(plots, plot)(trees[name], **options)
    figure = found.viz["figure"].item()
    figure.canvas.draw()
    assert any(ax.has_data() for ax in figure.axes)
    plt.close("all")


def highest(tree):
    """By variable, the largest distance of the plotted curve from uniform, as a share of its band at the widest."""
    found = plots.plot_ecdf_pit(tree, ci_prob=0.99).viz
    shares = {}
    for name in tree["prior_sbc"].data_vars:
        (path,) = found["credible_interval"][name].item().get_paths()
        shares[name] = abs(found["ecdf_lines"][name].item().get_ydata()).max() / abs(path.vertices[:, 1]).max()
    plt.close("all")
    return shares


def test_ranks_of_a_spoiled_posterior_leave_the_band(build_model):
    net = sum_of_two.with_program(build_model(**FIELDS))
    right = highest(to_datatree(calibrate(net, D, num_trials=8, posterior=exact)))
    assert list(right) == ["a", "b", "joint density"] and max(right.values()) < 1
    for law in SPOILED.values():
        assert max(highest(to_datatree(calibrate(net, D, num_trials=8, posterior=law))).values()) > 1
