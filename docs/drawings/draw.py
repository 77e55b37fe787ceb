"""Draws the pictures of who reads what: python docs/drawings/draw.py writes the SVG files beside it."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FOLDER = Path(__file__).parent
CONTEXT, BUFFER, TARGET, NEUTRAL = "#cfe3f5", "#fde2bd", "#d5ecd4", "#eeeeee"
INK, FAINT = "#222222", "#8a8a8a"
plt.rcParams.update({"svg.hashsalt": "drawings", "font.size": 12, "font.family": "DejaVu Sans"})


def canvas(width: float, height: float) -> Axes:
    """Axes of so many tenths of an inch, without frame."""
    _, axes = plt.subplots(figsize=(width / 10, height / 10))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    axes.figure.subplots_adjust(0, 0, 1, 1)
    return axes


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, height: float = 4.0) -> None:
    """A box with its lower left corner at (x, y)."""
    shape = "round,pad=0,rounding_size=0.6"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=colour, ec=INK, lw=1))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """An arrow from what reads to what is read."""
    style = f"arc3,rad={bend}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, connectionstyle=style, color=INK))


def label(axes: Axes, x: float, y: float, text: str, **options: object) -> None:
    """Words beside the drawing."""
    axes.text(x, y, text, **{"color": INK, "ha": "left", "va": "center"} | options)


def save(axes: Axes, name: str) -> None:
    """Writes a drawing, the same file on every run."""
    axes.figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    plt.close(axes.figure)


def draw_context() -> None:
    """Observations are encoded once; every draw and density reads all of them."""
    axes = canvas(52, 26)
    label(axes, 1, 24.3, "context: encoded once", weight="bold")
    axes.add_patch(Rectangle((1, 15.5), 50, 6.5, fc="white", ec=INK, lw=1))
    for i in range(5):
        box(axes, 2.2 + 9.7 * i, 16.8, 8.8, f"$x_{i + 1}, y_{i + 1}$", CONTEXT)
    for i, text in enumerate(("draw 1", "draw 2", "draw 3", "density")):
        box(axes, 1 + 12.9 * i, 4, 11.3, text, TARGET)
        arrow(axes, (6.6 + 12.9 * i, 8.2), (6.6 + 12.9 * i, 15.4))
    label(axes, 1, 1.6, "an arrow points to what is read", color=FAINT, size=11)
    save(axes, "context")


def draw_buffer() -> None:
    """Three targets: each reads the context and the values of those before it."""
    axes = canvas(52, 27)
    read = (("context", 1, 17, CONTEXT), ("value 1", 21, 12, BUFFER), ("value 2", 38, 12, BUFFER))
    for text, x, width, colour in read:
        box(axes, x, 18.5, width, text, colour)
    label(axes, 1, 25, "context", weight="bold")
    label(axes, 21, 25, "buffer: what was drawn so far", weight="bold")
    for i in range(3):
        box(axes, 2 + 17 * i, 4, 13, f"target {i + 1}", TARGET)
        for j in range(i + 1):
            end = read[j][1] + (2.5 + 6 * i if j == 0 else read[j][2] / 2)
            arrow(axes, (8.5 + 17 * i + 1.5 * (j - i / 2), 8.2), (end, 18.3))
    label(axes, 1, 1.6, "each target reads the context and the values before it", color=FAINT, size=11)
    save(axes, "buffer")


def draw_reads() -> None:
    """The table of who reads what."""
    axes = canvas(52, 34)
    columns = ("context", "value 1", "value 2", "value 3")
    rows = ("context", "target 1", "target 2", "target 3", "target 4")
    for j, name in enumerate(columns):
        label(axes, 17.5 + 9 * j, 30.5, name, ha="center")
    for i, name in enumerate(rows):
        y = 23.5 - 5.5 * i
        label(axes, 1, y + 2.2, name)
        for j in range(len(columns)):
            reads = j == 0 or (i > 0 and j < i)
            colour = (CONTEXT if j == 0 else BUFFER) if reads else "white"
            axes.add_patch(Rectangle((13.2 + 9 * j, y), 8.6, 4.5, fc=colour, ec="#bbbbbb", lw=0.8))
            label(axes, 17.5 + 9 * j, y + 2.2, "reads" if reads else "", ha="center", size=11)
    save(axes, "reads")


def draw_order() -> None:
    """Two orders of the same three targets, and what each conditions on."""
    axes = canvas(52, 30)
    for row, order in enumerate(((1, 2, 3), (3, 1, 2))):
        y = 19 - 15 * row
        label(axes, 1, y + 6.6, f"order {row + 1}", weight="bold")
        given = ""
        for k, target in enumerate(order):
            text = f"$p(y_{target}\\,|\\,{given}C)$"
            box(axes, 1 + 17.6 * k, y, 14.6, text, TARGET)
            given = f"y_{target}, {given}"
            if k:
                label(axes, 17.1 + 17.6 * (k - 1), y + 2, "$\\times$", ha="center")
    label(axes, 1, 1.2, "the same joint density for a Bayesian; nearly, for a network", color=FAINT, size=11)
    save(axes, "order")


def draw_absorption() -> None:
    """After K targets the buffered pairs join the context."""
    axes = canvas(52, 24)
    box(axes, 1, 16, 14, "context", CONTEXT)
    box(axes, 19, 16, 14, "K values", BUFFER)
    box(axes, 37, 16, 14, "targets 1 .. K", TARGET)
    label(axes, 1, 21.8, "first block", weight="bold")
    box(axes, 1, 4, 14, "context", CONTEXT)
    box(axes, 15.3, 4, 11, "K pairs", CONTEXT)
    box(axes, 37, 4, 14, "targets K+1 ..", TARGET)
    label(axes, 1, 9.8, "second block: the pairs joined the context", weight="bold")
    arrow(axes, (36.6, 18), (33.4, 18))
    arrow(axes, (36.6, 6), (26.7, 6))
    arrow(axes, (24, 15.6), (21, 11.6))
    save(axes, "absorption")


def draw_latents() -> None:
    """One network, three questions: parameters are extra prediction points."""
    axes = canvas(52, 32)
    rows = (
        ("posterior", "trials", CONTEXT, "parameters", TARGET),
        ("likelihood", "parameters", CONTEXT, "trials", TARGET),
        ("evidence", "nothing", NEUTRAL, "trials", TARGET),
    )
    label(axes, 15, 30, "given", color=FAINT, size=11)
    label(axes, 36, 30, "predicted", color=FAINT, size=11)
    for i, (name, given, given_colour, predicted, colour) in enumerate(rows):
        y = 22 - 9.5 * i
        label(axes, 1, y + 2, name, weight="bold")
        box(axes, 15, y, 14, given, given_colour)
        box(axes, 36, y, 14, predicted, colour)
        arrow(axes, (35.6, y + 2), (29.4, y + 2))
    save(axes, "latents")


def draw_live() -> None:
    """Where the context is made."""
    axes = canvas(52, 30)
    label(axes, 1, 28, "graph-free: made once, outside", weight="bold")
    box(axes, 1, 21, 13, "context", CONTEXT)
    for i in range(3):
        box(axes, 20 + 10.4 * i, 21, 9.4, f"step {i + 1}", TARGET)
    axes.add_patch(Rectangle((19, 20), 32.2, 6, fc="none", ec=FAINT, lw=0.8))
    arrow(axes, (18.8, 23), (14.4, 23))
    label(axes, 1, 14.5, "live: made in every step, from what is fitted", weight="bold")
    for i in range(3):
        box(axes, 1 + 17 * i, 7.5, 7.5, "context", CONTEXT)
        box(axes, 9.3 + 17 * i, 7.5, 7, f"step {i + 1}", TARGET)
    label(axes, 1, 3, "a gradient then costs several times more", color=FAINT, size=11)
    save(axes, "live")


if __name__ == "__main__":
    for draw in (draw_context, draw_buffer, draw_reads, draw_order, draw_absorption, draw_latents, draw_live):
        draw()
