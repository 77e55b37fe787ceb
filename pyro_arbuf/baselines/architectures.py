"""The table of architectures: the class of each, and its configuration of about as many parameters as ours."""

from dataclasses import replace

import torch

from pyro_arbuf.baselines.added_buffer import TNPDBuffer
from pyro_arbuf.baselines.decoder import Decoder
from pyro_arbuf.baselines.latent_bottleneck import LBANP, LBANPBuffer
from pyro_arbuf.baselines.tnp_a import TNPA
from pyro_arbuf.baselines.tnp_d import TNPD
from pyro_arbuf.baselines.tnp_nd import TNPND
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.parts import ArchitectureName
from pyro_arbuf.network.positions import KINDS_OF

ARCHITECTURES: dict[str, type[ArBufferModel]] = {
    each.architecture: each for each in (ArBufferModel, TNPD, TNPA, TNPND, Decoder, LBANP, LBANPBuffer, TNPDBuffer)
}
TRAINED_ON_CHAINS = ("tnp-a", "tnp-nd")  # whose targets are the pairs of the buffer, all of them and no other


def make_model(config: ModelConfig) -> ArBufferModel:
    """The network that a configuration describes, of random weights.

    Args:
        config: Whose `architecture` says which class it is.

    Example:
        >>> type(make_model(ModelConfig(architecture="tnp-a"))).__name__
        'TNPA'
    """
    return ARCHITECTURES[config.architecture](config)


def described(config: ModelConfig) -> ArBufferModel:
    """The network that a configuration describes, of which no weight is allocated."""
    with torch.device("meta"):
        return make_model(config)


def num_parameters(config: ModelConfig) -> int:
    """Number of a network's weights."""
    return sum(weight.numel() for weight in described(config).parameters())


def matched_config(config: ModelConfig, architecture: ArchitectureName) -> ModelConfig:
    """The configuration of a baseline that has about as many parameters as a network with a buffer.

    What a baseline has besides its blocks is made up for by fewer of these.

    Args:
        config: Of the network with a buffer.
        architecture: Of the baseline.

    Returns:
        The same configuration with that architecture, and the number of layers that comes closest.

    Example:
        >>> config = matched_config(ModelConfig(num_layers=6), "lbanp")
        >>> config.architecture, config.num_layers
        ('lbanp', 4)
    """
    wanted = num_parameters(replace(config, architecture="buffer"))
    kind = config.slot_positions if config.slot_positions in KINDS_OF.get(architecture, ()) else "learned"
    like = replace(config, architecture=architecture, slot_positions=kind)
    candidates = [replace(like, num_layers=n + 1) for n in range(config.num_layers)]
    return min(candidates, key=lambda each: abs(num_parameters(each) - wanted))
