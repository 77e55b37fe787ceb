"""The command line: `pyro-arbuf train | evaluate | models`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pyro_arbuf.checkpoint import CONFIG, find_model, load, models_folder, read_config, save, shipped_models
from pyro_arbuf.files import write_atomically
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.training.loop import fit, validate
from pyro_arbuf.training.run_state import FROM_SCRATCH, RunState


def _choices() -> Any:
    return tyro.extras.literal_type_from_choices(tuple(RECIPES))


def _choices_or_none() -> Any:
    return _choices() | None


PriorName = Annotated[str, tyro.conf.arg(constructor_factory=_choices)]
AnyPriorName = Annotated[str | None, tyro.conf.arg(constructor_factory=_choices_or_none)]
STATE = "state.safetensors"


def train(
    prior: Annotated[PriorName, tyro.conf.Positional],
    output: Path,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    num_targets: int = 48,
    learning_rate: float = 6e-3,
    width: int | None = None,
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
        width: Token width; that of the prior's recipe if not given; with `--from`, that of the weights.
        num_layers: Number of blocks; likewise.
        num_heads: Number of heads; likewise.
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
    state_path = state_of(runs, output)
    resume = resume or (auto_resume and state_path.exists())
    if not (resume or overwrite):
        _check_output(output, from_)
    origin = None if from_ is None else _origin_of(from_)
    begun = RunState.read(state_path).origin if resume and state_path.exists() else origin or FROM_SCRATCH
    # A warm start goes on with new data: its stream is another one.
    source = make_source(prior, batch_size, num_targets, seed + begun["steps"])
    torch.manual_seed(seed)
    if from_ is None:
        chosen = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        sizes = {name: size for name, size in chosen.items() if size is not None}
        model = ArBufferModel(replace(source.config, **sizes))
    else:
        model = _warm_model(from_, source.config)

    def keep(state: RunState) -> None:
        save(model, output, state.best_weights)
        _write_record(output, state, {"prior": prior, "batch_size": batch_size, "seed": seed})
        write_atomically(output / "loss.png", lambda file: plot_history(state.history, file))

    state = fit(
        model,
        replace(source, config=model.config),
        state_path,
        minutes=minutes,
        steps=steps,
        learning_rate=learning_rate,
        resume=resume,
        mixed_precision=mixed_precision,
        origin=origin,
        on_checkpoint=keep,
    )
    print(f"{output}: {state.best_score:.3f} nats per target on the validation set after {state.step} steps")


def _check_output(output: Path, from_: str | None) -> None:
    """Raises ValueError if a new run would replace a model that it does not start from."""
    improved = from_ is not None and find_model(from_).resolve() == output.resolve()
    if (output / CONFIG).exists() and not improved:
        raise ValueError(
            f"{output} holds a model, which a new run would replace with other weights; use --from {output} to improve "
            "it, --resume to go on with an interrupted run, or --overwrite"
        )


def _origin_of(name: str) -> dict[str, Any]:
    """The origin of a run that starts from a model's weights, as `fit` takes it."""
    folder = find_model(name)
    record = folder / "training.json"
    before = json.loads(record.read_text()) if record.is_file() else FROM_SCRATCH
    found = {"started_from": folder.name, "folder": str(folder.resolve())}
    return found | {"steps": before["steps"], "minutes": before["minutes"]}


def _warm_model(name: str, wanted: ModelConfig) -> ArBufferModel:
    """A model with the weights of another one, to be trained for a prior whose configuration is `wanted`."""
    trained = load(name, trainable=True)
    _check_fits(trained.config, wanted, name)
    names = ["prior", "x_range", "y_range", "num_context", "num_targets", "evidence_rmse"]
    if wanted.prior != trained.config.prior:  # else a new measurement would change the network's function
        names += ["latents", "x_loc", "x_scale", "y_loc", "y_scale"]
    model = ArBufferModel(replace(trained.config, **{field: getattr(wanted, field) for field in names}))
    model.load_state_dict(trained.state_dict())
    return model


def _write_record(output: Path, state: RunState, settings: dict[str, Any]) -> None:
    """Writes training.json: what the weights were trained on, and for how long."""
    record = {
        "prior": settings["prior"],
        "steps": state.origin["steps"] + state.step,
        "minutes": round(state.origin["minutes"] + state.minutes, 1),
        "batch_size": settings["batch_size"],
        "seed": settings["seed"],
        "started_from": state.origin["started_from"],
        "validation": round(state.best_score, 4),
    }
    write_atomically(output / "training.json", lambda file: file.write_text(json.dumps(record, indent=2) + "\n"))


def state_of(runs: Path, output: Path) -> Path:
    """The state of the run that writes to an output: outputs of one name in different folders have different ones."""
    resolved = output.resolve()
    return runs / f"{resolved.name}-{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}" / STATE


def _check_fits(config: ModelConfig, wanted: ModelConfig, name: str) -> None:
    """Raises ValueError if a model cannot take the tasks of a prior, whose configuration is `wanted`."""
    has, needs = (
        f"dim_x = {c.dim_x}, dim_y = {c.dim_y}, latents {[(latent.name, latent.shape) for latent in c.latents]}"
        for c in (config, wanted)
    )
    if has != needs:
        raise ValueError(f"a model of the prior {wanted.prior!r} must have {needs}; {name} has {has}")


def plot_history(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draws the training loss and the validation density over the steps as PNG."""
    import matplotlib.figure  # slow, and only training needs it

    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [-entry["loss"] for entry in history], label="training (all prefix lengths)", lw=1)
    axes.plot(steps, [entry["validation"] for entry in history], label="validation (joint, 16 targets)")
    axes.set(xlabel="step", ylabel="log density per target (nats)")
    axes.legend()
    figure.savefig(path, format="png", dpi=110)


def evaluate(name: Annotated[str, tyro.conf.Positional], prior: AnyPriorName = None) -> None:
    """Scores a model on the fixed validation set of its prior: joint log density per target, in one order.

    Of a network that `amortize` made of a program of the user's, it prints what the run in its folder recorded.

    Args:
        name: Shipped model or folder.
        prior: Prior of the validation set; the model's own if not given.
    """
    model = load(name)
    chosen = prior or model.config.prior
    if chosen not in RECIPES and model.config.latents:
        _print_recorded(name, model.config)
        return
    if chosen not in RECIPES:
        raise SystemExit(f"--prior must be one of {', '.join(RECIPES)}; the model names {chosen!r}")
    source = make_source(chosen)
    _check_fits(model.config, source.config, name)
    batches = replace(source, config=model.config).validation()
    scores = validate(model, batches)
    print("   N   joint (nats per target)")
    for batch, score in zip(batches, scores, strict=True):
        print(f"{batch.x_context.shape[1]:4d}   {score:.3f}")
    print(json.dumps({"model": name, "prior": chosen, "validation": round(sum(scores) / len(scores), 4)}))


def _print_recorded(name: str, config: ModelConfig) -> None:
    """Prints the validation in the state of an amortized network's run; measuring anew needs its program."""
    state = find_model(name) / STATE
    measure = f"in Python, pyro_arbuf.calibrate(pyro_arbuf.load({name!r}), program=...) measures it, given that program"
    if not state.is_file():
        raise ValueError(
            f"{name} is a network of your own program {config.prior!r}, which this command does not have; {measure}"
        )
    recorded = RunState.read(state)
    print(f"{name}: a network of your own program {config.prior!r}. Recorded by its training, not measured now:")
    print(f"{recorded.best_score:.3f} nats per target, after {recorded.step} steps; {measure}")
    print(json.dumps({"model": name, "prior": config.prior, "recorded_validation": round(recorded.best_score, 4)}))


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
