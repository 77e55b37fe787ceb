"""Joint predictions from transformer probabilistic models as Pyro distributions.

net = pyro_arbuf.load("gp-1d-noisy")
ctx = net.condition(x_obs, y_obs)
y = pyro.sample("y", ArBufferJoint(ctx, x_new))
"""

from pyro_arbuf.baselines.added_buffer import add_buffer
from pyro_arbuf.checkpoint import load, save, shipped_models
from pyro_arbuf.distributions.base import PlateOverTargetsWarning
from pyro_arbuf.distributions.joint import ArBufferJoint, Moments
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.draft_verify import DraftedDraws
from pyro_arbuf.inference.orders import OrderSpread, random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.amortize import amortize
from pyro_arbuf.programs.calibration import Calibration, calibrate
from pyro_arbuf.programs.change_prior import ChangedPrior, change_prior
from pyro_arbuf.programs.consistency import SelfConsistency, SubsetGap, self_consistency, subset_gap
from pyro_arbuf.programs.evidence import (
    Evidence,
    EvidenceComparison,
    compare_evidence,
    log_evidence,
)
from pyro_arbuf.programs.evidence_error import EvidenceError, measure_evidence_error
from pyro_arbuf.programs.guide import AmortizedGuide
from pyro_arbuf.programs.likelihood import likelihood
from pyro_arbuf.programs.local_c2st import LocalC2ST, local_c2st
from pyro_arbuf.programs.observation import ObservationCheck, check_observation
from pyro_arbuf.programs.posterior_sbc import posterior_sbc
from pyro_arbuf.programs.refine import Refined, refine
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.tarp import ExpectedCoverage, tarp
from pyro_arbuf.workflow.check_model import ModelCheckWarning, check_model
from pyro_arbuf.workflow.datatree import to_datatree, to_inference_data
from pyro_arbuf.workflow.loo import LooConditionals, exact_loo, loo_conditionals, to_elpd_data
from pyro_arbuf.workflow.predictive import predictive
from pyro_arbuf.workflow.resampling import MartingalePosterior, Population, predictive_resampling

__all__ = [
    "AmortizedGuide",
    "ArBufferJoint",
    "ArBufferMarginals",
    "ArBufferModel",
    "ArBufferPosterior",
    "Calibration",
    "ChangedPrior",
    "Context",
    "DraftedDraws",
    "Evidence",
    "EvidenceComparison",
    "EvidenceError",
    "ExpectedCoverage",
    "LocalC2ST",
    "LooConditionals",
    "MartingalePosterior",
    "ModelCheckWarning",
    "ModelConfig",
    "Moments",
    "ObservationCheck",
    "OrderSpread",
    "PlateOverTargetsWarning",
    "Population",
    "Refined",
    "SelfConsistency",
    "Simulator",
    "SubsetGap",
    "add_buffer",
    "amortize",
    "calibrate",
    "change_prior",
    "check_model",
    "check_observation",
    "compare_evidence",
    "exact_loo",
    "likelihood",
    "load",
    "local_c2st",
    "log_evidence",
    "loo_conditionals",
    "measure_evidence_error",
    "posterior_sbc",
    "predictive",
    "predictive_resampling",
    "random_orders",
    "refine",
    "save",
    "self_consistency",
    "shipped_models",
    "subset_gap",
    "tarp",
    "to_datatree",
    "to_elpd_data",
    "to_inference_data",
]
