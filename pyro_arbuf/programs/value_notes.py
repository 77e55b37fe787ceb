"""Notes on the values of real outcomes that are not as those of real numbers: whole numbers, and spikes."""

from torch import Tensor

from pyro_arbuf.programs.kinds import REAL
from pyro_arbuf.programs.outcome import ProgramOutcome

LARGEST_WHOLE = 2.0**20  # beyond it float32 has few other numbers
SPIKE = 0.02  # of the values of an outcome that are equal: rounded ones are equal, too, but not so often


def value_notes(outcome: ProgramOutcome, y: Tensor) -> list[str]:
    """Notes on sites of outcomes `(B, n, D_y)` that are real numbers by their distribution, and not by their values.

    They are whole numbers, or one of them comes again and again.
    """
    notes, start = [], 0
    for site in outcome.sites:
        values = y[..., start : start + (site.size or 1)]
        start += site.size or 1
        if site.kind != REAL or bool((values == values[:1, :1]).all()):
            continue
        if bool((values == values.round()).all()) and bool((values.abs() < LARGEST_WHOLE).all()):
            notes.append(
                f"All simulated values of {site.name!r} are whole numbers, and its distribution says that they are "
                "real ones, so that the network learns a density with spikes; draw or record it as integers or "
                "booleans to have counts or categories, value.long() or value.bool()."
            )
            continue
        most = max((_most_common(column) for column in values.flatten(0, 1).unbind(-1)), key=lambda pair: pair[1])
        if SPIKE < most[1] < 1:
            notes.append(
                f"{most[1]:.0%} of the simulated values of {site.name!r} equal {most[0]:.6g}, and a density has no "
                "such spike: its height there means nothing; draw a category before it that says where this happens, "
                f"outcome=('cut', {site.name!r}), and there a value of any continuous law."
            )
    return notes


def _most_common(values: Tensor) -> tuple[float, float]:
    """The value that is most common among several `(n,)`, and its share of them."""
    found, counts = values.unique(return_counts=True)
    return found[counts.argmax()].item(), counts.max().item() / len(values)
