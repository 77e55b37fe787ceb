"""`pyro-arbuf evaluate`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pyro_arbuf.checkpoint import find_model, load
from pyro_arbuf.cli.options import NetworkName, PriorName, check_fits, refuse
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.named_functions import is_function_name, source_of_function
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.programs.training_rounds import STATE
from pyro_arbuf.training.loop import validate
from pyro_arbuf.training.run_state import RunState
from pyro_arbuf.training.sources import TaskSource


def evaluate(
    name: NetworkName,
    prior: PriorName | None = None,
    inputs: str | None = None,
    data: Path | None = None,
) -> None:
    """Scores a model on the fixed validation set of its prior: joint log density per target, in one order.

    pyro-arbuf evaluate gp-1d-noisy

    Of a network that was trained on a function of your own, it prints what the run in its folder recorded, or measures
    it on that function:  pyro-arbuf evaluate my_prior --prior my_module:draw

    Args:
        name: Shipped model, folder, or hf:owner/name.
        prior: Prior of the validation set, a name or module:function; the model's own if not given.
        inputs: Of a program of your own: module:function that draws its inputs, called with their number.
        data: Of a prior of recordings: their file.
    """
    model = load(name)
    chosen = prior or model.config.prior
    source = source_for(model.config, prior, inputs, data)
    if source is None:
        if model.config.latents or (find_model(name) / STATE).is_file():
            _print_recorded(name, model.config)
            return
        known = f"{', '.join(RECIPES)}, or module:function"
        raise ValueError(f"--prior must be one of {known}; the model names {chosen!r}")
    check_fits(model.config, source.config, name)
    batches = replace(cast(Any, source), config=model.config).validation()
    scores = validate(model, batches)
    print("   N   joint (nats per target)")
    for batch, score in zip(batches, scores, strict=True):
        print(f"{batch.x_context.shape[1]:4d}   {score:.3f}")
    print(json.dumps({"model": name, "prior": chosen, "validation": round(sum(scores) / len(scores), 4)}))


def source_for(
    config: ModelConfig, prior: str | None, inputs: str | None, data: Path | None = None
) -> TaskSource | None:
    """What a network is scored on: the prior that is named, or its own; `None` where that is not known here.

    Raises:
        ValueError: If there is no such function, inputs are named for a shipped prior, or recordings lack their file.
    """
    chosen = prior or config.prior
    if is_function_name(chosen):
        refuse(f"is not for a function of your own, {chosen}", data=data)
        return source_of_function(chosen, inputs, config)
    refuse("is for a program of your own, --prior module:function", inputs=inputs)
    return make_source(chosen, data=data) if chosen in RECIPES else None


def _print_recorded(name: str, config: ModelConfig) -> None:
    """Prints the validation in the state of an amortized network's run; measuring anew needs its function."""
    state = find_model(name) / STATE
    measure = f"in Python, pyro_arbuf.calibrate(pyro_arbuf.load({name!r}), program=...) measures it, given that program"
    kind = "program"
    if not config.latents:
        kind, measure = "prior", f"pyro-arbuf evaluate {name} --prior module:function measures it, given that function"
    if not state.is_file():
        raise ValueError(
            f"{name} is a network of your own {kind} {config.prior!r}, which this command does not have; {measure}"
        )
    recorded = RunState.read(state)
    print(f"{name}: a network of your own {kind} {config.prior!r}. Recorded by its training, not measured now:")
    print(f"{recorded.best_score:.3f} nats per target, after {recorded.step} steps; {measure}")
    print(json.dumps({"model": name, "prior": config.prior, "recorded_validation": round(recorded.best_score, 4)}))
