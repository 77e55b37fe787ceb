"""Progress bars that TQDM_DISABLE switches off."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, disable: bool | None = False, **options: Any) -> tqdm:
    """A tqdm bar with a default of ours for `disable`, which the environment variable TQDM_DISABLE overrides.

    tqdm reads the variable only where the argument is not given at all.

    Args:
        items: What is iterated over.
        disable: `True` = never shown; `None` = shown only on a terminal.
        **options: Of tqdm.
    """
    if disable is not True and os.environ.get("TQDM_DISABLE"):
        disable = True
    return tqdm(items, disable=disable, **options)
