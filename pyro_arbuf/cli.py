"""The command line: `pyro-arbuf train | evaluate | models`."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib.figure
import torch
import tyro

from pyro_arbuf.checkpoint import CONFIG, find_model, load, models_folder, read_config, save, shipped_models
from pyro_arbuf.files import write_atomically
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.recipes import CONFIGS, PRIORS, PROGRAMS
from pyro_arbuf.programs.configuration import program_config, simulator_of
from pyro_arbuf.programs.program_batches import draw_program_batch, make_bank, program_validation
from pyro_arbuf.training.batch import validation_contexts, validation_tasks
from pyro_arbuf.training.loop import TrainingState, fit, validate
from pyro_arbuf.training.run_state import read_record

PriorName = Literal[
    "gp-1d",
    "gp-1d-noisy",
    "sawtooth",
    "gaussian",
    "ddm",
    "multisensory-rho1",
    "multisensory-rho43",
    "two-moons",
    "gaussian-linear",
]
BANK_SEED = 1
STATE = "state.safetensors"


def train(
    prior: Annotated[PriorName, tyro.conf.Positional],
    output: Path,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    num_targets: int = 48,
    learning_rate: float = 6e-3,
    width: int = 64,
    num_layers: int | None = None,
    num_heads: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    auto_resume: bool = False,
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
        num_layers: Number of blocks; likewise; 6, and 4 for programs, if not given.
        num_heads: Number of heads; likewise; 2, and 4 for programs, if not given.
        seed: Seed of weights and data stream.
        threads: CPU threads; all cores if not given.
        resume: Continue the run of this output.
        auto_resume: Continue the run of this output if there is one, else start it.
        from_: Folder or name of a model whose weights (and sizes) a new run starts from.
        runs: Folder for the state of runs, each under the name and a hash of the path of its output.
        overwrite: Let a new run replace another model in OUTPUT.
        mixed_precision: As accelerate has it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state_path = state_of(runs, output)
    resume = resume or (auto_resume and state_path.exists())
    improved = from_ is not None and find_model(from_).resolve() == output.resolve()
    if (output / CONFIG).exists() and not (improved or resume or overwrite):
        raise ValueError(
            f"{output} holds a model, which a new run would replace with other weights; use --from {output} to improve "
            "it, --resume to go on with an interrupted run, or --overwrite"
        )
    origin = None
    config, source, options = _setup(prior)
    if from_ is None:
        sizes = {"num_layers": num_layers or config.num_layers, "num_heads": num_heads or config.num_heads}
        model = ArBufferModel(replace(config, width=width, **sizes))
    else:
        trained = load(from_, trainable=True)
        _check_fits(trained.config, config, from_)
        names = ["prior", "x_range", "y_range", "num_targets", "evidence_rmse"]
        if prior in PROGRAMS:
            names.append("num_context")
            if prior != trained.config.prior:  # else a new measurement would change the network's function
                names += ["latents", "x_loc", "x_scale", "y_loc", "y_scale"]
        model = ArBufferModel(replace(trained.config, **{name: getattr(config, name) for name in names}))
        model.load_state_dict(trained.state_dict())
        record = find_model(from_) / "training.json"
        before = json.loads(record.read_text()) if record.is_file() else {"steps": 0, "minutes": 0.0}
        origin = {"started_from": record.parent.name, "folder": str(record.parent.resolve())}
        origin |= {k: before[k] for k in ("steps", "minutes")}

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
        write_atomically(output / "training.json", lambda file: file.write_text(json.dumps(record, indent=2) + "\n"))
        write_atomically(output / "loss.png", lambda file: plot_history(state.history, file))

    state = fit(
        model,
        source,
        state_path,
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
        **options,
    )
    print(f"{output}: {state.best_score:.3f} nats per target on the validation set after {state.steps} steps")


def state_of(runs: Path, output: Path) -> Path:
    """The state of the run that writes to an output: outputs of one name in different folders have different ones."""
    resolved = output.resolve()
    return runs / f"{resolved.name}-{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}" / STATE


def _setup(prior: str) -> tuple[ModelConfig, Any, dict[str, Any]]:
    """Configuration of a prior, what its tasks are drawn from, and how `fit` draws and validates."""
    if prior in PRIORS:
        return CONFIGS[prior], PRIORS[prior], {}
    recipe, simulator = PROGRAMS[prior], simulator_of(prior)
    config = program_config(simulator, recipe.num_context, prior)
    source = simulator
    if recipe.num_simulations is not None:
        source = make_bank(simulator, recipe.num_simulations, max(1, recipe.num_context[1]), BANK_SEED)
    draw = partial(draw_program_batch, posterior_share=recipe.posterior_share)
    return config, source, {"draw": draw, "tasks": program_validation(source, config)}


def _check_fits(config: ModelConfig, wanted: ModelConfig, name: str) -> None:
    """Raises ValueError if a model cannot take the tasks of a prior, whose configuration is `wanted`."""
    has, needs = (
        f"dim_x = {c.dim_x}, dim_y = {c.dim_y}, latents {[(latent.name, latent.shape) for latent in c.latents]}"
        for c in (config, wanted)
    )
    if has != needs:
        raise ValueError(f"a model of the prior {wanted.prior!r} must have {needs}; {name} has {has}")


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Draws the training loss and the validation density over the steps as PNG."""
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [-entry["loss"] for entry in history], label="training (all prefix lengths)", lw=1)
    axes.plot(steps, [entry["validation"] for entry in history], label="validation (joint, 16 targets)")
    axes.set(xlabel="step", ylabel="log density per target (nats)")
    axes.legend()
    figure.savefig(path, format="png", dpi=110)


def evaluate(name: Annotated[str, tyro.conf.Positional], prior: PriorName | None = None) -> None:
    """Scores a model on the fixed validation set of its prior: joint log density per target, in one order.

    Of a network that `amortize` made of a program of the user's, it prints what the run in its folder recorded.

    Args:
        name: Shipped model or folder.
        prior: Prior of the validation set; the model's own if not given.
    """
    model = load(name)
    chosen = prior or model.config.prior
    if prior is None and model.config.latents and chosen not in PROGRAMS:
        _print_recorded(name, model.config)
        return
    if chosen not in (*PRIORS, *PROGRAMS):
        raise SystemExit(f"--prior must be one of {', '.join((*PRIORS, *PROGRAMS))}; the model names {chosen!r}")
    config, _, options = _setup(chosen)
    _check_fits(model.config, config, name)
    if chosen in PROGRAMS:
        scores = validate(model, options["tasks"])
        print(" ".join(f"{score:.3f}" for score in scores), "nats per target")
        print(json.dumps({"model": name, "prior": chosen, "validation": round(sum(scores) / len(scores), 4)}))
        return
    scores = validate(model, validation_tasks(PRIORS[chosen], model.config))
    print("   N   joint (nats per target)")
    for num_context, score in zip(validation_contexts(model.config), scores, strict=True):
        print(f"{num_context:4d}   {score:.3f}")
    print(json.dumps({"model": name, "prior": chosen, "validation": round(sum(scores) / len(scores), 4)}))


def _print_recorded(name: str, config: ModelConfig) -> None:
    """Prints the validation in the state of an amortized network's run; measuring anew needs its program."""
    state = find_model(name) / STATE
    measure = f"in Python, pyro_arbuf.calibrate(pyro_arbuf.load({name!r}), program=...) measures it, given that program"
    if not state.is_file():
        raise ValueError(
            f"{name} is a network of your own program {config.prior!r}, which this command does not have; {measure}"
        )
    record = read_record(state)
    print(f"{name}: a network of your own program {config.prior!r}. Recorded by its training, not measured now:")
    print(f"{record['best_score']:.3f} nats per target, after {record['step']} steps; {measure}")
    print(json.dumps({"model": name, "prior": config.prior, "recorded_validation": round(record["best_score"], 4)}))


def models() -> None:
    """Lists the shipped models."""
    print(f"shipped in {models_folder()}:")
    for name in shipped_models():
        config = read_config(models_folder() / name)
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
