"""The commands of `pyro-arbuf` and its entry point."""

import tyro

from pyro_arbuf.cli.evaluate import evaluate
from pyro_arbuf.cli.models import models
from pyro_arbuf.cli.train import train


def main() -> None:
    """Entry point of `pyro-arbuf`."""
    commands = {"train": train, "evaluate": evaluate, "models": models}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="pyro-arbuf")
    except ValueError as error:  # a user's mistake: its message says what to do
        raise SystemExit(f"pyro-arbuf: {error}") from error
