"""ModelConfig: everything that defines a model but its weights, in five parts.

What is built (`Architecture`), in which units its numbers are (`Units`), what it was trained on (`Trained`), what was
found out about it (`Measured`) and in which units its user speaks (`UserUnits`). config.json has the same five parts;
older files, which had four or none, are read too.

Deviation: by default a network is smaller than the paper's (width 128, 6 layers, MLPs of 256), as ours are trained on
one CPU core.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.network.outcomes import Real
from pyro_arbuf.network.parts import Architecture, Measured, Trained, Units
from pyro_arbuf.network.user_units import UserUnits

PARTS: dict[str, type] = {
    "architecture": Architecture,
    "units": Units,
    "trained": Trained,
    "measured": Measured,
    "user_units": UserUnits,
}
PARTS_ADDED_LATER = {"user_units"}


@dataclass(frozen=True)
class ModelConfig(UserUnits, Measured, Trained, Units, Architecture):
    """Everything that defines a model but its weights; saved as config.json.

    Its fields are those of its parts, `Architecture`, `Units`, `Trained`, `Measured` and `UserUnits`, which explain
    them.

    Raises:
        ValueError: If a size is no positive integer, `num_heads` does not divide `width`, the head is unknown, a range
            or a support is not ordered, or a number is not finite (a scale: not positive) in float32.
    """

    def __post_init__(self):
        self._check_architecture()
        dims = (self.dim_x, self.dim_y or 1)
        self._check_units(*dims)
        if self.missing_x and self.x_loc is not None:
            raise ValueError(
                f"x_loc and x_scale must be None where inputs='rows', which have free columns; got x_loc {self.x_loc}; "
                "standardise tables by their contexts"
            )
        if self.y_scale_weight is not None and any(self.y_loc or ()):
            raise ValueError(f"y_loc must be 0 where contexts standardise outcomes (y_scale_weight); got {self.y_loc}")
        if self.y_scale_weight is not None and (self.missing_x or self.latents or not self.all_real):
            raise ValueError(
                "y_scale_weight is for real outcomes at inputs='features', without latents; got inputs="
                f"{self.inputs!r}, latents {[latent.name for latent in self.latents]} and outcomes {self.outcomes}"
            )
        self._check_trained(*dims)
        self._check_measured()
        self._check_user_units(self.dim_x, [isinstance(kind, Real) for kind in self.kinds])
        self._check_fineness(self.y_loc, self.y_scale)

    @property
    def standardised_by_context(self) -> bool:
        """Whether a context standardises its outcomes, and of tables their inputs too."""
        return self.missing_x or self.y_scale_weight is not None

    @property
    def one_observation(self) -> bool:
        """Whether it is of a program whose data sets are one observation each."""
        return self.num_context[1] == 1 and not self.dependent

    @property
    def context_scale(self) -> tuple[tuple[float, ...], float]:
        """The network's own scale of outcomes and its weight, where contexts standardise outcomes."""
        assert self.y_scale is not None and self.y_scale_weight is not None
        return self.y_scale, self.y_scale_weight

    def to_json(self) -> str:
        """The configuration as JSON text, in its five parts."""
        values = dataclasses.asdict(self)
        return json.dumps(
            {part: {name: values[name] for name in names_of(kind)} for part, kind in PARTS.items()}, indent=2
        )

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """The configuration that `to_json` wrote, now or before there were parts.

        Raises:
            ValueError: If the text is no JSON object with this class's fields, all of them but those `ADDED_LATER`, or
                a value breaks its rule.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"config.json must be an object; got {type(values).__name__}")
        if any(isinstance(values.get(part), dict) for part in PARTS):  # "architecture" is the name of a field, too
            values = _joined(values)
        for added in ADDED_LATER:
            if not set(added) & set(values):
                values |= added
        _check_fields("config.json", set(values), set(names_of(ModelConfig)))
        if not isinstance(values["latents"], list | tuple):
            raise ValueError(f"latents must be a list; got {values['latents']!r}")
        fields = _tuples(values)
        fields["latents"] = tuple(_read_latent(each) for each in values["latents"])
        return ModelConfig(**fields)


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
    {"outcomes": (), "chained": False},
    {"dependent": False},
    {"lag_column": None},
    {"num_traces": 0},
    {"user_x_loc": None, "user_x_scale": None, "user_y_loc": None, "user_y_scale": None, "user_dates": None},
    {
        "inputs": "features",
        "column_width": 32,
        "column_heads": 2,
        "num_inducing": 16,
        "num_cls": 2,
        "row_layers": 2,
        "scaled_queries": False,
    },
    {"y_scale_weight": None, "x_spacing": None},
    {"architecture": "buffer"},
    {"observation": None, "ordered_latents": False},
    {"adapter_rank": 8, "gated_read": False},
    {"slot_positions": "learned"},
    {"evidence_trials": None},
    {"user_durations": None},
)


def names_of(kind: type) -> list[str]:
    """Names of a dataclass's fields, in their order."""
    return [field.name for field in dataclasses.fields(kind)]


def _joined(parts: dict[str, Any]) -> dict[str, Any]:
    """The fields of all parts of a config.json."""
    _check_fields("config.json", set(parts) | PARTS_ADDED_LATER, set(PARTS))
    values: dict[str, Any] = {}
    for part, kind in PARTS.items():
        if part in PARTS_ADDED_LATER - set(parts):
            continue
        if not isinstance(parts[part], dict):
            raise ValueError(f"{part} in config.json must be an object; got {parts[part]!r}")
        foreign = set(parts[part]) - set(names_of(kind))
        if foreign:
            raise ValueError(f"{part} in config.json must have the fields {names_of(kind)}; got {sorted(foreign)}")
        values |= parts[part]
    return values


def _read_latent(values: object) -> Latent:
    if not isinstance(values, dict):
        raise ValueError(f"each of latents must be an object; got {values!r}")
    _check_fields("each of latents", set(values), set(names_of(Latent)))
    return Latent(**_tuples(values))


def _check_fields(what: str, got: set[str], known: set[str]) -> None:
    """Raises ValueError unless all known fields are there, and no other."""
    if got != known:
        raise ValueError(
            f"{what} must have the fields {sorted(known)}; missing are {sorted(known - got)}, unknown are "
            f"{sorted(got - known)}"
        )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    def as_tuple(value: Any) -> Any:
        return tuple(as_tuple(each) for each in value) if isinstance(value, list) else value

    return {name: as_tuple(value) for name, value in values.items()}
