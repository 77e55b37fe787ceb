"""Loss and `fit` (paper, section 3 and appendix).

The batch of a step is a function of (seed, step), the learning rate of progress = max(step / steps, time / minutes).
The whole state of a run is one file, replaced atomically, so a run killed at any moment resumes with the same data
stream. Knows nothing of any particular prior.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from torch import Tensor

from pyro_arbuf.files import remove_leftovers, sole_writer
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.visibility import chain_prefix_len
from pyro_arbuf.progress import progress_bar
from pyro_arbuf.training.batch import Batch, Prior, Task, check_finite, draw_batch, validation_tasks
from pyro_arbuf.training.run_state import check_setup, held_interrupt, load_state, read_record, save_state

MAX_GRADIENT_NORM = 1.0
WARMUP = 0.03


@torch.no_grad()
def validate(model: Network, tasks: list[Task]) -> list[float]:
    """Mean joint log density per target, nats, of each validation set: buffered, the targets in one order."""
    device = next(model.parameters()).device
    scores = []
    for task in tasks:
        x_context, y_context, x, y = (t.to(device) for t in task[:4])
        size = model.config.buffer_size
        x, y = x[:, :size], y[:, :size]
        # By the class: accelerate wraps the instance's forward for mixed precision.
        density = Network.forward(model, x_context, y_context, x, y, x, y, chain_prefix_len(x.shape[1], device))
        scores.append(density.mean().item())
    return scores


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first 3 % of the run, cosine to zero over all of it."""
    return min(1.0, progress / WARMUP + 0.01) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizers(
    model: Network, muon_learning_rate: float = 6e-3, adamw_learning_rate: float = 6e-3
) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the backbone, AdamW on everything else."""
    matrices = [p for p in model.backbone.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=adamw_learning_rate, weight_decay=0.0, foreach=True),
    ]


class TrainingState(NamedTuple):
    """What `fit` returns: best weights, their validation score (nats per target), history, where it started."""

    best_weights: dict[str, Tensor]
    best_score: float
    history: list[dict[str, float]]
    steps: int
    minutes: float
    origin: dict[str, Any]


def fit(
    model: Network,
    prior: Prior | object,
    state_path: Path,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    num_targets: int = 48,
    learning_rate: float = 6e-3,
    seed: int = 0,
    resume: bool = False,
    validate_every: int = 250,
    checkpoint_minutes: float = 3.0,
    mixed_precision: Literal["no", "bf16"] = "no",
    origin: dict[str, Any] | None = None,
    on_checkpoint: Callable[["TrainingState"], None] | None = None,
    draw: Callable[..., Batch] | None = None,
    tasks: list[Task] | None = None,
) -> TrainingState:
    """Trains a model on tasks of a prior until `steps` or `minutes` are used up.

    Loss: mean negative log density of the targets, teacher forced, one forward pass. Runs on what `accelerate` finds:
    CPU, one GPU, or several processes under `accelerate launch`.

    Args:
        model: The model; trained in place, left with its last weights.
        prior: Draws tasks; what `draw` takes first.
        state_path: The safetensors file that holds the state of the run, replaced atomically, and locked while the run
            lasts.
        minutes: Training time, counted over all resumed parts; at least one of `minutes` and `steps`.
        steps: Number of steps.
        batch_size: Tasks per step and process.
        num_targets: Fresh targets M per task.
        learning_rate: Peak learning rate of Muon and AdamW.
        seed: Seed of the data stream.
        resume: Continue from `state_path`: same data stream, optimiser state and clock.
        validate_every: Steps between validations.
        checkpoint_minutes: Minutes between writes of the state.
        mixed_precision: As accelerate has it; embedding, head and validation stay in float32.
        origin: Of a warm start: "started_from", perhaps the "folder" of that, and the "steps" and "minutes" its weights
            had; kept in the state. The data stream goes on from there.
        on_checkpoint: Called by the main process whenever the state has been written: before the first step, every
            `checkpoint_minutes`, after the last step, and on Ctrl-C.
        draw: Draws the batch of a step, called like `draw_batch`; `None` = that.
        tasks: The validation set; `None` = `validation_tasks` of the prior.

    Returns:
        Best weights, score and history.

    Raises:
        ValueError: If neither limit is given, a limit or size is not positive, `state_path` belongs to another run, is
            damaged or cannot be written, or the prior draws NaN or infinite values.
        RuntimeError: If the loss is no longer finite although the data is.
    """
    if minutes is None and steps is None:
        raise ValueError("fit needs minutes= or steps= (or both: whichever ends first); got neither")
    sizes = {"minutes": minutes, "steps": steps, "batch_size": batch_size, "num_targets": num_targets}
    for name, value in (sizes | {"validate_every": validate_every}).items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive; got {value}")
    if resume and not state_path.exists():
        raise ValueError(f"resume=True needs the state of a run; there is none at {state_path}; start without resume")
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    optimizers = make_optimizers(model, learning_rate, learning_rate)
    setup = {
        "seed": seed,
        "batch_size": batch_size,
        "num_processes": accelerator.num_processes,
        "num_targets": num_targets,
        "learning_rate": learning_rate,
        "mixed_precision": mixed_precision,
        "config": model.config.to_json(),
        "started_from": (origin or {}).get("folder", (origin or {}).get("started_from")),
    }
    if resume and origin is None:
        setup["started_from"] = read_record(state_path).get("setup", {}).get("started_from")
    origin = origin or {"started_from": None, "steps": 0, "minutes": 0.0}
    record: dict[str, Any] = {"setup": setup, "origin": origin, "step": 0, "seconds": 0.0, "history": []}
    record |= {"best_score": -math.inf, "running_loss": 0.0}
    best: dict[str, Tensor] = {}
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(sole_writer(state_path))
            remove_leftovers(state_path)
        if resume:
            check_setup(state_path, setup)
        tasks = validation_tasks(prior, model.config) if tasks is None else tasks
        for task in tasks:
            check_finite(task, f"the validation set with {task.x_context.shape[1]} context pairs")
        if resume:
            best, record = load_state(state_path, model, optimizers)
            if on_checkpoint is not None and accelerator.is_main_process:  # perhaps killed before it was told
                on_checkpoint(_state(best, record))
        accelerator.wait_for_everyone()
        wrapped, *optimizers = accelerator.prepare(model, *optimizers)
        model = accelerator.unwrap_model(wrapped)
        started = time.monotonic() - record["seconds"]
        saved = validated = time.monotonic()
        running = torch.tensor(record["running_loss"], device=accelerator.device)
        bar = progress_bar(
            total=100, unit="%", disable=not accelerator.is_main_process, bar_format="{l_bar}{bar}|{postfix}"
        )
        held.callback(bar.close)

        def progress(interrupted: bool = False) -> float:
            """Progress of the run, the main process's for all; raises KeyboardInterrupt in all if in that one."""
            used = [(time.monotonic() - started) / 60 / minutes] if minutes else []
            done = max(used + ([record["step"] / steps] if steps else []))
            if accelerator.num_processes > 1:
                told = torch.tensor([done, float(interrupted)], device=accelerator.device, dtype=torch.float64)
                done, interrupted = broadcast(told).tolist()
            if interrupted:
                raise KeyboardInterrupt
            return done

        def check_point(loss: float | None) -> None:
            """Validates and keeps the best weights."""
            nonlocal best
            scores = validate(model, tasks)
            score = sum(scores) / len(scores)
            if score > record["best_score"]:
                record["best_score"] = score
                best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            if loss is not None:
                record["history"].append({"step": record["step"], "loss": loss, "validation": score})
                bar.set_postfix_str(f" step {record['step']}, joint {score:.3f}, loss {loss:.3f}")

        def keep() -> None:
            """Writes the state and tells the caller."""
            record["seconds"], record["running_loss"] = time.monotonic() - started, running.item()
            if accelerator.is_main_process:
                save_state(state_path, model, [o.optimizer for o in optimizers], best, record)
                if on_checkpoint is not None:
                    on_checkpoint(_state(best, record))

        if not best:
            check_point(None)  # a warm start has to beat the weights it started from
            if not best:
                raise ValueError(
                    "the validation density of the weights at the start must be finite; got infinite or NaN values of "
                    "finite data; check the weights, and that outcomes are of moderate size (y_loc, y_scale)"
                )
            if accelerator.is_main_process and state_path.exists():  # an earlier run stays beside the new one
                state_path.replace(state_path.with_suffix(".previous.safetensors"))
            keep()  # what cannot be written is found before training
        done = progress()
        interrupted = held.enter_context(held_interrupt())
        updating = False  # between two steps the state can be saved
        try:
            while done < 1:
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate * learning_rate_factor(done)
                stream = seed + record["origin"]["steps"]
                task, targets = (draw or draw_batch)(
                    prior, model.config, batch_size, num_targets, stream, record["step"], accelerator.process_index
                )
                check_finite(task, f"the batch of step {record['step']}")
                batch = [t.to(accelerator.device, non_blocking=True) for t in (*task[:4], *targets)]
                loss = -wrapped(*batch).mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(wrapped.parameters(), MAX_GRADIENT_NORM)
                updating = True
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                record["step"] += 1
                running += loss.detach()
                updating = False
                done = progress(interrupted())
                bar.update(min(100 * done, 100) - bar.n)
                late = time.monotonic() - validated > 60 * checkpoint_minutes > 0  # slow steps
                if record["step"] % validate_every == 0 or done >= 1 or late:
                    last = record["history"][-1]["step"] if record["history"] else 0
                    mean_loss = running.item() / (record["step"] - last)
                    if not math.isfinite(mean_loss):
                        raise RuntimeError(
                            f"the loss is not finite at step {record['step']} although the data is: training diverged; "
                            f"start again with a learning rate below {learning_rate}, and look for outcomes of extreme "
                            f"size; the state before it is in {state_path}"
                        )
                    check_point(mean_loss)
                    running.zero_()
                    validated = time.monotonic()
                    if done >= 1 or time.monotonic() - saved > 60 * checkpoint_minutes:
                        saved = time.monotonic()
                        keep()
        except KeyboardInterrupt:
            if not updating:
                check_point(None)
                keep()
            raise
    return _state(best, record)


def _state(best: dict[str, Tensor], record: dict[str, Any]) -> TrainingState:
    minutes = record["seconds"] / 60
    return TrainingState(best, record["best_score"], record["history"], record["step"], minutes, record["origin"])
