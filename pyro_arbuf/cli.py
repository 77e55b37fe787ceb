"""The command line: `pyro-arbuf train | evaluate | models`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import matplotlib.figure
import torch
import tyro

from pyro_arbuf.checkpoint import CONFIG, find_model, load, models_folder, save, shipped_models
from pyro_arbuf.config import ModelConfig
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors import gp_1d, gp_1d_noisy, sawtooth
from pyro_arbuf.tasks import validation_contexts, validation_tasks
from pyro_arbuf.training import TrainingState, fit, validate

PriorName = Literal["gp-1d", "gp-1d-noisy", "sawtooth"]
PRIORS = {"gp-1d": gp_1d, "gp-1d-noisy": gp_1d_noisy, "sawtooth": sawtooth}
_GP = ModelConfig(prior="gp-1d", x_range=(-2.0, 2.0), y_range=(-6.0, 6.0), num_targets=(1, 128))
CONFIGS = {
    "gp-1d": _GP,
    "gp-1d-noisy": replace(_GP, prior="gp-1d-noisy"),
    "sawtooth": replace(_GP, prior="sawtooth", y_range=(-0.5, 1.5), max_frequency=40.0),
}


def train(
    prior: Annotated[PriorName, tyro.conf.Positional],
    output: Path,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    num_targets: int = 48,
    learning_rate: float = 6e-3,
    width: int = 64,
    num_layers: int = 6,
    num_heads: int = 2,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    runs: Path = Path("runs"),
    overwrite: bool = False,
    mixed_precision: Literal["no", "bf16"] = "no",
) -> None:
    """Trains a model on a prior; the best weights are in OUTPUT whenever the run stops.

    Args:
        prior: What the tasks are drawn from.
        output: Folder for config.json, model.safetensors, training.json and loss.png.
        minutes: Training time, counted over resumed parts.
        steps: Number of steps; with both limits, whichever is reached first.
        batch_size: Tasks per step and process.
        num_targets: Fresh targets per task; the buffer's pairs are targets too.
        learning_rate: Peak learning rate.
        width: Token width; with `--from`, that of the weights.
        num_layers: Number of blocks; likewise.
        num_heads: Number of heads; likewise.
        seed: Seed of weights and data stream.
        threads: CPU threads; all cores if not given.
        resume: Continue the run of this output's name.
        from_: Folder or name of a model whose weights (and sizes) a new run starts from.
        runs: Folder for the state of runs.
        overwrite: Let a run from scratch replace a model in OUTPUT.
        mixed_precision: As accelerate has it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if (output / CONFIG).exists() and from_ is None and not (resume or overwrite):
        raise ValueError(
            f"{output} holds a model, which a run from scratch would replace with nearly untrained weights; use "
            f"--from {output} to improve it, --resume to go on with an interrupted run, or --overwrite"
        )
    origin = None
    if from_ is None:
        model = ArBufferModel(replace(CONFIGS[prior], width=width, num_layers=num_layers, num_heads=num_heads))
    else:
        model = load(from_, trainable=True)
        sizes = {name: getattr(CONFIGS[prior], name) for name in ("prior", "x_range", "y_range", "num_targets")}
        model.config = replace(model.config, **sizes)
        record = find_model(from_) / "training.json"
        before = json.loads(record.read_text()) if record.is_file() else {"steps": 0, "minutes": 0.0}
        origin = {"started_from": record.parent.name} | {k: before[k] for k in ("steps", "minutes")}

    def keep(state: TrainingState) -> None:
        save(model, output, state.best_weights)
        record = {
            "prior": prior,
            "steps": state.origin["steps"] + state.steps,
            "minutes": round(state.origin["minutes"] + state.minutes, 1),
            "batch_size": batch_size,
            "seed": seed,
            "started_from": state.origin["started_from"],
            "validation": round(state.best_score, 4),
        }
        temporary = output / "training.json.tmp"
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(output / "training.json")
        plot_history(state.history, output / "loss.png")

    state = fit(
        model,
        PRIORS[prior],
        runs / output.name / "state.safetensors",
        minutes=minutes,
        steps=steps,
        batch_size=batch_size,
        num_targets=num_targets,
        learning_rate=learning_rate,
        seed=seed,
        resume=resume,
        mixed_precision=mixed_precision,
        origin=origin,
        on_checkpoint=keep,
    )
    print(f"{output}: {state.best_score:.3f} nats per target on the validation set after {state.steps} steps")


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Draws the training loss and the validation density over the steps as PNG."""
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [-entry["loss"] for entry in history], label="training (all prefix lengths)", lw=1)
    axes.plot(steps, [entry["validation"] for entry in history], label="validation (joint, 16 targets)")
    axes.set(xlabel="step", ylabel="log density per target (nats)")
    axes.legend()
    figure.savefig(path, dpi=110)


def evaluate(name: Annotated[str, tyro.conf.Positional], prior: PriorName | None = None) -> None:
    """Scores a model on the fixed validation set of its prior: joint log density per target, in one order.

    Args:
        name: Shipped model or folder.
        prior: Prior of the validation set; the model's own if not given.
    """
    model = load(name)
    chosen = prior or model.config.prior
    if chosen not in PRIORS:
        raise SystemExit(f"--prior must be one of {', '.join(PRIORS)}; the model names {chosen!r}")
    scores = validate(model, validation_tasks(PRIORS[chosen], model.config))
    print("   N   joint (nats per target)")
    for num_context, score in zip(validation_contexts(model.config), scores, strict=True):
        print(f"{num_context:4d}   {score:.3f}")
    print(json.dumps({"model": name, "prior": chosen, "validation": round(sum(scores) / len(scores), 4)}))


def models() -> None:
    """Lists the shipped models."""
    print(f"shipped in {models_folder()}:")
    for name in shipped_models():
        config = ModelConfig.from_json((models_folder() / name / CONFIG).read_text())
        ranges = f"x in {config.x_range}, N in {config.num_context}, K = {config.buffer_size}"
        print(f"  {name:14s} prior {config.prior}, {ranges}")


def main() -> None:
    """Entry point of `pyro-arbuf`."""
    commands = {"train": train, "evaluate": evaluate, "models": models}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="pyro-arbuf")
    except ValueError as error:  # a user's mistake: its message says what to do
        raise SystemExit(f"pyro-arbuf: {error}") from error


if __name__ == "__main__":
    main()
