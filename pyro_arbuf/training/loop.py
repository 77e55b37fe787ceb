"""`fit` (paper, section 3 and appendix): steps of Muon and AdamW, validations, checkpoints.

The batch of a step is a function of the source and the step, the learning rate of progress = max(step / steps,
time / minutes). The whole state of a run is one file, replaced atomically, so a run killed at any moment resumes with
the same data stream. Knows nothing of where tasks come from.

Deviation: the paper has Adam at 1e-4, weight decay 0.01 and 5 % warm-up. Muon and AdamW at 6e-3, 3 % warm-up and no
weight decay were chosen for runs of minutes to hours on a CPU core.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_arbuf.files import remove_leftovers, sole_writer, write_atomically
from pyro_arbuf.network.backbone import Block
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.network import Network
from pyro_arbuf.progress import progress_bar
from pyro_arbuf.training.dropout import dropped_out
from pyro_arbuf.training.muon import BatchedMuon
from pyro_arbuf.training.run_state import FROM_SCRATCH, RunState, held_interrupt
from pyro_arbuf.training.sources import TaskSource, check_finite, check_positive

LEARNING_RATE = 6e-3  # the peak
MAX_GRADIENT_NORM = 1.0
WARMUP = 0.03


@torch.no_grad()
def validate(model: Network, batches: list[Batch]) -> list[float]:
    """Mean log density per target, nats, of each batch of a validation set: buffered, the targets in one order."""
    device = next(model.parameters()).device
    # `score`, not a call of the model: accelerate wraps that for mixed precision.
    return [model.score(batch.to(device)).mean().item() for batch in batches]


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first 3 % of the run, cosine to zero over all of it."""
    return min(1.0, progress / WARMUP + 0.01) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizers(
    model: Network, muon_learning_rate: float = 6e-3, adamw_learning_rate: float = 6e-3, weight_decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the backbone and of other blocks, AdamW on the rest; ValueError if all are frozen."""
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError("model must have weights to train, and all are frozen; use load(name, trainable=True)")
    stacks = [model.backbone, *(part for part in model.embedder.modules() if isinstance(part, Block))]
    matrices = [p for stack in stacks for p in stack.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        BatchedMuon(matrices, lr=muon_learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=adamw_learning_rate, weight_decay=weight_decay, foreach=True),
    ]


def fit(
    model: Network,
    source: TaskSource,
    state_path: str | Path,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float = LEARNING_RATE,
    resume: bool = False,
    validate_every: int = 250,
    checkpoint_minutes: float = 3.0,
    mixed_precision: Literal["no", "bf16"] = "no",
    origin: dict[str, Any] | None = None,
    on_checkpoint: Callable[[RunState], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    average: float = 0.0,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    patience: int | None = None,
) -> RunState:
    """Trains a model on the tasks of a source until `steps` or `minutes` are used up.

    Loss: mean negative log density of the targets, teacher forced, one forward pass. Runs on what `accelerate` finds:
    CPU, one GPU, or several processes under `accelerate launch`.

    Args:
        model: The model; trained in place, left with its last weights.
        source: What every step and the validation set are drawn from.
        state_path: The safetensors file that holds the state of the run, replaced atomically, and locked while the run
            lasts.
        minutes: Training time, counted over all resumed parts; at least one of `minutes` and `steps`.
        steps: Number of steps.
        learning_rate: Peak learning rate of Muon and AdamW.
        resume: Continue from `state_path`: same data stream, optimiser state and clock.
        validate_every: Steps between validations.
        checkpoint_minutes: Minutes between writes of the state.
        mixed_precision: As accelerate has it; embedding, head and validation stay in float32.
        origin: Of a warm start: "started_from", perhaps the "folder" of that, the "steps" and "minutes" its weights
            had, and perhaps the "runs" behind them; kept in the state. Give the source another seed for new data; the
            command line adds the steps to it.
        on_checkpoint: Called by the main process whenever the state has been written: before the first step, every
            `checkpoint_minutes`, after the last step, and on Ctrl-C.
        clock: Seconds, by which time is counted; `time.process_time` counts those that the processor worked for it.
        average: Decay per step of an exponential average of the weights, e.g. 0.99, which is then what is validated and
            kept; 0 = the last weights. It is for a fixed set of simulations, of which a network knows too much before
            its learning rate has fallen.
        dropout: Share of the hidden units of every block, and of what its attention adds, that is dropped out in a
            step; against the same.
        weight_decay: Times the learning rate, the share by which a step shrinks all weights; against the same.
        patience: The run also ends after so many validations no better than earlier ones of it; `None` = it does not.

    Returns:
        The state at the end: best weights, their score, history.

    Raises:
        ValueError: If neither limit is given, all weights are frozen, a limit or size is not positive, `state_path`
            belongs to another run, is damaged or cannot be written, or the source draws NaN or infinite values.
        RuntimeError: If the loss is no longer finite although the data is.
    """
    if minutes is None and steps is None:
        raise ValueError("fit needs minutes= or steps= (or both: whichever ends first); got neither")
    state_path = Path(state_path)
    check_positive(minutes=minutes, steps=steps, validate_every=validate_every, patience=patience)
    check_positive(learning_rate=learning_rate)
    if resume and not state_path.exists():
        raise ValueError(f"resume=True needs the state of a run; there is none at {state_path}; start without resume")
    for name, value in (("average", average), ("dropout", dropout)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value}")
    chosen = {"average": average, "dropout": dropout, "weight_decay": weight_decay}
    run = _Run(model, source, state_path, learning_rate, mixed_precision, on_checkpoint, clock, chosen)
    with ExitStack() as held:
        if run.main:
            held.enter_context(sole_writer(state_path))
            remove_leftovers(state_path)
        run.open(resume, origin)
        bar = progress_bar(total=100, unit="%", disable=not run.main, bar_format="{l_bar}{bar}|{postfix}")
        held.callback(bar.close)
        if not run.state.best_weights:
            run.begin()
        done = max(run.progress(minutes, steps), run.state.exhausted(patience))
        interrupted = held.enter_context(held_interrupt())
        try:
            while done < 1:
                run.step(done)
                done = run.progress(minutes, steps, interrupted())
                bar.update(min(100 * done, 100) - bar.n)
                late = run.seconds_since("validated") > 60 * checkpoint_minutes > 0  # slow steps
                if run.state.step % validate_every == 0 or done >= 1 or late:
                    bar.set_postfix_str(run.validate())
                    done = max(done, run.state.exhausted(patience))
                    if done >= 1 or run.seconds_since("saved") > 60 * checkpoint_minutes:
                        run.save()
        except KeyboardInterrupt:
            if not run.updating:
                run.improve(None)
                run.save()
            raise
    return run.state


class _Run:
    """The parts of a run, whose order is `fit`'s: opening, a step, progress, a validation, a checkpoint.

    Attributes:
        main: Whether this is the main process, which writes.
        state: Where the run is.
        updating: Whether a step's update is half done, so that weights and optimisers cannot be saved.
    """

    state: RunState

    def __init__(
        self,
        model: Network,
        source: TaskSource,
        state_path: Path,
        learning_rate: float,
        mixed_precision: Literal["no", "bf16"],
        on_checkpoint: Callable[[RunState], None] | None,
        clock: Callable[[], float],
        chosen: dict[str, float],
    ):
        from accelerate import Accelerator, DistributedDataParallelKwargs  # slow, and only training needs it

        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.main = self.accelerator.is_main_process
        self.model, self.source, self.path = model, source, state_path
        self.learning_rate, self.mixed_precision, self.on_checkpoint = learning_rate, mixed_precision, on_checkpoint
        self.optimizers = make_optimizers(model, learning_rate, learning_rate, chosen["weight_decay"])
        self.clock, self.chosen, self.updating = clock, chosen, False

    def open(self, resume: bool, origin: dict[str, Any] | None) -> None:
        """Begins a run's state, or takes up that of an earlier one that was begun alike; then readies the devices."""
        setup = self._setup(origin)
        if resume:
            found = RunState.read(self.path)
            if origin is None:
                setup["started_from"] = found.setup.get("started_from")
            found.check_setup(self.path, setup)
        self.validation = self.source.validation()
        for batch in self.validation:
            what = f"the validation set with {batch.x_context.shape[1]} context pairs"
            check_finite(batch, what, self.model.config.missing_x)
        self.state = RunState(setup, origin or dict(FROM_SCRATCH))
        if resume:
            self.state = RunState.load(self.path, self.model, self.optimizers)
            self._tell()  # perhaps killed before the caller was told
        self.accelerator.wait_for_everyone()
        self.wrapped, *self.prepared = self.accelerator.prepare(self.model, *self.optimizers)
        self.model = self.accelerator.unwrap_model(self.wrapped)
        self.running = torch.tensor(self.state.running_loss, device=self.accelerator.device)
        now = self.clock()
        self.times = {"started": now - self.state.seconds, "validated": now, "saved": now}

    def _setup(self, origin: dict[str, Any] | None) -> dict[str, Any]:
        """What a resumed run must agree with."""
        setup = self.source.settings | {name: value for name, value in self.chosen.items() if value}
        return setup | {
            "num_processes": self.accelerator.num_processes,
            "learning_rate": self.learning_rate,
            "mixed_precision": self.mixed_precision,
            "config": self.model.config.to_json(),
            "started_from": (origin or {}).get("folder", (origin or {}).get("started_from")),
        }

    def begin(self) -> None:
        """Scores the weights at the start, which later ones have to beat, and writes the state: it can be written."""
        self.improve(None)
        if not self.state.best_weights:
            raise ValueError(
                "the validation density of the weights at the start must be finite; got infinite or NaN values of "
                "finite data; check the weights, and that outcomes are of moderate size (y_loc, y_scale)"
            )
        if self.main and self.path.exists():  # an earlier run stays beside the new one
            previous = self.path.with_suffix(".previous.safetensors")
            write_atomically(previous, lambda file: shutil.copyfile(self.path, file))
        self.save()

    def progress(self, minutes: float | None, steps: int | None, interrupted: bool = False) -> float:
        """Progress of the run, the main process's for all; raises KeyboardInterrupt in all if in that one."""
        used = [self.seconds_since("started") / 60 / minutes] if minutes else []
        done = max(used + ([self.state.step / steps] if steps else []))
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            told = torch.tensor([done, float(interrupted)], device=self.accelerator.device, dtype=torch.float64)
            done, interrupted = broadcast(told).tolist()
        if interrupted:
            raise KeyboardInterrupt
        return done

    def seconds_since(self, event: Literal["started", "validated", "saved"]) -> float:
        """Seconds since the run was started, over all resumed parts, or was last validated or saved."""
        return self.clock() - self.times[event]

    def step(self, done: float) -> None:
        """Does one step at the learning rate of a progress.

        Raises:
            ValueError: If its batch holds NaN or infinite values.
        """
        for optimizer in self.prepared:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * learning_rate_factor(done)
        batch = self.source.batch(self.state.step, self.accelerator.process_index)
        check_finite(batch, f"the batch of step {self.state.step}", self.model.config.missing_x)
        with dropped_out(self.model, self.chosen["dropout"], self.state.step):
            loss = self.wrapped(batch.to(self.accelerator.device))
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), MAX_GRADIENT_NORM)
        self.updating = True
        for optimizer in self.prepared:
            optimizer.step()
            optimizer.zero_grad()
        self.state.step += 1
        self.running += loss.detach()
        self._average()
        self.updating = False

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the average of the weights towards the last ones; the first ones fade at once."""
        if not self.chosen["average"]:
            return
        decay = min(self.chosen["average"], self.state.step / (self.state.step + 10))
        last = {name: weight.detach() for name, weight in self.model.named_parameters()}
        before = self.state.average or {name: weight.clone() for name, weight in last.items()}
        self.state.average = {name: before[name].to(weight.device) for name, weight in last.items()}
        get_ema_multi_avg_fn(decay)(list(self.state.average.values()), list(last.values()), self.state.step)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Has the model hold the average of its weights, where there is one."""
        if not self.state.average:
            yield
            return
        last = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.model.load_state_dict(self.state.average, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(last, strict=False)

    def improve(self, loss: float | None) -> float:
        """Keeps the weights if they are the best; returns their validation density, nats per target."""
        with self._averaged():
            scores = validate(self.model, self.validation)
            score = sum(scores) / len(scores)
            self.state.record_validation(score, loss, self.model)
        return score

    def validate(self) -> str:
        """Adds a mean loss and a validation to the history; returns them as text.

        Raises:
            RuntimeError: If the loss is no longer finite.
        """
        state = self.state
        last = state.history[-1]["step"] if state.history else 0
        loss = self.running.item() / (state.step - last)
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the loss is not finite at step {state.step} although the data is: training diverged; look for "
                f"outcomes of extreme size, or start again, of a shipped prior with a learning rate below "
                f"{self.learning_rate}"
            )
        score = self.improve(loss)
        self.running.zero_()
        self.times["validated"] = self.clock()
        return f" step {state.step}, joint {score:.3f}, loss {loss:.3f}"

    def save(self) -> None:
        """Writes the state and tells the caller."""
        self.times["saved"] = self.clock()
        self.state.seconds, self.state.running_loss = self.seconds_since("started"), self.running.item()
        if self.main:
            self.state.save(self.path, self.model, [prepared.optimizer for prepared in self.prepared])
        self._tell()

    def _tell(self) -> None:
        if self.main and self.on_checkpoint is not None:
            self.on_checkpoint(self.state.snapshot())
