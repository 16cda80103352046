"""What a comparison of pre-trainings found, in one picture: a panel for each share of the labels.

Arms called LINE@NUMBER lie on a line over that number (steps, subjects, whatever was varied), with what bears no
number, as from scratch, level behind them. Without such names every arm is a point with an interval in its own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from tomoglot.serve.page import INK, LINES, MUTED, RULE, plain, png_of
from tomoglot.studies.atomic import write_bytes
from tomoglot.tasks.task import Score, TaskResult

PANEL = 4.4


def draw_compared(result: TaskResult, path: Path) -> Path:
    """Write the picture as a PNG."""
    write_bytes(path, png_of(compared_figure(result)))
    return path


def place_of(arm: str) -> tuple[str, float | None]:
    """Line and place of an arm: `mae@500` is (mae, 500); an arm without a number has no place."""
    line, at, number = arm.rpartition("@")
    try:
        place = float(number) if at and line else None
    except ValueError:
        place = None
    return (arm, None) if place is None or place <= 0 else (line, place)


def compared_figure(result: TaskResult) -> Figure:
    """The scores of the first measure, on which arms were tested."""
    first = result.scores[0]
    measure = first.name.partition(",")[0]
    scores = [s for s in result.scores if s.metric == first.metric and s.name.partition(",")[0] == measure]
    shares = list(dict.fromkeys(score.name for score in scores))
    along = any(place_of(score.arm)[1] is not None for score in scores)
    arms = list(dict.fromkeys(score.arm for score in scores))
    size = (PANEL * len(shares) + (1.4 if along else 0.6), 3.6 if along else 1.1 + 0.3 * len(arms))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(shares), squeeze=False, sharey=True, sharex=True)[0]
    kind = "SIMULATED data. " if result.simulated else ""
    figure.supxlabel(f"{kind}Bars: 95 % over subjects, who were scored by every arm.", fontsize=9, color=MUTED)
    for axes, share in zip(panels, shares, strict=True):
        its = [score for score in scores if score.name == share]
        (_lines if along else _rows)(axes, its)
        axes.set_title(share, loc="left", fontsize=9.5, color=INK)
        label = f"{first.metric.replace('_', ' ')} ({its[0].subjects:,} subjects)"
        if along and axes is panels[0]:
            axes.set_ylabel(label, color=MUTED, fontsize=9)
        elif not along:
            axes.set_xlabel(label, color=MUTED, fontsize=9)
        axes.grid(color=RULE, linewidth=0.5, axis="y" if along else "x")
        axes.set_axisbelow(True)
        plain(axes)
    if along:  # Outside: within a panel it lay over the bars.
        lines = panels[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _lines(axes: Any, scores: Sequence[Score]) -> None:
    """Values over places; level lines, with their intervals as bands, for arms without one."""
    found = [(place_of(score.arm), score) for score in scores]
    names = list(dict.fromkeys(line for (line, _), _ in found))
    for at, name in enumerate(names):
        colour = LINES[at % len(LINES)]
        its = sorted(
            ((place, score) for (line, place), score in found if line == name and place is not None),
            key=lambda pair: pair[0],
        )
        for (line, place), score in found:
            if line == name and place is None:
                axes.axhspan(score.low, score.high, color=colour, alpha=0.12, linewidth=0)
                axes.axhline(score.value, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
        if places := [place for place, _ in its]:
            axes.vlines(places, [s.low for _, s in its], [s.high for _, s in its], color=colour, alpha=0.55)
            values = [score.value for _, score in its]
            axes.plot(places, values, "o-", color=colour, markersize=5, markeredgecolor="white", label=name)
    axes.set_xscale("log")
    axes.set_xticks(sorted({place for (_, place), _ in found if place is not None}))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _rows(axes: Any, scores: Sequence[Score]) -> None:
    """A row an arm, in the order of the comparison."""
    for at, score in enumerate(scores):
        colour = LINES[at % len(LINES)]
        axes.plot([score.low, score.high], [at, at], color=colour, linewidth=2.0, solid_capstyle="round", alpha=0.55)
        axes.plot([score.value], [at], "o", color=colour, markersize=5, markeredgecolor="white")
    axes.set_yticks(range(len(scores)), [score.arm for score in scores])
    axes.set_ylim(len(scores) - 0.4, -0.6)
