"""Notes on the values of real outcomes that are not as those of real numbers: whole numbers, and spikes."""

from torch import Tensor

from pyro_arbuf.programs.kinds import REAL
from pyro_arbuf.programs.outcome import ProgramOutcome

LARGEST_WHOLE = 2.0**20  # beyond it float32 has few other numbers
SPIKE = 0.02  # of the values of an outcome are equal
MANY = 50  # different values are more than those of a scale of ratings
FEW, HIGHER = 9, 10  # so many values may be spikes, as many times as common as the next one: rounded numbers are not


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
        spikes = [spike for column in values.flatten(0, 1).unbind(-1) if (spike := _spike(column)) is not None]
        if spikes:
            value, share = spikes[0]
            notes.append(
                f"{share:.0%} of the simulated values of {site.name!r} equal {value:.6g}, and a density has no such "
                "spike: its height there means nothing; draw a category before it that says where this happens, "
                f"outcome=('cut', {site.name!r}), and there a value of any continuous law."
            )
    return notes


def _spike(values: Tensor) -> tuple[float, float] | None:
    """The value that comes far more often than others among `(n,)`, and its share of them; `None` = no such one."""
    found, counts = values.unique(return_counts=True)
    most, rest = int(counts.max()), counts.sort(descending=True).values[FEW : FEW + 1]
    if len(found) < MANY or most < SPIKE * len(values) or most < HIGHER * int(rest):
        return None
    return found[counts.argmax()].item() + 0.0, most / len(values)  # never -0
