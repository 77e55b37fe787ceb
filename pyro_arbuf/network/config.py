"""ModelConfig: everything that defines a model but its weights, and the ranges it was trained on."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_arbuf.network.latents import Latent


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a model but its weights; saved as config.json.

    Attributes:
        dim_x: Input features D_x.
        dim_y: Outcome dimensions D_y; `None` = a scalar outcome, `y` without a feature dimension.
        buffer_size: Buffer slots K.
        width: Token width d.
        num_layers: Blocks L.
        num_heads: Heads H.
        mlp_width: Hidden width of the blocks' MLP.
        embedding_width: Hidden width of the embedder's MLPs.
        num_frequencies: Learned sines and cosines of x; 0 = none.
        max_frequency: Their largest angular frequency before training, radians per unit of x.
        head: "mixture" or "gaussian".
        head_width: Hidden width of the head.
        num_components: Components C of the mixture.
        sequential: Whether targets have a natural order, which is then the default order.
        prior: Name of the prior the weights were trained on; empty = unknown.
        x_range: Trained range of every input feature; `None` = not declared.
        y_range: Trained range of every outcome dimension; `None` = not declared.
        num_context: Trained range of N.
        num_targets: Trained range of M, absorbing included; `None` = not declared.
        latents: Of a program, in the order of their locations; empty = none.
        outcome: Name of the program's outcome site.
        num_y_frequencies: Learned sines and cosines of the standardised outcome; 0 = none.
        x_loc: Location of every input feature, subtracted before it is embedded; `None` = 0.
        x_scale: Scale of every input feature; `None` = 1.
        y_loc: Location of every outcome dimension: embedded and predicted are (y - y_loc) / y_scale, so densities stay
            in the user's units; `None` = 0.
        y_scale: Scale of every outcome dimension; `None` = 1.
        evidence_rmse: Error of `log_evidence` as `measure_evidence_error` found it, nats; `None` = not measured.

    Raises:
        ValueError: If a size is no positive integer, `num_heads` does not divide `width`, the head is unknown, a range
            or a support is not ordered, or a number is not finite (a scale: not positive) in float32.
    """

    dim_x: int = 1
    dim_y: int | None = None
    buffer_size: int = 16
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 128
    embedding_width: int = 64
    num_frequencies: int = 32
    max_frequency: float = 32.0
    head: Literal["mixture", "gaussian"] = "mixture"
    head_width: int = 128
    num_components: int = 20
    sequential: bool = False
    prior: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    num_context: tuple[int, int] = (0, 128)
    num_targets: tuple[int, int] | None = None
    latents: tuple[Latent, ...] = ()
    outcome: str = "y"
    num_y_frequencies: int = 0
    x_loc: tuple[float, ...] | None = None
    x_scale: tuple[float, ...] | None = None
    y_loc: tuple[float, ...] | None = None
    y_scale: tuple[float, ...] | None = None
    evidence_rmse: float | None = None

    def __post_init__(self):
        sizes = ["dim_x", "buffer_size", "width", "num_layers", "num_heads", "mlp_width", "embedding_width"]
        sizes += ["head_width", "num_components"] + (["dim_y"] if self.dim_y is not None else [])
        for name, least in (dict.fromkeys(sizes, 1) | {"num_frequencies": 0, "num_y_frequencies": 0}).items():
            value = getattr(self, name)
            if not _is_integer(value) or not least <= value:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
            if value > LARGEST_SIZE:
                raise ValueError(f"{name} must be at most {LARGEST_SIZE}; got {value!r}")
        if not _is_number(self.max_frequency) or self.max_frequency <= 0:
            raise ValueError(f"max_frequency must be a positive number; got {self.max_frequency!r}")
        for name in ("prior", "outcome"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a string; got {getattr(self, name)!r}")
        if not isinstance(self.sequential, bool):
            raise ValueError(f"sequential must be True or False; got {self.sequential!r}")
        if self.head not in ("mixture", "gaussian"):
            raise ValueError(f"head must be 'mixture' or 'gaussian'; got {self.head!r}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads = {self.num_heads}; got {self.width}")
        self._check_ranges()
        for axis, dim in {"x": self.dim_x, "y": self.dim_y or 1}.items():
            names = (f"{axis}_loc", f"{axis}_scale")
            _check_standardisation(names, getattr(self, names[0]), getattr(self, names[1]), dim)
        if not isinstance(self.latents, tuple) or not all(isinstance(latent, Latent) for latent in self.latents):
            raise ValueError(f"latents must be a tuple of Latent; got {self.latents!r}")
        for latent in self.latents:
            _check_latent(latent)
        names = [latent.name for latent in self.latents]
        if len(set(names)) < len(names):
            raise ValueError(f"latents must have different names; got {names}")
        if self.num_latents > LARGEST_SIZE:
            raise ValueError(f"latents must hold at most {LARGEST_SIZE} numbers; got {self.num_latents}")
        error = self.evidence_rmse
        if error is not None and not (_is_number(error) and error >= 0):
            raise ValueError(f"evidence_rmse must be a number >= 0, or be None; got {error!r}")

    def _check_ranges(self) -> None:
        for name in ("x_range", "y_range", "num_context", "num_targets"):
            value = getattr(self, name)
            if value is None and name != "num_context":
                continue
            counts = name.startswith("num")
            of_kind = _is_integer if counts else _is_number
            pair = isinstance(value, tuple) and len(value) == 2 and all(of_kind(end) for end in value)
            least = 0 if name == "num_context" else 1 if counts else -math.inf
            if not pair or not least <= value[0] <= value[1] or (name == "y_range" and value[0] == value[1]):
                rule = f"integers, {least} <= low <= high" if counts else "finite numbers, low <= high"
                rule = "finite numbers, low < high" if name == "y_range" else rule
                raise ValueError(f"{name} must be a pair (low, high) of {rule}; got {value!r}")

    @property
    def num_latents(self) -> int:
        """Latent locations P."""
        return sum(latent.size for latent in self.latents)

    def squeeze_outcome(self, y: Tensor) -> Tensor:
        """Outcomes `(*batch, T, D_y)` as users have them: `(*batch, T)` for a scalar outcome."""
        return y.squeeze(-1) if self.dim_y is None else y

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """The configuration that `to_json` wrote.

        Raises:
            ValueError: If the text is no JSON object with this class's fields, all of them but those `ADDED_LATER`, or
                a value breaks its rule.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"config.json must be an object; got {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        for added in ADDED_LATER:
            if not set(added) & set(values):
                values |= added
        _check_fields("config.json", set(values), known)
        if not isinstance(values["latents"], list | tuple):
            raise ValueError(f"latents must be a list; got {values['latents']!r}")
        return ModelConfig(**_tuples(values) | {"latents": tuple(_read_latent(each) for each in values["latents"])})


LARGEST_SIZE = 2**16  # far above what is trained; products of two cannot overflow when shapes are computed
# What files written before a field existed lack, all of a group or nothing, and the values that held then.
ADDED_LATER: tuple[dict[str, Any], ...] = (
    {
        "latents": (),
        "outcome": "y",
        "num_y_frequencies": 0,
        "x_loc": None,
        "x_scale": None,
        "y_loc": None,
        "y_scale": None,
        "evidence_rmse": None,
    },
)


def _read_latent(values: object) -> Latent:
    if not isinstance(values, dict):
        raise ValueError(f"each of latents must be an object; got {values!r}")
    _check_fields("each of latents", set(values), {field.name for field in dataclasses.fields(Latent)})
    return Latent(**_tuples(values))


def _check_fields(what: str, got: set[str], known: set[str]) -> None:
    """Raises ValueError unless all known fields are there, and no other."""
    if got != known:
        raise ValueError(
            f"{what} must have the fields {sorted(known)}; missing are {sorted(known - got)}, unknown are "
            f"{sorted(got - known)}"
        )


def _check_latent(latent: Latent) -> None:
    """Raises ValueError if a latent's support or standardisation is impossible."""
    name, bounds = latent.name, (latent.lower, latent.upper)
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a latent must be a string; got {name!r}")
    if not isinstance(latent.simplex, bool):
        raise ValueError(f"simplex of latent {name!r} must be True or False; got {latent.simplex!r}")
    sizes = isinstance(latent.shape, tuple) and all(_is_integer(n) and 1 <= n <= LARGEST_SIZE for n in latent.shape)
    if not sizes or (latent.simplex and (not latent.shape or latent.shape[-1] < 2)):
        rule = "positive integers, the last at least 2 for a simplex" if latent.simplex else "positive integers"
        raise ValueError(f"shape of latent {name!r} must be a tuple of {rule}; got {latent.shape!r}")
    if not all(end is None or _is_number(end) for end in bounds) or (None not in bounds and not bounds[0] < bounds[1]):
        raise ValueError(f"lower and upper of latent {name!r} must be finite, lower < upper, or None; got {bounds}")
    names = (f"loc of latent {name!r}", f"scale of latent {name!r}")
    _check_standardisation(names, latent.loc, latent.scale, latent.size)


def _check_standardisation(names: tuple[str, str], loc: object, scale: object, dim: int) -> None:
    """Raises ValueError unless both are None, or `dim` numbers that are finite, scales positive, in float32."""
    if (loc is None) != (scale is None):
        raise ValueError(f"{names[0]} and {names[1]} must both be given or both be None; got {loc!r} and {scale!r}")
    for name, value, low in ((names[0], loc, -math.inf), (names[1], scale, torch.finfo(torch.float32).tiny)):
        fits = isinstance(value, tuple) and len(value) == dim and all(_is_number(v) and v >= low for v in value)
        if value is not None and not fits:
            rule = "positive numbers" if value is scale else "finite numbers"
            raise ValueError(f"{name} must hold {dim} {rule}, or be None; got {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether a value is a number that is finite in float32."""
    of_kind = isinstance(value, int | float) and not isinstance(value, bool)
    return of_kind and abs(value) <= torch.finfo(torch.float32).max


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
