"""Errors of cells against their sizes in one picture: points with intervals, and the fitted law as a line.

A row of two panels for each measure: against training subjects, a colour for each encoder; and against the encoder's
parameters, a colour for each number of subjects. All axes are logarithmic, on which the law is a straight line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tomoglot.serve.page import INK, LINES, MUTED, RULE, plain, png_of
from tomoglot.studies.atomic import write_bytes
from tomoglot.tasks.scores.held_out import Cell, names_of, title_of
from tomoglot.tasks.scores.power_law import PowerLaw

Size = Literal["subjects", "parameters"]
NARROW = 2.0
LABELS = {"subjects": "training subjects", "parameters": "parameters of the encoder"}


def draw_scaling(cells: Sequence[Cell], laws: Sequence[PowerLaw], path: Path, *, simulated: bool) -> Path:
    """Write the picture as a PNG."""
    write_bytes(path, png_of(scaling_figure(cells, laws, simulated=simulated)))
    return path


def scaling_figure(cells: Sequence[Cell], laws: Sequence[PowerLaw], *, simulated: bool) -> Figure:
    """Every measure of the cells; one that has no law is drawn without lines."""
    fitted = {law.measure: law for law in laws}
    names = names_of(cells)
    figure = Figure(figsize=(9.6, 3.9 * len(names) + 0.3), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    for (left, right), name in zip(grid, names, strict=True):
        law = fitted.get(title_of(name))
        _draw(left, cells, name, law, x="subjects", by="parameters")
        _draw(right, cells, name, law, x="parameters", by="subjects")
    kind = "SIMULATED data. " if simulated else ""
    figure.supxlabel(f"{kind}Bars: 95 % over held-out subjects. Lines: the fitted power law.", fontsize=9, color=MUTED)
    return figure


def _draw(axes: Any, cells: Sequence[Cell], name: str, law: PowerLaw | None, *, x: Size, by: Size) -> None:
    shown = sorted({getattr(cell, by) for cell in cells})
    for at, shared in enumerate(shown):
        its = [cell for cell in cells if getattr(cell, by) == shared]
        colour, places = LINES[at % len(LINES)], [float(getattr(cell, x)) for cell in its]
        measures = [cell.measures[name] for cell in its]
        axes.vlines(places, [m.low for m in measures], [m.high for m in measures], color=colour, alpha=0.55)
        values = [m.value for m in measures]
        axes.plot(places, values, "o", color=colour, markersize=5, markeredgecolor="white", label=f"{shared:,}")
        if law is not None and len(set(places)) > 1:
            along = np.geomspace(min(places), max(places), 40)
            still = np.full_like(along, shared)
            line = law.at(along, still) if x == "subjects" else law.at(still, along)
            axes.plot(along, line, color=colour, linewidth=1.2)
    exponent = None if law is None else law.alpha if x == "subjects" else law.beta
    axes.set_title("no exponent" if exponent is None else f"exponent {exponent}", loc="left", fontsize=9.5, color=INK)
    # Beside the panel: within it, a column of numbers met the bars of the largest cell.
    axes.legend(
        title=by,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        labelcolor=INK,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
    axes.set_xlabel(LABELS[x], color=MUTED, fontsize=9)
    axes.set_ylabel(f"held-out {title_of(name)}", color=MUTED, fontsize=9)
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    shown_values = [end for cell in cells for end in (cell.measures[name].low, cell.measures[name].high)]
    _scale(axes, sorted({float(getattr(cell, x)) for cell in cells}), spread=max(shown_values) / min(shown_values))
    plain(axes)


def _scale(axes: Any, places: list[float], *, spread: float) -> None:
    """Logarithmic axes whose ticks stand where the cells are; a range below ten has no two powers of ten to label.

    `spread` is the highest value over the lowest: a narrow range is cut in equal steps.
    """
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    wide = LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0))
    axes.yaxis.set_major_locator(wide if spread > NARROW else MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
