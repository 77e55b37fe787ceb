"""The command line, `pyro-arbuf`."""

from pyro_arbuf.cli.commands import main

__all__ = ["main"]
