"""What each subset of the sequences is worth, in one picture: dots say what was read, a point and a line the score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tomoglot.serve.page import ACCENT, INK, MUTED, RULE, Picture, draw, plain, png_of
from tomoglot.studies.atomic import write_bytes
from tomoglot.tasks.task import SubsetScore, TaskResult

WORST = "#a63d57"
LOWER_IS_BETTER = frozenset({"hd95_mm", "brier", "calibration_error", "false_positive_ml"})


def draw_subsets(result: TaskResult, path: Path) -> Path:
    """Write the picture as a PNG.

    Raises:
        ValueError: the result was not scored by subsets.
    """
    if not result.subsets:
        raise ValueError(f"{result.task} was not scored by subsets of the sequences")
    write_bytes(path, png_of(subsets_figure(result)))
    return path


def subsets_picture(result: TaskResult) -> Picture | None:
    """The picture for a page, or None where there are no subsets."""
    if not result.subsets:
        return None
    worst = worst_subset(result.subsets)
    metric = worst.score.metric.replace("_", " ")
    return draw(
        subsets_figure(result),
        f"{metric} for each of {len(result.subsets)} subsets of the sequences, with 95 % intervals; mean "
        f"{mean_score(result.subsets):.3f}, worst {worst.score.value:.3f} with {' + '.join(worst.sequences)} alone",
    )


def ordered(subsets: tuple[SubsetScore, ...]) -> list[SubsetScore]:
    """By size, and the best first within a size."""
    return sorted(subsets, key=lambda row: (len(row.sequences), _badness(row), row.sequences))


def worst_subset(subsets: tuple[SubsetScore, ...]) -> SubsetScore:
    """The subset with the worst score."""
    return max(subsets, key=_badness)


def mean_score(subsets: tuple[SubsetScore, ...]) -> float:
    """Mean over subsets, each counting once."""
    return float(np.mean([row.score.value for row in subsets]))


def subsets_figure(result: TaskResult) -> Figure:
    """A row a subset: on the left a column a sequence, a dot where it was read; on the right the score."""
    rows, worst = ordered(result.subsets), worst_subset(result.subsets)
    names = sorted({name for row in rows for name in row.sequences})
    height = 0.24 if len(rows) <= 20 else 0.17
    size = (2.0 + 0.42 * len(names) + 4.2, 1.2 + height * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    matrix, scores = figure.subplots(1, 2, sharey=True, width_ratios=(0.42 * len(names) + 0.6, 4.2))
    for at, row in enumerate(rows):
        colour = WORST if row is worst else ACCENT
        columns = [names.index(name) for name in row.sequences]
        absent = [column for column in range(len(names)) if column not in columns]
        matrix.plot(absent, [at] * len(absent), "o", color=RULE, markersize=4)
        matrix.plot([min(columns), max(columns)], [at, at], color=colour, linewidth=1.2)
        matrix.plot(columns, [at] * len(columns), "o", color=colour, markersize=5.5)
        scores.plot([row.score.low, row.score.high], [at, at], color=colour, linewidth=1.6, alpha=0.55)
        scores.plot([row.score.value], [at], "o", color=colour, markersize=4.5, markeredgecolor="white")
    # A line between sizes: what one more sequence brings is read across it.
    for at in range(1, len(rows)):
        if len(rows[at].sequences) > len(rows[at - 1].sequences):
            for axes in (matrix, scores):
                axes.axhline(at - 0.5, color=RULE, linewidth=0.7)
    mean = mean_score(result.subsets)
    scores.axvline(mean, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    scores.set_title(
        f"mean {mean:.3f} (dashed), worst {worst.score.value:.3f} (red)", loc="right", fontsize=9, color=INK
    )
    matrix.set_xticks(range(len(names)), names, rotation=45 if len(names) > 3 else 0)
    matrix.set_xlim(-0.6, len(names) - 0.4)
    matrix.set_ylim(len(rows) - 0.4, -0.6)
    matrix.xaxis.tick_top()
    matrix.set_yticks([])
    metric = worst.score.metric.replace("_", " ")
    kind = "simulated, " if result.simulated else ""
    scores.set_xlabel(f"{worst.score.name} {metric} ({kind}95 % interval over subjects)", color=MUTED, fontsize=9)
    scores.grid(axis="x", color=RULE, linewidth=0.5)
    for axes in (matrix, scores):
        plain(axes)
        for side in ("left", *(("bottom",) if axes is matrix else ())):
            axes.spines[side].set_visible(False)
    return figure


def _badness(row: SubsetScore) -> float:
    return row.score.value if row.score.metric in LOWER_IS_BETTER else -row.score.value
