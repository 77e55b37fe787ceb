"""What a network is and what a context holds, in words."""

from collections.abc import Sequence

from pyro_arbuf.inference.trained_range import pairs_of
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.network.parts import Range

MOST_COLUMNS = 4  # whose ranges are shown


def describe_outcome(dim_y: int | None, outcomes: Sequence[str]) -> str:
    """An outcome in words: "a number", "one of 3 categories", "a vector of 2: a count, a number"."""
    words = ["a number" if kind == "real" else "a count" if kind == "count" else _choice(kind) for kind in outcomes]
    if dim_y is None:
        return words[0] if words else "a number"
    if len(set(words)) == 1:
        return f"a vector of {dim_y}, each {words[0]}"
    return ": ".join([f"a vector of {dim_y}", *([", ".join(words)] if words else [])])


def _choice(kind: str) -> str:
    return f"one of {outcome_of(kind).num_categories} categories"


def show_ranges(trained: Range | tuple[Range, ...] | None) -> str:
    """Trained ranges in words: "-2 to 2, 0 to 1"."""
    pairs = [] if trained is None else pairs_of(trained, 1)
    return ", ".join(f"{low:g} to {high:g}" for low, high in pairs) or "no declared range"


def describe_network(net: Network) -> dict[str, str]:
    """What a network takes and was trained on, by what it is."""
    config = net.config
    number = sum(weight.numel() for weight in net.parameters())
    weights = "trainable" if any(weight.requires_grad for weight in net.parameters()) else "frozen"
    lines = {
        "prior": config.prior or "not declared",
        "x": f"{config.dim_x} column{'s' * (config.dim_x > 1)}, {short_ranges(config.x_range)}",
        "y": f"{describe_outcome(config.dim_y, config.outcomes)}, {short_ranges(config.y_range)}",
        "observed": _counts(config.num_context),
        "targets": _counts(config.num_targets),
        "buffer": f"{config.buffer_size} slots",
        "weights": f"{number / 1e6:.2f} million, {weights}",
    }
    if config.architecture == "tnp-d-buffer":
        lines["buffer"] += ", added to a frozen set model, see pyro_arbuf.add_buffer"
    elif config.architecture != "buffer":
        lines["buffer"] = f"none like ours: the architecture is {config.architecture}, see pyro_arbuf.baselines"
    if config.latents:
        lines["latents"] = ", ".join(latent.name for latent in config.latents)
    if config.unit_map is not None:
        lines["units"] = f"the user's: {_units(config)}"
    return lines


def short_ranges(trained: Range | tuple[Range, ...] | None) -> str:
    """Trained ranges in words, of many columns the first ones alone."""
    pairs = [] if trained is None else pairs_of(trained, 1)
    if len(pairs) > MOST_COLUMNS:
        return f"{show_ranges(tuple(pairs[:MOST_COLUMNS]))} and {len(pairs) - MOST_COLUMNS} more"
    return show_ranges(trained)


def _counts(trained: tuple[int, int] | None) -> str:
    return "no declared range" if trained is None else f"{trained[0]} to {trained[1]} in training"


def _units(config: ModelConfig) -> str:
    """Location and scale of each axis that has some, of the first column."""
    axes = {"x": (config.user_x_loc, config.user_x_scale), "y": (config.user_y_loc, config.user_y_scale)}
    shown = [
        f"{axis} = {loc[0]:.5g} + {scale[0]:.5g} times its own" for axis, (loc, scale) in axes.items() if loc and scale
    ]
    return "; ".join(shown)
