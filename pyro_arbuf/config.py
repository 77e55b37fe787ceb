"""ModelConfig: everything that defines a model but its weights, and the ranges it was trained on."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pyro_arbuf.latents import Latent


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
        ValueError: If a size is no positive integer, `num_heads` does not divide `width`, or the head is unknown.
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
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
        if not isinstance(self.max_frequency, int | float) or self.max_frequency <= 0:
            raise ValueError(f"max_frequency must be a positive number; got {self.max_frequency!r}")
        for name in ("x_range", "y_range", "num_context", "num_targets"):
            value = getattr(self, name)
            pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
            if not (pair or (value is None and name != "num_context")):
                raise ValueError(f"{name} must be a pair (low, high); got {value!r}")
        dims = {"x_loc": self.dim_x, "x_scale": self.dim_x, "y_loc": self.dim_y or 1, "y_scale": self.dim_y or 1}
        for name, dim in dims.items():
            value = getattr(self, name)
            if value is not None and (len(value) != dim or (name.endswith("scale") and min(value) <= 0)):
                rule = "positive numbers" if name.endswith("scale") else "numbers"
                raise ValueError(f"{name} must hold {dim} {rule}, or be None; got {value!r}")
        names = [latent.name for latent in self.latents]
        if len(set(names)) < len(names):
            raise ValueError(f"latents must have different names; got {names}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads = {self.num_heads}; got {self.width}")
        if self.head not in ("mixture", "gaussian"):
            raise ValueError(f"head must be 'mixture' or 'gaussian'; got {self.head!r}")

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
            ValueError: If the text is no JSON object with this class's fields.
        """
        values = json.loads(text)
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        if not isinstance(values, dict) or not set(values) <= known:
            got = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"config.json must be an object with the fields {sorted(known)}; got {got}")
        latents = tuple(Latent(**_tuples(latent)) for latent in values.pop("latents", ()))
        return ModelConfig(**_tuples(values), latents=latents)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
