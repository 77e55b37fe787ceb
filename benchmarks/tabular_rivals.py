"""What a user would pick instead of the network of tables: densities of M outcomes given a table of N rows.

A Gaussian process with a lengthscale per column, Bayesian ridge regression, a random forest. Inputs are standardised by
the context, missing cells become its mean, outcomes come standardised by the context. All arrays are of NumPy.
"""

import warnings
from collections.abc import Callable

import numpy as np
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge

MAX_ITERATIONS = 60  # of the maximisation of a likelihood
NUM_TREES, MIN_LEAF = 100, 3
BANDWIDTHS = np.geomspace(0.02, 2.0, 16)  # standard deviations of the outcome

Rows = tuple[ndarray, ndarray]  # x (rows, D), y (rows,)


def prepared(context: Rows, targets: Rows) -> tuple[Rows, Rows]:
    """Inputs standardised by the context, and its mean where a cell is missing."""
    with warnings.catch_warnings(action="ignore"):  # a column without any number
        mean, sd = np.nanmean(context[0], 0), np.nanstd(context[0], 0)
    sd = np.where(sd > 0, sd, 1.0)
    return tuple((np.nan_to_num((x - mean) / sd), y) for x, y in (context, targets))


def _maximise(objective: Callable, start: ndarray, bounds: ndarray) -> tuple[ndarray, float]:
    found = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": MAX_ITERATIONS})
    return found.x, found.fun


def gaussian_process(context: Rows, targets: Rows) -> float:
    """Exact joint log density under a GP whose RBF kernel has a lengthscale per column, by maximum likelihood.

    At most 60 iterations from lengthscales of the square root of the number of columns and a tenth of noise.
    """
    num_columns = context[0].shape[1]
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(np.full(num_columns, np.sqrt(num_columns)), (1e-1, 1e3))
    kernel += WhiteKernel(0.1, (1e-5, 1e1))
    with warnings.catch_warnings(action="ignore"):  # of lengthscales at the ends of their range
        process = GaussianProcessRegressor(kernel, optimizer=_maximise).fit(*context)
        mean, covariance = process.predict(targets[0], return_cov=True)
    return float(multivariate_normal.logpdf(targets[1], mean, covariance, allow_singular=True))


def bayesian_ridge(context: Rows, targets: Rows) -> float:
    """Exact joint log density under Bayesian ridge regression: weights, intercept and noise, the precisions fitted."""
    ridge = BayesianRidge().fit(*context)
    x = targets[0] - ridge.X_offset_
    covariance = x @ ridge.sigma_ @ x.T + (np.eye(len(x)) + 1 / len(context[0])) / ridge.alpha_
    return float(multivariate_normal.logpdf(targets[1], ridge.predict(targets[0]), covariance, allow_singular=True))


def forest(context: Rows, targets: Rows) -> float:
    """Sum of log densities of single outcomes under a random forest.

    The density is a mixture of normal laws about the outcomes of the context, weighted by how often each shares a leaf
    with the target, as a quantile forest weights them; their bandwidth maximises the out-of-bag density.

    Source:
        Meinshausen (2006).
    """
    x, y = context
    trees = RandomForestRegressor(NUM_TREES, min_samples_leaf=MIN_LEAF, random_state=0).fit(x, y)
    drawn = np.zeros((len(x), NUM_TREES))  # how often each row is in the sample of each tree
    for tree, sample in enumerate(trees.estimators_samples_):
        drawn[:, tree] = np.bincount(sample, minlength=len(x))
    leaves, unseen = trees.apply(x), drawn == 0
    some = unseen.any(1)
    out_of_bag = _weights(leaves, leaves, drawn, unseen)[some]
    scores = [_mixture(y[some], y, out_of_bag, bandwidth).mean() for bandwidth in BANDWIDTHS]
    bandwidth = BANDWIDTHS[int(np.argmax(scores))]
    at_targets = trees.apply(targets[0])
    weights = _weights(at_targets, leaves, drawn, np.ones_like(at_targets, dtype=bool))
    return float(_mixture(targets[1], y, weights, bandwidth).sum())


def _weights(at: ndarray, leaves: ndarray, drawn: ndarray, counted: ndarray) -> ndarray:
    """Weights `(rows, N)` of context rows, the mean over trees that count for a row; each row's sum is 1."""
    total = np.zeros((len(at), len(leaves)))
    for tree in range(leaves.shape[1]):
        together = (at[:, tree, None] == leaves[:, tree]) * drawn[:, tree]
        total += together / together.sum(1, keepdims=True) * counted[:, tree, None]
    return total / counted.sum(1, keepdims=True).clip(min=1)


def _mixture(y: ndarray, centres: ndarray, weights: ndarray, bandwidth: float) -> ndarray:
    """Log densities of y under mixtures of normal laws, with one of sd 3 about 0 that has the weight of 0.5 rows."""
    wide = 0.5 / (len(centres) + 0.5)
    z = (y[:, None] - centres) / bandwidth
    with np.errstate(divide="ignore"):
        inner = logsumexp(-0.5 * z**2 + np.log(weights), axis=1) - np.log(bandwidth)
    outer = -0.5 * (y / 3) ** 2 - np.log(3)
    return np.logaddexp(np.log1p(-wide) + inner, np.log(wide) + outer) - 0.5 * np.log(2 * np.pi)


RIVALS: dict[str, Callable[[Rows, Rows], float]] = {
    "GP": gaussian_process,
    "ridge": bayesian_ridge,
    "forest": forest,
}
