"""Local classifier two-sample test: whether the posterior at one observation is right, learned from simulations.

Needs scikit-learn, the extra `diagnostics`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.display import Table, facts, shown_as_table
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.calibration import number_names
from pyro_arbuf.programs.consistency import one_data_set
from pyro_arbuf.programs.known_truth import (
    Law,
    Posterior,
    check_sizes,
    checked_draws,
    checked_log_prob,
    in_program_units,
    known_posteriors,
    simulating,
)
from pyro_arbuf.programs.ranks import panels
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.sources import prior_simulator
from pyro_arbuf.progress import progress_bar

SUMMARY_DRAWS = 32  # of a posterior, whose means and scales tell data sets apart
Classifier = Callable[[], Any]


def _summary(found: "LocalC2ST") -> tuple[str, Table]:
    lines = {
        "statistic": f"{found.statistic:.3g}",
        "of exact posteriors, mean": f"{found.null.mean().item():.3g}",
        "of exact posteriors, largest": f"{found.null.max().item():.3g}",
        "p": f"{found.p_value:.3g}",
    }
    return f"LocalC2ST({len(found.draws)} draws, {len(found.null)} classifiers of swapped labels)", facts(lines)


@shown_as_table(_summary)
class LocalC2ST(NamedTuple):
    """What `local_c2st` measures at one observation.

    Attributes:
        names: P names, of the latents' unconstrained numbers.
        statistic: Mean square of `probability` - 1/2 over the draws; 0 where the classifier sees no difference.
        null: `(num_null,)`, the same of classifiers that were trained on swapped labels, as of an exact posterior.
        draws: `(S, P)` of the observation's posterior, unconstrained.
        probability: `(S,)`, of each draw, that it is a true one: above 1/2 where the posterior has too little mass.
    """

    names: list[str]
    statistic: float
    null: Tensor
    draws: Tensor
    probability: Tensor

    @property
    def p_value(self) -> float:
        """Share of classifiers with a statistic as large, this one included."""
        return (1 + int((self.null >= self.statistic).sum())) / (1 + len(self.null))

    def plot(self, axes: Any = None) -> Any:
        """Draws the posterior of every number as it is and as the classifier would correct it; then the statistic.

        Args:
            axes: P + 1 axes of matplotlib to draw into; `None` = those of a new figure of pyplot.

        Returns:
            The axes, an array; their figure is `axes[0].figure`.

        Raises:
            ValueError: If there is another number of axes.
        """
        import matplotlib.pyplot as plt  # slow, and only figures need it

        sure = 1e-6  # of a classifier that says 0 or 1
        share = self.probability.clamp(sure, 1 - sure)
        weights = (share / (1 - share)).numpy()
        with plt.style.context("pyro_arbuf.house"):
            axes = panels(axes, len(self.names) + 1, "one for each latent and one of the statistic")
            for ax, name, draws in zip(axes, self.names, self.draws.T.numpy(), strict=False):
                edges = ax.hist(draws, 20, density=True, color="0.8", label="posterior")[1]
                ax.hist(draws, edges, weights=weights, density=True, histtype="step", color="C1", label="corrected")
                ax.set(title=name, yticks=[])
            axes[0].legend()
            axes[-1].hist(self.null.numpy(), 20, color="0.8", label="if exact")
            axes[-1].axvline(self.statistic, color="C1", label="here")
            axes[-1].set(title=f"statistic (p = {self.p_value:.2f})", yticks=[])
            axes[-1].legend()
        return axes

    def to_datatree(self) -> Any:
        """The draws as ArviZ 1.x reads them.

        Returns:
            An `xarray.DataTree`: `posterior` with the latents' unconstrained numbers, and `probability` in
            `sample_stats`.
        """
        from pyro_arbuf.workflow.groups import draws_tree

        posterior = dict(zip(self.names, self.draws.T, strict=True))
        return draws_tree({"posterior": posterior, "sample_stats": {"probability": self.probability}})


@torch.no_grad()
def local_c2st(
    net: ArBufferModel,
    x: Any,
    y: Any,
    num_datasets: int = 10_000,
    num_draws: int = 1_000,
    num_null: int = 100,
    program: Program | Simulator | None = None,
    posterior: Posterior | None = None,
    classifier: Classifier | None = None,
    seed: int = 0,
) -> LocalC2ST:
    """Local classifier two-sample test: is the posterior right at this observation, and if not, where?

    Data sets with the inputs of the observation are simulated, and a classifier learns to tell their true latents from
    one posterior draw each, given the data set. At an exact posterior there is nothing to learn. The classifier is then
    asked about posterior draws of the observation; what it says by chance is known from classifiers that were trained
    with the labels of random pairs swapped. Of a data set it gets means and scales of the posterior, and of latents
    their place relative to these and their joint log density: so it sees the joint.

    Args:
        net: A network with latents.
        x: `(n, D_x)` inputs of the observation.
        y: `(n,)` or `(n, D_y)` outcomes; of several sites also a dict of them.
        num_datasets: Simulated data sets D.
        num_draws: Posterior draws S of the observation.
        num_null: Classifiers with swapped labels; the smallest possible p-value is 1 / (num_null + 1).
        program: The program, or a Simulator of it; `None` = the one the network was trained on.
        posterior: What is checked in place of the network's own posterior, as for `calibrate`.
        classifier: A function that makes a classifier of scikit-learn's kind, with `fit` and `predict_proba`; `None` =
            gradient-boosted trees.
        seed: Of data sets, draws and labels.

    Returns:
        The statistic, its law at an exact posterior and the p-value; its `plot()` draws them.

    Raises:
        ValueError: If the network's program is not known, or an argument breaks its rule.
        RuntimeError: If scikit-learn is not installed and no classifier is given.

    Source:
        Linhart, Gramfort and Rodrigues (2023), "L-C2ST: local diagnostics for posterior approximations in
        simulation-based inference".
    """
    x, y = one_data_set(x, y, net, least=1)
    check_sizes(seed, posterior, num_datasets=num_datasets, num_draws=num_draws, num_null=num_null)
    make = _trees() if classifier is None else classifier
    if not callable(make):
        raise ValueError(
            f"classifier must be a function that makes one; got {type(make).__name__}; use lambda: ... around it"
        )
    simulator = prior_simulator(net, program)
    simulator.check_runs()
    observed, own = in_program_units(net, x, y), posterior or ArBufferPosterior
    net, (x, _, _) = net.in_units(), observed.observations
    with simulating(seed):
        law = own(observed)
        draws = checked_draws(law, SUMMARY_DRAWS + num_draws, torch.Size([1, net.config.num_latents]))
        asked = _features(law, draws[:SUMMARY_DRAWS], draws[SUMMARY_DRAWS:]).flatten(0, 1)
        pairs = []
        for truth, _, own_law, own_draws in known_posteriors(
            net,
            lambda rows: simulator.draw_at(x[0], rows.stop - rows.start),
            own,
            num_datasets,
            SUMMARY_DRAWS + 1,
            "local C2ST",
        ):
            pairs.append(_features(own_law, own_draws[1:], torch.stack([own_draws[0], truth.to(own_draws)])).cpu())
        statistic, null, probability = _compare(make, torch.cat(pairs, 1), asked.cpu(), num_null)
    return LocalC2ST(number_names(net.config), statistic, null, draws[SUMMARY_DRAWS:, 0].cpu(), probability)


def _trees() -> Classifier:
    """Makes gradient-boosted trees, of a size that overfits little.

    Raises:
        RuntimeError: If scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError:
        raise RuntimeError(
            "local_c2st needs scikit-learn, which is not installed; use pip install 'pyro-arbuf[diagnostics]'"
        ) from None
    options: dict[str, Any] = {"max_iter": 50, "max_depth": 4, "early_stopping": False, "random_state": 0}
    return lambda: HistGradientBoostingClassifier(**options)


def _features(law: Law, some: Tensor, asked: Tensor) -> Tensor:
    """What a classifier is told of latents `(S, B, P)`, given other draws `(S', B, P)` of the same posteriors."""
    mean, scale = some.mean(0), some.std(0)
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    data = torch.cat([mean, scale.log()], -1).expand(*asked.shape[:-1], -1)
    return torch.cat([(asked - mean) / scale, checked_log_prob(law, asked).unsqueeze(-1).to(asked), data], -1)


def _compare(make: Classifier, pairs: Tensor, asked: Tensor, num_null: int) -> tuple[float, Tensor, Tensor]:
    """The statistic, that of classifiers with swapped labels, and the probability that draws are true ones.

    Args:
        make: Makes a classifier.
        pairs: `(2, D, F)`, of draws and true latents of the same data sets.
        asked: `(S, F)`.
        num_null: Classifiers with swapped labels.
    """
    rows, about = pairs.flatten(0, 1).numpy(), asked.numpy()

    def ask(swapped: Tensor) -> Tensor:
        """Probabilities `(S,)` by a classifier that takes the pairs `(D,)` that are swapped the other way round."""
        labels = torch.stack([swapped, ~swapped]).flatten().long().numpy()
        fitted = make().fit(rows, labels)
        if not callable(getattr(fitted, "predict_proba", None)):
            raise ValueError(
                f"classifier must make one with predict_proba; got {type(fitted).__name__}; of support vector "
                "machines SVC(probability=True) does"
            )
        both = np.asarray(fitted.predict_proba(about))
        if both.shape != (len(about), 2):
            raise ValueError(f"predict_proba of the classifier must be of shape {(len(about), 2)}; got {both.shape}")
        return torch.as_tensor(both[:, 1])

    def measure(probability: Tensor) -> float:
        return (probability - 0.5).square().mean().item()

    count = pairs.shape[1]
    probability = ask(torch.zeros(count, dtype=torch.bool))
    bar = progress_bar(range(num_null), desc="classifiers", leave=False)
    null = torch.tensor([measure(ask(torch.rand(count) < 0.5)) for _ in bar])
    return measure(probability), null, probability
