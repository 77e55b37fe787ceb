"""Progress bars, in terminals and notebooks, that TQDM_DISABLE switches off."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(items: Iterable | None = None, disable: bool | None = False, **options: Any) -> tqdm:
    """A tqdm bar with a default of ours for `disable`, which the environment variable TQDM_DISABLE overrides.

    tqdm reads the variable only where the argument is not given at all, and takes no notebook for a terminal.

    Args:
        items: What is iterated over.
        disable: `True` = never shown; `None` = shown only on a terminal and in a notebook.
        **options: Of tqdm.
    """
    if disable is not True and os.environ.get("TQDM_DISABLE"):
        disable = True
    if disable is None and "ipykernel" in sys.modules:
        disable = False
    return tqdm(items, disable=disable, **options)
