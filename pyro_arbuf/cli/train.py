"""`pyro-arbuf train`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pyro_arbuf.baselines.added_buffer import add_buffer
from pyro_arbuf.baselines.architectures import make_model
from pyro_arbuf.checkpoint import CONFIG, find_model, load, read_config, save
from pyro_arbuf.cli.options import PriorName, check_fits, refuse
from pyro_arbuf.cli.record import RECORD, read_record
from pyro_arbuf.files import write_atomically
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.parts import ArchitectureName
from pyro_arbuf.network.positions import SlotPositions
from pyro_arbuf.programs.amortize import amortize
from pyro_arbuf.programs.function_prior import is_function_prior
from pyro_arbuf.programs.named_functions import find_function, is_function_name
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.programs.training_rounds import STATE
from pyro_arbuf.random_state import checked_seed
from pyro_arbuf.training.growth import GROWN, grow
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.run_state import FROM_SCRATCH, RunState
from pyro_arbuf.training.sources import check_positive

DEFAULTS = {"batch_size": 32, "num_targets": 48, "learning_rate": 6e-3, "average": 0.0, "mixed_precision": "no"}


def train(
    prior: Annotated[PriorName, tyro.conf.Positional],
    output: Path,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    num_targets: int | None = None,
    learning_rate: float | None = None,
    average: float | None = None,
    width: int | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    mlp_width: int | None = None,
    slot_positions: SlotPositions | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    auto_resume: bool = False,
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    runs: Path = Path("runs"),
    overwrite: bool = False,
    mixed_precision: Literal["no", "bf16"] | None = None,
    data: Path | None = None,
    num_context: int | None = None,
    inputs: str | None = None,
    latents: tuple[str, ...] | None = None,
    outcome: tuple[str, ...] | None = None,
    outcomes: tuple[str, ...] | None = None,
    architecture: ArchitectureName | None = None,
    adapter_rank: int | None = None,
    gated_read: bool = False,
) -> None:
    """Trains a model on a prior; the best weights are in OUTPUT whenever the run stops.

    A shipped prior by its name:  pyro-arbuf train gp-1d --output models/new --minutes 90

    A plain function of your own, in my_module.py here:  pyro-arbuf train my_module:draw --output my_prior --minutes 8
    --num-context 128

    A Pyro program of your own:  pyro-arbuf train my_module:program --inputs my_module:draw_x --output my_program
    --minutes 8

    Args:
        prior: What the tasks are drawn from: a name, or module:function.
        output: Folder for config.json, model.safetensors, training.json and loss.png.
        minutes: Training time, counted over resumed parts; of a function of your own, 8 if no limit is given.
        steps: Number of steps; with both limits, whichever is reached first.
        batch_size: Tasks per step and process; 32 if not given.
        num_targets: Fresh targets per task; the buffer's pairs are targets too; 48 if not given.
        learning_rate: Peak learning rate; 6e-3 if not given.
        average: Decay per step of an exponential average of the weights, which is then what is validated and kept: with
            0.9997 and a learning rate of 5e-4, trained weights go on to gain; 0, the last weights, if not given.
        width: Token width; that of the prior's recipe if not given; with `--from`, that of the weights, or a multiple
            of it, with as many times more heads and wider MLPs: copies, which change nothing before they are trained.
        num_layers: Number of blocks; likewise, or more: new ones change nothing before they are trained.
        num_heads: Number of heads; that of the recipe or of the weights if not given.
        mlp_width: Hidden width of the blocks' MLP; as `num_layers`.
        slot_positions: How slots of the buffer are told apart, see docs/how-to/longer_buffers.md; that of the recipe if
            not given; with `--from`, that of the weights.
        seed: Seed of weights and data stream.
        threads: CPU threads; all cores if not given.
        resume: Continue the run of this output.
        auto_resume: Continue the run of this output if there is one, else start it.
        from_: Folder or name of a model whose weights (and sizes) a new run starts from.
        runs: Folder for the state of runs, each under the name and a hash of the path of its output.
        overwrite: Let a new run replace another model in OUTPUT.
        mixed_precision: As accelerate has it; "no" if not given.
        data: Of a prior of recordings: their file, see docs/recordings.md.
        num_context: Of a function of your own: largest number of observed points; 100 if not given.
        inputs: Of a program of your own: module:function that draws its inputs, called with their number.
        latents: Of a program of your own: its sites whose posterior is wanted; none after the option = no latents.
        outcome: Of a program of your own: its site, or sites, of the outcome; y if not given.
        outcomes: Of a plain function of your own: kind of each dimension, "count", "categorical(n)" or "real"; real
            numbers if not given.
        architecture: Of a prior of functions or of recordings: "buffer", "lbanp-buffer" for contexts of thousands, or
            what else the paper compares with; "buffer" if not given; with `--from`, that of the weights, or
            "tnp-d-buffer", which adds a buffer to a "tnp-d".
        adapter_rank: Of a buffer that is added: rank of its adapters, 2 to 16, 0 = none; 8 if not given.
        gated_read: Of a buffer that is added: whether targets learn how much of their attention it gets.
    """
    check_positive(threads=threads)
    if threads is not None:
        torch.set_num_threads(threads)
    checked_seed(seed)
    own = {"num_context": num_context, "inputs": inputs, "latents": latents, "outcome": outcome}
    own |= {"outcomes": outcomes}
    chosen = {"width": width, "num_layers": num_layers, "num_heads": num_heads, "mlp_width": mlp_width}
    chosen |= {"slot_positions": slot_positions}
    sizes: dict[str, Any] = {name: size for name, size in chosen.items() if size is not None}
    added = {"adapter_rank": adapter_rank, "gated_read": gated_read or None}
    settings = {"batch_size": batch_size, "num_targets": num_targets, "learning_rate": learning_rate}
    settings |= {"average": average, "mixed_precision": mixed_precision}
    if is_function_name(prior):
        foreign = {"from": from_, "overwrite": overwrite or None, "data": data}
        foreign |= settings | added | {"batch_size": None}
        refuse(f"are not for a function of your own, {prior}", **foreign)
        resume = resume or (auto_resume and (output / STATE).exists())
        limits = {"minutes": minutes, "steps": steps, "batch_size": batch_size}
        sizes |= {} if architecture is None else {"architecture": architecture}
        _train_own(prior, output, own, resume=resume, seed=seed, **limits, **sizes)
        return
    refuse(f"are for a function of your own, module:function, and {prior!r} is a shipped prior", **own)
    state_path = state_of(runs, output)
    resume = resume or (auto_resume and state_path.exists())
    if not (resume or overwrite):
        _check_output(output, from_)
    settings = DEFAULTS | {name: value for name, value in settings.items() if value is not None}
    limits = {"minutes": minutes, "steps": steps}
    made_for = {"data": data, "architecture": _architecture(architecture, from_, **added)}
    sizes |= {name: value for name, value in added.items() if value is not None}
    _train_shipped(prior, output, state_path, settings, seed, from_, sizes, made_for, resume=resume, **limits)


def _train_shipped(
    prior: str,
    output: Path,
    state_path: Path,
    settings: dict[str, Any],
    seed: int,
    from_: str | None,
    sizes: dict[str, int],
    made_for: dict[str, Any],
    resume: bool,
    **limits: Any,
) -> None:
    """Trains a model on a row of the table of shipped models."""
    origin = None if from_ is None else _origin_of(from_)
    begun = RunState.read(state_path).origin if resume and state_path.exists() else origin or FROM_SCRATCH
    # A warm start goes on with new data: its stream is another one.
    source = make_source(prior, settings["batch_size"], settings["num_targets"], seed + begun["steps"], **made_for)
    torch.manual_seed(seed)
    wanted = replace(source.config, **sizes)
    model = make_model(wanted) if from_ is None else _warm_model(from_, wanted, sizes)

    def keep(state: RunState) -> None:
        save(model, output, state.best_weights)
        _write_record(output, state, {"prior": prior, "seed": seed} | settings)
        write_atomically(output / "loss.png", lambda file: plot_history(state.history, file))

    state = fit(
        model,
        replace(source, config=model.config),
        state_path,
        learning_rate=settings["learning_rate"],
        average=settings["average"],
        resume=resume,
        mixed_precision=settings["mixed_precision"],
        origin=origin,
        on_checkpoint=keep,
        **limits,
    )
    print(f"{output}: {state.best_score:.3f} nats per target on the validation set after {state.step} steps")


def _train_own(prior: str, output: Path, own: dict[str, Any], **options: Any) -> None:
    """Trains a model on a function of the user's, a prior or a Pyro program; network and state are in OUTPUT."""
    function = find_function(prior)
    if own["inputs"] is not None:
        options["inputs"] = find_function(own["inputs"])
    if own["num_context"] is not None:
        options["num_context"] = (0, own["num_context"])
    if own["latents"] is not None:
        options["latents"] = list(own["latents"])
    if own["outcome"] is not None:
        options["outcome"] = own["outcome"][0] if len(own["outcome"]) == 1 else own["outcome"]
    if own["outcomes"] is not None:
        if not is_function_prior(function):
            raise ValueError(
                f"--outcomes is for a plain function, and {prior} is a program, whose sites say their kinds"
            )
        options["outcomes"] = own["outcomes"]
    amortize(function, folder=output, **options)
    print(f"{output}: pyro_arbuf.load({str(output)!r}) loads it")


def _architecture(given: ArchitectureName | None, from_: str | None, **added: Any) -> ArchitectureName:
    """The architecture that is trained, with options of a buffer that is added.

    Raises:
        ValueError: If it is not that of the weights it starts from, a buffer is added to none, or its options are given
            where none is added.
    """
    found = None if from_ is None else read_config(find_model(from_)).architecture
    if given == "tnp-d-buffer" and found is None:
        raise ValueError(
            "--architecture tnp-d-buffer adds a buffer to trained weights, which stay as they are; give them by --from"
        )
    if given == "tnp-d-buffer" and found == "tnp-d":
        return given
    refuse("are for a buffer that is added, --architecture tnp-d-buffer --from a tnp-d network", **added)
    if found is None:
        return given or "buffer"
    if given not in (None, found):
        raise ValueError(f"--architecture must be that of --from {from_}, {found}; got {given}; leave it out")
    return found


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
    before = FROM_SCRATCH | {"runs": []} | read_record(folder)
    found = {"started_from": folder.name, "folder": str(folder.resolve())}
    return found | {name: before[name] for name in ("steps", "minutes", "runs")}


def _warm_model(name: str, wanted: ModelConfig, sizes: dict[str, Any]) -> ArBufferModel:
    """A model with the weights of another one, to be trained for a prior whose configuration is `wanted`.

    Raises:
        ValueError: If it is not for such tasks, or a size that was asked for is not that of the weights, nor one to
            which they can grow.
    """
    trained = load(name, trainable=True).in_units()
    if wanted.architecture == "tnp-d-buffer" and trained.config.architecture == "tnp-d":
        trained = add_buffer(trained, wanted.adapter_rank or None, wanted.gated_read)
    check_fits(trained.config, wanted, name)
    larger = {size: sizes[size] for size in GROWN if size in sizes}
    trained = grow(trained, **larger) if larger else trained
    for size, value in sizes.items():
        own = getattr(trained.config, size)
        if own != value and size != "slot_positions":
            raise ValueError(f"--{size.replace('_', '-')} must be {own}, as the weights of {name} have it; got {value}")
    names = ["prior", "x_range", "y_range", "num_context", "num_targets", "x_spacing"]
    names += ["evidence_rmse", "evidence_trials", "ordered_latents"]
    if wanted.prior != trained.config.prior:  # else a new measurement would change the network's function
        names += ["latents", "x_loc", "x_scale", "y_loc", "y_scale", "y_scale_weight"]
    names += ["slot_positions"] * ("slot_positions" in sizes)
    model = make_model(replace(trained.config, **{field: getattr(wanted, field) for field in names}))
    slot = "embedder.positions.slot"  # of learned positions, which another kind does without
    found = model.load_state_dict(trained.state_dict(), strict=False)
    assert {*found.missing_keys, *found.unexpected_keys} <= {slot}
    return model


def _write_record(output: Path, state: RunState, settings: dict[str, Any]) -> None:
    """Writes training.json: what the weights were trained on, for how long, and in which runs, one after the other."""
    run = {"prior": settings["prior"], "steps": state.step, "minutes": round(state.minutes, 1)}
    run |= {name: settings[name] for name in ("batch_size", "num_targets", "learning_rate", "seed")}
    run |= {"average": settings["average"]} if settings["average"] else {}
    run["validation"] = round(state.best_score, 4)
    record = {
        "prior": settings["prior"],
        "steps": state.origin["steps"] + state.step,
        "minutes": round(state.origin["minutes"] + state.minutes, 1),
        "batch_size": settings["batch_size"],
        "seed": settings["seed"],
        "started_from": state.origin["started_from"],
        "validation": run["validation"],
        "runs": [*state.origin.get("runs", []), run],
    }
    write_atomically(output / RECORD, lambda file: file.write_text(json.dumps(record, indent=2) + "\n"))


def state_of(runs: Path, output: Path) -> Path:
    """The state of the run that writes to an output: outputs of one name in different folders have different ones."""
    resolved = output.resolve()
    return runs / f"{resolved.name}-{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}" / STATE


def plot_history(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draws the training loss and the validation density over the steps as PNG."""
    import matplotlib.style  # slow, and only training needs it
    from matplotlib.figure import Figure

    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(6, 3.5))
        axes = figure.subplots()
        steps = [entry["step"] for entry in history]
        axes.plot(steps, [-entry["loss"] for entry in history], label="training (all prefix lengths)", lw=1)
        axes.plot(steps, [entry["validation"] for entry in history], label="validation (joint, 16 targets)")
        axes.set(xlabel="step", ylabel="log density per target (nats)")
        axes.legend()
        figure.savefig(path, format="png", dpi=110)
