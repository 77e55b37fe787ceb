"""The four parts of a configuration: what is built, in which units, trained on what, measured how."""

import functools
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.network.outcomes import Outcome, Real, outcome_of
from pyro_arbuf.network.positions import SlotPositions, check_slot_positions
from pyro_arbuf.network.rules import (
    LARGEST_SIZE,
    check_latent,
    check_standardisation,
    is_integer,
    is_number,
    is_pair,
)

MARGIN = 0.01  # of the range of simulated inputs, by which a trained range is wider at either end
Range = tuple[float, float]
OPTIONAL = ("num_frequencies", "num_y_frequencies", "num_traces")  # sizes that may be 0
ArchitectureName = Literal["buffer", "tnp-d", "tnp-a", "tnp-nd", "decoder", "lbanp", "lbanp-buffer", "tnp-d-buffer"]
RANKS = (2, 16)  # of the adapters of an added buffer


@dataclass(frozen=True)
class Architecture:
    """What the network is built of.

    Attributes:
        dim_x: Input features D_x.
        dim_y: Outcome dimensions D_y; `None` = a scalar outcome, `y` without a feature dimension.
        outcomes: Kind of every outcome dimension, "real", "count" or "categorical(3)"; empty = all real.
        chained: Whether the dimensions of a vector outcome are predicted one after the other, each given those before
            it; False = as independent given what the target has read.
        buffer_size: Buffer slots K.
        width: Token width d.
        num_layers: Blocks L.
        num_heads: Heads H.
        mlp_width: Hidden width of the blocks' MLP.
        embedding_width: Hidden width of the embedder's MLPs.
        num_frequencies: Learned sines and cosines of x; 0 = none.
        max_frequency: Their largest angular frequency before training, radians per unit of x.
        num_y_frequencies: Learned sines and cosines of the standardised outcome; 0 = none.
        head: "mixture" or "gaussian".
        head_width: Hidden width of the head.
        num_components: Components C of the mixture.
        sequential: Whether targets have a natural order, which is then the default order.
        lag_column: Column of the inputs that numbers the trials of a series, whose lags attention then sees: angles
            turn with it, the fastest by pi from one trial to the next where that is `max_frequency`. `None` = none.
        num_traces: Fading sums over the outcomes of earlier trials of a series that every token is told besides, see
            `network/traces`; the first holds the trial just before. 0 = none.
        latents: Of a program, in the order of their locations; empty = none.
        inputs: "features", embedded by themselves, or "rows" of tables, of 1 to D_x exchangeable columns in which cells
            may be missing (NaN), embedded by what the context says of their columns.
        column_width: Of rows, the token width of a cell.
        column_heads: Of rows, the heads of blocks over cells.
        num_inducing: Of rows, the tokens that sum up a column of the context.
        num_cls: Of rows, the tokens that read all cells of a row.
        row_layers: Of rows, the blocks over the cells of a row.
        scaled_queries: Whether queries grow with the logarithm of the number of keys they read, so that the attention
            to contexts longer than in training stays as sharp.
        architecture: "buffer", or what the paper compares it with, see `pyro_arbuf.baselines`.
        adapter_rank: Of a buffer added to a set model ("tnp-d-buffer"), the rank of its adapters, 2 to 16; 0 = none.
        gated_read: Likewise, whether targets learn how much of their attention the buffer gets.
        slot_positions: How slots of the buffer are told apart: by "learned" vectors, of which there are K, by nothing
            but who sees whom ("none"), or by their distance to a query, which turns keys ("rotary") or lowers scores
            ("linear"). All but the first can be read with a `buffer_size` beyond K.
    """

    dim_x: int = 1
    dim_y: int | None = None
    outcomes: tuple[str, ...] = ()
    chained: bool = True
    buffer_size: int = 16
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 128
    embedding_width: int = 64
    num_frequencies: int = 32
    max_frequency: float = 32.0
    num_y_frequencies: int = 0
    head: Literal["mixture", "gaussian"] = "mixture"
    head_width: int = 128
    num_components: int = 20
    sequential: bool = False
    lag_column: int | None = None
    num_traces: int = 0
    latents: tuple[Latent, ...] = ()
    inputs: Literal["features", "rows"] = "features"
    column_width: int = 32
    column_heads: int = 2
    num_inducing: int = 16
    num_cls: int = 2
    row_layers: int = 2
    scaled_queries: bool = False
    architecture: ArchitectureName = "buffer"
    adapter_rank: int = 8
    gated_read: bool = False
    slot_positions: SlotPositions = "learned"

    def _check_architecture(self) -> None:
        sizes = ["dim_x", "buffer_size", "width", "num_layers", "num_heads", "mlp_width", "embedding_width"]
        sizes += ["head_width", "num_components"] + (["dim_y"] if self.dim_y is not None else [])
        sizes += ["column_width", "column_heads", "num_inducing", "num_cls", "row_layers"]
        for name, least in (dict.fromkeys(sizes, 1) | dict.fromkeys(OPTIONAL, 0)).items():
            value = getattr(self, name)
            if not is_integer(value) or not least <= value:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
            if value > LARGEST_SIZE:
                raise ValueError(f"{name} must be at most {LARGEST_SIZE}; got {value!r}")
        if not is_number(self.max_frequency) or self.max_frequency <= 0:
            raise ValueError(f"max_frequency must be a positive number; got {self.max_frequency!r}")
        self._check_lags()
        for name in ("sequential", "chained", "scaled_queries"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")
        if not isinstance(self.outcomes, tuple) or len(self.outcomes) not in (0, self.dim_y or 1):
            raise ValueError(f"outcomes must name the kinds of all {self.dim_y or 1} dimensions; got {self.outcomes!r}")
        if not self.chained and not self.all_real:
            raise ValueError(f"chained=False is for real outcomes; got outcomes {self.outcomes}")
        if self.head not in ("mixture", "gaussian"):
            raise ValueError(f"head must be 'mixture' or 'gaussian'; got {self.head!r}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads = {self.num_heads}; got {self.width}")
        if not isinstance(self.latents, tuple) or not all(isinstance(latent, Latent) for latent in self.latents):
            raise ValueError(f"latents must be a tuple of Latent; got {self.latents!r}")
        for latent in self.latents:
            check_latent(latent)
        self._check_rows()
        self._check_baseline()
        self._check_added_buffer()
        check_slot_positions(self.slot_positions, self.architecture, self.width / self.num_heads)
        names = [latent.name for latent in self.latents]
        if len(set(names)) < len(names):
            raise ValueError(f"latents must have different names; got {names}")
        if self.num_latents > LARGEST_SIZE:
            raise ValueError(f"latents must hold at most {LARGEST_SIZE} numbers; got {self.num_latents}")

    def _check_lags(self) -> None:
        lag, columns = self.lag_column, 0 if self.inputs == "rows" else self.dim_x
        if lag is not None and (not is_integer(lag) or not 0 <= lag < columns or self.width < 2 * self.num_heads):
            raise ValueError(
                f"lag_column must be the number of an input column, below {columns}, in a network whose heads are at "
                f"least 2 wide, or None; got {lag!r} with heads of {self.width / self.num_heads:g}"
            )
        if self.num_traces and lag is None:
            raise ValueError(
                f"num_traces must be 0 in a network that sees no lags (lag_column=None); got {self.num_traces}; give "
                "the column that numbers the trials by lag_column="
            )

    def _check_baseline(self) -> None:
        if self.architecture not in get_args(ArchitectureName):
            names = ", ".join(get_args(ArchitectureName))
            raise ValueError(f"architecture must be one of {names}; got {self.architecture!r}")
        if self.architecture == "buffer":
            return
        if self.latents or self.inputs == "rows" or not self.all_real or self.num_traces:
            raise ValueError(
                f"architecture={self.architecture!r} is for priors of functions and for recordings: real outcomes at "
                "inputs='features', without latents or traces; use architecture='buffer' for anything else"
            )
        if self.lag_column is not None and self.architecture in ("decoder", "lbanp", "lbanp-buffer"):
            raise ValueError(
                f"architecture={self.architecture!r} must have lag_column=None, as its attention sees no lags; got "
                f"{self.lag_column}; use 'buffer', 'tnp-d', 'tnp-a' or 'tnp-nd'"
            )

    def _check_added_buffer(self) -> None:
        if not isinstance(self.gated_read, bool):
            raise ValueError(f"gated_read must be True or False; got {self.gated_read!r}")
        rank, (low, high) = self.adapter_rank, RANKS
        if not is_integer(rank) or not (rank == 0 or low <= rank <= high):
            raise ValueError(f"adapter_rank must be an integer in {low}..{high}, or 0 for no adapters; got {rank!r}")
        if self.architecture == "tnp-d-buffer" and not rank and not self.gated_read:
            raise ValueError("adapter_rank must not be 0 where gated_read=False: nothing would read the buffer anew")

    def _check_rows(self) -> None:
        if self.inputs not in ("features", "rows"):
            raise ValueError(f"inputs must be 'features' or 'rows'; got {self.inputs!r}")
        if self.inputs == "features":
            return
        if self.latents or not self.all_real:
            raise ValueError(
                "inputs='rows' is for real outcomes without latents; got latents "
                f"{[latent.name for latent in self.latents]} and outcomes {self.outcomes}"
            )
        if self.column_width % self.column_heads:
            raise ValueError(
                f"column_width must be a multiple of column_heads = {self.column_heads}; got {self.column_width}"
            )

    @property
    def missing_x(self) -> bool:
        """Whether inputs may be missing, NaN; their number of columns is then free, from 1 to D_x."""
        return self.inputs == "rows"

    @functools.cached_property
    def kinds(self) -> tuple[Outcome, ...]:
        """What every outcome dimension is, D_y of them, 1 for a scalar outcome."""
        return tuple(outcome_of(text) for text in self.outcomes or ("real",) * (self.dim_y or 1))

    @functools.cached_property
    def all_real(self) -> bool:
        """Whether every outcome dimension is a real number."""
        return all(isinstance(kind, Real) for kind in self.kinds)

    @property
    def num_latents(self) -> int:
        """Latent locations P."""
        return sum(latent.size for latent in self.latents)

    def squeeze_outcome(self, y: Tensor) -> Tensor:
        """Outcomes `(*batch, T, D_y)` as users have them: `(*batch, T)` for a scalar outcome."""
        return y.squeeze(-1) if self.dim_y is None else y


@dataclass(frozen=True)
class Units:
    """The units of inputs and outcomes: what the network embeds and predicts is standardised by them.

    Attributes:
        x_loc: Location of every input feature, subtracted before it is embedded; `None` = 0.
        x_scale: Scale of every input feature; `None` = 1.
        y_loc: Location of every outcome dimension: embedded and predicted are (y - y_loc) / y_scale, so densities stay
            in the user's units; `None` = 0.
        y_scale: Scale of every outcome dimension; `None` = 1.
        y_scale_weight: How many observations `y_scale` counts as beside those of the context, whose mean and standard
            deviation are put onto `y_loc` and `y_scale`; `None` = the context says nothing of units, or is a table.
    """

    x_loc: tuple[float, ...] | None = None
    x_scale: tuple[float, ...] | None = None
    y_loc: tuple[float, ...] | None = None
    y_scale: tuple[float, ...] | None = None
    y_scale_weight: float | None = None

    def _check_units(self, dim_x: int, dim_y: int) -> None:
        check_standardisation(("x_loc", "x_scale"), self.x_loc, self.x_scale, dim_x)
        check_standardisation(("y_loc", "y_scale"), self.y_loc, self.y_scale, dim_y)
        weight = self.y_scale_weight
        if weight is not None and not (is_number(weight) and weight > 0 and self.y_scale is not None):
            raise ValueError(
                f"y_scale_weight must be a positive number, beside y_loc and y_scale, or None; got {weight!r} beside "
                f"y_scale {self.y_scale}"
            )


@dataclass(frozen=True)
class Trained:
    """What the weights were trained on.

    Attributes:
        prior: Name of the prior; empty = unknown.
        outcome: Name of the program's outcome site; of several sites, that of every outcome dimension.
        x_range: Range of the inputs: one pair (low, high) for all features, or a pair for each; `None` = not declared.
        y_range: Range of the outcome, likewise for its dimensions; `None` = not declared.
        num_context: Range of N.
        num_targets: Range of M, absorbing included; `None` = not declared.
        x_spacing: Least distance between two inputs of one data set, in a network of one input column; `None` = any.
        dependent: Whether the trials of a program depend on each other given all latents, so that their likelihood is
            a joint density; of a series also `sequential`.
        ordered_latents: Whether the latents of a program were mostly predicted in their own order, which is then the
            posterior's by default.
        observation: Outcomes `(n, D_y)` of the one data set whose posterior it is for; `None` = for any.
    """

    prior: str = ""
    outcome: str | tuple[str, ...] = "y"
    x_range: Range | tuple[Range, ...] | None = None
    y_range: Range | tuple[Range, ...] | None = None
    num_context: tuple[int, int] = (0, 128)
    num_targets: tuple[int, int] | None = None
    x_spacing: float | None = None
    dependent: bool = False
    ordered_latents: bool = False
    observation: tuple[tuple[float, ...], ...] | None = None

    def _check_trained(self, dim_x: int, dim_y: int) -> None:
        spacing = self.x_spacing
        if spacing is not None and not (is_number(spacing) and spacing > 0 and dim_x == 1):
            raise ValueError(
                f"x_spacing must be a positive number, in a network of one input column, or None; got {spacing!r} with "
                f"{dim_x} columns"
            )
        if not isinstance(self.prior, str):
            raise ValueError(f"prior must be a string; got {self.prior!r}")
        for name in ("dependent", "ordered_latents"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")
        columns = self.outcome if isinstance(self.outcome, tuple) else (self.outcome,) * dim_y
        if len(columns) != dim_y or not all(isinstance(name, str) for name in columns):
            raise ValueError(
                f"outcome must be a string, or a tuple of {dim_y}, one per dimension; got {self.outcome!r}"
            )
        for row in self.observation or ():
            if not isinstance(row, tuple) or len(row) != dim_y or not all(is_number(each) for each in row):
                raise ValueError(f"observation must hold rows of {dim_y} finite numbers, or be None; got {row!r}")
        for name, dim in {"x_range": dim_x, "y_range": dim_y}.items():
            value = getattr(self, name)
            if value is None:
                continue
            each = value if isinstance(value, tuple) and value and isinstance(value[0], tuple) else (value,) * dim
            if len(each) != dim:
                raise ValueError(f"{name} must be one pair (low, high), or {dim} of them; got {len(each)} pairs")
            for pair in each:
                numbers = is_pair(pair) and all(is_number(end) for end in pair) and pair[0] <= pair[1]
                if not numbers or (name == "y_range" and pair[0] == pair[1]):
                    rule = "low < high" if name == "y_range" else "low <= high"
                    raise ValueError(f"{name} must be a pair (low, high) of finite numbers, {rule}; got {pair!r}")
        for name, least in {"num_context": 0, "num_targets": 1}.items():
            value = getattr(self, name)
            if value is None and name == "num_targets":
                continue
            if not (is_pair(value) and all(is_integer(end) for end in value) and least <= value[0] <= value[1]):
                rule = f"integers, {least} <= low <= high"
                raise ValueError(f"{name} must be a pair (low, high) of {rule}; got {value!r}")


@dataclass(frozen=True)
class Measured:
    """What was found out about the trained network.

    Attributes:
        evidence_rmse: Error of `log_evidence` as `measure_evidence_error` found it, nats; `None` = not measured.
        evidence_trials: Of data sets of how many trials; `None` = not known, the largest trained number.
    """

    evidence_rmse: float | None = None
    evidence_trials: int | None = None

    def _check_measured(self) -> None:
        error, trials = self.evidence_rmse, self.evidence_trials
        if error is not None and not (is_number(error) and error >= 0):
            raise ValueError(f"evidence_rmse must be a number >= 0, or be None; got {error!r}")
        if trials is not None and not (is_integer(trials) and trials >= 1):
            raise ValueError(f"evidence_trials must be an integer >= 1, or be None; got {trials!r}")
