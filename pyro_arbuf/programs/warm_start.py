"""Where the training of a program begins: at the weights of a shipped network, in the layers that fit.

Attention that averages over trials and heads that say how sure they are serve one program as well as another, so that
minutes of training go into what is its own. What a network has learned of its inputs is taken over only where the
program is the same.

Deviation: the paper trains every network from random weights.
"""

from pathlib import Path

from pyro_arbuf.checkpoint import find_model, load, read_config
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig

AUTO = "auto"
OF_SETS, OF_SERIES, OF_REAL_SERIES = "ddm", "rescorla-wagner", "ar1"
SIZES = ("width", "num_layers", "num_heads", "mlp_width", "scaled_queries", "architecture")  # of blocks
OF_INPUTS = ("embedder.frequencies", "embedder.x_")


def start_of(config: ModelConfig, start_from: str | Path | None) -> str | Path | None:
    """The network whose weights a new one begins with; `None` = it begins with random ones.

    Args:
        config: Of the new network.
        start_from: "auto" = a shipped one of programs of the same kind, if its blocks are of the same sizes, and none
            for a program of one observation; or the name or folder of one; or `None`.

    Raises:
        ValueError: If a network that was named is not there, or its blocks are of other sizes.
    """
    if start_from is None:
        return None
    if start_from == AUTO and config.one_observation:
        return None  # from another network it ends up worse, see models/RECIPE.md
    automatic = OF_SETS
    if config.lag_column is not None:
        automatic = OF_REAL_SERIES if config.all_real else OF_SERIES
    name = automatic if start_from == AUTO else start_from
    other = read_config(find_model(name))
    if _sizes(other) == _sizes(config):
        return name
    if start_from == AUTO:
        return None
    raise ValueError(
        f"start_from must name a network with the sizes {_sizes(config)}; got {str(name)!r} with {_sizes(other)}; "
        "choose the same sizes, or start_from=None"
    )


def copy_weights(model: ArBufferModel, start: str | Path) -> None:
    """Gives a network the weights of another one, where names and shapes are the same.

    Those that read inputs only where both are of one prior or program, as inputs of another mean something else.
    """
    other, own = load(start), model.state_dict()
    left = () if other.config.prior == model.config.prior else OF_INPUTS
    fitting = {n: v for n, v in other.state_dict().items() if n in own and own[n].shape == v.shape}
    model.load_state_dict({n: v for n, v in fitting.items() if not n.startswith(left)}, strict=False)


def _sizes(config: ModelConfig) -> dict[str, int | bool | None]:
    """What blocks of two networks must have in common."""
    return {name: getattr(config, name) for name in SIZES} | {"lags": config.lag_column is not None}
