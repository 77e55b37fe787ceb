"""The commands of `pyro-arbuf` and its entry point."""

import sys
import warnings

import tyro

from pyro_arbuf.cli.card import card
from pyro_arbuf.cli.check import check
from pyro_arbuf.cli.evaluate import evaluate
from pyro_arbuf.cli.models import models
from pyro_arbuf.cli.predict import predict
from pyro_arbuf.cli.train import train

COMMANDS = {"predict": predict, "models": models, "check": check, "train": train, "evaluate": evaluate, "card": card}
DESCRIPTION = """Joint predictions from transformer probabilistic models.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 = done;
1 = a mistake in what was given, or a check that failed, with the reason on
stderr; 2 = wrong use of the command line."""


def main() -> None:
    """Entry point of `pyro-arbuf`."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="pyro-arbuf", description=DESCRIPTION)
        except ValueError as error:  # a user's mistake: its message says what to do
            raise SystemExit(f"pyro-arbuf: {error}") from error


def _show_warning(message: Warning | str, *_: object) -> None:
    """Shows a warning without the line of our code that it comes from, which says nothing to a user."""
    print(f"pyro-arbuf: warning: {message}", file=sys.stderr)
