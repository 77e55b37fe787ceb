"""`pyro-arbuf models`."""

from pyro_arbuf.checkpoint import models_folder, read_config, shipped_models


def models() -> None:
    """Lists the shipped models."""
    print(f"shipped in {models_folder()}:")
    for name in shipped_models():
        config = read_config(models_folder() / name)
        ranges = f"x in {config.x_range}, N in {config.num_context}, K = {config.buffer_size}"
        print(f"  {name:14s} prior {config.prior}, {ranges}")
